"""Who may call which operation of the panel: a table that is written by hand, and walked.

An operation without a row fails the build. What a row says is compared with what the guards say, and with what the
running panel answers to a member of each role and to a key that may nothing.
"""

import re
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from sqlalchemy import text

from quazzar.__main__ import main
from quazzar.cli.permissions import page
from quazzar.core.auth import Guard, scope_within
from quazzar.core.db import Database
from quazzar.panel.tenants.permissions import BUILT_IN
from tests.conftest import RunningApp
from tests.factories.accounts import MadeUser, bearer, headers_of, make_colleague, make_member
from tests.test_architecture import PUBLIC, operations

PAGE = Path(__file__).parents[2] / "docs" / "permissions.md"

ALL: Final = "owner admin operator viewer billing"
ANY: Final = f"{ALL} key"
READERS: Final = "owner admin operator viewer"
OPERATORS: Final = "owner admin operator"

TABLE: Final = {
    # Of a login, whatever the role; `key` is an API key that may nothing.
    "GET /api/auth/me": ANY,
    "POST /api/auth/change-password": ALL,
    "GET /api/auth/sessions": ALL,
    "DELETE /api/auth/sessions/{session_id}": ALL,
    "POST /api/auth/totp/enable": ALL,
    "POST /api/auth/totp/disable": ALL,
    "POST /api/auth/logout": ALL,
    "POST /api/auth/switch-tenant": ALL,
    "PUT /api/auth/profile": ALL,
    "GET /api/tenants": ALL,
    "POST /api/tenants": ALL,
    "GET /api/tenants/{tenant_id}": ALL,
    "PATCH /api/tenants/{tenant_id}": "owner admin",
    "DELETE /api/tenants/{tenant_id}": "owner",
    "GET /api/members": ALL,
    "POST /api/members": "owner admin",
    "GET /api/members/{member_id}": ALL,
    "PATCH /api/members/{member_id}": "owner admin",
    # Leaving is everybody's, and is not this: the id is none of theirs.
    "DELETE /api/members/{member_id}": "owner admin",
    "GET /api/roles": READERS,
    "POST /api/roles": "owner admin",
    "GET /api/roles/{role_id}": READERS,
    "PATCH /api/roles/{role_id}": "owner admin",
    "DELETE /api/roles/{role_id}": "owner admin",
    "GET /api/api-keys": READERS,
    "POST /api/api-keys": OPERATORS,
    "GET /api/api-keys/{key_id}": READERS,
    "DELETE /api/api-keys/{key_id}": OPERATORS,
    "GET /api/fleet/tokens": "owner admin",
    "POST /api/fleet/tokens": "owner admin",
    "GET /api/fleet/tokens/{token_id}": "owner admin",
    "DELETE /api/fleet/tokens/{token_id}": "owner admin",
    "GET /api/fleet/groups": READERS,
    "POST /api/fleet/groups": "owner admin",
    "GET /api/fleet/groups/{group_id}": READERS,
    "PATCH /api/fleet/groups/{group_id}": "owner admin",
    "DELETE /api/fleet/groups/{group_id}": "owner admin",
    "GET /api/fleet/instances": READERS,
    "GET /api/fleet/instances/{instance_id}": READERS,
    "PATCH /api/fleet/instances/{instance_id}": "owner admin",
    "DELETE /api/fleet/instances/{instance_id}": "owner admin",
    "POST /api/fleet/instances/{instance_id}/impersonate": "owner admin",
    "GET /api/fleet/summary": READERS,
    "GET /api/fleet/health": READERS,
    "GET /api/fleet/metrics/{instance_id}": READERS,
    "GET /api/fleet/instances/{instance_id}/metrics/history": READERS,
    "GET /api/fleet/commands": READERS,
    "POST /api/fleet/commands": OPERATORS,
    "GET /api/fleet/commands/{command_id}": READERS,
    "POST /api/fleet/commands/{command_id}/cancel": OPERATORS,
    "POST /api/fleet/commands/{command_id}/pause": OPERATORS,
    "POST /api/fleet/commands/{command_id}/resume": OPERATORS,
    "POST /api/fleet/commands/{command_id}/retry": OPERATORS,
    "GET /api/fleet/alerts": READERS,
    "GET /api/fleet/alerts/{alert_id}": READERS,
    "POST /api/fleet/alerts/{alert_id}/acknowledge": OPERATORS,
    "POST /api/fleet/alerts/{alert_id}/resolve": OPERATORS,
    "POST /api/fleet/alerts/{alert_id}/mute": OPERATORS,
    "GET /api/fleet/alert-rules": READERS,
    "POST /api/fleet/alert-rules": OPERATORS,
    "GET /api/fleet/alert-rules/{rule_id}": READERS,
    "PATCH /api/fleet/alert-rules/{rule_id}": OPERATORS,
    "DELETE /api/fleet/alert-rules/{rule_id}": OPERATORS,
    "GET /api/notification-channels": READERS,
    "POST /api/notification-channels": OPERATORS,
    "GET /api/notification-channels/{channel_id}": READERS,
    "PATCH /api/notification-channels/{channel_id}": OPERATORS,
    "DELETE /api/notification-channels/{channel_id}": OPERATORS,
    "POST /api/notification-channels/{channel_id}/rotate-secret": OPERATORS,
    "POST /api/notification-channels/{channel_id}/test": OPERATORS,
    "GET /api/jobs": READERS,
    "GET /api/jobs/{job_id}": READERS,
    "GET /api/jobs/{job_id}/logs": READERS,
    "POST /api/jobs/{job_id}/cancel": OPERATORS,
    "POST /api/jobs/{job_id}/retry": OPERATORS,
    "GET /api/events": READERS,
    "GET /api/audit": READERS,
    "GET /api/audit/export": READERS,
    "GET /api/audit/verify": READERS,
    "GET /api/webhooks": READERS,
    "POST /api/webhooks": "owner admin",
    "GET /api/webhooks/{webhook_id}": READERS,
    "PUT /api/webhooks/{webhook_id}": "owner admin",
    "DELETE /api/webhooks/{webhook_id}": "owner admin",
    "GET /api/webhooks/{webhook_id}/deliveries": READERS,
    "POST /api/webhooks/{webhook_id}/redeliver": "owner admin",
    "POST /api/webhooks/{webhook_id}/rotate-secret": "owner admin",
    "POST /api/webhooks/{webhook_id}/test": "owner admin",
    "GET /api/webhook-deliveries/{delivery_id}": READERS,
    "POST /api/webhook-deliveries/{delivery_id}/redeliver": "owner admin",
}

