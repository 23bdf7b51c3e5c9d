"""Every query on what one tenant's instances have measured."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy import TextClause, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.panel.fleet.metrics_models import FleetFiveMinutes, FleetHour, FleetLate, FleetSample
from quazzar.panel.fleet.models import FleetPresence
from quazzar.panel.fleet.store import Found

_PATIENCE = text("SET LOCAL statement_timeout = '300s'")


class Source(msgspec.Struct, frozen=True):
    """Where points are read from: `step_seconds` is the finest that it has, `None` for samples."""

    table: str
    step_seconds: int | None


SAMPLES: Final = Source("fleet_samples", None)
FIVE_MINUTES: Final = Source("fleet_five_minutes", 300)
HOURS: Final = Source("fleet_hours", 3600)


async def get_latest(session: AsyncSession, tenant_id: str, instance_id: str) -> Found:
    """What an instance (that there is) measured with its newest heartbeat that said something."""
    query = select(FleetPresence.measured_at, FleetPresence.measured).where(
        FleetPresence.tenant_id == tenant_id, FleetPresence.instance_id == instance_id
    )
    return (await session.execute(query)).one()


async def find_latest_of_apps(session: AsyncSession, tenant_id: str, instance_id: str) -> Sequence[Found]:
    """The samples of its apps that came with its newest one of the host."""
    own = (FleetSample.tenant_id == tenant_id, FleetSample.instance_id == instance_id)
    newest = select(func.max(FleetSample.at)).where(*own, FleetSample.app_id == "").scalar_subquery()
    query = (
        select(FleetSample.app_id, FleetSample.measured)
        .where(*own, FleetSample.app_id != "", FleetSample.at == newest)
        .order_by(FleetSample.app_id)
    )
    return (await session.execute(query)).all()


_WHERE = """
        WHERE tenant_id = :tenant_id AND instance_id = :instance_id AND app_id = :app_id AND at < :until AND at >= """
_SUMMED = "minimum[:place] AS low, average[:place] AS mean, maximum[:place] AS high, counts[:place] AS samples"
_AFTER_HOURS = "(SELECT max(at) + interval '1 hour' FROM hours)"
_AFTER_FIVE_MINUTES = "(SELECT max(at) + interval '5 minutes' FROM five_minutes)"

# Each table goes on where the coarser one ends: what is not summed up yet is read from what is finer.
_HOURS = f"hours AS (SELECT at, {_SUMMED} FROM fleet_hours {_WHERE} :since)"  # noqa: S608 - parts of this module
_FIVE_MINUTES = f"five_minutes AS (SELECT at, {_SUMMED} FROM fleet_five_minutes {_WHERE} {{since}})"  # noqa: S608
_FRESH = f"""samples AS (
        SELECT at, measured[:place] AS low, measured[:place] AS mean, measured[:place] AS high, 1 AS samples
        FROM fleet_samples {_WHERE} {{since}}
    )"""  # noqa: S608
_OF_ALL = """
    SELECT date_bin(:step, at, 'epoch') AS began, min(low) AS low, sum(mean * samples) / sum(samples) AS mean,
        max(high) AS high
    FROM ({every}) AS points
    WHERE mean IS NOT NULL
    GROUP BY began ORDER BY began
"""


def _read(*parts: str) -> TextClause:
    every = " UNION ALL ".join(f"SELECT * FROM {part.partition(' ')[0]}" for part in parts)  # noqa: S608 - names above
    return text(f"WITH {', '.join(parts)} {_OF_ALL.format(every=every)}")


_READS: Final = {
    SAMPLES: _read(_FRESH.format(since=":since")),
    FIVE_MINUTES: _read(
        _FIVE_MINUTES.format(since=":since"), _FRESH.format(since=f"coalesce({_AFTER_FIVE_MINUTES}, :since)")
    ),
    HOURS: _read(
        _HOURS,
        _FIVE_MINUTES.format(since=f"coalesce({_AFTER_HOURS}, :since)"),
        _FRESH.format(since=f"coalesce({_AFTER_FIVE_MINUTES}, {_AFTER_HOURS}, :since)"),
    ),
}


async def find_points(
    session: AsyncSession,
    tenant_id: str,
    instance_id: str,
    app_id: str,
    source: Source,
    *,
    place: int,
    since: datetime,
    until: datetime,
    step_seconds: int,
) -> Sequence[Found]:
    """Beginning, minimum, average and maximum of each step between the two in which the value at this place of the list
    (from 0) was measured; `app_id` is empty for the host.
    """
    values = {
        "tenant_id": tenant_id,
        "instance_id": instance_id,
        "app_id": app_id,
        "place": place + 1,
        "since": since,
        "until": until,
        "step": timedelta(seconds=step_seconds),
    }
    return (await session.execute(_READS[source], values)).all()


async def delete_metrics(session: AsyncSession, tenant_id: str, instance_id: str) -> None:
    await session.execute(_PATIENCE)
    for table in (FleetSample, FleetFiveMinutes, FleetHour, FleetLate):
        await session.execute(delete(table).where(table.tenant_id == tenant_id, table.instance_id == instance_id))
