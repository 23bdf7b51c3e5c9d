"""Making, changing and deleting tenants; client tenants below an MSP's; and switching between them."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.db import Database
from quazzar.panel.tenants import service
from quazzar.panel.tenants.permissions import common, permissions_of
from quazzar.panel.tenants.service import TenantService
from tests.conftest import PASSWORD, RunningApp
from tests.factories.accounts import MadeUser, bearer, headers_of, join, log_in, make_colleague, make_member

TENANTS = "/panel/api/tenants"
SWITCH = "/panel/api/auth/switch-tenant"
UNKNOWN = "ten_" + "a" * 26


@pytest.fixture(scope="module")
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture
async def ada(database: Database) -> MadeUser:
    return await make_member(database)


async def me(client: httpx.AsyncClient, headers: dict[str, str]) -> dict[str, Any]:
    answer = await client.get("/panel/api/auth/me", headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def switch(client: httpx.AsyncClient, headers: dict[str, str], tenant_id: str) -> dict[str, str]:
    answer = await client.post(SWITCH, json={"tenant_id": tenant_id}, headers=headers)
    assert answer.status_code == 200, answer.text
    return bearer(answer.json()["access_token"])


async def make_msp(client: httpx.AsyncClient, headers: dict[str, str], access: str = "operator") -> str:
    """Turns the current tenant into an MSP's and gives the id of a client of it."""
    current = (await me(client, headers))["tenant"]["id"]
    answer = await client.patch(f"{TENANTS}/{current}", json={"kind": "msp"}, headers=headers)
    assert answer.status_code == 200, answer.text
    body = {"name": "Client", "kind": "client", "parent_access": access}
    made = await client.post(TENANTS, json=body, headers=headers)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def test_a_second_tenant(client: httpx.AsyncClient, ada: MadeUser) -> None:
    headers = await headers_of(client, ada)
    made = await client.post(TENANTS, json={"name": "Second"}, headers=headers)
    assert made.status_code == 201
    body = made.json()
    assert made.headers["location"] == f"{TENANTS}/{body['id']}"
    assert (body["name"], body["kind"], body["parent_id"], body["role"]) == ("Second", "standard", None, "owner")
    listed = (await client.get(TENANTS, headers=headers)).json()
    assert [(tenant["id"], tenant["current"]) for tenant in listed] == [(body["id"], False), (ada.tenant_id, True)]
    page = await client.get(f"{TENANTS}?limit=1", headers=headers)
    assert [tenant["id"] for tenant in page.json()] == [body["id"]]
    rest = await client.get(page.headers["link"].partition(">")[0][1:], headers=headers)
    assert [tenant["id"] for tenant in rest.json()] == [ada.tenant_id]
    # What one makes one can change and delete, wherever the session works.
    path = f"{TENANTS}/{body['id']}"
    changed = await client.patch(path, json={"name": "Other"}, headers=headers)
    assert (changed.status_code, changed.json()["name"]) == (200, "Other")
    headers = await switch(client, headers, body["id"])
    changed = await client.patch(path, json={"name": "Third"}, headers=headers)
    assert (changed.status_code, changed.json()["name"]) == (200, "Third")
    assert (await me(client, headers))["tenant"]["name"] == "Third"
    headers = await switch(client, headers, ada.tenant_id or "")
    assert (await client.delete(path, headers=headers)).status_code == 204
    assert [tenant["id"] for tenant in (await client.get(TENANTS, headers=headers)).json()] == [ada.tenant_id]
    assert (await client.get(path, headers=headers)).status_code == 404


