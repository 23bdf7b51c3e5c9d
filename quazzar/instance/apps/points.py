"""Every query on the points of apps' history: written each few seconds, summed up to hours and days, pruned."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import DateTime, Integer, Interval, Text, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import Database, Query
from quazzar.instance.apps.models import AppPoint
from quazzar.instance.apps.schemas import StatsPoint

MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86_400

# Whole hours of minutes and whole days of hours are kept, so that what is summed up again is summed up of all.
_KEPT: Final = ((MINUTE, 25 * HOUR, HOUR), (HOUR, 31 * DAY, DAY), (DAY, 366 * DAY, DAY))


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one app used since it was looked at last."""

    app_id: str
    cpu_percent: float
    memory_bytes: int
    memory_limit_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    pids: int
    restarts: int


_COLUMNS = tuple(getattr(AppPoint, name) for name in StatsPoint.__struct_fields__)
_READ = Query(
    select(*_COLUMNS)
    .where(
        AppPoint.app_id == bindparam("app_id", type_=Text),
        AppPoint.step_seconds == bindparam("step", type_=Integer),
        AppPoint.at > func.now(type_=DateTime(timezone=True)) - bindparam("span", type_=Interval),
    )
    .order_by(AppPoint.at),
    StatsPoint,
)


async def read_points(database: Database, app_id: str, *, step: int, span: timedelta) -> list[StatsPoint]:
    """The points of this step that began within `span` before now, oldest first."""
    return await _READ.all(database, app_id=app_id, step=step, span=span)


class Restarts(msgspec.Struct, frozen=True):
    """How often the engine has restarted the services that an app has now."""

    app_id: str
    count: int


_RESTARTS = Query(
    text(
        "SELECT id, (SELECT COALESCE(sum((one->>'restarts')::integer), 0)::integer "
        "FROM jsonb_array_elements(services) AS one) FROM apps"
    ),
    Restarts,
)


async def count_restarts(database: Database) -> dict[str, int]:
    return {one.app_id: one.count for one in await _RESTARTS.all(database)}


# An app that is uninstalled meanwhile gets no point: its row is held until the commit, or is not there any more.
_ADD = text(
    """
    INSERT INTO app_points AS old (app_id, step_seconds, at, samples, cpu_percent, cpu_percent_max, memory_bytes,
        memory_bytes_max, memory_limit_bytes, network_rx_bytes, network_tx_bytes, disk_read_bytes, disk_write_bytes,
        pids, restarts)
    SELECT apps.id, 60, date_bin('1 minute', clock_timestamp(), 'epoch'), 1, cpu, cpu, memory, memory, memory_limit,
        rx, tx, disk_read, disk_write, given.pids, given.restarts
    FROM unnest(CAST(:app_id AS text[]), CAST(:cpu_percent AS float8[]), CAST(:memory_bytes AS bigint[]),
        CAST(:memory_limit_bytes AS bigint[]), CAST(:network_rx_bytes AS bigint[]), CAST(:network_tx_bytes AS bigint[]),
        CAST(:disk_read_bytes AS bigint[]), CAST(:disk_write_bytes AS bigint[]), CAST(:pids AS integer[]),
        CAST(:restarts AS integer[]))
        AS given (id, cpu, memory, memory_limit, rx, tx, disk_read, disk_write, pids, restarts)
    JOIN apps ON apps.id = given.id FOR KEY SHARE OF apps
    ON CONFLICT (app_id, step_seconds, at) DO UPDATE SET
        samples = old.samples + 1,
        cpu_percent = (old.cpu_percent * old.samples + excluded.cpu_percent) / (old.samples + 1),
        cpu_percent_max = greatest(old.cpu_percent_max, excluded.cpu_percent),
        memory_bytes = (old.memory_bytes * old.samples + excluded.memory_bytes) / (old.samples + 1),
        memory_bytes_max = greatest(old.memory_bytes_max, excluded.memory_bytes),
        memory_limit_bytes = excluded.memory_limit_bytes,
        network_rx_bytes = old.network_rx_bytes + excluded.network_rx_bytes,
        network_tx_bytes = old.network_tx_bytes + excluded.network_tx_bytes,
        disk_read_bytes = old.disk_read_bytes + excluded.disk_read_bytes,
        disk_write_bytes = old.disk_write_bytes + excluded.disk_write_bytes,
        pids = greatest(old.pids, excluded.pids),
        restarts = old.restarts + excluded.restarts
    """
)


