"""Registration tokens: what they carry, how often they count, and that nobody else's can be seen."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from quazzar.core.db import Database
from quazzar.link.tokens import RegistrationToken, TokenProblem, new_token, parse_token
from quazzar.panel.fleet import store
from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, make_colleague
from tests.panel.fleet.conftest import Tenant


async def create(tenant: Tenant, **body: Any) -> dict[str, Any]:
    answer = await tenant.http.post("/api/fleet/tokens", json={"name": "test"} | body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_token_says_where_the_panel_is_and_how_to_know_it(ada: Tenant, app: RunningApp) -> None:
    group = (await ada.http.post("/api/fleet/groups", json={"name": uuid.uuid4().hex})).json()
    made = await create(ada, tags=["b", "a", "b"], group_id=group["id"], max_uses=3)
    token = parse_token(made["token"])
    authority = await app.asgi.app.state.fleet.authority()
    assert token.fingerprint == authority.fingerprint == bytes.fromhex(made["ca_fingerprint"])
    assert made["agent_address"] == f"{token.host}:{token.port}"
    assert token.tenant_id == ada.id == made["tenant_id"]
    assert (made["tags"], made["group_id"], made["max_uses"], made["uses"]) == (["a", "b"], group["id"], 3, 0)
    life = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=55) < life <= timedelta(hours=1)
    # Shown once: neither in the list nor in the audit record, and in the database as a hash.
    (listed,) = [one for one in (await ada.http.get("/api/fleet/tokens")).json() if one["id"] == made["id"]]
    assert listed == {key: made[key] for key in listed}
    assert {"token", "ca_fingerprint", "agent_address"} & listed.keys() == set()
    async with app.database.begin(tenant=ada.id) as session:
        row = (await session.execute(text("SELECT CAST(t AS text) FROM fleet_tokens t WHERE id = :id"), made)).scalar()
        assert token.secret.hex() not in str(row)
    (record,) = await audited_of(app, ada, made["id"])
    assert record[0] == "fleet_token.create"
    assert made["token"] not in str(record)


async def audited_of(app: RunningApp, tenant: Tenant, subject: str) -> list[Any]:
    async with app.database.begin(tenant=tenant.id) as session:
        query = text("SELECT action, actor_kind, after FROM audit_records WHERE subject = :subject ORDER BY number")
        return list((await session.execute(query, {"subject": subject})).all())


async def test_all_that_is_wrong_with_a_token_is_said_at_once(ada: Tenant) -> None:
    body = {"name": "", "max_uses": 0, "tags": ["Ä"], "group_id": "grp_x", "expire_at": 1}
    answer = await ada.http.post("/api/fleet/tokens", json=body)
    assert answer.status_code == 422
    assert answer.json()["details"].keys() == {"name", "max_uses", "tags.0", "group_id", "expire_at"}
    body = {"name": "x", "group_id": "grp_" + "a" * 26, "expires_at": "2020-01-01T00:00:00Z"}
    answer = await ada.http.post("/api/fleet/tokens", json=body)
    assert answer.json()["details"].keys() == {"group_id", "expires_at"}
    late = (datetime.now(UTC) + timedelta(days=31)).isoformat()
    answer = await ada.http.post("/api/fleet/tokens", json={"name": "x", "expires_at": late})
    assert answer.json()["details"].keys() == {"expires_at"}


async def test_foreign_tokens_tenants_and_groups_do_not_exist(ada: Tenant, eve: Tenant) -> None:
    made = await create(ada)
    group = (await ada.http.post("/api/fleet/groups", json={"name": uuid.uuid4().hex})).json()
    assert made["id"] not in {one["id"] for one in (await eve.http.get("/api/fleet/tokens")).json()}
    foreign = await eve.http.delete(f"/api/fleet/tokens/{made['id']}")
    unknown = await eve.http.delete("/api/fleet/tokens/tok_" + "a" * 26)
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    assert (await eve.http.post("/api/fleet/tokens", json={"name": "x", "group_id": group["id"]})).status_code == 422
    other = await eve.http.post("/api/fleet/tokens", json={"name": "x", "tenant_id": ada.id})
    assert (other.status_code, other.json()["code"]) == (404, "tenant_not_found")
    assert (await ada.http.delete(f"/api/fleet/tokens/{made['id']}")).status_code == 204
    assert (await ada.http.delete(f"/api/fleet/tokens/{made['id']}")).status_code == 404


async def test_a_token_for_a_client_tenant(ada: Tenant, eve: Tenant, app: RunningApp) -> None:
    assert (await ada.http.patch(f"/api/tenants/{ada.id}", json={"kind": "msp"})).status_code == 200

    async def make_client(access: str) -> str:
        body = {"name": "Client", "kind": "client", "parent_access": access}
        client_id = str((await ada.http.post("/api/tenants", json=body)).json()["id"])
        # Of others: what the caller may do in it is what it lets its parent's members do.
        async with app.database.begin(tenant=client_id) as session:
            await session.execute(text("DELETE FROM memberships WHERE tenant_id = :id"), {"id": client_id})
        return client_id

    async def ask(tenant: Tenant, client_id: str, **more: Any) -> tuple[int, str | None]:
        body = {"name": "x", "tenant_id": client_id} | more
        answer = await tenant.http.post("/api/fleet/tokens", json=body)
        return answer.status_code, answer.json().get("code")

    closed, limited, opened = [await make_client(access) for access in ("none", "operator", "admin")]
    assert await ask(ada, closed) == (404, "tenant_not_found")
    assert await ask(ada, limited) == (403, "scope_missing")
    assert await ask(eve, opened) == (404, "tenant_not_found")
    group = (await ada.http.post("/api/fleet/groups", json={"name": uuid.uuid4().hex})).json()
    assert await ask(ada, opened, group_id=group["id"]) == (422, "validation_failed")
    made = await create(ada, tenant_id=opened)
    assert made["tenant_id"] == opened == parse_token(made["token"]).tenant_id
    assert made["id"] not in {one["id"] for one in (await ada.http.get("/api/fleet/tokens")).json()}
    for tenant_id in (ada.id, opened):
        there = Tenant(tenant_id, ada.http, ada.user_id)
        assert {record[0] for record in await audited_of(app, there, made["id"])} == {"fleet_token.create"}
    # Whoever is removed from the parent lets no server into its clients.
    colleague = await make_colleague(app.database, ada.id, "admin")
    async with app.client() as client:
        headers = await headers_of(client, colleague)
    body = {"name": "x", "tenant_id": opened}
    kept = (await ada.http.post("/api/fleet/tokens", json=body, headers=headers)).json()
    members = (await ada.http.get("/api/members")).json()
    (member_id,) = [one["id"] for one in members if one["user_id"] == colleague.id]
    assert (await ada.http.delete(f"/api/members/{member_id}")).status_code == 204
    async with app.database.begin(tenant=opened) as session:
        found = {row[0] for row in await session.execute(text("SELECT id FROM fleet_tokens"))}
    assert made["id"] in found
    assert kept["id"] not in found
    # A key of the parent has no more in the client than it has in the parent, whatever its maker is there.
    own = (await ada.http.post("/api/tenants", json={"name": "Client", "kind": "client"})).json()["id"]
    assert (await ask(ada, own))[0] == 201
    wish = {"name": "x", "permissions": ["fleet:write"]}
    key = (await ada.http.post("/api/api-keys", json=wish)).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    refused = await ada.http.post("/api/fleet/tokens", json={"name": "x", "tenant_id": own}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (404, "tenant_not_found")
    wish = {"name": "x", "permissions": ["clients:access", "fleet:read"]}
    key = (await ada.http.post("/api/api-keys", json=wish)).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    refused = await ada.http.post("/api/fleet/tokens", json={"name": "x", "tenant_id": opened}, headers=headers)
    assert refused.status_code == 403
    assert (await ada.http.patch(f"/api/tenants/{ada.id}", json={"kind": "standard"})).status_code == 409


async def test_belonging_to_a_client_is_no_more_than_that(ada: Tenant, app: RunningApp) -> None:
    """A key reaches into clients where it may, whatever its maker belongs to; who is bound there is bound from here."""
    await ada.http.patch(f"/api/tenants/{ada.id}", json={"kind": "msp"})
    body = {"name": "Client", "kind": "client", "parent_access": "admin"}
    client_id = str((await ada.http.post("/api/tenants", json=body)).json()["id"])
    wanted = {"name": "x", "tenant_id": client_id}
    for permissions, status in ((["fleet:write"], 404), (["fleet:write", "clients:access"], 201)):
        key = {"name": "x", "permissions": permissions}
        headers = {"Authorization": f"Bearer {(await ada.http.post('/api/api-keys', json=key)).json()['key']}"}
        answer = await ada.http.post("/api/fleet/tokens", json=wanted, headers=headers)
        assert answer.status_code == status, permissions
    assert (await ada.http.post("/api/fleet/tokens", json=wanted)).status_code == 201
    async with app.database.begin(tenant=client_id) as session:
        bind = text("UPDATE memberships SET role = 'admin', resources = '{inst_x}' WHERE tenant_id = :id")
        await session.execute(bind, {"id": client_id})
    bound = await ada.http.post("/api/fleet/tokens", json=wanted)
    assert (bound.status_code, bound.json()["code"]) == (403, "scope_missing")


async def test_fifty_at_once_use_a_token_as_often_as_it_allows(ada: Tenant, app: RunningApp) -> None:
    # As many at a time as there are connections: whoever waits for one gives up after a while, on a busy machine too.
    crowd, room = Database(app.database.url, pool_size=10), asyncio.Semaphore(10)
    for most in (1, 7):
        token = parse_token((await create(ada, max_uses=most))["token"])

        async def use(token: RegistrationToken = token) -> bool:
            async with room, crowd.begin(tenant=ada.id) as session:
                return await store.use_token(session, ada.id, token.digest) is not None

        assert sum(await asyncio.gather(*(use() for _ in range(50)))) == most
    await crowd.close()


async def test_an_expired_token_and_one_of_another_tenant_are_not_used(
    ada: Tenant, eve: Tenant, database: Database
) -> None:
    made = await create(ada)
    token = parse_token(made["token"])
    async with database.begin(tenant=eve.id) as session:
        assert await store.use_token(session, eve.id, token.digest) is None
        # The wall in the database holds where the argument is wrong.
        assert await store.use_token(session, ada.id, token.digest) is None
    async with database.begin(tenant=ada.id) as session:
        await session.execute(text("UPDATE fleet_tokens SET expires_at = now() WHERE id = :id"), made)
    async with database.begin(tenant=ada.id) as session:
        assert await store.use_token(session, ada.id, token.digest) is None


HOSTS = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-:", min_size=1, max_size=253)


@given(HOSTS, st.integers(1, 65535), st.binary(min_size=32, max_size=32))
def test_a_token_is_read_as_it_was_written(host: str, port: int, fingerprint: bytes) -> None:
    token = new_token(host=host, port=port, fingerprint=fingerprint, tenant_id="ten_" + "a" * 26)
    written = token.encode()
    assert parse_token(f" {written}\n") == token
    assert written.startswith("qze_")
    assert str(token.secret.hex()) not in repr(token)


@given(st.data())
def test_a_mistyped_token_is_noticed(data: st.DataObject) -> None:
    written = new_token(host="h", port=1, fingerprint=bytes(32), tenant_id="ten_" + "a" * 26).encode()
    place = data.draw(st.integers(0, len(written) - 1))
    letter = data.draw(st.sampled_from("abcXYZ019_-"))
    changed = written[:place] + letter + written[place + 1 :]
    if changed != written:
        with pytest.raises(TokenProblem):
            parse_token(changed)


@given(st.one_of(st.text(max_size=300), st.text("qze_abc-", max_size=400)))
def test_no_text_breaks_the_parser(written: str) -> None:
    with pytest.raises(TokenProblem):
        parse_token(written)
