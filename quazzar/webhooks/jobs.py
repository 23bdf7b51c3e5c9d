"""The upkeep of deliveries, of which every event makes more."""

from quazzar.core.jobs import JobRun, job, schedule
from quazzar.webhooks import store

RETENTION_DAYS = 30
_BATCH = 1_000


@schedule("41 3 * * *")
@job("webhooks.prune", concurrency=1)
async def prune(run: JobRun) -> None:
    """Forget deliveries with their attempts once they are a month old."""
    removed = _BATCH
    while removed == _BATCH:
        run.check_cancelled()
        async with run.database.begin() as session:
            removed = await store.prune_deliveries(session, days=RETENTION_DAYS, batch=_BATCH)
