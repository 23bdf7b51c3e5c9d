"""What an operator does from the console, and what is tidied away."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyotp
import pytest
import time_machine
from sqlalchemy import text

from quazzar.accounts import store
from quazzar.accounts.errors import PasswordRefused, UserNotFound
from quazzar.accounts.guesses import Guesses
from quazzar.accounts.process import Accounts
from quazzar.accounts.service import AccountService
from quazzar.core.db import Database
from quazzar.core.errors import RateLimited
from quazzar.core.paging import Page
from tests.conftest import PASSWORD, RunningApp, make_settings
from tests.factories.accounts import MadeUser, headers_of, log_in, make_member, make_user

NEW = "entirely new words"


@pytest.fixture
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


def accounts_of(app: RunningApp) -> Accounts:
    found: Accounts = app.asgi.app.state.accounts
    return found


async def gone(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    async with asyncio.timeout(5):
        while (await client.get(path, headers=headers)).status_code != 401:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("realm", ["instance", "panel"])
async def test_reset_password_ends_sessions_in_running_servers(
    client: httpx.AsyncClient, database: Database, realm: Any
) -> None:
    user = await (make_user(database) if realm == "instance" else make_member(database))
    path = "/api/auth/me" if realm == "instance" else "/panel/api/auth/me"
    headers = await headers_of(client, user)
    assert (await client.get(path, headers=headers)).status_code == 200
    async with database.begin() as session:
        await AccountService(session, realm).reset_password(user.name, NEW)
    await gone(client, path, headers)
    await log_in(client, user, NEW)
    async with database.begin() as session:
        query = "SELECT chain, actor_kind FROM audit_records WHERE action = 'user.reset_password' AND subject = :id"
        assert tuple((await session.execute(text(query), {"id": user.id})).one()) == (realm, "system")


async def test_reset_password_keeps_the_second_factor_unless_told(
    client: httpx.AsyncClient, database: Database
) -> None:
    user = await make_user(database)
    headers = await headers_of(client, user)
    made = await client.post("/api/auth/totp/enable", json={"password": PASSWORD}, headers=headers)
    code = pyotp.TOTP(made.json()["secret"]).now()
    assert (await client.post("/api/auth/totp/verify", json={"code": code}, headers=headers)).status_code == 200
    async with database.begin() as session:
        await AccountService(session).reset_password(user.name, NEW)
    assert "temp_token" in await log_in(client, user, NEW)
    async with database.begin() as session:
        await AccountService(session).reset_password(user.name, NEW, disable_totp=True)
    assert "access_token" in await log_in(client, user, NEW)


async def test_reset_password_refuses(database: Database) -> None:
    user = await make_user(database)
    async with database.begin() as session:
        for name in ("nobody-here", user.name.upper(), ""):
            with pytest.raises(UserNotFound):
                await AccountService(session).reset_password(name, NEW)
        with pytest.raises(UserNotFound):
            await AccountService(session, "panel").reset_password(user.name, NEW)
        with pytest.raises(PasswordRefused):
            await AccountService(session).reset_password(user.name, "password1234")


async def test_reset_password_forgets_guesses_made_elsewhere(database: Database) -> None:
    user = await make_user(database)
    guesses = Guesses("instance", user.name, "198.51.100.4")
    async with database.begin() as session:
        for _ in range(100):
            await guesses.count_password(session, at_home=False)
        with pytest.raises(RateLimited):
            await guesses.count_password(session, at_home=False)
        await AccountService(session).reset_password(user.name, NEW)
        assert await guesses.count_password(session, at_home=False) == 0


async def test_addresses_of_one_network_count_as_one(database: Database) -> None:
    async with database.begin() as session:
        for number in range(6):
            await Guesses("instance", "somebody", f"2001:db8::{number}").password_was_wrong(session)
        assert await Guesses("instance", "somebody", "2001:db8::99").count_password(session, at_home=True) > 0
        assert await Guesses("instance", "somebody", "2001:db9::99").count_password(session, at_home=True) == 0
        assert await Guesses("panel", "somebody", "2001:db8::99").count_password(session, at_home=True) == 0


@pytest.mark.parametrize("realm", ["instance", "panel"])
async def test_tidying_takes_away_what_is_over_and_nothing_else(
    app: RunningApp, client: httpx.AsyncClient, database: Database, realm: Any
) -> None:
    user: MadeUser = await (make_user(database) if realm == "instance" else make_member(database))
    path = "/api/auth/me" if realm == "instance" else "/panel/api/auth/me"
    await log_in(client, user)
    old_use = datetime.now(UTC) - timedelta(days=20)
    async with database.begin(user=user.id) as session:
        back = "SET created_at = created_at - interval '8 days' WHERE user_id = :id"
        await session.execute(text(f"UPDATE sessions {back}"), {"id": user.id})
        await session.execute(text(f"UPDATE refresh_tokens {back}"), {"id": user.id})
        await store.note_uses(session, [("ses_gone" + user.id, old_use, "-"), ("key_gone" + user.id, old_use, "-")])
        await store.count_attempt(session, "old" + user.id, timedelta(hours=1))
        await session.execute(text("UPDATE login_attempts SET started_at = now() - interval '2 days'"))
    alive = await headers_of(client, user)
    # That login has cleared this user's own away already; another is over without one.
    async with database.begin(user=user.id) as session:
        ids = [row.id for row in await store.find_sessions(session, realm, user.id, Page())]
    assert len(ids) == 1
    await accounts_of(app).tidy()
    async with database.begin(user=user.id) as session:
        count = text("SELECT count(*) FROM sessions WHERE user_id = :id")
        assert (await session.execute(count, {"id": user.id})).scalar_one() == 1
        left = text("SELECT count(*) FROM last_uses WHERE id LIKE '%_gone' || :id")
        assert (await session.execute(left, {"id": user.id})).scalar_one() == 0
        attempts = text("SELECT count(*) FROM login_attempts WHERE key = :key")
        assert (await session.execute(attempts, {"key": "old" + user.id})).scalar_one() == 0
    assert (await client.get(path, headers=alive)).status_code == 200


@pytest.mark.parametrize("realm", ["instance", "panel"])
async def test_tidying_ends_sessions_of_who_never_comes_back(
    app: RunningApp, client: httpx.AsyncClient, database: Database, realm: Any
) -> None:
    user: MadeUser = await (make_user(database) if realm == "instance" else make_member(database))
    await log_in(client, user)
    async with database.begin(user=user.id) as session:
        back = "SET created_at = created_at - interval '8 days' WHERE user_id = :id"
        await session.execute(text(f"UPDATE sessions {back}"), {"id": user.id})
        await session.execute(text(f"UPDATE refresh_tokens {back}"), {"id": user.id})
    await accounts_of(app).tidy()
    async with database.begin(user=user.id) as session:
        for table in ("sessions", "refresh_tokens"):
            count = text(f"SELECT count(*) FROM {table} WHERE user_id = :id")
            assert (await session.execute(count, {"id": user.id})).scalar_one() == 0


async def test_the_limit_per_account_name(app: RunningApp, tmp_path: Any, database: Database) -> None:
    """10 a minute by default, whatever the address, for unknown names as for known ones."""
    accounts = accounts_of(app)
    strict = Accounts(
        make_settings(tmp_path, QUAZZAR_RATE_LIMIT_AUTH="10/minute"), accounts.keyring, database, accounts.limiter
    )
    with time_machine.travel(1_767_268_812.0, tick=False):  # no minute ends meanwhile
        for name in ("somebody", "nobody"):
            for _ in range(10):
                await strict.count_name("instance", "login", name)
            with pytest.raises(RateLimited) as caught:
                await strict.count_name("instance", "login", name)
            assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
        await strict.count_name("panel", "login", "somebody")
        await strict.count_name("instance", "reset", "somebody")
    strict.passwords.close()


async def test_64_logins_at_once_stay_small_and_let_others_through(app: RunningApp, database: Database) -> None:
    import statistics  # noqa: PLC0415
    import time  # noqa: PLC0415

    import psutil  # noqa: PLC0415

    user = await make_user(database)
    async with app.client() as client:
        headers = await headers_of(client, user)
        await asyncio.gather(*(log_in(client, user) for _ in range(2)))
        process = psutil.Process()
        before = process.memory_info().rss
        peak, taken = before, list[float]()
        logins = asyncio.gather(*(log_in(client, user) for _ in range(64)))
        while not logins.done():
            started = time.perf_counter()
            # Its session may be dropped meanwhile as the oldest; either answer shows that the process answers.
            assert (await client.get("/api/auth/me", headers=headers)).status_code in {200, 401}
            taken.append(time.perf_counter() - started)
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.005)
        await logins
    assert peak - before < 300 * 1024 * 1024
    # Not the slowest: that one may have met a moment in which nothing ran on this machine.
    assert statistics.median(taken) < 1.0
