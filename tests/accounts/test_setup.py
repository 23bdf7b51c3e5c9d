"""The first setup: once, by whoever sits at the machine or holds the token."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.db import Database
from quazzar.instance.auth.service import ensure_setup_token, renew_setup_token
from tests.conftest import PASSWORD, RunningApp

BODY = {"username": "admin", "password": PASSWORD}
STRANGER = "203.0.113.9"


@pytest.fixture(autouse=True)
async def fresh(database: Database, app: RunningApp) -> None:
    async with database.begin() as session:
        await session.execute(text("DELETE FROM instance_setup"))
        await session.execute(text("DELETE FROM users"))
    token_file(app).unlink(missing_ok=True)


@pytest.fixture
async def stranger(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client(STRANGER) as client:
        yield client


def token_file(app: RunningApp) -> Path:
    return app.settings.server.data_dir / "setup-token"


async def write_token(app: RunningApp) -> str:
    async with app.database.begin() as session:
        token = await ensure_setup_token(app.settings.server.data_dir, session)
    assert token is not None
    return token


async def test_from_the_machine_itself(app_client: httpx.AsyncClient, app: RunningApp) -> None:
    await write_token(app)
    answer = await app_client.post("/api/auth/setup", json=BODY)
    assert answer.status_code == 201
    body = answer.json()
    assert body.keys() == {"message", "user"}
    assert body["user"].keys() == {"id", "username", "created_at"}
    assert body["user"]["id"].startswith("usr_")
    assert body["user"]["created_at"].endswith("Z")
    assert answer.headers["location"] == "/api/auth/me"
    assert not token_file(app).exists()
    login = await app_client.post("/api/auth/login", json=BODY)
    me = await app_client.get("/api/auth/me", headers={"Authorization": f"Bearer {login.json()['access_token']}"})
    assert me.json()["scopes"] == ["*"]
    assert me.json()["role"] == "admin"


async def test_afterwards_it_is_done_for_everybody(app_client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    assert (await app_client.post("/api/auth/setup", json=BODY)).status_code == 201
    for client in (app_client, stranger):
        answer = await client.post("/api/auth/setup", json={"username": "other", "password": PASSWORD + "2"})
        assert (answer.status_code, answer.json()["code"]) == (409, "setup_done")


async def test_of_twenty_at_once_one_wins(app: RunningApp, database: Database) -> None:
    async with app.client() as client:
        answers = await asyncio.gather(
            *(
                client.post("/api/auth/setup", json={"username": f"admin{number}", "password": PASSWORD})
                for number in range(20)
            )
        )
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"setup_done"}
    async with database.begin() as session:
        names = (await session.execute(text("SELECT username FROM users"))).scalars().all()
    won = next(answer for answer in answers if answer.status_code == 201)
    assert names == [won.json()["user"]["username"]]


async def test_an_empty_body_is_told_as_such(app_client: httpx.AsyncClient) -> None:
    answer = await app_client.post("/api/auth/setup", content=b"", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
    assert "details" not in answer.json()


async def test_from_elsewhere_it_needs_the_token(stranger: httpx.AsyncClient, app: RunningApp) -> None:
    for setup in ({}, {"setup_token": "qzs_" + "A" * 43}):
        answer = await stranger.post("/api/auth/setup", json=BODY | setup)
        assert (answer.status_code, answer.json()["code"]) == (403, "setup_token_required")
    token = await write_token(app)
    assert stat.S_IMODE(token_file(app).stat().st_mode) == 0o600
    for wrong in ("x", token[:-1], token + "x", token.swapcase()):
        answer = await stranger.post("/api/auth/setup", json=BODY | {"setup_token": wrong})
        assert answer.status_code == 403
    assert (await stranger.post("/api/auth/setup", json=BODY | {"setup_token": token})).status_code == 201


async def test_the_token_counts_in_the_header_too(stranger: httpx.AsyncClient, app: RunningApp) -> None:
    token = await write_token(app)
    assert (await stranger.post("/api/auth/setup", json=BODY, headers={"X-Setup-Token": "x"})).status_code == 403
    assert (await stranger.post("/api/auth/setup", json=BODY, headers={"X-Setup-Token": token})).status_code == 201
    assert not token_file(app).exists()


@pytest.mark.parametrize(
    "header",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"True-Client-IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Forwarded": 'for="[::1]"'},
        {"X-Forwarded-For": "127.0.0.1, 127.0.0.1", "X-Real-IP": "::1"},
    ],
    ids=str,
)
async def test_s18_no_header_makes_a_stranger_local(
    header: dict[str, str], stranger: httpx.AsyncClient, app_client: httpx.AsyncClient
) -> None:
    for client in (stranger, app_client):
        # The second comes from loopback, as everyone does behind a proxy on this machine that nobody told us of.
        answer = await client.post("/api/auth/setup", json=BODY, headers=header)
        assert (answer.status_code, answer.json()["code"]) == (403, "setup_token_required")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
async def test_loopback_in_all_its_spellings(address: str, app: RunningApp) -> None:
    async with app.client(address) as client:
        assert (await client.post("/api/auth/setup", json=BODY)).status_code == 201


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"username": "ab"}, "username"),
        ({"username": "a" * 33}, "username"),
        ({"username": "Admin"}, "username"),
        ({"username": "adm in"}, "username"),
        ({"username": "admin\n"}, "username"),
        ({"username": 5}, "username"),
        ({"password": "short"}, "password"),
        ({"password": "a" * 129}, "password"),
        ({"password": "password1234"}, "password"),
        ({"password": "Quazzar-2026!"}, "password"),
        ({"password": "admin1234567"}, "password"),
        ({"role": "admin"}, "role"),
        ({"id": "usr_x"}, "id"),
        ({"is_admin": True}, "is_admin"),
        ({"scopes": ["*"]}, "scopes"),
        ({"created_at": "2026-01-01T00:00:00Z"}, "created_at"),
    ],
)
async def test_s30_what_is_wrong_is_named(app_client: httpx.AsyncClient, change: dict[str, object], field: str) -> None:
    answer = await app_client.post("/api/auth/setup", json=BODY | change)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.json()["details"].keys() == {field}


async def test_all_that_is_wrong_is_named_at_once(app_client: httpx.AsyncClient) -> None:
    answer = await app_client.post("/api/auth/setup", json={"username": "A", "password": "x", "setup_token": ""})
    assert answer.json()["details"].keys() == {"username", "password", "setup_token"}


async def test_a_web_page_can_not_do_it(app_client: httpx.AsyncClient) -> None:
    body = b'{"username": "admin", "password": "correct horse battery staple"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await app_client.post("/api/auth/setup", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400


async def test_the_token_is_kept_until_it_is_used_or_renewed(app: RunningApp, app_client: httpx.AsyncClient) -> None:
    folder = app.settings.server.data_dir
    first = await write_token(app)
    assert await write_token(app) == first
    async with app.database.begin() as session:
        second = await renew_setup_token(folder, session)
    assert second is not None
    assert second != first
    assert token_file(app).read_text().strip() == second
    await app_client.post("/api/auth/setup", json=BODY)
    token_file(app).write_text("left over")
    async with app.database.begin() as session:
        assert await ensure_setup_token(folder, session) is None
        assert await renew_setup_token(folder, session) is None
    assert not token_file(app).exists()


async def test_a_token_file_that_others_can_read_counts_for_nothing(
    stranger: httpx.AsyncClient, app: RunningApp
) -> None:
    token = await write_token(app)
    token_file(app).chmod(0o644)
    assert (await stranger.post("/api/auth/setup", json=BODY | {"setup_token": token})).status_code == 403


async def test_the_same_idempotency_key_gives_the_first_answer_again(app_client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "setup-1"}
    first = await app_client.post("/api/auth/setup", json=BODY, headers=headers)
    assert first.status_code == 201
    # Once set up, the answer to a repeated setup is the first one only for who knows key and password.
    again = await app_client.post("/api/auth/setup", json=BODY, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    other = await app_client.post("/api/auth/setup", json=BODY | {"username": "other"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
