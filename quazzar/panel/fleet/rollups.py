"""Sums of samples: five minutes from samples, hours from five minutes, and anew where samples came late.

Steps are summed up by the span, an hour of five minutes and six hours of hours, so that what one instance has in it
lies side by side on the disk: a day is then read from some forty pages, not from three hundred. Until then whoever
reads takes what is finer. What is written of a step is written whole, from all that there is, so it may be done again
and again. Samples that come after their hour was summed up leave a mark (`FleetLate`) in the transaction that writes
them; the marks are taken away in the one that sums up their hours.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import Database, see_all_tenants
from quazzar.link.metrics import APP_METRICS, HOST_METRICS

FIVE_MINUTES: Final = 300
HOUR: Final = 3600
SPANS: Final = {FIVE_MINUTES: HOUR, HOUR: 6 * HOUR}
"""How much is summed up at once to steps of this length."""

AFTER: Final = timedelta(seconds=60)
"""How long after the end of a span it is summed up; what is on its way to the database has to arrive before."""
LATE: Final = timedelta(seconds=30)
"""How long after the end of an hour a sample of it counts as late. Less than `AFTER`, so that between the two there is
time to commit.
"""
_WIDTH: Final = max(len(HOST_METRICS), len(APP_METRICS))
_MARKS: Final = 500
_PATIENCE = text("SELECT set_config('statement_timeout', '300s', true), set_config('work_mem', '64MB', true)")


def began(at: datetime, step: int) -> datetime:
    """The beginning of the step of so many seconds that a moment lies in."""
    return datetime.fromtimestamp(at.timestamp() // step * step, UTC)


def late_before(now: datetime) -> datetime:
    """Samples before this moment may belong to an hour that is summed up already."""
    return began(now - LATE, SPANS[FIVE_MINUTES])


def _each(form: str) -> str:
    return ", ".join(form.format(place) for place in range(1, _WIDTH + 1))


# One aggregate for each place of the arrays, rather than rows for each value and arrays of those again: three times as
# fast. `{where}` says which samples.
_OF_SAMPLES = f"""
    INSERT INTO fleet_five_minutes AS old (tenant_id, instance_id, app_id, at, minimum, average, maximum, counts)
    SELECT s.tenant_id, s.instance_id, s.app_id, date_bin('5 minutes', s.at, 'epoch') AS began,
        ARRAY[{_each("min(measured[{0}])")}], ARRAY[{_each("avg(measured[{0}])")}],
        ARRAY[{_each("max(measured[{0}])")}], ARRAY[{_each("count(measured[{0}])::integer")}]
    FROM {{where}}
    GROUP BY s.tenant_id, s.instance_id, s.app_id, began
    ORDER BY s.instance_id, s.app_id, began
"""  # noqa: S608 - numbers of places only
_OF_FIVE_MINUTES = f"""
    INSERT INTO fleet_hours AS old (tenant_id, instance_id, app_id, at, minimum, average, maximum, counts)
    SELECT s.tenant_id, s.instance_id, s.app_id, date_bin('1 hour', s.at, 'epoch') AS began,
        ARRAY[{_each("min(minimum[{0}])")}],
        ARRAY[{_each("sum(average[{0}] * counts[{0}]) / nullif(sum(counts[{0}]), 0)")}],
        ARRAY[{_each("max(maximum[{0}])")}], ARRAY[{_each("coalesce(sum(counts[{0}]), 0)::integer")}]
    FROM {{where}}
    GROUP BY s.tenant_id, s.instance_id, s.app_id, began
    ORDER BY s.instance_id, s.app_id, began
"""  # noqa: S608
_WHOLE = """
    ON CONFLICT (instance_id, app_id, at) DO UPDATE SET minimum = excluded.minimum, average = excluded.average,
        maximum = excluded.maximum, counts = excluded.counts
    WHERE old.counts <> excluded.counts
