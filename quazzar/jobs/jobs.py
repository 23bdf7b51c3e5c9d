"""The upkeep of the tables that only grow by themselves: jobs, the queue's notes, kept answers, events."""

from sqlalchemy import CursorResult, text

from quazzar.core.db import see_all_tenants
from quazzar.core.idempotency import prune_idempotent
from quazzar.core.jobs import JobRun, Resource, job, schedule
from quazzar.events.service import prune_events

RETENTION_DAYS: Resource[int] = Resource("days that ended jobs are kept")
DEFAULT_RETENTION_DAYS = 30
_BATCH = 1_000

_PRUNE = text(
    "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE finished_at < now() - make_interval(days => :days) "
    "ORDER BY finished_at LIMIT :batch FOR UPDATE SKIP LOCKED)"
)
_PRUNE_QUEUE_LOG = text(
    "DELETE FROM pgqueuer_log WHERE id IN (SELECT id FROM pgqueuer_log WHERE created < now() - interval '1 day' "
    "ORDER BY created LIMIT :batch FOR UPDATE SKIP LOCKED)"
)


@schedule("17 3 * * *")
@job("jobs.prune", concurrency=1)
async def prune(run: JobRun) -> None:
    """Forget jobs that ended long ago with their log lines, the queue's own notes, kept answers and old events."""
    async with run.database.begin() as session:
        await prune_idempotent(session)
    await prune_events(run.database)
    days = run.resources.get(RETENTION_DAYS, DEFAULT_RETENTION_DAYS)
    for statement in (_PRUNE, _PRUNE_QUEUE_LOG):
        removed = _BATCH
        while removed == _BATCH:
            run.check_cancelled()
            async with run.database.begin() as session:
                await see_all_tenants(session)
                values = {"batch": _BATCH} | ({"days": days} if statement is _PRUNE else {})
                result = await session.execute(statement, values)
                assert isinstance(result, CursorResult)
                removed = result.rowcount
