"""API keys of a tenant: within their maker's means now, bound where they are bound, gone at once."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.auth import Guard
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.ids import new_id
from quazzar.core.tokens import PANEL_KEY_PATTERN, api_key_digest
from tests.conftest import RunningApp
from tests.factories.accounts import MadeUser, bearer, headers_of, make_colleague, make_key, make_member, make_user
from tests.factories.panel import make_group, make_instance
from tests.test_architecture import operations

API = "/panel/api"
KEYS = f"{API}/api-keys"
Headers = dict[str, str]


@pytest.fixture
async def owner(client: httpx.AsyncClient, ada: MadeUser) -> Headers:
    return await headers_of(client, ada)


def within(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


async def create(client: httpx.AsyncClient, headers: Headers, *permissions: str, **more: Any) -> httpx.Response:
    body = {"name": "CI", "permissions": list(permissions) or ["fleet:read"]} | more
    return await client.post(KEYS, json=body, headers=headers)


async def made(client: httpx.AsyncClient, headers: Headers, *permissions: str, **more: Any) -> dict[str, Any]:
    answer = await create(client, headers, *permissions, **more)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def allowed(client: httpx.AsyncClient, key: str) -> list[str] | None:
    """The permissions that a key has now; None when it is none."""
    answer = await client.get(f"{API}/auth/me", headers=bearer(key))
    assert answer.status_code in {200, 401}
    return None if answer.status_code == 401 else list(answer.json()["permissions"])


async def test_a_key_is_shown_once_and_works_in_its_tenant(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    answer = await create(client, owner, "jobs:read", "fleet:read", "fleet:read", name="Night shift")
    shown = answer.json()
    key = shown.pop("key")
    assert re.fullmatch(PANEL_KEY_PATTERN, key)
    assert api_key_digest(key.encode(), "qzp") is not None
    assert answer.headers["location"] == f"{KEYS}/{shown['id']}"
    assert shown.keys() == {
        *("id", "user_id", "name", "prefix", "suffix", "permissions", "resources", "allowed_ips"),
        *("created_at", "expires_at", "last_used_at", "last_used_ip"),
    }
    assert (shown["user_id"], shown["permissions"]) == (ada.id, ["fleet:read", "jobs:read"])
    assert key.startswith(shown["prefix"])
    assert key.endswith(shown["suffix"])
    life = datetime.fromisoformat(shown["expires_at"]) - datetime.fromisoformat(shown["created_at"])
    assert life == pytest.approx(timedelta(days=365), abs=timedelta(minutes=1))
    me = (await client.get(f"{API}/auth/me", headers=bearer(key))).json()
    assert (me["tenant"]["id"], me["user"]["id"]) == (ada.tenant_id, ada.id)
    assert me["permissions"] == ["fleet:read", "jobs:read"]
    assert (await client.get(f"{API}/fleet/instances", headers=bearer(key))).status_code == 200
    refused = await client.post(f"{API}/fleet/groups", json={"name": "x"}, headers=bearer(key))
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
    listed = await client.get(KEYS, headers=owner)
    assert key not in listed.text
    assert [one["id"] for one in listed.json()] == [shown["id"]]
    async with database.begin(tenant=ada.tenant_id) as session:
        rows = await session.execute(text("SELECT CAST(k AS text) FROM api_keys k"))
        assert key[12:] not in rows.scalar_one()
        told = await session.execute(
            text("SELECT type, subject, data->>'key_id' FROM events WHERE tenant_id = :id AND type LIKE '%key%'"),
            {"id": ada.tenant_id},
        )
        assert [tuple(row) for row in told] == [("auth.api_key_created", ada.id, shown["id"])]
        for table in ("events", "audit_records"):
            dump = text(f"SELECT CAST(t AS text) FROM {table} t WHERE tenant_id = :id")
            assert not [row for row in (await session.execute(dump, {"id": ada.tenant_id})).scalars() if key in row]


async def test_where_and_when_it_was_used_is_shown(app: RunningApp, client: httpx.AsyncClient, owner: Headers) -> None:
    key = await made(client, owner)
    await allowed(client, key["key"])
    await app.asgi.app.state.accounts.authenticator.flush()
    # What is over is tidied away, and what is not stays.
    await app.asgi.app.state.accounts.tidy()
    (listed,) = (await client.get(KEYS, headers=owner)).json()
    assert listed["last_used_ip"] == "127.0.0.1"
    assert listed["last_used_at"] is not None


async def test_a_revoked_key_stops_at_once(client: httpx.AsyncClient, owner: Headers) -> None:
    key = await made(client, owner)
    assert await allowed(client, key["key"]) == await allowed(client, key["key"]) == ["fleet:read"]
    gone = await client.delete(f"{KEYS}/{key['id']}", headers=owner)
    assert (gone.status_code, gone.content) == (204, b"")
    assert await allowed(client, key["key"]) is None
    again = await client.delete(f"{KEYS}/{key['id']}", headers=owner)
    assert (again.status_code, again.json()["code"]) == (404, "api_key_not_found")


async def test_the_realms_and_tenants_keep_their_keys_apart(
    client: httpx.AsyncClient, owner: Headers, database: Database
) -> None:
    instance = await headers_of(client, await make_user(database))
    theirs = (await make_key(client, instance))["key"]
    key = (await made(client, owner, "*"))["key"]
    assert await allowed(client, theirs) is None
    assert (await client.get("/api/auth/me", headers=bearer(key))).status_code == 401
    # The same random part under the other realm's prefix is no key of it either.
    assert await allowed(client, "qzr" + key[3:]) is None
    assert (await client.get("/api/auth/me", headers=bearer("qzr" + key[3:]))).status_code == 401
    eve = await headers_of(client, await make_member(database))
    hers = (await made(client, eve, "*"))["id"]
    for key_id in (hers, new_id("key"), "x"):
        answer = await client.delete(f"{KEYS}/{key_id}", headers=owner)
        assert (answer.status_code, answer.json()["code"]) == (404, "api_key_not_found")
    assert hers not in (await client.get(KEYS, headers=owner)).text


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"name", "permissions"}),
        ({"permissions": []}, {"permissions"}),
        ({"permissions": ["fleet:fly"]}, {"permissions.0"}),
        ({"permissions": "*"}, {"permissions"}),
        ({"scopes": ["fleet:read"]}, {"scopes"}),
        ({"user_id": "usr_x", "tenant_id": "ten_x"}, {"user_id", "tenant_id"}),
        ({"expires_at": "2020-01-01T00:00:00Z"}, {"expires_at"}),
        ({"expires_at": "2999-01-01T00:00:00Z"}, {"expires_at"}),
        ({"allowed_ips": ["192.0.2.1/24", "::1", "x" * 3]}, {"allowed_ips.0", "allowed_ips.2"}),
        ({"resources": ["app_" + "a" * 26]}, {"resources.0"}),
        ({"resources": ["grp_" + "a" * 26, "inst_" + "a" * 26]}, {"resources.0", "resources.1"}),
        ({"resources": []}, {"resources"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, owner: Headers, body: dict[str, Any], fields: set[str]
) -> None:
    answer = await client.post(KEYS, json=body and {"name": "x", "permissions": ["fleet:read"]} | body, headers=owner)
    assert answer.status_code == 422, answer.text
    assert set(answer.json()["details"]) == fields
    assert (await client.get(KEYS, headers=owner)).json() == []


# --- no more than the maker ---


@pytest.mark.parametrize(
    ("role", "asked", "status"),
    [
        ("owner", "*", 201),
        ("admin", "*", 403),
        ("admin", "billing:write", 403),
        ("admin", "members:write", 201),
        ("operator", "*", 403),
        ("operator", "fleet:write", 403),
        ("operator", "fleet:operate", 201),
    ],
)
async def test_s09_nobody_makes_a_key_that_may_more(
    client: httpx.AsyncClient, ada: MadeUser, database: Database, role: str, asked: str, status: int
) -> None:
    headers = await headers_of(client, await make_colleague(database, ada.tenant_id or "", role))
    answer = await create(client, headers, asked)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "scope_exceeded"


@pytest.mark.parametrize("role", ["viewer", "billing"])
async def test_not_everybody_makes_keys(
    client: httpx.AsyncClient, ada: MadeUser, database: Database, role: str
) -> None:
    headers = await headers_of(client, await make_colleague(database, ada.tenant_id or "", role))
    answer = await create(client, headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


async def test_s10_a_key_makes_no_key_that_may_more_or_lives_longer(client: httpx.AsyncClient, owner: Headers) -> None:
    key = await made(client, owner, "keys:write", "fleet:read", expires_at=within(3), allowed_ips=["127.0.0.0/8"])
    mine = bearer(key["key"])
    for permissions in (["*"], ["fleet:write"], ["jobs:read"], ["fleet:read", "keys:read"]):
        answer = await create(client, mine, *permissions)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_exceeded")
    longer = await create(client, mine, expires_at=within(4))
    assert (longer.status_code, longer.json()["code"]) == (403, "key_lifetime_exceeded")
    wider = await create(client, mine, allowed_ips=["0.0.0.0/0"])
    assert (wider.status_code, wider.json()["code"]) == (403, "scope_exceeded")
    child = await made(client, mine)
    assert child["expires_at"] == key["expires_at"]
    assert child["allowed_ips"] == ["127.0.0.0/8"]
    # It revokes no key that may more, but itself.
    strong = await made(client, owner, "members:write")
    refused = await client.delete(f"{KEYS}/{strong['id']}", headers=mine)
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_exceeded")
    assert (await client.delete(f"{KEYS}/{child['id']}", headers=mine)).status_code == 204
    assert (await client.delete(f"{KEYS}/{key['id']}", headers=mine)).status_code == 204
    assert await allowed(client, key["key"]) is None
    assert await allowed(client, strong["key"]) is not None


async def test_a_key_may_no_more_than_its_maker_may_now(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    grace = await make_colleague(database, ada.tenant_id or "", "owner")
    hers = await headers_of(client, grace)
    all_of_it, some = await made(client, hers, "*"), await made(client, hers, "fleet:write", "jobs:read")
    assert await allowed(client, all_of_it["key"]) == ["*"]
    listed = (await client.get(f"{API}/members", headers=owner)).json()
    path = f"{API}/members/" + next(one["id"] for one in listed if one["user_id"] == grace.id)
    await client.patch(path, json={"role": "operator"}, headers=owner)
    assert await allowed(client, some["key"]) == ["fleet:operate", "jobs:read"]
    everything = await allowed(client, all_of_it["key"])
    assert everything is not None
    assert "fleet:operate" in everything
    assert not {"*", "fleet:write", "members:write"} & set(everything)
    # Own keys are revoked even if they were made by a mightier self; the others' are for who may all that they may.
    other = await made(client, owner, "members:write")
    refused = await client.delete(f"{KEYS}/{other['id']}", headers=hers)
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_exceeded")
    assert (await client.delete(f"{KEYS}/{all_of_it['id']}", headers=hers)).status_code == 204
    assert (await client.delete(path, headers=owner)).status_code == 204
    assert await allowed(client, some["key"]) is None
    assert [one["id"] for one in (await client.get(KEYS, headers=owner)).json()] == [other["id"]]


async def test_of_its_maker_in_the_parent_a_key_may_what_the_client_allows(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    await client.patch(f"{API}/tenants/{ada.tenant_id}", json={"kind": "msp"}, headers=owner)
    body = {"name": "Client", "kind": "client", "parent_access": "operator"}
    client_id = (await client.post(f"{API}/tenants", json=body, headers=owner)).json()["id"]
    grace = await make_colleague(database, ada.tenant_id or "", "admin")
    hers = await headers_of(client, grace)
    switched = await client.post(f"{API}/auth/switch-tenant", json={"tenant_id": client_id}, headers=hers)
    guest = bearer(switched.json()["access_token"])
    key = (await made(client, guest, "fleet:operate"))["key"]
    assert await allowed(client, key) == ["fleet:operate"]
    own = await headers_of(client, await make_colleague(database, client_id, "owner"))
    await client.patch(f"{API}/tenants/{client_id}", json={"parent_access": "none"}, headers=own)
    assert await allowed(client, key) is None


async def test_a_key_goes_with_its_tenant(client: httpx.AsyncClient, ada: MadeUser, owner: Headers) -> None:
    key = (await made(client, owner))["key"]
    assert await allowed(client, key) is not None
    assert (await client.delete(f"{API}/tenants/{ada.tenant_id}", headers=owner)).status_code == 204
    assert await allowed(client, key) is None


# --- what binds a key ---


async def test_from_elsewhere_it_is_no_key(app: RunningApp, client: httpx.AsyncClient, owner: Headers) -> None:
    key = await made(client, owner, allowed_ips=["192.0.2.0/24", "2001:db8::/32"])
    assert await allowed(client, key["key"]) is None
    for address, known in (("192.0.2.9", True), ("192.0.3.9", False), ("2001:db8::1", True)):
        async with app.client(address) as other:
            for _ in range(2):
                assert (await allowed(other, key["key"]) is not None) is known


async def test_a_bound_key_sees_what_it_is_bound_to(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    tenant_id = ada.tenant_id or ""
    group = await make_group(database, tenant_id)
    inside = await make_instance(database, tenant_id, group_id=group)
    named, outside = await make_instance(database, tenant_id), await make_instance(database, tenant_id)
    key = await made(client, owner, "*", resources=[group, named])
    mine = bearer(key["key"])
    seen = {one["id"] for one in (await client.get(f"{API}/fleet/instances", headers=mine)).json()}
    assert seen == {inside, named}
    for instance_id, status in ((inside, 200), (named, 200), (outside, 404)):
        answer = await client.patch(f"{API}/fleet/instances/{instance_id}", json={"tags": ["x"]}, headers=mine)
        assert answer.status_code == status
    assert (await client.post(f"{API}/fleet/groups", json={"name": "x"}, headers=mine)).status_code == 403
    # Where an instance belongs is not theirs to say: others are bound to its group.
    for wanted in (None, group):
        moved = await client.patch(f"{API}/fleet/instances/{named}", json={"group_id": wanted}, headers=mine)
        assert (moved.status_code, moved.json()["code"]) == (403, "forbidden")
    # It hands its bounds on, and sees no keys but its maker's.
    child = await made(client, mine, "fleet:read")
    assert child["resources"] == sorted([group, named])
    beyond = await create(client, mine, resources=[outside])
    assert (beyond.status_code, beyond.json()["code"]) == (403, "scope_exceeded")
    narrower = await made(client, mine, resources=[named])
    assert {
        one["id"] for one in (await client.get(f"{API}/fleet/instances", headers=bearer(narrower["key"]))).json()
    } == {named}
    other = await headers_of(client, await make_colleague(database, tenant_id, "admin"))
    theirs = (await made(client, other))["id"]
    assert theirs not in (await client.get(KEYS, headers=mine)).text
    assert (await client.delete(f"{KEYS}/{theirs}", headers=mine)).status_code == 404


async def test_binding_its_maker_binds_a_key(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    tenant_id = ada.tenant_id or ""
    first, second = await make_instance(database, tenant_id), await make_instance(database, tenant_id)
    grace = await make_colleague(database, tenant_id, "operator")
    key = bearer((await made(client, await headers_of(client, grace)))["key"])
    both = (await client.get(f"{API}/fleet/instances", headers=key)).json()
    assert {one["id"] for one in both} == {first, second}
    listed = (await client.get(f"{API}/members", headers=owner)).json()
    path = f"{API}/members/" + next(one["id"] for one in listed if one["user_id"] == grace.id)
    bound = await client.patch(path, json={"scope": {"instances": [first]}}, headers=owner)
    assert bound.status_code == 200
    assert [one["id"] for one in (await client.get(f"{API}/fleet/instances", headers=key)).json()] == [first]


async def test_an_expired_key_is_none(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    key = await made(client, owner)
    async with database.begin(tenant=ada.tenant_id) as session:
        await session.execute(text("UPDATE api_keys SET expires_at = now() WHERE id = :id"), {"id": key["id"]})
    assert await allowed(client, key["key"]) is None


async def test_there_are_at_most_fifty(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quazzar.accounts.api_keys.MAX_KEYS", 3)
    answers = await asyncio.gather(*(create(client, owner) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 3
    assert {answer.json().get("code") for answer in answers if answer.status_code == 409} == {"api_key_limit"}
    # Each member has their own, and so has each tenant of one member.
    other = await headers_of(client, await make_colleague(database, ada.tenant_id or "", "operator"))
    assert (await create(client, other)).status_code == 201
    # One that is over makes room.
    async with database.begin(tenant=ada.tenant_id) as session:
        await session.execute(text("UPDATE api_keys SET expires_at = now() WHERE user_id = :id"), {"id": ada.id})
    assert (await create(client, owner)).status_code == 201


async def test_an_idempotency_key_makes_one_key(client: httpx.AsyncClient, owner: Headers, database: Database) -> None:
    once = owner | {"Idempotency-Key": new_id("key")}
    first, second = await create(client, once), await create(client, once)
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert second.headers["idempotent-replayed"] == "true"
    assert len((await client.get(KEYS, headers=owner)).json()) == 1
    async with database.begin() as session:
        await see_all_tenants(session)
        rows = (await session.execute(text("SELECT CAST(i AS text) FROM idempotent_answers i"))).scalars().all()
    assert rows
    assert not [row for row in rows if first.json()["key"] in row]


async def test_a_key_does_nothing_that_needs_a_login(client: httpx.AsyncClient, owner: Headers) -> None:
    key = bearer((await made(client, owner, "*"))["key"])
    walked = 0
    for name, handler in operations("panel"):
        guards = [guard for guard in handler.resolve_guards() if isinstance(guard, Guard)]
        if not guards or not guards[0].account_only:
            continue
        walked += 1
        method, _, path = name.partition(" ")
        url = "/panel" + re.sub(r"\{\w+\}", "x_" + "a" * 26, path)
        answer = await client.request(method, url, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (403, "session_required"), name
    assert walked >= 10
    for path, body in (
        ("auth/totp/verify", {"code": "123456"}),
        ("auth/verify-email", {}),
        ("invitations/accept", {"token": "qzi_" + "a" * 43}),
    ):
        answer = await client.post(f"{API}/{path}", json=body, headers=key)
        assert answer.status_code in {403, 404}, path


async def test_row_security_is_the_second_wall(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    key = await made(client, owner)
    count = text("SELECT count(*) FROM api_keys WHERE id = :id")
    for scope, seen in ((None, 0), ("ten_other", 0), (ada.tenant_id, 1)):
        async with database.begin(tenant=scope) as session:
            assert (await session.execute(count, {"id": key["id"]})).scalar_one() == seen
    async with database.begin() as session:
        await see_all_tenants(session)
        assert (await session.execute(count, {"id": key["id"]})).scalar_one() == 1
