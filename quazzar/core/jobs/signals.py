"""Who waits for a job hears of its changes: NOTIFY as the wake-up, polling as the truth."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from sqlalchemy import text

from quazzar.core.db import Database

FINISHED = frozenset({"completed", "failed", "cancelled"})


class JobState(msgspec.Struct, frozen=True):
    """How far a job is."""

    id: str
    status: str
    error: str | None
    finished_at: datetime | None

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


class Signals:
    """Hands the ids of what has changed, such as jobs, to those who wait for it in this process."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Any:
        """An event that is set at each change of the job."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[job_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[job_id]

    async def changes(self, job_id: str, *, poll_seconds: float) -> AsyncIterator[None]:
        """Yields once at once, then whenever it may have changed: when told so, else each `poll_seconds`."""
        with self.watch(job_id) as event:
            while True:
                event.clear()
                yield
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(poll_seconds):
                        await event.wait()

    def changed(self, job_id: str) -> None:
        for event in self._waiting.get(job_id, ()):
            event.set()

    def all_changed(self) -> None:
        for job_id in list(self._waiting):
            self.changed(job_id)


_signals: WeakKeyDictionary[Database, Signals] = WeakKeyDictionary()


def signals_of(database: Database) -> Signals:
    """The process's signals of one database; a worker on it feeds them, without one only polling tells."""
    return _signals.setdefault(database, Signals())


def changes(database: Database, job_id: str, *, poll_seconds: float = 1.0) -> AsyncIterator[None]:
    """As `Signals.changes`, of the job."""
    return signals_of(database).changes(job_id, poll_seconds=poll_seconds)


_STATE = text("SELECT id, status, error, finished_at FROM jobs WHERE id = :id")


async def wait_for(
    database: Database, job_id: str, timeout_seconds: float, *, tenant: str | None = None
) -> JobState | None:
    """Wait until the job has ended, at most `timeout_seconds`; gives its state then, None when there is no such job."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    with signals_of(database).watch(job_id) as event:
        pause = 0.1
        while True:
            event.clear()
            async with database.begin(tenant=tenant) as session:
                row = (await session.execute(_STATE, {"id": job_id})).one_or_none()
            state = JobState(*row) if row is not None else None
            left = deadline - loop.time()
            if state is None or state.finished or left <= 0:
                return state
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, left)):
                    await event.wait()
            pause = min(pause * 1.5, 1.0)
