"""Members, invitations and roles of a tenant: who may give what to whom, and that there is always an owner."""

import asyncio
import uuid
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.invitations import store as invitations
from quazzar.link.tokens import parse_token
from quazzar.panel.fleet.store import use_token
from quazzar.panel.tenants.service import TenantService
from tests.conftest import PASSWORD
from tests.factories.accounts import MadeUser, bearer, headers_of, join, make_colleague, make_member

API = "/panel/api"
MEMBERS = f"{API}/members"
ROLES = f"{API}/roles"
ACCEPT = f"{API}/invitations/accept"
Headers = dict[str, str]


@pytest.fixture
async def owner(client: httpx.AsyncClient, ada: MadeUser) -> Headers:
    return await headers_of(client, ada)


async def colleague(client: httpx.AsyncClient, database: Database, of: MadeUser, role: str) -> tuple[MadeUser, Headers]:
    assert of.tenant_id is not None
    user = await make_colleague(database, of.tenant_id, role)
    return user, await headers_of(client, user)


def address() -> str:
    return f"{uuid.uuid4().hex}@example.com"


async def invite(client: httpx.AsyncClient, headers: Headers, email: str, role: str = "operator") -> dict[str, Any]:
    answer = await client.post(MEMBERS, json={"email": email, "role": role}, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def accept(client: httpx.AsyncClient, invited: dict[str, Any], **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    body = {"token": invited["invitation"]["token"]} | more
    return await client.post(ACCEPT, json=body, headers=headers)


async def member_id(client: httpx.AsyncClient, headers: Headers, user: MadeUser) -> str:
    listed = (await client.get(MEMBERS, headers=headers)).json()
    return str(next(one["id"] for one in listed if one["user_id"] == user.id))


async def permissions(client: httpx.AsyncClient, headers: Headers) -> list[str]:
    answer = await client.get(f"{API}/auth/me", headers=headers)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["permissions"])


async def happened(database: Database, tenant_id: str | None) -> list[str]:
    async with database.begin(tenant=tenant_id) as session:
        rows = await session.execute(
            text("SELECT type FROM events WHERE tenant_id = :id AND type LIKE 'member.%' ORDER BY position"),
            {"id": tenant_id},
        )
        return list(rows.scalars())


# --- inviting and accepting ---


async def test_an_invitation_makes_an_account_and_a_member(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    email = address()
    answer = await client.post(MEMBERS, json={"email": email.upper(), "role": "operator"}, headers=owner)
    invited = answer.json()
    assert answer.headers["location"] == f"{MEMBERS}/{invited['id']}"
    assert (invited["status"], invited["email"], invited["user_id"]) == ("invited", email, None)
    assert invited["invitation"]["url"].endswith(f"#token={invited['invitation']['token']}")
    joined = await accept(client, invited, name="Grace", password=PASSWORD)
    assert joined.status_code == 200, joined.text
    assert joined.json().keys() == {"user", "tenant", "member_id", "role"}
    assert (joined.json()["tenant"]["id"], joined.json()["role"]) == (ada.tenant_id, "operator")
    login = await client.post(f"{API}/auth/login", json={"email": email, "password": PASSWORD})
    assert "fleet:operate" in await permissions(client, bearer(login.json()["access_token"]))
    listed = (await client.get(MEMBERS, headers=owner)).json()
    assert {one["email"]: one["status"] for one in listed} == {ada.name: "active", email: "active"}
    assert await happened(database, ada.tenant_id) == ["member.invited", "member.joined"]


async def test_s08_an_invitation_can_not_be_taken_over(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    _, viewer = await colleague(client, database, ada, "viewer")
    grace = await make_member(database)
    invited = await invite(client, owner, grace.name)
    token = invited["invitation"]["token"]
    listed = await client.get(MEMBERS, headers=viewer)
    assert listed.status_code == 200
    assert token not in listed.text
    assert all("invitation" not in one for one in listed.json())
    eve = await headers_of(client, await make_member(database))
    for headers in (viewer, eve, owner):
        refused = await accept(client, invited, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "invitation_for_another")
    # Its address has an account: nobody makes another one, nor sets its password, by the link.
    nobody = await accept(client, invited, name="Eve", password="other words entirely")
    assert (nobody.status_code, nobody.json()["code"]) == (401, "login_required")
    bad = await accept(client, invited, headers=bearer("nonsense"))
    assert bad.status_code == 401
    more = await accept(client, invited, headers=await headers_of(client, grace), role="owner")
    assert (more.status_code, list(more.json()["details"])) == (422, ["role"])
    mine = await headers_of(client, grace)
    done = await accept(client, invited, headers=mine)
    assert (done.status_code, done.json()["role"]) == (200, "operator")
    again = await accept(client, invited, headers=mine)
    assert (again.status_code, again.json()["code"]) == (409, "invitation_accepted")


async def test_of_several_at_once_one_accepts(client: httpx.AsyncClient, owner: Headers) -> None:
    invited = await invite(client, owner, address())
    answers = await asyncio.gather(*(accept(client, invited, name="G", password=PASSWORD) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers)[0] == 200
    assert [answer.status_code for answer in answers].count(200) == 1
    assert {answer.json().get("code") for answer in answers} <= {None, "invitation_accepted", "login_required"}
    assert len((await client.get(MEMBERS, headers=owner)).json()) == 2


async def test_only_the_newest_link_of_an_address_is_good(
    client: httpx.AsyncClient, owner: Headers, database: Database, ada: MadeUser
) -> None:
    email = address()
    first, second = await invite(client, owner, email), await invite(client, owner, email, "viewer")
    assert len((await client.get(MEMBERS, headers=owner)).json()) == 2
    dead = await accept(client, first, name="G", password=PASSWORD)
    assert (dead.status_code, dead.json()["code"]) == (404, "invitation_not_found")
    async with database.begin(tenant=ada.tenant_id) as session:
        await session.execute(text("UPDATE invitations SET expires_at = now() WHERE email = :e"), {"e": email})
    over = await accept(client, second, name="G", password=PASSWORD)
    assert (over.status_code, over.json()["code"]) == (409, "invitation_expired")
    assert [one["status"] for one in (await client.get(MEMBERS, headers=owner)).json()] == ["active"]
    async with database.begin(tenant=ada.tenant_id) as session:
        late = text("UPDATE invitations SET expires_at = now() - interval '31 days' WHERE email = :e")
        await session.execute(late, {"e": email})
    async with database.begin() as session:
        await invitations.prune_invitations(session)
    assert (await accept(client, second, name="G", password=PASSWORD)).status_code == 404
    third = await invite(client, owner, email)
    assert (await client.delete(f"{MEMBERS}/{third['id']}", headers=owner)).status_code == 204
    assert (await accept(client, third, name="G", password=PASSWORD)).status_code == 404


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"email", "role"}),
        ({"email": "x", "role": "no such"}, {"email", "role"}),
        ({"role": "sorcerer"}, {"role"}),
        ({"role": "rol_" + "a" * 26}, {"role"}),
        ({"tenant_id": "ten_x"}, {"tenant_id"}),
        ({"scope": {"groups": [], "instances": []}}, {"scope"}),
        (
            {"scope": {"groups": ["grp_x", "inst_x"], "instances": ["inst_y"]}},
            {"scope.groups.0", "scope.groups.1", "scope.instances.0"},
        ),
        ({"role": "owner", "scope": {"groups": ["grp_x"]}}, {"scope"}),
        ({"email": "a@example.com\r\nBcc: b@example.com"}, {"email"}),
    ],
    # Sets have no order of their own, and the names of tests must be the same in every worker.
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, owner: Headers, body: dict[str, Any], fields: set[str]
) -> None:
    full = body and {"email": address(), "role": "viewer"} | body
    answer = await client.post(MEMBERS, json=full, headers=owner)
    assert answer.status_code == 422
    assert set(answer.json()["details"]) == fields
    assert len((await client.get(MEMBERS, headers=owner)).json()) == 1


