"""One at a time works on an app's objects in the engine.

One process serves a machine, so locks in memory are enough.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


def is_locked(app_id: str) -> bool:
    """Whether somebody works on the app now."""
    lock = _locks.get(app_id)
    return lock is not None and lock.locked()


@contextlib.asynccontextmanager
async def app_lock(app_id: str) -> AsyncIterator[None]:
    """Held by jobs while they work on an app, and by the reconciler while it removes remains."""
    lock = _locks.get(app_id)
    if lock is None:
        lock = _locks[app_id] = asyncio.Lock()
    async with lock:
        yield
