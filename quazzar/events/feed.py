"""One reader for all who follow the feed in this process.

Positions become visible in the order of the commits, so reading on from the last one misses nothing. NOTIFY wakes the
reader, polling is the truth. It reads the events of all tenants and hands each to the followers of its realm and
tenant only; without followers it reads nothing.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Final

import asyncpg
import structlog
from sqlalchemy.exc import SQLAlchemyError

from quazzar.core.db import Database, Listener, see_all_tenants
from quazzar.events import store
from quazzar.events.schemas import EventOut, Wanted
from quazzar.events.store import Scope

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 2.0
MOST_WAITING: Final = 1_000
"""How many events wait for a follower that does not take them before it is dropped; it may come again and resume."""
_BATCH: Final = 500


class Follower:
    """What one open stream waits for. `joined_at` is the position after which it is told of every event."""

    __slots__ = ("_lost", "_ready", "_scope", "_waiting", "_wanted", "joined_at")

    def __init__(self, scope: Scope, wanted: Wanted, joined_at: int) -> None:
        self.joined_at = joined_at
        self._scope = scope
        self._wanted = wanted
        self._waiting: deque[EventOut] = deque()
        self._ready = asyncio.Event()
        self._lost = False

    def offer(self, event: EventOut) -> None:
        """Never waits: whoever is too slow for the feed loses it, and nobody else notices."""
        if self._lost or not self._scope.sees(event) or not self._wanted.fits(event):
            return
        if len(self._waiting) >= MOST_WAITING:
            self._lost = True
            self._waiting.clear()
        else:
            self._waiting.append(event)
        self._ready.set()

    async def next(self) -> EventOut | None:
        """The next event, None once the follower has been dropped."""
        while not self._waiting:
            if self._lost:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._waiting.popleft()


class Feed:
    """One per process, in `app.state.feed`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._wake = asyncio.Event()
        self._listener = Listener(database, ["events"], lambda *_: self._wake.set(), self._wake.set)
        self._reading = asyncio.Lock()
        self._followers: dict[tuple[str, str | None], set[Follower]] = {}
        self._position: int | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._listener.start()
        self._task = asyncio.create_task(self._read_on(), name="events-feed")

    async def stop(self) -> None:
        await self._listener.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def join(self, scope: Scope, wanted: Wanted) -> Follower:
        """A follower that is told of everything after its `joined_at`; `leave` is to be called in any case."""
        async with self._reading:
            if self._position is None:
                async with self.database.begin() as session:
                    await see_all_tenants(session)
                    self._position = await store.last_position(session)
            follower = Follower(scope, wanted, self._position)
            self._followers.setdefault(_key(scope), set()).add(follower)
            return follower

    def leave(self, follower: Follower, scope: Scope) -> None:
        followers = self._followers.get(_key(scope), set())
        followers.discard(follower)
        if not followers:
            self._followers.pop(_key(scope), None)

    @contextlib.contextmanager
    def leaving(self, follower: Follower, scope: Scope) -> Iterator[Follower]:
        try:
            yield follower
        finally:
            self.leave(follower, scope)

    async def _read_on(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.read()
            except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                log.warning("events.feed_waits", error=type(error).__name__)
                await asyncio.sleep(0.5)
                self._wake.set()

    async def read(self) -> None:
        """Hand on all that is new, in batches."""
        async with self._reading:
            while self._followers and self._position is not None:
                async with self.database.begin() as session:
                    await see_all_tenants(session)
                    rows = await store.find_any(session, after=self._position, limit=_BATCH)
                for row in rows:
                    followers = self._followers.get((row.realm, row.tenant_id))
                    if followers:
                        event = EventOut.of(row)
                        for follower in followers:
                            follower.offer(event)
                    self._position = row.position
                if len(rows) < _BATCH:
                    return
                # Followers are to send what they were given before they are given more.
                await asyncio.sleep(0)
            # Whoever joins next begins at the end of the feed as it is then.
            self._position = None


def _key(scope: Scope) -> tuple[str, str | None]:
    return scope.realm, scope.tenant_id
