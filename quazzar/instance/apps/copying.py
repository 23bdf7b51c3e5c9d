"""The work of a clone: the source stands still while its data is copied, and runs again whatever happens."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec

from quazzar.core.jobs import JobRun, job
from quazzar.core.records import publish
from quazzar.instance.apps import clone_store, store
from quazzar.instance.apps.events import AppCloned
from quazzar.instance.apps.jobs import INSTALL_SECONDS
from quazzar.instance.apps.locks import app_lock
from quazzar.instance.apps.models import Desired
from quazzar.instance.apps.runtimes.base import AppState, RuntimeFailure
from quazzar.instance.apps.runtimes.plan import STOPPABLE
from quazzar.instance.apps.truth import judge, services_view
from quazzar.instance.apps.work import Work, bring_up, operation


@job("apps.clone", concurrency=2, timeout_seconds=INSTALL_SECONDS + 60)
async def clone(run: JobRun, app_id: str, source_id: str) -> None:
    """Copies the data of one app, then brings up the other over the copy; a failure takes the copy away again."""
    async with operation(run, app_id, "installing", INSTALL_SECONDS) as work:
        if work is None:
            return
        if work.app.copies_from is not None:
            await _copy(work, source_id)
        await bring_up(work)


async def _copy(work: Work, source_id: str) -> None:
    spec = work.spec()
    # What can be done while the source runs comes first.
    await work.pull(spec, work.within(0.0, 0.05))
    async with app_lock(source_id):
        async with work.database.begin() as session:
            found = await clone_store.hold_source(session, source_id, job_id=work.run.job_id, seconds=INSTALL_SECONDS)
        if found is None:
            raise RuntimeFailure("The app to be copied is gone, or in another operation", code="source_busy")
        source = Work(work.run, found.held, found.status)
        try:
            if source.status == "stopping" and await _runs(source):
                # Some of it still does, or the engine has started it while nobody looked: its data must stand still.
                async with work.database.begin() as session:
                    await clone_store.run_again(session, source_id, job_id=work.run.job_id)
                source.status = "restarting"
            if source.status == "restarting":
                work.step(0.05, f"Stopping {source.app.name} while its data is copied")
                await source.patiently(lambda: source.runtime.stop(source_id))
            await work.patiently(lambda: work.runtime.clone_volumes(source_id, spec, work.within(0.1, 0.5)))
            await _let_go(source, found.desired, patiently=True)
        except BaseException:
            # Also of letting go: whoever cancels then must not leave the source standing still.
            await _whole(_let_go(source, found.desired, patiently=False))
            raise
    async with work.database.begin() as session:
        await store.change_app(session, work.app.id, job_id=work.run.job_id, values={"copies_from": None})
        event = AppCloned(app_id=source_id, name=source.app.name, clone_id=work.app.id)
        publish(session, event, subject=source_id)
    work.app = msgspec.structs.replace(work.app, copies_from=None)


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Do `work` to its end, also when that is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


async def _runs(source: Work) -> bool:
    state = await source.patiently(lambda: source.runtime.get(source.app.id))
    return state is not None and any(one.status in STOPPABLE for one in state.services)


async def _let_go(source: Work, desired: Desired, *, patiently: bool) -> None:
    """Have the source run again if it ran, and leave it to others.

    Not `patiently` is after a failure: the engine is asked once, and not for long.
    """
    app_id = source.app.id
    run_again = source.status == "restarting"
    state: AppState | None = None
    asked = True
    try:
        if patiently:
            if run_again:
                source.run.log(f"Starting {source.app.name}")
                await source.patiently(lambda: source.runtime.start(app_id))
            state = await source.patiently(lambda: source.runtime.get(app_id))
        else:
            if run_again:
                await source.start_again()
            state = await source.attempt(lambda: source.runtime.get(app_id))
            asked = state is not None
    except RuntimeFailure as failure:
        await source.fail(failure.reason)
        return
    if not asked:
        await source.end("failed", "It could not be started again after its data was to be copied")
        return
    verdict = judge(state, source.expected, desired)
    values: dict[str, Any] = {"services": services_view(state, source.expected)}
    if run_again:
        await source.end(verdict.status, verdict.reason, **values)
        return
    # It stood still before: no news.
    async with source.database.begin() as session:
        await store.move_app(
            session,
            app_id,
            of=(source.status,),
            to=verdict.status,
            job_id=source.run.job_id,
            status_reason=verdict.reason,
            **values,
        )
