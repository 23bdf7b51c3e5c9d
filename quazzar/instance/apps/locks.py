"""One at a time works on an app's objects in the engine.

One process serves a machine, so locks in memory are enough.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


@contextlib.asynccontextmanager
async def app_lock(app_id: str) -> AsyncIterator[None]:
    """Held by jobs while they work on an app, and by the reconciler while it removes remains."""
    lock = _locks.get(app_id)
    if lock is None:
        lock = _locks[app_id] = asyncio.Lock()
    async with lock:
        yield
