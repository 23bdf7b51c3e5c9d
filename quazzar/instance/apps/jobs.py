"""The work behind an app's operations: install, start, stop, restart, uninstall."""

import asyncio
from datetime import timedelta

from quazzar.core.jobs import SETTINGS, JobRun, job
from quazzar.core.records import publish
from quazzar.instance.apps import store, trash_store
from quazzar.instance.apps.building import template_of
from quazzar.instance.apps.changing import go_back_first
from quazzar.instance.apps.events import AppUninstalled
from quazzar.instance.apps.work import STOP_SECONDS, bring_up, operation

INSTALL_SECONDS = 3600.0
"""Pulling over a slow line takes long; a missing engine is waited for as long as this too."""
START_SECONDS = 900.0
UNINSTALL_SECONDS = 900.0


@job("apps.install", concurrency=4, timeout_seconds=INSTALL_SECONDS + 60)
async def install(run: JobRun, app_id: str) -> None:
    """Images, networks, volumes, containers, health; a failure takes all of it away again and says why."""
    async with operation(run, app_id, "installing", INSTALL_SECONDS) as work:
        if work is not None:
            # What is done in another way than the file asks.
            for note in template_of(work.app).notes:
                run.log(note)
            await bring_up(work)


@job("apps.start", concurrency=8, timeout_seconds=START_SECONDS + 60)
async def start(run: JobRun, app_id: str) -> None:
    """What stopped is started, what was removed behind our back is made anew over the same volumes."""
    async with operation(run, app_id, "starting", START_SECONDS) as work:
        if work is not None:
            await go_back_first(work)
            await bring_up(work)


@job("apps.restart", concurrency=8, timeout_seconds=START_SECONDS + 60)
async def restart(run: JobRun, app_id: str) -> None:
    async with operation(run, app_id, "restarting", START_SECONDS) as work:
        if work is not None:
            work.step(0.1, "Stopping")
            try:
                await work.patiently(lambda: work.runtime.stop(app_id))
            except asyncio.CancelledError:
                if run.cancelled.is_set():
                    await work.start_again()
                raise
            await go_back_first(work)
            await bring_up(work)


@job("apps.stop", concurrency=8, timeout_seconds=STOP_SECONDS + 60)
async def stop(run: JobRun, app_id: str) -> None:
    async with operation(run, app_id, "stopping", STOP_SECONDS) as work:
        if work is not None:
            work.step(0.1, "Stopping")
            await work.patiently(lambda: work.runtime.stop(app_id))
            await work.finish("stopped", None)


@job("apps.uninstall", concurrency=8, timeout_seconds=UNINSTALL_SECONDS + 60, cancellable=False)
async def uninstall(run: JobRun, app_id: str, keep_data: bool = False) -> None:
    """Takes the app off the engine, then forgets it. Volumes stay on the engine with `keep_data`."""
    async with operation(run, app_id, "uninstalling", UNINSTALL_SECONDS) as work:
        if work is None:
            return
        work.step(0.1, "Removing containers" if keep_data else "Removing containers and data")
        await work.patiently(lambda: work.runtime.remove(app_id, keep_volumes=keep_data))
        for snapshot in await work.patiently(lambda: work.runtime.snapshots(app_id)):
            await work.runtime.discard(app_id, snapshot)
        async with run.database.begin() as session:
            if await store.delete_app(session, app_id, job_id=run.job_id):
                gone = AppUninstalled(app_id=app_id, name=work.app.name, data_kept=keep_data)
                publish(session, gone, subject=app_id)
        work.runtime.disown(app_id)


@job("apps.trash", concurrency=8, timeout_seconds=UNINSTALL_SECONDS + 60, cancellable=False)
async def trash(run: JobRun, app_id: str) -> None:
    """Takes the app off the engine but for its volumes, which wait in the trash for its return or its purge."""
    async with operation(run, app_id, "uninstalling", UNINSTALL_SECONDS) as work:
        if work is None:
            return
        work.step(0.1, "Removing containers; the data goes into the trash")
        await work.patiently(lambda: work.runtime.remove(app_id, keep_volumes=True))
        days = run.resources[SETTINGS].apps.trash_days
        async with run.database.begin() as session:
            trashed_at = await trash_store.put_in(session, app_id, job_id=run.job_id)
            if trashed_at is not None:
                purge_at = trashed_at + timedelta(days=days)
                gone = AppUninstalled(app_id=app_id, name=work.app.name, data_kept=True, purge_at=purge_at)
                publish(session, gone, subject=app_id)