async def test_accepting_names_what_is_missing(client: httpx.AsyncClient, owner: Headers) -> None:
    invited = await invite(client, owner, address())
    nothing = await accept(client, invited)
    assert set(nothing.json()["details"]) == {"name", "password"}
    weak = await accept(client, invited, name="G", password="password1234")
    assert set(weak.json()["details"]) == {"password"}
    for token in ("x", "qzi_" + "a" * 43):
        answer = await client.post(ACCEPT, json={"token": token, "name": "G", "password": PASSWORD})
        assert (answer.status_code, answer.json()["code"]) == (404, "invitation_not_found")
    assert (await accept(client, invited, name="G", password=PASSWORD)).status_code == 200
    taken = await client.post(MEMBERS, json={"email": invited["email"], "role": "viewer"}, headers=owner)
    assert (taken.status_code, taken.json()["code"]) == (409, "member_exists")


# --- nobody gives or takes more than they have ---


async def test_an_admin_makes_no_owner_and_touches_none(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    _, admin = await colleague(client, database, ada, "admin")
    waiting = await invite(client, owner, address(), "owner")
    ada_id = await member_id(client, owner, ada)
    exceeded = [
        await client.post(MEMBERS, json={"email": address(), "role": "owner"}, headers=admin),
        await client.post(MEMBERS, json={"email": waiting["email"], "role": "viewer"}, headers=admin),
        await client.patch(f"{MEMBERS}/{ada_id}", json={"role": "viewer"}, headers=admin),
        await client.patch(f"{MEMBERS}/{waiting['id']}", json={"role": "viewer"}, headers=admin),
        await client.delete(f"{MEMBERS}/{ada_id}", headers=admin),
        await client.delete(f"{MEMBERS}/{waiting['id']}", headers=admin),
        await client.post(ROLES, json={"name": "Money", "permissions": ["billing:write"]}, headers=admin),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in exceeded} == {(403, "scope_exceeded")}
    assert (await client.post(ROLES, json={"name": "All", "permissions": ["*"]}, headers=owner)).status_code == 422
    assert "*" in await permissions(client, owner)


async def test_another_tenants_members_and_roles_are_unknown(
    client: httpx.AsyncClient, owner: Headers, database: Database
) -> None:
    eve = await make_member(database)
    hers = await headers_of(client, eve)
    role = (await client.post(ROLES, json={"name": "Hers", "permissions": ["fleet:read"]}, headers=hers)).json()["id"]
    theirs = {
        "members": [await member_id(client, hers, eve), (await invite(client, hers, address()))["id"], new_id("mem")],
        "roles": [role, new_id("rol")],
    }
    for name, ids in theirs.items():
        for method, body in (("PATCH", {}), ("DELETE", None)):
            answers = [
                await client.request(method, f"{API}/{name}/{one}", json=body, headers=owner | {"X-Request-Id": "same"})
                for one in ids
            ]
            assert {(answer.status_code, answer.content) for answer in answers} == {(404, answers[0].content)}
    foreign = await client.post(MEMBERS, json={"email": address(), "role": role}, headers=owner)
    unknown = await client.post(MEMBERS, json={"email": address(), "role": new_id("rol")}, headers=owner)
    assert (foreign.status_code, foreign.json()["details"]) == (unknown.status_code, unknown.json()["details"])
    assert foreign.status_code == 422
    assert len((await client.get(MEMBERS, headers=hers)).json()) == 2


# --- the last owner, leaving, being removed ---


async def test_the_last_owner_stays(client: httpx.AsyncClient, ada: MadeUser, owner: Headers) -> None:
    path = f"{MEMBERS}/{await member_id(client, owner, ada)}"
    for answer in (
        await client.delete(path, headers=owner),
        await client.patch(path, json={"role": "admin"}, headers=owner),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "last_owner")
    assert "*" in await permissions(client, owner)


async def test_of_two_owners_who_go_at_once_one_stays(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    grace, hers = await colleague(client, database, ada, "owner")
    first, second = await member_id(client, owner, ada), await member_id(client, owner, grace)
    answers = await asyncio.gather(
        client.delete(f"{MEMBERS}/{first}", headers=owner),
        client.patch(f"{MEMBERS}/{second}", json={"role": "viewer"}, headers=hers),
    )
    assert 409 in {answer.status_code for answer in answers}
    assert {answer.status_code for answer in answers} & {200, 204}
    async with database.begin(tenant=ada.tenant_id) as session:
        left = await session.execute(text("SELECT count(*) FROM memberships WHERE role = 'owner'"))
        assert left.scalar_one() == 1


async def test_whoever_leaves_or_is_removed_is_out_with_their_invitations(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    viewer, hers = await colleague(client, database, ada, "viewer")
    admin, theirs = await colleague(client, database, ada, "admin")
    waiting = await invite(client, theirs, address(), "admin")
    other = await member_id(client, owner, admin)
    assert (await client.delete(f"{MEMBERS}/{other}", headers=hers)).json()["code"] == "scope_missing"
    assert (await client.delete(f"{MEMBERS}/{new_id('mem')}", headers=hers)).json()["code"] == "scope_missing"
    mine = await member_id(client, owner, viewer)
    assert (await client.delete(f"{MEMBERS}/{mine}", headers=hers)).status_code == 204
    assert (await client.get(f"{API}/auth/me", headers=hers)).status_code == 401
    assert (await client.delete(f"{MEMBERS}/{other}", headers=owner)).status_code == 204
    assert (await client.get(f"{API}/auth/me", headers=theirs)).status_code == 401
    assert (await accept(client, waiting, name="G", password=PASSWORD)).status_code == 404
    assert (await happened(database, ada.tenant_id)).count("member.removed") == 2


async def test_whoever_is_removed_lets_no_server_in(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    """They may have kept the text of a token, and would hear all that the fleet is told."""
    admin, theirs = await colleague(client, database, ada, "admin")
    tokens = f"{API}/fleet/tokens"
    gone = (await client.post(tokens, json={"name": "kept"}, headers=theirs)).json()
    stays = (await client.post(tokens, json={"name": "other"}, headers=owner)).json()
    path = f"{MEMBERS}/{await member_id(client, owner, admin)}"
    assert (await client.delete(path, headers=owner)).status_code == 204
    assert [one["id"] for one in (await client.get(tokens, headers=owner)).json()] == [stays["id"]]
    digest = parse_token(gone["token"]).digest
    async with database.begin(tenant=ada.tenant_id) as session:
        assert await use_token(session, ada.tenant_id or "", digest) is None


@pytest.mark.parametrize("change", [{"role": "operator"}, {"role": "admin"}, {"scope": "bound"}])
async def test_whoever_may_less_by_now_lets_nobody_in_as_more(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database, change: dict[str, Any]
) -> None:
    grace, hers = await colleague(client, database, ada, "owner")
    waiting = await invite(client, hers, address(), "owner")
    tokens = f"{API}/fleet/tokens"
    assert (await client.post(tokens, json={"name": "kept"}, headers=hers)).status_code == 201
    if change == {"scope": "bound"}:
        group = (await client.post(f"{API}/fleet/groups", json={"name": "g"}, headers=owner)).json()
        change = {"role": "admin", "scope": {"groups": [group["id"]], "instances": []}}
    path = f"{MEMBERS}/{await member_id(client, owner, grace)}"
    assert (await client.patch(path, json=change, headers=owner)).status_code == 200
    assert (await accept(client, waiting, name="Sock", password=PASSWORD)).status_code == 404
    assert (await client.get(tokens, headers=owner)).json() == []
    assert (await happened(database, ada.tenant_id))[-1] == "member.updated"


@pytest.mark.parametrize("change", ["DELETE FROM memberships", "UPDATE memberships SET role = 'operator'"])
async def test_an_invitation_that_waited_is_made_by_whoever_still_may(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database, change: str
) -> None:
    grace, hers = await colleague(client, database, ada, "admin")
    body = {"email": address(), "role": "admin"}
    async with database.begin(tenant=ada.tenant_id) as session:
        await TenantService(session).lock(ada.tenant_id or "")
        await session.execute(text(f"{change} WHERE user_id = :id"), {"id": grace.id})
        inviting = asyncio.create_task(client.post(MEMBERS, json=body, headers=hers))
        async with asyncio.timeout(20), database.begin() as watch:
            while not (await watch.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))).scalar_one():
                await asyncio.sleep(0.01)
    answer = await inviting
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_exceeded"), answer.text
    assert body["email"] not in (await client.get(MEMBERS, headers=owner)).text


async def test_whoever_may_more_keeps_what_they_have_made(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    grace, hers = await colleague(client, database, ada, "admin")
    waiting = await invite(client, hers, address())
    path = f"{MEMBERS}/{await member_id(client, owner, grace)}"
    assert (await client.patch(path, json={"role": "owner"}, headers=owner)).status_code == 200
    assert (await accept(client, waiting, name="G", password=PASSWORD)).status_code == 200


async def test_whoever_is_removed_from_an_msp_leaves_no_door_open_at_its_clients(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    await client.patch(f"{API}/tenants/{ada.tenant_id}", json={"kind": "msp"}, headers=owner)
    body = {"name": "Client", "kind": "client", "parent_access": "admin"}
    clients = [(await client.post(f"{API}/tenants", json=body, headers=owner)).json()["id"] for _ in range(2)]
    grace, hers = await colleague(client, database, ada, "admin")
    # Into the first she comes from the parent; to the second she belongs herself, and stays.
    await join(database, grace, clients[1], "admin")
    doors, tokens = [], []
    for tenant_id in clients:
        switched = await client.post(f"{API}/auth/switch-tenant", json={"tenant_id": tenant_id}, headers=hers)
        hers = bearer(switched.json()["access_token"])
        doors.append(await invite(client, hers, address(), "admin"))
        made = await client.post(f"{API}/fleet/tokens", json={"name": "kept"}, headers=hers)
        tokens.append(parse_token(made.json()["token"]).digest)
    # And one of a client that she has never been in.
    clients.append((await client.post(f"{API}/tenants", json=body, headers=owner)).json()["id"])
    mine = await headers_of(client, grace)
    made = await client.post(f"{API}/fleet/tokens", json={"name": "kept", "tenant_id": clients[2]}, headers=mine)
    tokens.append(parse_token(made.json()["token"]).digest)
    path = f"{MEMBERS}/{await member_id(client, owner, grace)}"
    assert (await client.delete(path, headers=owner)).status_code == 204
    statuses = [(await accept(client, door, name="G", password=PASSWORD)).status_code for door in doors]
    assert statuses == [404, 200]
    used = []
    for tenant_id, digest in zip(clients, tokens, strict=True):
        async with database.begin(tenant=tenant_id) as session:
            used.append(await use_token(session, tenant_id, digest) is not None)
    assert used == [False, True, False]
    # The rest of the call was still about the parent.
    assert (await happened(database, ada.tenant_id))[-1] == "member.removed"


async def test_members_of_the_parent_are_not_the_clients_to_promote(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    await client.patch(f"{API}/tenants/{ada.tenant_id}", json={"kind": "msp"}, headers=owner)
    body = {"name": "Client", "kind": "client", "parent_access": "admin"}
    client_id = (await client.post(f"{API}/tenants", json=body, headers=owner)).json()["id"]
    grace, hers = await colleague(client, database, ada, "admin")
    switched = await client.post(f"{API}/auth/switch-tenant", json={"tenant_id": client_id}, headers=hers)
    guest = bearer(switched.json()["access_token"])
    chris = await make_colleague(database, client_id, "owner")
    own = await headers_of(client, chris)
    listed = {one["user_id"]: one for one in (await client.get(MEMBERS, headers=own)).json()}
    assert (listed[grace.id]["from_parent"], listed[grace.id]["role"]) == (True, None)
    path = f"{MEMBERS}/{listed[grace.id]['id']}"
    promoted = await client.patch(path, json={"role": "owner"}, headers=own)
    assert (promoted.status_code, promoted.json()["code"]) == (409, "member_of_parent")
    assert (await client.delete(path, headers=own)).status_code == 204
    assert (await client.get(f"{API}/auth/me", headers=guest)).status_code == 401


async def test_who_comes_from_the_parent_becomes_a_member_by_an_invitation(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    """Under the id that they have, in the session that they are in, and also once they have left the parent."""
    await client.patch(f"{API}/tenants/{ada.tenant_id}", json={"kind": "msp"}, headers=owner)
    body = {"name": "Client", "kind": "client", "parent_access": "viewer"}
    client_id = (await client.post(f"{API}/tenants", json=body, headers=owner)).json()["id"]
    grace, hers = await colleague(client, database, ada, "admin")
    at_home = await member_id(client, owner, grace)
    own = await headers_of(client, await make_colleague(database, client_id, "owner"))
    switched = await client.post(f"{API}/auth/switch-tenant", json={"tenant_id": client_id}, headers=hers)
    guest = bearer(switched.json()["access_token"])
    before = await member_id(client, own, grace)
    invited, again = [await invite(client, own, email, "admin") for email in (grace.name, address())]
    joined = await accept(client, invited, headers=guest)
    assert (joined.status_code, joined.json()["member_id"], joined.json()["role"]) == (200, before, "admin")
    listed = {one["user_id"]: one for one in (await client.get(MEMBERS, headers=own)).json()}
    assert (listed[grace.id]["from_parent"], listed[grace.id]["role"]) == (False, "admin")
    assert "members:write" in await permissions(client, guest)
    assert (await happened(database, client_id))[-1] == "member.joined"
    # Whoever is one already stays what they are.
    async with database.begin(tenant=client_id) as session:
        values = {"email": grace.name, "id": again["id"]}
        await session.execute(text("DELETE FROM invitations WHERE email = :email"), values)
        await session.execute(text("UPDATE invitations SET email = :email, role = 'viewer' WHERE id = :id"), values)
    taken = await accept(client, again, headers=guest)
    assert (taken.status_code, taken.json()["code"]) == (409, "member_exists")
    assert (await client.delete(f"{MEMBERS}/{at_home}", headers=owner)).status_code == 204
    assert "members:write" in await permissions(client, guest)


# --- roles ---


async def test_an_own_role_holds_for_the_next_call(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    body = {"name": "Night shift", "permissions": ["jobs:read", "fleet:operate", "jobs:read"]}
    made = await client.post(ROLES, json=body, headers=owner)
    assert made.status_code == 201
    role = made.json()
    assert made.headers["location"] == f"{ROLES}/{role['id']}"
    assert (role["permissions"], role["built_in"]) == (["fleet:operate", "jobs:read"], False)
    grace, hers = await colleague(client, database, ada, "viewer")
    path = f"{MEMBERS}/{await member_id(client, owner, grace)}"
    changed = await client.patch(path, json={"role": role["id"]}, headers=owner)
    assert (changed.status_code, changed.json()["role"]) == (200, role["id"])
    assert await permissions(client, hers) == ["fleet:operate", "jobs:read"]
    more = await client.patch(f"{ROLES}/{role['id']}", json={"permissions": ["audit:read"]}, headers=owner)
    assert more.status_code == 200
    assert await permissions(client, hers) == ["audit:read"]
    busy = await client.delete(f"{ROLES}/{role['id']}", headers=owner)
    assert (busy.status_code, busy.json()["code"]) == (409, "role_in_use")
    await client.patch(path, json={"role": "viewer"}, headers=owner)
    assert (await client.delete(f"{ROLES}/{role['id']}", headers=owner)).status_code == 204
    assert (await client.delete(f"{ROLES}/{role['id']}", headers=owner)).status_code == 404


async def test_the_list_of_roles(client: httpx.AsyncClient, owner: Headers) -> None:
    ids: list[str] = []
    for name in ("One", "Two"):
        made = await client.post(ROLES, json={"name": name, "permissions": ["fleet:read"]}, headers=owner)
        ids.insert(0, made.json()["id"])
    listed = (await client.get(ROLES, headers=owner)).json()
    built_in = ["owner", "admin", "operator", "viewer", "billing"]
    assert [role["id"] for role in listed] == ids + built_in
    page = await client.get(f"{ROLES}?limit=3", headers=owner)
    rest = await client.get(page.headers["link"].partition(">")[0][1:], headers=owner)
    assert page.json() + rest.json() == listed[:6]
    for taken in ("One", "Owner"):
        again = await client.post(ROLES, json={"name": taken, "permissions": ["fleet:read"]}, headers=owner)
        assert (again.status_code, again.json()["code"]) == (409, "role_name_taken")
    for method, change in (("PATCH", {"name": "x"}), ("DELETE", None)):
        fixed = await client.request(method, f"{ROLES}/admin", json=change, headers=owner)
        assert (fixed.status_code, fixed.json()["code"]) == (409, "role_built_in")


async def test_the_list_of_members_in_pages(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    assert ada.tenant_id is not None
    for _ in range(2):
        await make_colleague(database, ada.tenant_id)
        await invite(client, owner, address())
    whole = (await client.get(MEMBERS, headers=owner)).json()
    assert len(whole) == 5
    found, url = [], f"{MEMBERS}?limit=2"
    while url:
        page = await client.get(url, headers=owner)
        found += page.json()
        url = page.headers.get("link", "").partition(">")[0][1:]
    assert found == whole


async def test_a_bound_member_hands_on_no_more_than_their_bounds(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, database: Database
) -> None:
    groups = [
        (await client.post(f"{API}/fleet/groups", json={"name": name}, headers=owner)).json()["id"]
        for name in ("one", "two")
    ]
    grace, hers = await colleague(client, database, ada, "admin")
    path = f"{MEMBERS}/{await member_id(client, owner, grace)}"
    bound = await client.patch(path, json={"scope": {"groups": groups[:1]}}, headers=owner)
    assert bound.json()["scope"] == {"groups": groups[:1], "instances": []}
    listed = (await client.get(f"{API}/fleet/groups", headers=hers)).json()
    assert [group["id"] for group in listed] == groups[:1]
    for scope in (None, {"groups": groups}, {"groups": groups[1:]}):
        answer = await client.post(MEMBERS, json={"email": address(), "role": "viewer", "scope": scope}, headers=hers)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_exceeded")
    role = (await client.post(ROLES, json={"name": "r", "permissions": ["fleet:read"]}, headers=owner)).json()["id"]
    beyond = [
        await client.patch(path, json={"scope": None}, headers=hers),
        await client.delete(f"{MEMBERS}/{await member_id(client, owner, ada)}", headers=hers),
        await client.post(ROLES, json={"name": "s", "permissions": ["fleet:read"]}, headers=hers),
        await client.patch(f"{ROLES}/{role}", json={"name": "s"}, headers=hers),
        await client.delete(f"{ROLES}/{role}", headers=hers),
        await client.patch(f"{API}/tenants/{ada.tenant_id}", json={"name": "s"}, headers=hers),
    ]
    assert {answer.json()["code"] for answer in beyond} == {"scope_exceeded"}
    within = {"email": address(), "role": "viewer", "scope": {"groups": groups[:1]}}
    assert (await client.post(MEMBERS, json=within, headers=hers)).status_code == 201
    # A group of another tenant is as unknown as one that never was.
    eve = await headers_of(client, await make_member(database))
    foreign = (await client.post(f"{API}/fleet/groups", json={"name": "eves"}, headers=eve)).json()["id"]
    body = {"email": address(), "role": "viewer", "scope": {"groups": [foreign]}}
    refused = await client.post(MEMBERS, json=body, headers=owner)
    assert (refused.status_code, list(refused.json()["details"])) == (422, ["scope.groups.0"])
    assert (await client.patch(path, json={"scope": None}, headers=owner)).json()["scope"] is None