HANDLERS = dict(operations("panel"))
REFUSALS: Final = {"scope_missing", "session_required"}


def guard_of(name: str) -> Guard:
    (guard,) = [guard for guard in HANDLERS[name].resolve_guards() if isinstance(guard, Guard)]
    return guard


class Callers:
    """A member of each role in one tenant, and an API key without a permission."""

    def __init__(self, app: RunningApp) -> None:
        self.app = app
        self.members: dict[str, MadeUser] = {}
        self.headers: dict[str, dict[str, str]] = {}

    async def gather(self, client: httpx.AsyncClient) -> None:
        owner = await make_member(self.app.database)
        tenant_id = owner.tenant_id or ""
        for role in BUILT_IN:
            user = owner if role == "owner" else await make_colleague(self.app.database, tenant_id, role)
            self.members[role] = user
            self.headers[role] = await headers_of(client, user)
        body = {"name": "x", "permissions": ["fleet:read"]}
        made = (await client.post("/panel/api/api-keys", json=body, headers=self.headers["owner"])).json()
        async with self.app.database.begin(tenant=tenant_id) as session:
            await session.execute(text("UPDATE api_keys SET scopes = '{}' WHERE id = :id"), {"id": made["id"]})
        self.headers["key"] = bearer(made["key"])

    async def ask(self, client: httpx.AsyncClient, name: str, caller: str) -> httpx.Response:
        """Call the operation with ids that nothing has, and an empty body: who may gets as far as that."""
        method, _, path = name.partition(" ")
        headers = self.headers[caller]
        if path.endswith("/logout") and caller != "key":
            headers = await headers_of(client, self.members[caller])
        url = "/panel" + re.sub(r"\{\w+\}", "x_" + "a" * 26, path)
        body: Any = {} if method in {"POST", "PUT", "PATCH"} else None
        return await client.request(method, url, json=body, headers=headers)

    async def problems(self, client: httpx.AsyncClient, name: str) -> list[str]:
        """What the panel answers otherwise than the table says."""
        found = []
        for caller in self.headers:
            answer = await self.ask(client, name, caller)
            refused = answer.status_code == 403 and answer.json()["code"] in REFUSALS
            if refused == (caller in TABLE[name].split()) or answer.status_code in {401, 500}:
                found.append(f"{caller}: {answer.status_code} {answer.text[:200]}")
        return found