@pytest.mark.parametrize(
    ("role", "changed", "deleted"),
    [("owner", 200, 204), ("admin", 200, 403), ("operator", 403, 403), ("viewer", 403, 403)],
)
async def test_what_one_may_do_in_another_tenant_counts_there(
    client: httpx.AsyncClient, ada: MadeUser, database: Database, role: str, changed: int, deleted: int
) -> None:
    eve = await make_member(database)
    assert eve.tenant_id is not None
    await join(database, ada, eve.tenant_id, role)
    headers, path = await headers_of(client, ada), f"{TENANTS}/{eve.tenant_id}"
    assert (await me(client, headers))["tenant"]["id"] == ada.tenant_id
    # A key is of one tenant, whoever made it.
    made = await client.post("/panel/api/api-keys", json={"name": "CI", "permissions": ["*"]}, headers=headers)
    by_key = bearer(made.json()["key"])
    assert (await client.patch(path, json={"name": "x"}, headers=by_key)).json()["code"] == "tenant_not_found"
    answers = [
        await client.patch(path, json={"name": "Renamed"}, headers=headers),
        await client.delete(path, headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [changed, deleted]
    assert {answer.json()["code"] for answer in answers if answer.status_code == 403} <= {"scope_missing"}
    async with database.begin(tenant=eve.tenant_id) as session:
        rows = await session.execute(
            text("SELECT action FROM audit_records WHERE tenant_id = :id AND action LIKE 'tenant.%' ORDER BY id"),
            {"id": eve.tenant_id},
        )
        expected = ["tenant.update"] * (changed == 200) + ["tenant.delete"] * (deleted == 204)
        assert rows.scalars().all() == expected
    # It is none of this one's business: only a parent is told of what becomes of a tenant.
    async with database.begin(tenant=ada.tenant_id) as session:
        told = await session.execute(
            text("SELECT 1 FROM audit_records WHERE subject = :id AND outcome <> 'refused'"), {"id": eve.tenant_id}
        )
        assert told.first() is None


@pytest.mark.parametrize(
    "change", ["DELETE FROM memberships", "UPDATE memberships SET role = 'viewer'"], ids=["removed", "demoted"]
)
async def test_who_is_put_out_at_the_same_moment_deletes_nothing(
    client: httpx.AsyncClient, ada: MadeUser, database: Database, change: str
) -> None:
    eve = await make_member(database)
    member = await join(database, ada, eve.tenant_id or "", "owner")
    headers, path = await headers_of(client, ada), f"{TENANTS}/{eve.tenant_id}"
    async with database.begin(tenant=eve.tenant_id) as session:
        # As the members' own calls do.
        await TenantService(session).lock(eve.tenant_id or "")
        await session.execute(text(f"{change} WHERE id = :id"), {"id": member})
        deleting = asyncio.create_task(client.delete(path, headers=headers))
        async with asyncio.timeout(20), database.begin() as watch:
            while not (await watch.execute(_WAITING)).scalar_one():
                await asyncio.sleep(0.01)
    answer = await deleting
    assert answer.status_code == (404 if change.startswith("DELETE") else 403), answer.text
    there = await headers_of(client, eve)
    assert (await client.get(path, headers=there)).status_code == 200


_WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")


async def test_who_may_do_less_here_does_no_more_elsewhere(
    client: httpx.AsyncClient, ada: MadeUser, database: Database
) -> None:
    eve = await make_member(database)
    await join(database, eve, ada.tenant_id or "", "viewer")
    headers, path = await headers_of(client, eve), f"{TENANTS}/{eve.tenant_id}"
    there = await switch(client, headers, ada.tenant_id or "")
    assert (await client.get(path, headers=there)).json()["role"] == "owner"
    refused = await client.patch(path, json={"name": "x"}, headers=there)
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")


async def test_switching_ends_the_tokens_before_it(client: httpx.AsyncClient, ada: MadeUser) -> None:
    pair = await log_in(client, ada)
    headers = bearer(pair["access_token"])
    second = (await client.post(TENANTS, json={"name": "Second"}, headers=headers)).json()["id"]
    assert (await me(client, headers))["tenant"]["id"] == ada.tenant_id
    answer = await client.post(SWITCH, json={"tenant_id": second}, headers=headers)
    assert answer.json().keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (await client.get("/panel/api/auth/me", headers=headers)).status_code == 401
    old = await client.post("/panel/api/auth/refresh", json={"refresh_token": pair["refresh_token"]})
    assert old.status_code == 401
    fresh = await client.post("/panel/api/auth/refresh", json={"refresh_token": answer.json()["refresh_token"]})
    assert (await me(client, bearer(fresh.json()["access_token"])))["tenant"]["id"] == second
    sessions = await client.get("/panel/api/auth/sessions", headers=bearer(fresh.json()["access_token"]))
    assert len(sessions.json()) == 1


async def test_a_tenant_that_one_has_no_place_in_is_unknown(
    client: httpx.AsyncClient, ada: MadeUser, database: Database
) -> None:
    headers = await headers_of(client, ada)
    eve = await make_member(database)
    answers = [
        await client.post(SWITCH, json={"tenant_id": tenant_id}, headers=headers | {"X-Request-Id": "same"})
        for tenant_id in (eve.tenant_id, UNKNOWN, "x")
    ]
    assert {(answer.status_code, answer.content) for answer in answers} == {(404, answers[0].content)}
    assert answers[0].json()["code"] == "tenant_not_found"
    for tenant_id in (eve.tenant_id, UNKNOWN):
        assert (await client.patch(f"{TENANTS}/{tenant_id}", json={}, headers=headers)).status_code == 404
        assert (await client.delete(f"{TENANTS}/{tenant_id}", headers=headers)).status_code == 404
    assert (await me(client, headers))["tenant"]["id"] == ada.tenant_id


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "validation_failed"),
        ({"name": ""}, 422, "validation_failed"),
        ({"name": "x", "kind": "other"}, 422, "validation_failed"),
        ({"name": "x", "parent_id": UNKNOWN}, 422, "validation_failed"),
        ({"name": "x", "id": UNKNOWN}, 422, "validation_failed"),
        ({"name": "x", "kind": "client"}, 409, "not_an_msp"),
        ({"name": "x", "parent_access": "admin"}, 403, "parent_access_foreign"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, ada: MadeUser, body: dict[str, Any], status: int, code: str
) -> None:
    headers = await headers_of(client, ada)
    answer = await client.post(TENANTS, json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert len((await client.get(TENANTS, headers=headers)).json()) == 1


async def test_the_limit_of_owned_tenants_holds_for_several_at_once(
    client: httpx.AsyncClient, ada: MadeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_OWNED", 3)
    headers = await headers_of(client, ada)
    answers = await asyncio.gather(*(client.post(TENANTS, json={"name": "x"}, headers=headers) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 409, 409, 409, 409]
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"tenant_limit"}


async def test_deleting_the_own_tenant(client: httpx.AsyncClient, ada: MadeUser, database: Database) -> None:
    assert ada.tenant_id is not None
    colleague = await make_colleague(database, ada.tenant_id, "admin")
    headers, theirs = await headers_of(client, ada), await headers_of(client, colleague)
    assert (await client.delete(f"{TENANTS}/{ada.tenant_id}", headers=theirs)).status_code == 403
    hook = await client.post(
        "/panel/api/webhooks", json={"url": "https://example.com/", "events": ["*"]}, headers=headers
    )
    assert hook.status_code == 201, hook.text
    assert (await client.delete(f"{TENANTS}/{ada.tenant_id}", headers=headers)).status_code == 204
    for gone in (headers, theirs):
        assert (await client.get("/panel/api/auth/me", headers=gone)).status_code == 401
    async with database.begin() as session:
        await session.execute(text("SELECT set_config('app.worker', 'on', true)"))
        left = await session.execute(text("SELECT id FROM webhooks WHERE id = :id"), {"id": hook.json()["id"]})
        assert left.all() == []
        done = await session.execute(
            text("SELECT count(*) FROM audit_records WHERE action = 'tenant.delete' AND tenant_id = :id"),
            {"id": ada.tenant_id},
        )
        assert done.scalar_one() == 1
    login = {"email": ada.name, "password": PASSWORD}
    assert (await client.post("/panel/api/auth/login", json=login)).json()["code"] == "no_tenant"


# --- clients ---


async def test_a_client_tenant(client: httpx.AsyncClient, ada: MadeUser, database: Database) -> None:
    assert ada.tenant_id is not None
    headers = await headers_of(client, ada)
    client_id = await make_msp(client, headers)
    listed = {tenant["id"]: tenant for tenant in (await client.get(TENANTS, headers=headers)).json()}
    assert listed[client_id]["parent_id"] == ada.tenant_id
    assert (listed[client_id]["kind"], listed[client_id]["role"]) == ("client", "owner")
    # The parent is bound by having it.
    assert (await client.delete(f"{TENANTS}/{ada.tenant_id}", headers=headers)).json()["code"] == "tenant_has_clients"
    back = await client.patch(f"{TENANTS}/{ada.tenant_id}", json={"kind": "standard"}, headers=headers)
    assert (back.status_code, back.json()["code"]) == (409, "tenant_has_clients")
    # A client has no clients of its own.
    inside = await switch(client, await headers_of(client, ada), client_id)
    below = await client.post(TENANTS, json={"name": "x", "kind": "client"}, headers=inside)
    assert below.json()["code"] == "not_an_msp"
    assert (await client.patch(f"{TENANTS}/{client_id}", json={"kind": "msp"}, headers=inside)).status_code == 409
    renamed = await client.patch(f"{TENANTS}/{client_id}", json={"name": "Renamed"}, headers=headers)
    assert renamed.json()["name"] == "Renamed"
    assert (await client.delete(f"{TENANTS}/{client_id}", headers=headers)).status_code == 204
    assert (await client.delete(f"{TENANTS}/{ada.tenant_id}", headers=headers)).status_code == 204


@pytest.mark.parametrize(
    ("role", "access", "expected"),
    [
        ("operator", "operator", "operator"),
        ("operator", "admin", "operator"),
        ("admin", "viewer", "viewer"),
        ("owner", "admin", "admin"),
        ("admin", "none", None),
        ("viewer", "admin", None),
        ("billing", "admin", None),
    ],
)
async def test_what_the_parents_members_may_do_in_a_client(
    client: httpx.AsyncClient, ada: MadeUser, database: Database, role: str, access: str, expected: str | None
) -> None:
    assert ada.tenant_id is not None
    client_id = await make_msp(client, await headers_of(client, ada), access)
    grace = await make_colleague(database, ada.tenant_id, role)
    headers = await headers_of(client, grace)
    listed = [tenant["id"] for tenant in (await client.get(TENANTS, headers=headers)).json()]
    assert (client_id in listed) == (expected is not None)
    answer = await client.post(SWITCH, json={"tenant_id": client_id}, headers=headers)
    if expected is None:
        assert answer.status_code == 404
        return
    inside = bearer(answer.json()["access_token"])
    found = await me(client, inside)
    assert found["role"] == access
    # Never more than in the parent, and never more than the client allows.
    assert set(found["permissions"]) == common(permissions_of(role), permissions_of(access))
    assert set(found["permissions"]) <= set(permissions_of(expected)) | {"tenant:read"}


async def test_the_client_decides_and_it_holds_at_once(
    client: httpx.AsyncClient, ada: MadeUser, database: Database
) -> None:
    assert ada.tenant_id is not None
    client_id = await make_msp(client, await headers_of(client, ada), "admin")
    grace, chris = (
        await make_colleague(database, ada.tenant_id, "admin"),
        await make_colleague(database, client_id, "admin"),
    )
    parent, own = await headers_of(client, grace), await headers_of(client, chris)
    # From the parent, and as its member inside, nobody can change what the parent may do.
    path, more = f"{TENANTS}/{client_id}", {"parent_access": "viewer"}
    assert (await client.patch(path, json=more, headers=parent)).json()["code"] == "parent_access_foreign"
    guest = await switch(client, parent, client_id)
    assert (await client.patch(path, json=more, headers=guest)).json()["code"] == "parent_access_foreign"
    made = []
    # For a token they need not even come in.
    outside = await headers_of(client, await make_colleague(database, ada.tenant_id, "admin"))
    kept = await client.post("/panel/api/fleet/tokens", json={"name": "x", "tenant_id": client_id}, headers=outside)
    assert kept.status_code == 201, kept.text
    for headers in (guest, own):
        invited = {"email": f"{uuid.uuid4().hex}@example.com", "role": "admin"}
        made.append((await client.post("/panel/api/members", json=invited, headers=headers)).json()["invitation"])
        token = await client.post("/panel/api/fleet/tokens", json={"name": "x"}, headers=headers)
        assert token.status_code == 201, token.text
    assert (await client.patch(path, json=more, headers=own)).status_code == 200
    assert (await me(client, guest))["role"] == "viewer"
    # Nor does anybody come in any more whom they have let in while they could; whom the client has let in does.
    accepted = [
        await client.post(
            "/panel/api/invitations/accept", json={"token": one["token"], "name": "Sock", "password": PASSWORD}
        )
        for one in made
    ]
    assert [answer.status_code for answer in accepted] == [404, 200]
    assert [one["id"] for one in (await client.get("/panel/api/fleet/tokens", headers=own)).json()] == [
        token.json()["id"]
    ]
    assert (await client.patch(path, json={"parent_access": "none"}, headers=own)).status_code == 200
    assert (await client.get("/panel/api/auth/me", headers=guest)).status_code == 401
    again = await headers_of(client, grace)
    assert (await client.post(SWITCH, json={"tenant_id": client_id}, headers=again)).status_code == 404


async def test_who_leaves_the_parent_leaves_its_clients(
    client: httpx.AsyncClient, ada: MadeUser, database: Database
) -> None:
    assert ada.tenant_id is not None
    client_id = await make_msp(client, await headers_of(client, ada), "admin")
    grace = await make_colleague(database, ada.tenant_id, "admin")
    headers = await headers_of(client, grace)
    guests = await asyncio.gather(
        *(client.post(SWITCH, json={"tenant_id": client_id}, headers=headers) for _ in range(3))
    )
    # The first switch moved the session; the others' token is over.
    assert sorted(answer.status_code for answer in guests)[0] == 200
    assert {answer.status_code for answer in guests} <= {200, 401}
    async with database.begin(tenant=ada.tenant_id, user=grace.id) as session:
        await session.execute(
            text("DELETE FROM memberships WHERE tenant_id = :tenant AND user_id = :user"),
            {"tenant": ada.tenant_id, "user": grace.id},
        )
    async with database.begin(tenant=client_id) as session:
        rows = await session.execute(text("SELECT 1 FROM memberships WHERE user_id = :user"), {"user": grace.id})
        assert rows.all() == []
        assert (
            await session.execute(text("SELECT 1 FROM sessions WHERE tenant_id = :id"), {"id": client_id})
        ).all() == []


async def test_someone_of_another_tenant_reaches_no_client(
    client: httpx.AsyncClient, ada: MadeUser, database: Database
) -> None:
    client_id = await make_msp(client, await headers_of(client, ada), "admin")
    eve = await make_member(database)
    headers = await headers_of(client, eve)
    await client.patch(f"{TENANTS}/{eve.tenant_id}", json={"kind": "msp"}, headers=headers)
    assert (await client.post(SWITCH, json={"tenant_id": client_id}, headers=headers)).status_code == 404
    assert (await client.patch(f"{TENANTS}/{client_id}", json={"name": "x"}, headers=headers)).status_code == 404
    # A client's members see nothing of the parent.
    chris = await make_colleague(database, client_id, "owner")
    own = await headers_of(client, chris)
    assert [tenant["id"] for tenant in (await client.get(TENANTS, headers=own)).json()] == [client_id]
    assert (await client.post(SWITCH, json={"tenant_id": ada.tenant_id}, headers=own)).status_code == 404
    # Both of one person's places count each for itself.
    await join(database, chris, eve.tenant_id or "", "viewer")
    moved = await switch(client, own, eve.tenant_id or "")
    assert (await me(client, moved))["role"] == "viewer"


async def test_an_idempotency_key_counts_in_one_tenant(client: httpx.AsyncClient, ada: MadeUser) -> None:
    """In another one the same words ask for another thing, and the answer of the first may hold a secret of it."""
    headers = await headers_of(client, ada)
    second = (await client.post(TENANTS, json={"name": "Second"}, headers=headers)).json()["id"]
    body, key = {"name": "CI", "permissions": ["*"]}, {"Idempotency-Key": uuid.uuid4().hex}
    first = await client.post("/panel/api/api-keys", json=body, headers=headers | key)
    there = await switch(client, headers, second)
    made = await client.post("/panel/api/api-keys", json=body, headers=there | key)
    again = await client.post("/panel/api/api-keys", json=body, headers=there | key)
    assert (first.status_code, made.status_code) == (201, 201)
    assert "idempotent-replayed" not in made.headers
    assert (again.content, again.headers["idempotent-replayed"]) == (made.content, "true")
    assert first.json()["key"] != made.json()["key"]
    keys = (await client.get("/panel/api/api-keys", headers=there)).json()
    assert [one["id"] for one in keys] == [made.json()["id"]]
