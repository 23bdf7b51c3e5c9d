"""What instances measure, as their tenant's members read it: the newest values, and points over a range."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.errors import BadRequest
from quazzar.link.metrics import APP_METRICS, HOST_METRICS, measures
from quazzar.panel.fleet import metrics_store
from quazzar.panel.fleet.ingest import AHEAD
from quazzar.panel.fleet.metrics_schemas import (
    AppMetricsOut,
    CpuOut,
    DiskOut,
    HistoryOut,
    LoadOut,
    MemoryOut,
    Metric,
    MetricsOut,
    NetworkOut,
    PointOut,
    Range,
)
from quazzar.panel.fleet.metrics_store import FIVE_MINUTES, HOURS, SAMPLES, Source
from quazzar.panel.fleet.rollups import began
from quazzar.panel.fleet.service import FleetService

MOST_POINTS: Final = 1500
FINEST_SECONDS: Final = 10
RANGES: Final[dict[Range, tuple[timedelta, int]]] = {
    "1h": (timedelta(hours=1), 60),
    "6h": (timedelta(hours=6), 60),
    "24h": (timedelta(hours=24), 300),
    "7d": (timedelta(days=7), 1800),
    "30d": (timedelta(days=30), 3600),
    "90d": (timedelta(days=90), 10_800),
}
"""How far back each goes, and the seconds of its steps where nothing else is asked for."""
_REACHES: Final = ((SAMPLES, timedelta(hours=24)), (FIVE_MINUTES, timedelta(days=7)), (HOURS, timedelta(days=400)))
"""From the finest: how long ranges may be that are read from it. Less than it is kept, so that no range ends early."""


def steps_of(span: Range, wanted_seconds: int | None, *, heartbeat_seconds: float) -> tuple[Source, int]:
    """Where the points of a range are read from, and how long their steps are: at least what was asked for, and no
    finer than there are values or than makes `MOST_POINTS` of them.
    """
    length, usual = RANGES[span]
    # With a longer heartbeat than usual, a step must not be so short that it misses every other one.
    wanted = wanted_seconds or max(usual, int(2 * heartbeat_seconds))
    wanted = max(wanted, -int(-length.total_seconds() // MOST_POINTS))
    sources = [source for source, reach in _REACHES if reach >= length]
    source = next((one for one in reversed(sources) if _unit(one) <= wanted), sources[0])
    return source, -(-wanted // _unit(source)) * _unit(source)


def _unit(source: Source) -> int:
    return source.step_seconds or FINEST_SECONDS


class MetricsService:
    """One per request, of the tenant that its caller works in."""

    def __init__(self, session: AsyncSession, principal: Principal, heartbeat_seconds: float) -> None:
        assert principal.tenant_id is not None
        self._session = session
        self._tenant = principal.tenant_id
        self._fleet = FleetService(session, principal)
        self._heartbeat_seconds = heartbeat_seconds

    async def latest(self, instance_id: str) -> MetricsOut:
        """Raises `InstanceNotFound`."""
        instance = await self._fleet.get(instance_id)
        row = await metrics_store.get_latest(self._session, self._tenant, instance_id)
        host = measures(row.measured)
        names = {app["id"]: app["name"] for app in instance.apps}
        apps = await metrics_store.find_latest_of_apps(self._session, self._tenant, instance_id)
        return MetricsOut(
            instance_id=instance_id,
            measured_at=row.measured_at,
            cpu=CpuOut(percent=host.get("cpu_percent"), cores=instance.cpu_cores),
            memory=MemoryOut(
                used_bytes=_whole(host, "memory_used_bytes"),
                total_bytes=instance.memory_bytes,
                percent=host.get("memory_percent"),
                swap_used_bytes=_whole(host, "swap_used_bytes"),
            ),
            disk=DiskOut(
                used_bytes=_whole(host, "disk_used_bytes"),
                total_bytes=instance.disk_bytes,
                percent=host.get("disk_percent"),
                read_bytes_per_second=_whole(host, "disk_read_bytes_per_second"),
                write_bytes_per_second=_whole(host, "disk_write_bytes_per_second"),
            ),
            network=NetworkOut(
                rx_bytes_per_second=_whole(host, "network_rx_bytes_per_second"),
                tx_bytes_per_second=_whole(host, "network_tx_bytes_per_second"),
            ),
            load=LoadOut(load_1=host.get("load_1"), load_5=host.get("load_5"), load_15=host.get("load_15")),
            processes=_whole(host, "processes"),
            uptime_seconds=_whole(host, "uptime_seconds"),
            temperature_celsius=host.get("temperature_celsius"),
            apps=[_app(app.app_id, names.get(app.app_id), app.measured) for app in apps],
        )

    async def history(
        self, instance_id: str, *, span: Range, metric: Metric, app_id: str | None, step_seconds: int | None
    ) -> HistoryOut:
        """Raises `InstanceNotFound`, and `BadRequest` for a value that a host, or an app, does not have."""
        await self._fleet.get(instance_id)
        names: Sequence[str] = HOST_METRICS if app_id is None else APP_METRICS
        if metric not in names:
            whose = "a host" if app_id is None else "an app"
            raise BadRequest("There is no such metric", details={"metric": f"Metric of {whose}: {', '.join(names)}"})
        source, step = steps_of(span, step_seconds, heartbeat_seconds=self._heartbeat_seconds)
        now = datetime.now(UTC)
        since = began(now - RANGES[span][0], step) + timedelta(seconds=step)
        rows = await metrics_store.find_points(
            self._session,
            self._tenant,
            instance_id,
            app_id or "",
            source,
            place=names.index(metric),
            since=since,
            until=now + AHEAD,
            step_seconds=step,
        )
        points = [PointOut(*row) for row in rows]
        return HistoryOut(
            instance_id=instance_id, app_id=app_id, metric=metric, range=span, step_seconds=step, points=points
        )


def _whole(values: Mapping[str, float], name: str) -> int | None:
    value = values.get(name)
    return None if value is None else round(value)


def _app(app_id: str, name: str | None, measured: Sequence[float | None]) -> AppMetricsOut:
    values = measures(measured, APP_METRICS)
    counts = {key: _whole(values, key) for key in APP_METRICS if key != "cpu_percent"}
    return AppMetricsOut(id=app_id, name=name, cpu_percent=values.get("cpu_percent"), **counts)
