"""What the gate remembers of credentials: no longer than they hold, never more than it was told to."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import text

from quazzar.accounts import store
from quazzar.accounts.authenticator import AccountAuthenticator
from quazzar.accounts.models import Session
from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.errors import Unauthorized
from quazzar.core.ids import new_id
from quazzar.core.tokens import INSTANCE_ACCESS, Tokens
from tests.factories.accounts import MadeUser, make_user

HERE = "127.0.0.1"


class Harness:
    """An authenticator as one process has it, and sessions made behind its back."""

    def __init__(self, database: Database, keyring: Keyring, **options: Any) -> None:
        self.database = database
        self.tokens = Tokens(keyring)
        self.authenticator = AccountAuthenticator(database, self.tokens, **options)

    async def connected(self) -> None:
        async with asyncio.timeout(10):
            while not self.authenticator._listener.connected:
                await asyncio.sleep(0.01)

    async def open(self, user: MadeUser, *, seconds: int = 600) -> tuple[str, bytes]:
        """A session and a header of it."""
        session_id = new_id("ses")
        async with self.database.begin() as session:
            await store.add_session(
                session,
                "instance",
                id=session_id,
                user_id=user.id,
                expires_at=datetime.now(UTC) + timedelta(days=1),
                ip=HERE,
                user_agent="",
            )
        token = self.tokens.sign(INSTANCE_ACCESS, subject=user.id, session_id=session_id, seconds=seconds)
        return session_id, b"Bearer " + token.encode()

    async def end(self, user: MadeUser, session_id: str, *, tell: AccountAuthenticator | None = None) -> None:
        async with self.database.begin() as session:
            await store.end_session(session, "instance", user.id, session_id)
            await (tell or self.authenticator).drop_with(session, session_id)

    def cached(self, header: bytes, address: str = HERE) -> Principal | None:
        return self.authenticator.cached("instance", header, address)

    async def resolve(self, header: bytes, address: str = HERE) -> Principal:
        return await self.authenticator.resolve("instance", header, address)


@contextlib.asynccontextmanager
async def running(database: Database, keyring: Keyring, **options: Any) -> AsyncIterator[Harness]:
    harness = Harness(database, keyring, **options)
    await harness.authenticator.start()
    await harness.connected()
    try:
        yield harness
    finally:
        await harness.authenticator.stop()


@pytest.fixture
async def harness(database: Database, keyring: Keyring) -> AsyncIterator[Harness]:
    async with running(database, keyring) as harness:
        yield harness


@pytest.fixture
async def user(database: Database) -> MadeUser:
    return await make_user(database)


async def test_a_verified_credential_is_remembered(harness: Harness, user: MadeUser) -> None:
    session_id, header = await harness.open(user)
    assert harness.cached(header) is None
    principal = await harness.resolve(header)
    assert (principal.user_id, principal.session_id, principal.client) == (user.id, session_id, user.id)
    assert harness.cached(header) is principal
    # For its realm alone, and only the very same bytes.
    assert harness.authenticator.cached("panel", header, HERE) is None
    assert harness.cached(header + b" ") is None
    assert harness.cached(b"bearer" + header[6:]) is None


async def test_no_credential_lies_in_memory(harness: Harness, user: MadeUser) -> None:
    _, header = await harness.open(user)
    await harness.resolve(header)
    (digest,) = harness.authenticator._entries["instance"]
    assert len(digest) == 32
    assert header[-20:] not in repr(harness.authenticator._entries).encode()


async def test_the_end_of_a_session_is_known_here_with_the_commit(harness: Harness, user: MadeUser) -> None:
    session_id, header = await harness.open(user)
    await harness.resolve(header)

    async def fail() -> None:
        async with harness.database.begin() as session:
            await store.end_session(session, "instance", user.id, session_id)
            await harness.authenticator.drop_with(session, session_id)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await fail()
    assert harness.cached(header) is not None
    await harness.end(user, session_id)
    assert harness.cached(header) is None
    with pytest.raises(Unauthorized):
        await harness.resolve(header)
    assert not harness.authenticator._by_subject


async def test_other_processes_hear_of_it(
    harness: Harness, database: Database, keyring: Keyring, user: MadeUser
) -> None:
    async with running(database, keyring) as other:
        session_id, header = await harness.open(user)
        await harness.resolve(header)
        await other.resolve(header)
        await harness.end(user, session_id, tell=other.authenticator)
        assert other.cached(header) is None
        async with asyncio.timeout(10):
            while harness.cached(header) is not None:
                await asyncio.sleep(0.005)


async def test_a_change_of_the_user_drops_all_of_theirs_and_nobody_elses(
    harness: Harness, user: MadeUser, database: Database
) -> None:
    stranger = await make_user(database)
    own = [(await harness.open(user))[1] for _ in range(3)]
    other = (await harness.open(stranger))[1]
    for header in [*own, other]:
        await harness.resolve(header)
    harness.authenticator.drop(user.id)
    assert [harness.cached(header) for header in own] == [None] * 3
    assert harness.cached(other) is not None


async def test_without_a_proved_line_nothing_is_remembered(database: Database, keyring: Keyring) -> None:
    user = await make_user(database)
    silent = Harness(database, keyring)  # never started: its listener does not listen
    session_id, header = await silent.open(user)
    for _ in range(2):
        await silent.resolve(header)
        assert silent.cached(header) is None
    async with database.begin() as session:
        await store.end_session(session, "instance", user.id, session_id)
    with pytest.raises(Unauthorized):
        await silent.resolve(header)


async def test_when_the_line_breaks_what_was_remembered_is_not_used(harness: Harness, user: MadeUser) -> None:
    session_id, header = await harness.open(user)
    await harness.resolve(header)
    async with harness.database.begin() as session:
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'LISTEN%' OR query = 'SELECT 1'"
            )
        )
        await store.end_session(session, "instance", user.id, session_id)
    async with asyncio.timeout(10):
        while harness.cached(header) is not None:
            await asyncio.sleep(0.02)
    await harness.connected()
    assert harness.cached(header) is None
    with pytest.raises(Unauthorized):
        await harness.resolve(header)


async def test_a_load_that_began_before_the_end_is_not_remembered(
    harness: Harness, user: MadeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id, header = await harness.open(user)
    loaded, go_on = asyncio.Event(), asyncio.Event()
    original = harness.authenticator._load_session

    async def slow(*args: Any) -> Any:
        entry = await original(*args)
        loaded.set()
        await go_on.wait()
        return entry

    monkeypatch.setattr(harness.authenticator, "_load_session", slow)
    resolving = asyncio.create_task(harness.resolve(header))
    await loaded.wait()
    await harness.end(user, session_id)
    go_on.set()
    await resolving
    assert harness.cached(header) is None
    with pytest.raises(Unauthorized):
        await harness.resolve(header)


async def test_an_entry_dies_with_its_token(harness: Harness, user: MadeUser) -> None:
    now = time.time()
    _, header = await harness.open(user, seconds=600)
    await harness.resolve(header)
    assert harness.cached(header) is not None
    with time_machine.travel(now + 590, tick=False):
        assert harness.cached(header) is not None
    with time_machine.travel(time.time() + 600, tick=False):
        assert harness.cached(header) is None
    assert not harness.authenticator._entries["instance"]


async def test_what_is_remembered_is_bounded(database: Database, keyring: Keyring, user: MadeUser) -> None:
    async with running(database, keyring, capacity=10) as harness:
        headers = [(await harness.open(user))[1] for _ in range(15)]
        for header in headers:
            await harness.resolve(header)
        assert [harness.cached(header) is not None for header in headers] == [False] * 5 + [True] * 10
        assert len(harness.authenticator._by_subject[user.id]) == 10


async def test_uses_are_written_once_a_minute_and_the_newest_wins(
    harness: Harness, user: MadeUser, database: Database
) -> None:
    session_id, header = await harness.open(user)
    await harness.resolve(header, "192.0.2.1")
    for _ in range(3):
        assert harness.cached(header, "192.0.2.2") is not None
    assert list(harness.authenticator._uses) == [session_id]
    await harness.authenticator.flush()
    assert not harness.authenticator._uses
    query = text("SELECT used_at, ip FROM last_uses WHERE id = :id")
    async with database.begin() as session:
        used_at, ip = (await session.execute(query, {"id": session_id})).one()
    assert ip == "192.0.2.1"
    assert datetime.now(UTC) - used_at < timedelta(seconds=10)
    async with database.begin() as session:
        await store.note_uses(session, [(session_id, used_at - timedelta(minutes=5), "192.0.2.3")])
        assert (await session.execute(query, {"id": session_id})).one().ip == "192.0.2.1"


async def test_uses_that_can_not_be_written_are_kept(
    harness: Harness, user: MadeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id, header = await harness.open(user)
    await harness.resolve(header)

    async def fail(*_: Any) -> None:
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "note_uses", fail)
        with pytest.raises(OSError, match="away"):
            await harness.authenticator.flush()
    assert session_id in harness.authenticator._uses
    await harness.authenticator.flush()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic dXNlcjpwYXNz",
        b"Bearer\xff",
        b"Bearer " + b"a" * 9000,
        b"Bearer qzr_",
        b"\x00",
    ],
)
async def test_headers_that_are_no_credential(harness: Harness, header: bytes) -> None:
    with pytest.raises(Unauthorized):
        await harness.resolve(header)
    with pytest.raises(Unauthorized):
        await harness.authenticator.resolve("panel", header, HERE)


async def test_a_session_that_was_idle_for_a_week_is_over(harness: Harness, user: MadeUser) -> None:
    session_id, header = await harness.open(user)
    async with harness.database.begin() as session:
        week = datetime.now(UTC) - timedelta(days=7, seconds=5)
        await session.execute(Session.__table__.update().values(created_at=week).where(Session.id == session_id))  # type: ignore[attr-defined]
    with pytest.raises(Unauthorized):
        await harness.resolve(header)
    async with harness.database.begin() as session:
        await store.note_uses(session, [(session_id, datetime.now(UTC) - timedelta(days=6), HERE)])
    assert (await harness.resolve(header)).session_id == session_id