@pytest.fixture(scope="module")
async def callers(app: RunningApp, client: httpx.AsyncClient) -> Callers:
    callers = Callers(app)
    await callers.gather(client)
    return callers


def test_every_operation_has_a_row() -> None:
    assert TABLE.keys() == HANDLERS.keys() - PUBLIC["panel"]


@pytest.mark.parametrize("name", TABLE)
def test_the_guards_say_what_the_table_says(name: str) -> None:
    guard, allowed = guard_of(name), set(TABLE[name].split())
    if guard.scope is None:
        assert allowed <= set(ANY.split())
        assert "key" not in allowed or not guard.account_only
        return
    assert allowed == {role for role, granted in BUILT_IN.items() if scope_within(guard.scope, granted)}


@pytest.mark.parametrize("name", TABLE)
async def test_the_panel_does_what_the_table_says(callers: Callers, client: httpx.AsyncClient, name: str) -> None:
    assert await callers.problems(client, name) == []


@pytest.mark.parametrize("name", [name for name in TABLE if guard_of(name).scope or guard_of(name).account_only])
async def test_s05_a_guard_that_lets_everybody_in_is_noticed(
    callers: Callers, client: httpx.AsyncClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def let_in(*_: Any) -> None:
        return

    monkeypatch.setattr(Guard, "__call__", let_in)
    assert await callers.problems(client, name) != []


async def test_a_role_of_the_own_is_no_more_than_its_permissions(
    callers: Callers, client: httpx.AsyncClient, database: Database
) -> None:
    """For each permission a role of it alone: it opens the operations that ask for it, and what lies within, only."""
    asked = {guard_of(name).scope for name in TABLE} - {None}
    owner = callers.headers["owner"]
    tenant_id = callers.members["owner"].tenant_id or ""
    for permission in sorted(scope for scope in asked if scope is not None):
        body = {"name": permission, "permissions": [permission]}
        role = (await client.post("/panel/api/roles", json=body, headers=owner)).json()["id"]
        user = await make_colleague(database, tenant_id, "viewer")
        async with database.begin(tenant=tenant_id) as session:
            change = text("UPDATE memberships SET role = NULL, role_id = :role WHERE user_id = :user")
            await session.execute(change, {"role": role, "user": user.id})
        callers.members["own"], callers.headers["own"] = user, await headers_of(client, user)
        for name in TABLE:
            scope = guard_of(name).scope
            if scope is not None:
                answer = await callers.ask(client, name, "own")
                refused = answer.status_code == 403 and answer.json()["code"] == "scope_missing"
                assert refused != scope_within(scope, frozenset({permission})), f"{permission} at {name}"
        del callers.headers["own"]


def test_the_page_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make permissions` and commit the result"
    assert main(["permissions", "--output", str(PAGE), "--check"]) == 0
    assert main(["permissions", "--output", str(tmp_path / "new.md")]) == 0
    assert (tmp_path / "new.md").read_text(encoding="utf-8") == page()
    (tmp_path / "new.md").write_text("old")
    assert main(["permissions", "--output", str(tmp_path / "new.md"), "--check"]) == 1
    assert "make permissions" in capsys.readouterr().err
    text = page()
    assert [name for name in TABLE if f"`{name}`" not in text] == []
