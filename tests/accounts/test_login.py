"""Login, refresh, logout and sessions of the instance; the panel's differences are in tests/panel."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text

from quazzar.accounts import guesses, store
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.tokens import INSTANCE_ACCESS, INSTANCE_STEP, PANEL_ACCESS, Tokens
from tests.conftest import PASSWORD, RunningApp
from tests.factories.accounts import MadeUser, bearer, headers_of, log_in, make_member, make_user


@pytest.fixture(autouse=True)
async def no_guesses(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("DELETE FROM login_attempts"))


@pytest.fixture
async def user(database: Database) -> MadeUser:
    return await make_user(database)


@pytest.fixture
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


async def count(database: Database, query: str, **values: Any) -> int:
    async with database.begin() as session:
        return int((await session.execute(text(query), values)).scalar_one())


async def me(client: httpx.AsyncClient, headers: dict[str, str]) -> httpx.Response:
    return await client.get("/api/auth/me", headers=headers)


# --- login ---


async def test_login_gives_a_pair_and_me_tells_who(client: httpx.AsyncClient, user: MadeUser) -> None:
    pair = await log_in(client, user)
    assert pair.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert pair["token_type"] == "bearer"
    assert pair["expires_in"] == 900
    answer = await me(client, bearer(pair["access_token"]))
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"id", "username", "role", "created_at", "totp_enabled", "last_login_at", "scopes"}
    assert (body["id"], body["username"], body["totp_enabled"]) == (user.id, user.name, False)
    assert body["last_login_at"].endswith("Z")


@pytest.mark.parametrize(
    ("role", "scopes"), [("operator", {"apps:write", "domains:write"}), ("viewer", {"audit:read"})]
)
async def test_roles_give_scopes(client: httpx.AsyncClient, database: Database, role: str, scopes: set[str]) -> None:
    user = await make_user(database, role=role)
    body = (await me(client, await headers_of(client, user))).json()
    assert scopes <= set(body["scopes"])
    assert not {"*", "settings:write", "firewall:write"} & set(body["scopes"])
    assert all(scope.endswith(":read") for scope in body["scopes"]) == (role == "viewer")


async def test_s21_unknown_name_and_wrong_password_are_the_same_answer(
    client: httpx.AsyncClient, user: MadeUser
) -> None:
    known = await client.post("/api/auth/login", json={"username": user.name, "password": "wrong"})
    unknown = await client.post("/api/auth/login", json={"username": "nobody-at-all", "password": "wrong"})
    assert known.status_code == unknown.status_code == 401
    assert known.headers["www-authenticate"] == "Bearer"
    first, second = known.json(), unknown.json()
    assert first.pop("request_id") != second.pop("request_id")
    assert first == second
    ignored = {"x-request-id", "x-ratelimit-remaining", "x-ratelimit-reset", "date"}
    assert {k: v for k, v in known.headers.items() if k not in ignored} == {
        k: v for k, v in unknown.headers.items() if k not in ignored
    }


@pytest.mark.slow
async def test_s21_they_take_the_same_time(app: RunningApp, user: MadeUser, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAIR", "ADDRESS", "ACCOUNT"):
        limit = getattr(guesses, name)
        monkeypatch.setattr(guesses, name, msgspec.structs.replace(limit, amount=100_000))
    async with app.client() as client:
        await log_in(client, user)  # from now on with a hash of today's parameters
        # The machine is shared: the real difference is below this, a missing hash would be far above, each time.
        for _ in range(3):
            times: dict[str, list[float]] = {user.name: [], "u-0123456789ab": []}
            for _ in range(40):
                for name, taken in times.items():
                    started = time.perf_counter()
                    answer = await client.post("/api/auth/login", json={"username": name, "password": "wrong"})
                    taken.append(time.perf_counter() - started)
                    assert answer.status_code == 401
            known, unknown = (statistics.median(taken) for taken in times.values())
            if unknown == pytest.approx(known, rel=0.2):
                return
    pytest.fail(f"{known:.4f} s for who is known, {unknown:.4f} s for who is not")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"username": "admin"},
        {"username": 1, "password": "x"},
        {"username": "admin", "password": "x" * 129},
        {"username": "a" * 65, "password": "x"},
        {"username": "admin", "password": "x", "remember": True},
        {"username": None, "password": "x"},
    ],
    ids=str,
)
async def test_bodies_that_do_not_validate(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post("/api/auth/login", json=body)).status_code == 422


async def test_bodies_that_can_not_be_read(client: httpx.AsyncClient) -> None:
    kind = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"[]", b'"x"', b'{"username":"a","username":"b","password":"x"}', b'{"username":"\xff"}'):
        answer = await client.post("/api/auth/login", content=body, headers=kind)
        assert answer.status_code in ({400, 422} if body == b"" else {400}), body


async def test_a_bad_credential_does_not_hinder_a_login(client: httpx.AsyncClient, user: MadeUser) -> None:
    body = {"username": user.name, "password": PASSWORD}
    assert (await client.post("/api/auth/login", json=body, headers=bearer("stale"))).status_code == 200


async def test_an_old_hash_is_renewed_at_login(client: httpx.AsyncClient, user: MadeUser, database: Database) -> None:
    query = "SELECT count(*) FROM users WHERE id = :id AND password_hash LIKE '$argon2id$v=19$m=8,%'"
    assert await count(database, query, id=user.id) == 1
    await log_in(client, user)
    assert await count(database, query, id=user.id) == 0
    await log_in(client, user)


async def test_more_than_twenty_sessions_drop_the_oldest(
    client: httpx.AsyncClient, user: MadeUser, app: RunningApp
) -> None:
    first = await headers_of(client, user)
    assert (await me(client, first)).status_code == 200
    await asyncio.gather(*(log_in(client, user) for _ in range(21)))
    last = await headers_of(client, user)
    assert (await me(client, first)).status_code == 401
    sessions = (await client.get("/api/auth/sessions", headers=last)).json()
    assert len(sessions) == 20


async def test_logins_are_audited_and_refused_ones_too(
    client: httpx.AsyncClient, user: MadeUser, database: Database
) -> None:
    await log_in(client, user)
    await client.post("/api/auth/login", json={"username": user.name, "password": "wrong"})
    query = "SELECT count(*) FROM audit_records WHERE action = 'session.create' AND outcome = :outcome AND "
    assert await count(database, query + "actor_id = :id", outcome="done", id=user.id) == 1
    assert await count(database, query + "subject = :id", outcome="refused", id=user.id) == 1
    secret = "SELECT count(*) FROM audit_records WHERE CAST(audit_records AS text) LIKE '%' || :secret || '%'"
    assert await count(database, secret, secret=PASSWORD) == 0
    assert await count(database, secret, secret="wrong") == 0


async def test_logins_are_announced_and_nothing_else(
    client: httpx.AsyncClient, user: MadeUser, database: Database
) -> None:
    async def announced() -> list[tuple[str, str | None, dict[str, Any]]]:
        query = (
            "SELECT type, subject, data FROM events WHERE realm = 'instance' AND position > :since ORDER BY position"
        )
        async with database.begin() as session:
            return [tuple(row) for row in await session.execute(text(query), {"since": since})]

    since = await count(database, "SELECT coalesce(max(position), 0) FROM events")
    pair = await log_in(client, user)
    for name in (user.name, "nobody-at-all"):
        await client.post("/api/auth/login", json={"username": name, "password": "wrong"})
    await refresh(client, pair["refresh_token"])
    found = await announced()
    kinds = [(kind, subject) for kind, subject, _ in found]
    assert kinds == [("auth.login", user.id), ("auth.login_failed", user.id), ("auth.login_failed", None)]
    assert found[0][2].keys() == {"user_id", "session_id", "address"}
    assert found[1][2] == {"user_id": user.id, "step": "password", "address": "127.0.0.1"}
    assert "nobody-at-all" not in str(found)


async def test_s16_a_token_in_the_address_is_none(client: httpx.AsyncClient, user: MadeUser) -> None:
    token = (await log_in(client, user))["access_token"]
    for query in ("token", "access_token", "authorization", "key"):
        answer = await client.get(f"/api/auth/me?{query}={token}")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert (await client.get("/api/auth/me", headers={"Cookie": f"token={token}"})).status_code == 401


@pytest.mark.parametrize(
    "spelling",
    ["{}", "Basic {}", "Bearer", "Bearer ", "Bearer  {}", "Bearer {} ", "Bearer\t{}", "Token {}", "bearer:{}"],
)
async def test_only_bearer_counts(client: httpx.AsyncClient, user: MadeUser, spelling: str) -> None:
    token = (await log_in(client, user))["access_token"]
    answer = await client.get("/api/auth/me", headers={"Authorization": spelling.format(token)})
    assert answer.status_code == 401
    assert (await client.get("/api/auth/me", headers={"Authorization": f"bEARER {token}"})).status_code == 200


# --- guessing ---


async def test_after_some_failures_each_guess_waits_longer_and_then_is_sent_away(
    app: RunningApp, user: MadeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def wait(_: guesses.Guesses, seconds: float) -> None:
        if seconds > 0:
            waited.append(seconds)

    async def read(*arguments: Any) -> tuple[int, float]:
        failures, _ = await read_attempts(*arguments)
        return failures, 0.1

    read_attempts = store.read_attempts
    monkeypatch.setattr(guesses.Guesses, "wait", wait)
    monkeypatch.setattr(store, "read_attempts", read)
    for name in (user.name, "nobody-here"):
        waited.clear()
        statuses = []
        async with app.client(f"203.0.113.{len(name)}") as client:
            for _ in range(12):
                answer = await client.post("/api/auth/login", json={"username": name, "password": "wrong"})
                statuses.append(answer.status_code)
            # Five at once, five with growing waits, then 429; unknown names alike.
            assert statuses == [401] * 10 + [429] * 2
            assert waited == pytest.approx([0.15, 0.4, 0.9, 1.9, 3.9])
            assert answer.headers["retry-after"] == "8"
            assert answer.json()["code"] == "rate_limited"
    # From elsewhere the right password still opens.
    async with app.client("198.51.100.1") as client:
        await log_in(client, user)


async def test_a_right_password_forgives(client: httpx.AsyncClient, user: MadeUser, database: Database) -> None:
    for _ in range(3):
        for _ in range(4):
            await client.post("/api/auth/login", json={"username": user.name, "password": "wrong"})
        await log_in(client, user)
        async with database.begin() as session:  # the address as a whole goes on counting
            await session.execute(text("DELETE FROM login_attempts WHERE count >= 4"))


async def test_guesses_from_everywhere_are_counted_exactly_and_spare_who_is_at_home(
    app: RunningApp, user: MadeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "ACCOUNT", msgspec.structs.replace(guesses.ACCOUNT, amount=8))
    async with app.client("192.0.2.7") as home:
        await log_in(home, user)

        async def guess(number: int) -> int:
            async with app.client(f"198.51.100.{number}") as client:
                answer = await client.post("/api/auth/login", json={"username": user.name, "password": "wrong"})
                return answer.status_code

        statuses = await asyncio.gather(*(guess(number) for number in range(1, 31)))
        assert statuses.count(401) == 8
        assert statuses.count(429) == 22
        async with app.client("198.51.100.200") as elsewhere:
            body = {"username": user.name, "password": PASSWORD}
            assert (await elsewhere.post("/api/auth/login", json=body)).status_code == 429
        await log_in(home, user)


async def test_many_right_logins_at_once_all_pass(app: RunningApp, user: MadeUser) -> None:
    async with app.client() as client:
        pairs = await asyncio.gather(*(log_in(client, user) for _ in range(30)))
    assert len({pair["refresh_token"] for pair in pairs}) == 30


# --- refresh ---


async def refresh(client: httpx.AsyncClient, token: str, realm: str = "") -> httpx.Response:
    return await client.post(f"{realm}/api/auth/refresh", json={"refresh_token": token})


async def test_refresh_rotates(client: httpx.AsyncClient, user: MadeUser) -> None:
    first = await log_in(client, user)
    answer = await refresh(client, first["refresh_token"])
    assert answer.status_code == 200
    second = answer.json()
    assert second.keys() == first.keys()
    assert second["refresh_token"] != first["refresh_token"]
    assert second["access_token"] != first["access_token"]
    assert (await me(client, bearer(second["access_token"]))).status_code == 200
    sessions = await client.get("/api/auth/sessions", headers=bearer(second["access_token"]))
    assert len(sessions.json()) == 1


async def test_a_used_refresh_token_ends_the_whole_session(
    client: httpx.AsyncClient, user: MadeUser, database: Database
) -> None:
    bystander = await log_in(client, user)
    first = await log_in(client, user)
    second = (await refresh(client, first["refresh_token"])).json()
    assert (await me(client, bearer(second["access_token"]))).status_code == 200
    reused = await refresh(client, first["refresh_token"])
    assert (reused.status_code, reused.json()["code"]) == (401, "unauthorized")
    assert reused.headers["www-authenticate"] == "Bearer"
    # The revocation is committed although the call was refused.
    assert (await me(client, bearer(first["access_token"]))).status_code == 401
    assert (await me(client, bearer(second["access_token"]))).status_code == 401
    assert (await refresh(client, second["refresh_token"])).status_code == 401
    assert (await me(client, bearer(bystander["access_token"]))).status_code == 200
    query = "SELECT count(*) FROM audit_records WHERE action = 'session.refresh_reused' AND actor_id = :id"
    assert await count(database, query, id=user.id) == 1


async def test_of_parallel_refreshes_one_wins_and_the_session_ends(client: httpx.AsyncClient, user: MadeUser) -> None:
    for _ in range(5):
        pair = await log_in(client, user)
        answers = await asyncio.gather(*(refresh(client, pair["refresh_token"]) for _ in range(8)))
        won = [answer for answer in answers if answer.status_code == 200]
        assert len(won) == 1
        assert {answer.status_code for answer in answers if answer not in won} == {401}
        assert (await me(client, bearer(won[0].json()["access_token"]))).status_code == 401
        assert (await refresh(client, won[0].json()["refresh_token"])).status_code == 401


async def test_refresh_and_logout_at_once_never_fail_otherwise(client: httpx.AsyncClient, user: MadeUser) -> None:
    for _ in range(5):
        pair = await log_in(client, user)
        headers = bearer(pair["access_token"])
        refreshed, ended = await asyncio.gather(
            refresh(client, pair["refresh_token"]), client.post("/api/auth/logout", headers=headers)
        )
        assert refreshed.status_code in {200, 401}
        assert ended.status_code == 204
        assert (await me(client, headers)).status_code == 401
        if refreshed.status_code == 200:
            assert (await refresh(client, refreshed.json()["refresh_token"])).status_code == 401


async def test_refresh_tokens_that_are_none(client: httpx.AsyncClient, user: MadeUser, database: Database) -> None:
    pair = await log_in(client, user)
    good = pair["refresh_token"]
    for wrong in ("x", good[:-1], good + "A", good.upper(), pair["access_token"], "qzt_" + "A" * 43):
        answer = await refresh(client, wrong)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert (await refresh(client, good, "/panel")).status_code == 401
    assert (await refresh(client, good)).status_code == 200


async def test_sessions_end_when_idle_and_for_good(
    client: httpx.AsyncClient, user: MadeUser, database: Database
) -> None:
    for column in ("created_at", "expires_at"):
        pair = await log_in(client, user)
        days = 7 if column == "created_at" else 30
        async with database.begin() as session:
            await session.execute(
                text(
                    f"UPDATE sessions SET {column} = {column} - make_interval(days => {days}, secs => 1)"
                    " WHERE user_id = :id"
                ),
                {"id": user.id},
            )
        answer = await refresh(client, pair["refresh_token"])
        assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")
        assert (await me(client, bearer(pair["access_token"]))).status_code == 401
        assert (await refresh(client, pair["refresh_token"])).json()["code"] == "unauthorized"


async def test_the_access_token_never_outlives_the_session(
    client: httpx.AsyncClient, user: MadeUser, database: Database
) -> None:
    pair = await log_in(client, user)
    async with database.begin() as session:
        await session.execute(
            text("UPDATE sessions SET expires_at = now() + interval '100 seconds' WHERE user_id = :id"),
            {"id": user.id},
        )
    renewed = (await refresh(client, pair["refresh_token"])).json()
    assert 90 <= renewed["expires_in"] <= 100


# --- sessions ---


async def test_sessions_show_where_from_and_which_is_this(app: RunningApp, user: MadeUser) -> None:
    async with app.client("203.0.113.5", headers={"User-Agent": "old"}) as client:
        await log_in(client, user)
    async with app.client("203.0.113.6", headers={"User-Agent": "Firefox/1"}) as client:
        headers = await headers_of(client, user)
        answer = await client.get("/api/auth/sessions", headers=headers)
    assert answer.status_code == 200
    newest, oldest = answer.json()
    fields = {"id", "created_at", "last_used_at", "expires_at", "ip", "user_agent", "current"}
    assert newest.keys() == oldest.keys() == fields
    assert (newest["ip"], newest["user_agent"], newest["current"]) == ("203.0.113.6", "Firefox/1", True)
    assert (oldest["ip"], oldest["user_agent"], oldest["current"]) == ("203.0.113.5", "old", False)


@pytest.mark.parametrize(
    "agent",
    ["'; DROP TABLE sessions; --", '"><script>alert(1)</script>', "%s %n {0}", "x" * 3000, "caf\u00e9", ""],
    ids=lambda agent: agent[:12],
)
async def test_s26_a_user_agent_is_text(app: RunningApp, user: MadeUser, agent: str) -> None:
    async with app.client() as client:
        answer = await client.post(
            "/api/auth/login",
            json={"username": user.name, "password": PASSWORD},
            headers=[
                (b"User-Agent", agent.encode("latin-1")),
                (b"Accept-Language", b"'\""),
                (b"X-Request-Id", b"' OR 1=1"),
            ],
        )
        assert answer.status_code == 200
        sessions = await client.get("/api/auth/sessions", headers=bearer(answer.json()["access_token"]))
    assert sessions.json()[0]["user_agent"] == agent[:255]


async def test_ending_another_session_stops_its_tokens_at_once(client: httpx.AsyncClient, user: MadeUser) -> None:
    other, own = await log_in(client, user), await headers_of(client, user)
    assert (await me(client, bearer(other["access_token"]))).status_code == 200
    sessions = (await client.get("/api/auth/sessions", headers=own)).json()
    target = next(session for session in sessions if not session["current"])
    answer = await client.delete(f"/api/auth/sessions/{target['id']}", headers=own)
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await me(client, bearer(other["access_token"]))).status_code == 401
    assert (await refresh(client, other["refresh_token"])).status_code == 401
    assert (await client.delete(f"/api/auth/sessions/{target['id']}", headers=own)).status_code == 404


async def test_other_peoples_sessions_are_not_there(
    client: httpx.AsyncClient, user: MadeUser, database: Database
) -> None:
    stranger, member = await make_user(database), await make_member(database)
    theirs = [await headers_of(client, stranger), await headers_of(client, member)]
    own = await headers_of(client, user)
    ids = [
        (await client.get("/api/auth/sessions", headers=theirs[0])).json()[0]["id"],
        (await client.get("/panel/api/auth/sessions", headers=theirs[1])).json()[0]["id"],
        "ses_" + "a" * 26,
        "x",
        "%00",
        "a" * 500,
    ]
    answers = [await client.delete(f"/api/auth/sessions/{id_}", headers=own) for id_ in ids]
    for answer in answers[:4]:
        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
    assert {answer.status_code for answer in answers[4:]} <= {400, 404}
    assert (await me(client, theirs[0])).status_code == 200
    assert (await client.get("/panel/api/auth/me", headers=theirs[1])).status_code == 200


async def test_logout_ends_this_session_only(client: httpx.AsyncClient, user: MadeUser) -> None:
    other, pair = await headers_of(client, user), await log_in(client, user)
    headers = bearer(pair["access_token"])
    assert (await client.post("/api/auth/logout", headers=headers)).status_code == 204
    assert (await me(client, headers)).status_code == 401
    assert (await client.post("/api/auth/logout", headers=headers)).status_code == 401
    assert (await refresh(client, pair["refresh_token"])).status_code == 401
    assert (await me(client, other)).status_code == 200


# --- change of password ---


async def change(client: httpx.AsyncClient, headers: dict[str, str], current: str, new: str) -> httpx.Response:
    body = {"current_password": current, "new_password": new}
    return await client.post("/api/auth/change-password", json=body, headers=headers)


async def test_changing_the_password_ends_the_other_sessions(client: httpx.AsyncClient, user: MadeUser) -> None:
    other, own = await log_in(client, user), await headers_of(client, user)
    answer = await change(client, own, PASSWORD, "entirely new words")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await me(client, own)).status_code == 200
    assert (await me(client, bearer(other["access_token"]))).status_code == 401
    assert (await refresh(client, other["refresh_token"])).status_code == 401
    old = await client.post("/api/auth/login", json={"username": user.name, "password": PASSWORD})
    assert old.status_code == 401
    await log_in(client, user, "entirely new words")


async def test_a_wrong_current_password_changes_nothing(client: httpx.AsyncClient, user: MadeUser) -> None:
    own = await headers_of(client, user)
    answer = await change(client, own, "wrong", "entirely new words")
    # Not 401: clients would throw the session away.
    assert (answer.status_code, answer.json()["code"]) == (403, "password_wrong")
    assert (await me(client, own)).status_code == 200
    await log_in(client, user)


@pytest.mark.parametrize("new", ["short", "x" * 129, "password1234", "Qwertyuiop12", "quazzarquazzar", 5, None])
async def test_new_passwords_that_are_refused(client: httpx.AsyncClient, user: MadeUser, new: Any) -> None:
    own = await headers_of(client, user)
    answer = await change(client, own, PASSWORD, new)
    assert answer.status_code == 422
    assert answer.json()["details"].keys() == {"new_password"}
    await log_in(client, user)


async def test_the_own_name_is_no_password(client: httpx.AsyncClient, database: Database) -> None:
    user = await make_user(database, name="wilhelmina-von-b")
    answer = await change(client, await headers_of(client, user), PASSWORD, "Wilhelmina-von-B1")
    assert answer.status_code == 422


async def test_of_parallel_changes_one_wins(client: httpx.AsyncClient, user: MadeUser) -> None:
    own = await headers_of(client, user)
    answers = await asyncio.gather(*(change(client, own, PASSWORD, f"entirely new words {n}") for n in range(5)))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(204) == 1
    assert set(statuses) <= {204, 403}
    await log_in(client, user, f"entirely new words {statuses.index(204)}")


# --- who may come in ---

PROTECTED = [
    ("GET", "/api/auth/me", None),
    ("POST", "/api/auth/logout", None),
    ("GET", "/api/auth/sessions", None),
    ("DELETE", "/api/auth/sessions/ses_x", None),
    ("POST", "/api/auth/totp/enable", {"password": PASSWORD}),
    ("POST", "/api/auth/totp/disable", {"password": PASSWORD, "code": "123456"}),
    ("POST", "/api/auth/totp/verify", {"code": "123456"}),
    ("POST", "/api/auth/change-password", {"current_password": PASSWORD, "new_password": PASSWORD + "2"}),
    ("GET", "/api/auth/api-keys", None),
    ("POST", "/api/auth/api-keys", {"name": "x", "scopes": ["*"]}),
    ("DELETE", "/api/auth/api-keys/key_x", None),
]


@pytest.mark.parametrize(("method", "path", "body"), PROTECTED, ids=lambda value: str(value)[:40])
async def test_nobody_comes_in_with_anything_but_a_good_token(
    client: httpx.AsyncClient, user: MadeUser, database: Database, keyring: Keyring, method: str, path: str, body: Any
) -> None:
    tokens = Tokens(keyring)
    member = await make_member(database)
    pair, panel = await log_in(client, user), await log_in(client, member)
    session_id = tokens.verify(INSTANCE_ACCESS, pair["access_token"].encode()).sid
    known = {"subject": user.id, "session_id": session_id}
    bad = {
        "none": None,
        "garbage": "garbage",
        "a refresh token": pair["refresh_token"],
        "a token of the panel": panel["access_token"],
        "of the panel's class": tokens.sign(PANEL_ACCESS, **known, seconds=60, tenant_id="ten_x"),
        "of the step's class": tokens.sign(INSTANCE_STEP, **known, seconds=60),
        "unknown session": tokens.sign(INSTANCE_ACCESS, subject=user.id, session_id="ses_x", seconds=60),
        "another's session": tokens.sign(INSTANCE_ACCESS, subject=member.id, session_id=session_id, seconds=60),
        "a key that never was": "qzr_" + "0" * 42,
    }
    for name, token in bad.items():
        answer = await client.request(method, path, json=body, headers={} if token is None else bearer(token))
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), name
        assert answer.headers["www-authenticate"] == "Bearer"
    expired = tokens.sign(INSTANCE_ACCESS, **known, seconds=-60)
    answer = await client.request(method, path, json=body, headers=bearer(expired))
    assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")


async def test_s29_no_answer_holds_a_secret(client: httpx.AsyncClient, user: MadeUser, database: Database) -> None:
    headers = await headers_of(client, user)
    async with database.begin() as session:
        row = await session.execute(text("SELECT password_hash FROM users WHERE id = :id"), {"id": user.id})
        password_hash = row.scalar_one()
    for path in ("/api/auth/me", "/api/auth/sessions", "/api/auth/api-keys"):
        answer = await client.get(path, headers=headers)
        assert answer.status_code == 200
        assert password_hash not in answer.text
        assert "argon2" not in answer.text
        assert "hash" not in answer.text
