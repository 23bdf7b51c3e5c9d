"""The end of apps in the trash: when their time is over, or when somebody does not want to wait for it."""

from quazzar.core.jobs import SETTINGS, JobFailed, JobRun, RetryLater, enqueue, job, schedule
from quazzar.core.records import audit, publish
from quazzar.instance.apps import store, trash_store
from quazzar.instance.apps.events import AppPurged
from quazzar.instance.apps.jobs import UNINSTALL_SECONDS
from quazzar.instance.apps.locks import app_lock
from quazzar.instance.apps.runtimes.base import RuntimeFailure, RuntimeUnavailable
from quazzar.instance.apps.work import RUNTIME

LOOK_SECONDS = 600.0
_AGAIN_SECONDS = 30.0


@job("apps.purge", concurrency=4, timeout_seconds=UNINSTALL_SECONDS + 60, cancellable=False)
async def purge(run: JobRun, app_id: str) -> None:
    """Removes what is left of an app in the trash, its data first of all, and forgets it."""
    async with app_lock(app_id):
        async with run.database.begin() as session:
            name = await trash_store.find_purging(session, app_id)
        if name is None:
            run.log("Nothing to do: the app is not in the trash any more")
            return
        run.progress(0.1, "Removing the data")
        try:
            await run.resources[RUNTIME].remove(app_id, keep_volumes=False)
        except RuntimeUnavailable as error:
            raise RetryLater(error.message, delay_seconds=_AGAIN_SECONDS) from error
        except RuntimeFailure as failure:
            raise JobFailed(failure.reason) from failure
        async with run.begin() as session:
            if await trash_store.forget(session, app_id):
                audit(session, "app.purge", subject=app_id, before={"name": name})
                publish(session, AppPurged(app_id=app_id, name=name), subject=app_id)
        run.resources[RUNTIME].disown(app_id)


@schedule(every_seconds=LOOK_SECONDS)
@job("apps.empty_trash", concurrency=1)
async def empty_trash(run: JobRun) -> None:
    """Has everything purged whose time in the trash is over, and what a failed purge has left there."""
    async with run.begin() as session:
        for app_id in await trash_store.find_due(session, days=run.resources[SETTINGS].apps.trash_days):
            await trash_store.begin_purge(session, app_id)
            job_id = await enqueue(session, purge, subject=app_id, app_id=app_id)
            await store.set_job(session, app_id, job_id)
