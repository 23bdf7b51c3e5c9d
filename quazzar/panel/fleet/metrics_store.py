"""Every query on what one tenant's instances have measured."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import delete, func, select, text
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


_OF_SAMPLES = text(
    """
    SELECT date_bin(:step, at, 'epoch') AS began, min(measured[:place]) AS low, avg(measured[:place]) AS mean,
        max(measured[:place]) AS high
    FROM fleet_samples
    WHERE tenant_id = :tenant_id AND instance_id = :instance_id AND app_id = :app_id AND at >= :since AND at < :until
        AND measured[:place] IS NOT NULL
    GROUP BY began ORDER BY began
    """
)

# What is not summed up yet, the newest minutes, is read from the samples.
_OF_SUMS = """
    WITH summed AS (
        SELECT at, minimum[:place] AS low, average[:place] AS mean, maximum[:place] AS high, counts[:place] AS samples
        FROM {table}
        WHERE tenant_id = :tenant_id AND instance_id = :instance_id AND app_id = :app_id
            AND at >= :since AND at < :until
    ), fresh AS (
        SELECT at, measured[:place] AS low, measured[:place] AS mean, measured[:place] AS high, 1 AS samples
        FROM fleet_samples
        WHERE tenant_id = :tenant_id AND instance_id = :instance_id AND app_id = :app_id
            AND at >= coalesce((SELECT max(at) FROM summed) + :of, :since) AND at < :until
    )
    SELECT date_bin(:step, at, 'epoch') AS began, min(low) AS low, sum(mean * samples) / sum(samples) AS mean,
        max(high) AS high
    FROM (SELECT * FROM summed UNION ALL SELECT * FROM fresh) AS points
    WHERE mean IS NOT NULL
    GROUP BY began ORDER BY began
"""
_READS: Final = {
    SAMPLES: _OF_SAMPLES,
    FIVE_MINUTES: text(_OF_SUMS.format(table=FIVE_MINUTES.table)),
    HOURS: text(_OF_SUMS.format(table=HOURS.table)),
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
    values: dict[str, Any] = {
        "tenant_id": tenant_id,
        "instance_id": instance_id,
        "app_id": app_id,
        "place": place + 1,
        "since": since,
        "until": until,
        "step": timedelta(seconds=step_seconds),
    }
    if source.step_seconds is not None:
        values["of"] = timedelta(seconds=source.step_seconds)
    return (await session.execute(_READS[source], values)).all()


async def delete_metrics(session: AsyncSession, tenant_id: str, instance_id: str) -> None:
    await session.execute(_PATIENCE)
    for table in (FleetSample, FleetFiveMinutes, FleetHour, FleetLate):
        await session.execute(delete(table).where(table.tenant_id == tenant_id, table.instance_id == instance_id))
