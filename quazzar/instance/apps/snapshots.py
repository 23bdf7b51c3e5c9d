"""The copies of apps' data that a rollback needs, and the end of all others."""

from quazzar.core.db import Database
from quazzar.instance.apps import changes_store
from quazzar.instance.apps.locks import app_lock, is_locked
from quazzar.instance.apps.runtimes.base import Runtime, RuntimeFailure


async def sweep(database: Database, runtime: Runtime, app_id: str) -> None:
    """Discard the copies that no change and no rollback needs; for whoever holds the app's lock."""
    found = await runtime.snapshots(app_id)
    async with database.begin() as session:
        kept = await changes_store.find_snapshots(session, app_id)
    for name in found:
        if name not in kept:
            await runtime.discard(app_id, name)


async def sweep_all(database: Database, runtime: Runtime) -> None:
    """`sweep` for every app that nobody works on: of what a process left that was killed, or an engine that was away.

    Copies of apps that we don't know stay.
    """
    found = await runtime.find_snapshots()
    if not found:
        return
    async with database.begin() as session:
        kept = await changes_store.find_all_snapshots(session)
    for app_id, names in found.items():
        if app_id not in kept or set(names) <= kept[app_id] or is_locked(app_id):
            continue
        async with app_lock(app_id):
            try:
                await sweep(database, runtime, app_id)
            except RuntimeFailure:  # one that is in use must not keep the others
                continue
