"""One at a time works on an app's objects in the engine.

One process serves a machine, so locks in memory are enough.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from weakref import WeakValueDictionary

_reads: dict[str, set[asyncio.Event]] = {}
_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


def is_locked(app_id: str) -> bool:
    """Whether somebody works on the app now."""
    lock = _locks.get(app_id)
    return lock is not None and lock.locked()


@contextlib.asynccontextmanager
async def app_lock(app_id: str) -> AsyncIterator[None]:
    """Held by jobs while they work on an app, and by the reconciler while it removes remains.

    Whoever reads the app's data just then (`reading`) is told to leave.
    """
    lock = _locks.get(app_id)
    if lock is None:
        lock = _locks[app_id] = asyncio.Lock()
    async with lock:
        for read in _reads.get(app_id, ()):
            read.set()
        yield


@contextlib.contextmanager
def reading(app_id: str, cut: asyncio.Event) -> Iterator[None]:
    """For long reads of an app's data, which no operation waits for: `cut` is set as soon as one begins, or has."""
    if is_locked(app_id):
        cut.set()
    _reads.setdefault(app_id, set()).add(cut)
    try:
        yield
    finally:
        _reads[app_id].discard(cut)
        if not _reads[app_id]:
            del _reads[app_id]
