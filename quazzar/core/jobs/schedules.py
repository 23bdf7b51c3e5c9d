"""Jobs by the clock: each occurrence makes one job, over any number of processes and restarts."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import Database
from quazzar.core.jobs.line import WorkerLine
from quazzar.core.jobs.queue import enqueue
from quazzar.core.jobs.registry import Schedule

_SET_BACK = timedelta(hours=3)
_FREQUENT = timedelta(hours=1)

_LOOK = "SELECT name, rule, next_run_at, last_run_at, now() AS now FROM job_schedules WHERE name = ANY ($1::text[])"
_NOW = "SELECT now() AS now"
_ADD = """
INSERT INTO job_schedules (name, rule, next_run_at) SELECT * FROM UNNEST($1::text[], $2::text[], $3::timestamptz[])
ON CONFLICT DO NOTHING
"""
_MOVE = "UPDATE job_schedules SET rule = $2, next_run_at = $3 WHERE name = $1 AND next_run_at = $4"

# A second process finds the row locked, or no longer due: in one transaction the job is made and the clock moved on.
_TAKE = text(
    "SELECT next_run_at, now() FROM job_schedules WHERE name = :name AND next_run_at <= now() FOR UPDATE SKIP LOCKED"
)
_BUSY = text(
    "SELECT EXISTS (SELECT FROM jobs WHERE kind = :kind AND status IN ('queued', 'running') AND tenant_id IS NULL)"
)
_DONE = text("UPDATE job_schedules SET next_run_at = :next, last_run_at = now() WHERE name = :name")


def next_run(schedule: Schedule, after: datetime, *, last: datetime | None = None) -> datetime:
    """The first occurrence after `after` (with a zone); an interval counts from `last` where that is not past."""
    if schedule.cron is not None:
        from croniter import croniter  # type: ignore[import-untyped]  # noqa: PLC0415 - only where there are cron rules

        local = after.astimezone(ZoneInfo(schedule.zone))
        found: datetime = croniter(schedule.cron, local).get_next(datetime)
        return found
    every = timedelta(seconds=schedule.every_seconds or 0)
    return last + every if last is not None and last + every > after else after + every


def corrected(schedule: Schedule, rule: str, due: datetime, last: datetime | None, now: datetime) -> datetime | None:
    """The right next run when the stored one can't stand, else None.

    It can't when the rule has changed, or when the clock was set back (the last run then lies ahead). As cron does it,
    a small step back makes only frequent schedules go on at once: a daily one is not done twice.
    """
    following = next_run(schedule, now)
    if rule != schedule.rule:
        return following
    if due <= following:
        return None
    period = next_run(schedule, following) - following
    return following if last is None or last - now >= _SET_BACK or period <= _FREQUENT else None


async def run_schedules(line: WorkerLine, database: Database, schedules: Mapping[str, Schedule]) -> None:
    """Make a job for each schedule that is due by the database's clock."""
    if not schedules:
        return
    rows = await line.fetch(_LOOK, list(schedules))
    known = {str(row["name"]) for row in rows}
    missing = [schedule for name, schedule in schedules.items() if name not in known]
    if missing:
        now = _time((await line.fetch(_NOW))[0]["now"])
        times = [next_run(schedule, now) for schedule in missing]
        await line.execute(_ADD, [each.name for each in missing], [each.rule for each in missing], times)
    for row in rows:
        schedule = schedules[str(row["name"])]
        due, now = _time(row["next_run_at"]), _time(row["now"])
        last = _time(row["last_run_at"]) if row["last_run_at"] is not None else None
        right = corrected(schedule, str(row["rule"]), due, last, now)
        if right is not None:
            await line.execute(_MOVE, schedule.name, schedule.rule, right, due)
        elif due <= now:
            async with database.begin() as session:
                await _fire(session, schedule)


async def _fire(session: AsyncSession, schedule: Schedule) -> None:
    row = (await session.execute(_TAKE, {"name": schedule.name})).one_or_none()
    if row is None:
        return
    due, now = row
    if not (await session.execute(_BUSY, {"kind": schedule.kind.kind})).scalar_one():
        await enqueue(session, schedule.kind, realm=schedule.realm, actor="system")
    await session.execute(_DONE, {"name": schedule.name, "next": next_run(schedule, now, last=due)})


def _time(value: object) -> datetime:
    assert isinstance(value, datetime)
    return value