"""
_BETWEEN = "s.at >= :since AND s.at < :until"
# Of the marked hours only those that are summed up: of the others nothing, since a part would look like all of it.
_MARKED = """
    unnest(CAST(:instances AS text[]), CAST(:hours AS timestamptz[])) AS mark (instance_id, hour)
    JOIN {table} AS s ON s.instance_id = mark.instance_id AND s.at >= mark.hour
        AND s.at < least(mark.hour + interval '1 hour', CAST(:until AS timestamptz))
        AND s.at >= CAST(:since AS timestamptz)
"""
_SUMS: Final = {
    FIVE_MINUTES: text(_OF_SAMPLES.format(where=f"fleet_samples AS s WHERE {_BETWEEN}") + _WHOLE),
    HOUR: text(_OF_FIVE_MINUTES.format(where=f"fleet_five_minutes AS s WHERE {_BETWEEN}") + _WHOLE),
}
_SUMS_ANEW: Final = {
    FIVE_MINUTES: text(_OF_SAMPLES.format(where=_MARKED.format(table="fleet_samples")) + _WHOLE),
    HOUR: text(_OF_FIVE_MINUTES.format(where=_MARKED.format(table="fleet_five_minutes")) + _WHOLE),
}

_PLACE = text("SELECT done_until FROM fleet_rollups WHERE step_seconds = :step FOR UPDATE")
_OLDEST = text("SELECT min(at) FROM fleet_samples")
_BEGIN = text("INSERT INTO fleet_rollups (step_seconds, done_until) VALUES (:step, :at) ON CONFLICT DO NOTHING")
_MOVE = text("UPDATE fleet_rollups SET done_until = :until WHERE step_seconds = :step")
_PROGRESS = text("SELECT done_until FROM fleet_rollups WHERE step_seconds = :step")
_TAKE_MARKS = text(
    """
    DELETE FROM fleet_late WHERE (instance_id, at) IN (
        SELECT instance_id, at FROM fleet_late ORDER BY at, instance_id LIMIT :most FOR UPDATE SKIP LOCKED
    ) RETURNING instance_id, at
    """
)


async def roll_up(database: Database, now: datetime) -> None:
    """Bring five minutes and hours up to date. Each span is a transaction of its own. Any number of processes may do it
    at once: one works, the others wait for it and find nothing left.
    """
    for step in SPANS:
        while await _next_span(database, step, now):
            pass
    while await _next_marks(database):
        pass


async def _next_span(database: Database, step: int, now: datetime) -> bool:
    """Sum up the oldest span that is not; False when it is not over yet."""
    async with database.begin() as session:
        await see_all_tenants(session)
        await session.execute(_PATIENCE)
        since = (await session.execute(_PLACE, {"step": step})).scalar_one_or_none()
        if since is None:
            oldest = (await session.execute(_OLDEST)).scalar_one()
            await session.execute(_BEGIN, {"step": step, "at": began(oldest or now - AFTER, SPANS[step])})
            return oldest is not None
        until = since + timedelta(seconds=SPANS[step])
        if until + AFTER > now or (step == HOUR and until > await _done(session, FIVE_MINUTES)):
            return False
        await session.execute(_SUMS[step], {"since": since, "until": until})
        await session.execute(_MOVE, {"step": step, "until": until})
        return True


async def _done(session: AsyncSession, step: int) -> datetime:
    """Up to when steps of this length are summed up; the beginning of time before the first."""
    found: datetime | None = (await session.execute(_PROGRESS, {"step": step})).scalar_one_or_none()
    return found or datetime.fromtimestamp(0, UTC)


async def _next_marks(database: Database) -> bool:
    """Sum up anew some of the hours that got samples late; True when there may be more."""
    async with database.begin() as session:
        await see_all_tenants(session)
        await session.execute(_PATIENCE)
        marks = (await session.execute(_TAKE_MARKS, {"most": _MARKS})).all()
        if not marks:
            return False
        values: dict[str, Any] = {"instances": [row.instance_id for row in marks], "hours": [row.at for row in marks]}
        values["since"] = min(values["hours"])
        for step in SPANS:
            await session.execute(_SUMS_ANEW[step], values | {"until": await _done(session, step)})
        return True


async def rolled_up_until(session: AsyncSession) -> datetime:
    """Samples and five minutes before this moment are in hours; the beginning of time where none is."""
    return await _done(session, HOUR)