async def add_samples(session: AsyncSession, samples: Sequence[Sample]) -> None:
    """Count one sample of each app into the point of this minute; apps that are gone are passed over."""
    if samples:
        values = {name: [getattr(one, name) for one in samples] for name in Sample.__struct_fields__}
        await session.execute(_ADD, values)


# Written whole each time, so it may be done again and again; what has not changed is not written.
_SUM_UP = text(
    """
    WITH sums AS (
        SELECT app_id, date_bin(make_interval(secs => :step), at, 'epoch') AS began,
            sum(samples)::integer AS samples,
            sum(cpu_percent * samples) / sum(samples) AS cpu_percent, max(cpu_percent_max) AS cpu_percent_max,
            (sum(memory_bytes * samples) / sum(samples))::bigint AS memory_bytes,
            max(memory_bytes_max) AS memory_bytes_max,
            (sum(memory_limit_bytes * samples) / sum(samples))::bigint AS memory_limit_bytes,
            sum(network_rx_bytes)::bigint AS network_rx_bytes, sum(network_tx_bytes)::bigint AS network_tx_bytes,
            sum(disk_read_bytes)::bigint AS disk_read_bytes, sum(disk_write_bytes)::bigint AS disk_write_bytes,
            max(pids) AS pids, sum(restarts)::integer AS restarts
        FROM app_points
        WHERE step_seconds = :of
            AND at >= date_bin(make_interval(secs => :step), clock_timestamp() - make_interval(secs => :since), 'epoch')
        GROUP BY app_id, began
    )
    INSERT INTO app_points AS old (app_id, step_seconds, at, samples, cpu_percent, cpu_percent_max, memory_bytes,
        memory_bytes_max, memory_limit_bytes, network_rx_bytes, network_tx_bytes, disk_read_bytes, disk_write_bytes,
        pids, restarts)
    SELECT apps.id, CAST(:step AS integer), began, sums.samples, sums.cpu_percent, sums.cpu_percent_max,
        sums.memory_bytes, sums.memory_bytes_max, sums.memory_limit_bytes, sums.network_rx_bytes,
        sums.network_tx_bytes, sums.disk_read_bytes, sums.disk_write_bytes, sums.pids, sums.restarts
    FROM sums JOIN apps ON apps.id = sums.app_id FOR KEY SHARE OF apps
    ON CONFLICT (app_id, step_seconds, at) DO UPDATE SET
        samples = excluded.samples, cpu_percent = excluded.cpu_percent, cpu_percent_max = excluded.cpu_percent_max,
        memory_bytes = excluded.memory_bytes, memory_bytes_max = excluded.memory_bytes_max,
        memory_limit_bytes = excluded.memory_limit_bytes, network_rx_bytes = excluded.network_rx_bytes,
        network_tx_bytes = excluded.network_tx_bytes, disk_read_bytes = excluded.disk_read_bytes,
        disk_write_bytes = excluded.disk_write_bytes, pids = excluded.pids, restarts = excluded.restarts
    WHERE old.samples <> excluded.samples
    """
)


async def sum_up(session: AsyncSession, *, since_seconds: float) -> None:
    """Bring the hours and the days up to date that the minutes of the last `since_seconds` lie in."""
    for of, step in ((MINUTE, HOUR), (HOUR, DAY)):
        await session.execute(_SUM_UP, {"of": of, "step": float(step), "since": since_seconds})


_PRUNE = text(
    "DELETE FROM app_points WHERE step_seconds = :step "
    "AND at < date_bin(make_interval(secs => :whole), clock_timestamp() - make_interval(secs => :kept), 'epoch')"
)


async def prune_points(session: AsyncSession) -> None:
    """Forget minutes after a day, hours after a month, days after a year."""
    for step, kept, whole in _KEPT:
        values: dict[str, Any] = {"step": step, "kept": float(kept), "whole": float(whole)}
        await session.execute(_PRUNE, values)
