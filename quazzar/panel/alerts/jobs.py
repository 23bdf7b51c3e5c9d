"""The upkeep of alerts."""

from quazzar.core.jobs import JobRun, job, schedule
from quazzar.panel.alerts import upkeep

RETENTION_DAYS = 90
_BATCH = 1_000


@schedule("53 3 * * *", realm="panel")
@job("alerts.prune", concurrency=1)
async def prune(run: JobRun) -> None:
    """Forget alerts that have been over for three months."""
    removed = _BATCH
    while removed == _BATCH:
        run.check_cancelled()
        async with run.database.begin() as session:
            removed = await upkeep.prune_resolved(session, days=RETENTION_DAYS, batch=_BATCH)
