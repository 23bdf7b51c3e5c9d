"""The upkeep of what instances measure: summed up, kept for as long as is said, and forgotten with its instance."""

from datetime import UTC, datetime

from quazzar.core.jobs import JobRun, job, schedule
from quazzar.panel.fleet import metrics_store
from quazzar.panel.fleet.retention import keep_partitions
from quazzar.panel.fleet.rollups import roll_up


@schedule("1-59/5 * * * *", realm="panel")
@job("fleet.roll_up", concurrency=1, max_attempts=2)
async def roll_up_metrics(run: JobRun) -> None:
    """Sum samples up to five minutes and hours, those that came late too."""
    await roll_up(run.database, datetime.now(UTC))


@schedule("29 * * * *", realm="panel")
@job("fleet.keep_partitions", concurrency=1)
async def keep_metrics(run: JobRun) -> None:
    """Make the partitions of the coming days and drop those that are too old."""
    async with run.database.begin() as session:
        await keep_partitions(session, datetime.now(UTC))


@job("fleet.forget_metrics", concurrency=2)
async def forget_metrics(run: JobRun, instance_id: str) -> None:
    """Remove what an instance has measured that is in no fleet any more; its tenant is the job's."""
    assert run.tenant_id is not None
    async with run.begin() as session:
        await metrics_store.delete_metrics(session, run.tenant_id, instance_id)
