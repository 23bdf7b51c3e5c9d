"""API keys: made within their maker's means, found by hash, gone at once when revoked."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.accounts.roles import SCOPES, effective, is_covered, scopes_of
from quazzar.core.db import Database
from quazzar.core.tokens import API_KEY_PATTERN
from tests.conftest import PASSWORD, RunningApp
from tests.factories.accounts import MadeUser, bearer, headers_of, make_key, make_user

URL = "/api/auth/api-keys"


@pytest.fixture
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture
async def user(database: Database) -> MadeUser:
    return await make_user(database)


@pytest.fixture
async def headers(client: httpx.AsyncClient, user: MadeUser) -> dict[str, str]:
    return await headers_of(client, user)


def within(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


async def create(client: httpx.AsyncClient, headers: dict[str, str], **body: Any) -> httpx.Response:
    return await client.post(URL, json={"name": "n", "scopes": ["apps:read"]} | body, headers=headers)


async def works(client: httpx.AsyncClient, key: str) -> bool:
    answer = await client.get("/api/auth/me", headers=bearer(key))
    assert answer.status_code in {200, 401}
    return answer.status_code == 200


async def test_a_key_is_shown_once_and_works(
    client: httpx.AsyncClient, headers: dict[str, str], database: Database
) -> None:
    answer = await create(client, headers, name="CI", scopes=["apps:read", "jobs:read", "apps:read"])
    assert answer.status_code == 201
    made = answer.json()
    key = made.pop("key")
    assert re.fullmatch(API_KEY_PATTERN, key)
    assert answer.headers["location"] == f"{URL}/{made['id']}"
    assert made["id"].startswith("key_")
    assert made["scopes"] == ["apps:read", "jobs:read"]
    assert key.startswith(made["prefix"])
    assert key.endswith(made["suffix"])
    assert len(made["prefix"]) == 12
    life = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert life == pytest.approx(timedelta(days=365), abs=timedelta(minutes=1))
    me = await client.get("/api/auth/me", headers=bearer(key))
    assert me.json()["scopes"] == ["apps:read", "jobs:read"]
    assert (await client.get(answer.headers["location"], headers=headers)).json()["id"] == made["id"]
    listed = await client.get(URL, headers=headers)
    assert listed.json()[0] == made
    assert key not in listed.text
    async with database.begin() as session:
        dump = "SELECT CAST(k AS text) FROM api_keys k WHERE id = :id"
        assert key[12:] not in (await session.execute(text(dump), {"id": made["id"]})).scalar_one()


async def test_a_revoked_key_stops_at_once(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    made = await make_key(client, headers)
    assert await works(client, made["key"])
    assert await works(client, made["key"])
    answer = await client.delete(f"{URL}/{made['id']}", headers=headers)
    assert (answer.status_code, answer.content) == (204, b"")
    assert not await works(client, made["key"])
    assert (await client.delete(f"{URL}/{made['id']}", headers=headers)).status_code == 404
    assert (await client.get(URL, headers=headers)).json() == []


async def test_other_peoples_keys_are_not_there(
    client: httpx.AsyncClient, headers: dict[str, str], database: Database
) -> None:
    stranger = await headers_of(client, await make_user(database))
    made = await make_key(client, stranger)
    for id_ in (made["id"], "key_" + "a" * 26, "x"):
        for method in ("GET", "DELETE"):
            answer = await client.request(method, f"{URL}/{id_}", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (404, "api_key_not_found")
    assert (await client.get(URL, headers=headers)).json() == []
    assert await works(client, made["key"])


# --- no more than the maker ---


@pytest.mark.parametrize(
    ("maker", "asked", "status"),
    [
        (["apps:read", "auth:write"], ["*"], 403),
        (["apps:read", "auth:write"], ["apps:write"], 403),
        (["apps:read", "auth:write"], ["apps:exec"], 403),
        (["apps:read", "auth:write"], ["apps:read", "jobs:read"], 403),
        (["apps:read", "auth:write"], ["apps:read"], 201),
        (["apps:write", "auth:write"], ["apps:exec", "apps:deploy"], 201),
        (["*"], ["*"], 201),
        (["*"], ["firewall:write"], 201),
    ],
    ids=str,
)
async def test_s10_a_key_makes_no_key_that_can_do_more(
    client: httpx.AsyncClient, headers: dict[str, str], maker: list[str], asked: list[str], status: int
) -> None:
    key = bearer((await make_key(client, headers, scopes=maker))["key"])
    answer = await create(client, key, scopes=asked)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "scope_exceeded"


async def test_s10_a_key_without_the_scope_makes_none(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    key = bearer((await make_key(client, headers, scopes=["apps:read"]))["key"])
    for method, path, body in (
        ("POST", URL, {"name": "x", "scopes": ["*"]}),
        ("GET", URL, None),
        ("DELETE", f"{URL}/key_x", None),
    ):
        answer = await client.request(method, path, json=body, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


async def test_s10_a_role_binds_its_keys(client: httpx.AsyncClient, database: Database) -> None:
    operator = await headers_of(client, await make_user(database, role="operator"))
    for scopes in (["*"], ["settings:write"], ["apps:read", "vpn:read"]):
        answer = await create(client, operator, scopes=scopes)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_exceeded")
    assert (await create(client, operator, scopes=["apps:exec", "backups:write"])).status_code == 201
    viewer = await headers_of(client, await make_user(database, role="viewer"))
    assert (await create(client, viewer)).json()["code"] == "scope_missing"
    assert (await client.get(URL, headers=viewer)).status_code == 200


async def test_a_key_makes_none_that_lives_longer(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    made = await make_key(client, headers, expires_at=within(10))
    key = bearer(made["key"])
    longer = await create(client, key, expires_at=within(11))
    assert (longer.status_code, longer.json()["code"]) == (403, "key_lifetime_exceeded")
    shorter = await create(client, key, expires_at=within(9))
    assert shorter.status_code == 201
    default = await create(client, key)
    assert datetime.fromisoformat(default.json()["expires_at"]) <= datetime.fromisoformat(made["expires_at"])


async def test_a_bound_key_hands_its_bounds_on(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    app_ids = ["app_" + letter * 26 for letter in "abc"]
    maker = bearer((await make_key(client, headers, resources=app_ids[:2], allowed_ips=["127.0.0.0/8"]))["key"])
    inherited = (await create(client, maker)).json()
    assert inherited["resources"] == app_ids[:2]
    assert inherited["allowed_ips"] == ["127.0.0.0/8"]
    narrower = await create(client, maker, resources=app_ids[:1], allowed_ips=["127.0.0.1"])
    assert narrower.status_code == 201
    assert narrower.json()["allowed_ips"] == ["127.0.0.1/32"]
    for wider in ({"resources": app_ids[1:]}, {"allowed_ips": ["0.0.0.0/0"]}, {"allowed_ips": ["::1"]}):
        answer = await create(client, maker, **wider)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_exceeded")


async def test_a_key_does_nothing_about_the_account(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    key = bearer((await make_key(client, headers, scopes=["*"]))["key"])
    for method, path, body in (
        ("POST", "/api/auth/change-password", {"current_password": PASSWORD, "new_password": PASSWORD + "2"}),
        ("POST", "/api/auth/logout", None),
        ("GET", "/api/auth/sessions", None),
        ("DELETE", "/api/auth/sessions/ses_x", None),
    ):
        answer = await client.request(method, path, json=body, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (403, "session_required")


# --- what is asked for ---


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a" * 201}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["apps:reed"]}, "scopes.0"),
        ({"scopes": "apps:read"}, "scopes"),
        ({"scopes": ["apps:read", 5]}, "scopes.1"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "0001-01-01T00:00:00+12:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"expires_at": "2099-01-01T00:00:00Z"}, "expires_at"),
        ({"allowed_ips": []}, "allowed_ips"),
        ({"allowed_ips": ["127.0.0.1", "localhost"]}, "allowed_ips.1"),
        ({"allowed_ips": ["10.0.0.1/8"]}, "allowed_ips.0"),
        ({"allowed_ips": ["300.1.1.1"]}, "allowed_ips.0"),
        ({"resources": ["usr_" + "a" * 26]}, "resources.0"),
        ({"resources": []}, "resources"),
        ({"user_id": "usr_x"}, "user_id"),
        ({"key": "qzr_x"}, "key"),
        ({"id": "key_x"}, "id"),
    ],
    ids=str,
)
async def test_s30_what_is_wrong_is_named(
    client: httpx.AsyncClient, headers: dict[str, str], change: dict[str, Any], field: str
) -> None:
    answer = await create(client, headers, **change)
    assert answer.status_code == 422
    assert answer.json()["details"].keys() == {field}


async def test_there_are_at_most_fifty_also_when_many_are_made_at_once(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    # No more than there are connections: on a busy machine the others would be turned away for want of one.
    turns = asyncio.Semaphore(8)

    async def make(number: int) -> httpx.Response:
        async with turns:
            return await create(client, headers, name=f"k{number}")

    answers = await asyncio.gather(*(make(number) for number in range(55)))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(201) == 50
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"api_key_limit"}
    assert len((await client.get(URL, headers=headers)).json()) == 50


async def test_an_idempotency_key_gives_the_same_key_again(client: httpx.AsyncClient, user: MadeUser) -> None:
    headers = await headers_of(client, user) | {"Idempotency-Key": "one"}
    first, second = await create(client, headers), await create(client, headers)
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]


# --- where and how long ---


async def test_a_key_counts_only_from_its_networks(
    app: RunningApp, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    made = await make_key(client, headers, allowed_ips=["192.0.2.0/24", "2001:db8::/32"])
    for address, expected in (
        ("192.0.2.77", True),
        ("::ffff:192.0.2.77", True),
        ("2001:db8::5", True),
        ("192.0.3.1", False),
        ("2001:db9::5", False),
        ("127.0.0.1", False),
    ):
        async with app.client(address) as caller:
            assert await works(caller, made["key"]) is expected, address
            # And again, when it has been seen from elsewhere meanwhile.
            assert await works(caller, made["key"]) is expected, address
    async with app.client("192.0.3.1") as caller:
        spoofed = await caller.get("/api/auth/me", headers=bearer(made["key"]) | {"X-Forwarded-For": "192.0.2.77"})
        assert spoofed.status_code == 401


async def test_a_key_dies_when_it_expires(
    client: httpx.AsyncClient, headers: dict[str, str], database: Database
) -> None:
    made = await make_key(client, headers)
    for seconds in (1, 5, 20):
        async with database.begin() as session:
            query = "UPDATE api_keys SET expires_at = now() + make_interval(secs => :seconds) WHERE id = :id"
            await session.execute(text(query), {"id": made["id"], "seconds": seconds})
        if await works(client, made["key"]):
            break  # a busy machine may have needed longer than it had
    else:
        pytest.fail("it does not work")
    await asyncio.sleep(seconds + 0.1)
    assert not await works(client, made["key"])
    assert (await client.get(URL, headers=headers)).json()[0]["id"] == made["id"]


async def test_a_key_never_has_more_than_its_owner_has_now(
    app: RunningApp, client: httpx.AsyncClient, headers: dict[str, str], user: MadeUser, database: Database
) -> None:
    made = await make_key(client, headers, scopes=["*"])
    assert (await client.get("/api/auth/me", headers=bearer(made["key"]))).json()["scopes"] == ["*"]
    async with database.begin() as session:
        await session.execute(text("UPDATE users SET role = 'viewer' WHERE id = :id"), {"id": user.id})
        await session.execute(text("SELECT pg_notify('auth', :id)"), {"id": user.id})
    async with asyncio.timeout(5):
        while "*" in (await client.get("/api/auth/me", headers=bearer(made["key"]))).json()["scopes"]:
            await asyncio.sleep(0.02)
    scopes = (await client.get("/api/auth/me", headers=bearer(made["key"]))).json()["scopes"]
    assert all(scope.endswith(":read") for scope in scopes)


async def test_last_use_is_noted(app: RunningApp, database: Database, user: MadeUser) -> None:
    async with app.client("192.0.2.9") as client:
        headers = await headers_of(client, user)
        made = await make_key(client, headers)
        assert (await client.get(URL, headers=headers)).json()[0]["last_used_at"] is None
        assert await works(client, made["key"])
        await app.asgi._authenticator.flush()
        listed = (await client.get(URL, headers=headers)).json()[0]
    assert listed["last_used_ip"] == "192.0.2.9"
    assert listed["last_used_at"] >= made["created_at"]


# --- scopes ---


def test_who_may_hand_what_on() -> None:
    assert is_covered("*", frozenset({"*"}))
    assert not is_covered("*", SCOPES - {"*"})
    assert is_covered("apps:exec", frozenset({"apps:write"}))
    assert not is_covered("apps:write", frozenset({"apps:exec", "apps:deploy", "apps:operate", "apps:secrets"}))


def test_effective_scopes_never_exceed_either_side() -> None:
    for role in ("admin", "operator", "viewer", "nobody", None):
        granted = scopes_of(role)
        for scopes in ({"*"}, {"apps:read"}, {"apps:write", "settings:write"}, set()):
            left = effective(frozenset(scopes), granted)
            for scope in left:
                assert is_covered(scope, granted)
                assert is_covered(scope, frozenset(scopes))
    assert effective(frozenset({"apps:exec"}), scopes_of("operator")) == {"apps:exec"}
    assert effective(frozenset({"apps:write"}), frozenset({"apps:exec"})) == {"apps:exec"}
    assert scopes_of("nobody") == frozenset()


async def test_keys_and_sessions_come_in_pages(admin: httpx.AsyncClient) -> None:
    for number in range(3):
        made = await admin.post(URL, json={"name": f"page-{number}", "scopes": ["apps:read"]})
        assert made.status_code == 201
    for path in (URL, "/api/auth/sessions"):
        whole = [one["id"] for one in (await admin.get(path)).json()]
        pieces, link = [], f"{path}?limit=1"
        while link:
            answer = await admin.get(link)
            assert len(answer.json()) == 1
            pieces += [one["id"] for one in answer.json()]
            link = answer.links.get("next", {}).get("url", "")
        assert pieces == whole
        assert (await admin.get(f"{path}?limit=0")).status_code == 400
        assert (await admin.get(f"{path}?cursor=nonsense!")).status_code == 400
