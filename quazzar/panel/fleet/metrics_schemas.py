"""Answers about what instances measure, now and over time."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from quazzar.core.schema import Out
from quazzar.link.metrics import HostMetric
from quazzar.panel.fleet.schemas import InstanceId

Range = Literal["1h", "6h", "24h", "7d", "30d", "90d"]
Metric = Literal[
    HostMetric,
    "memory_bytes",
    "memory_limit_bytes",
    "network_rx_bytes",
    "network_tx_bytes",
    "disk_read_bytes",
    "disk_write_bytes",
    "pids",
    "restarts",
]
"""What may be asked for: the values of a host, then those that only apps have."""
Percent = Annotated[float | None, Meta(examples=[12.5])]
Bytes = Annotated[int | None, Meta(examples=[4_160_749_568])]
Count = Annotated[int | None, Meta(examples=[212])]


class CpuOut(Out, kw_only=True):
    """Percent of all cores together."""

    percent: Percent
    cores: Annotated[int, Meta(examples=[4])]


class MemoryOut(Out, kw_only=True):
    used_bytes: Bytes
    total_bytes: Annotated[int, Meta(examples=[8_321_499_136])]
    percent: Percent
    swap_used_bytes: Bytes


class DiskOut(Out, kw_only=True):
    """The disk that the instance keeps its data on; the rates are of all disks."""

    used_bytes: Bytes
    total_bytes: Annotated[int, Meta(examples=[105_089_261_568])]
    percent: Percent
    read_bytes_per_second: Bytes
    write_bytes_per_second: Bytes


class NetworkOut(Out, kw_only=True):
    rx_bytes_per_second: Bytes
    tx_bytes_per_second: Bytes


class LoadOut(Out, kw_only=True):
    """Means over 1, 5 and 15 minutes."""

    load_1: Annotated[float | None, Meta(examples=[0.42])]
    load_5: Annotated[float | None, Meta(examples=[0.42])]
    load_15: Annotated[float | None, Meta(examples=[0.42])]


class AppMetricsOut(Out, kw_only=True):
    """What one app used by the newest heartbeat; CPU is in percent of one core, network, disk and restarts are what
    came since the heartbeat before.
    """

    id: Annotated[str, Meta(examples=["app_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    name: Annotated[str | None, Meta(examples=["cloud"])]
    cpu_percent: Percent
    memory_bytes: Bytes
    memory_limit_bytes: Bytes
    network_rx_bytes: Bytes
    network_tx_bytes: Bytes
    disk_read_bytes: Bytes
    disk_write_bytes: Bytes
    pids: Count
    restarts: Count


class MetricsOut(Out, kw_only=True):
    """What an instance has told last. What it could not measure is null: all of it before its first heartbeat."""

    instance_id: InstanceId
    measured_at: datetime | None
    cpu: CpuOut
    memory: MemoryOut
    disk: DiskOut
    network: NetworkOut
    load: LoadOut
    processes: Count
    uptime_seconds: Count
    temperature_celsius: Annotated[float | None, Meta(examples=[48.0])]
    apps: list[AppMetricsOut]


class PointOut(Out):
    """One step, which begins at `at`."""

    at: datetime
    min: Annotated[float, Meta(examples=[3.1])]
    avg: Annotated[float, Meta(examples=[12.5])]
    max: Annotated[float, Meta(examples=[71.0])]


class HistoryOut(Out, kw_only=True):
    """Oldest first. A step in which nothing was measured has no point: gaps are gaps."""

    instance_id: InstanceId
    app_id: str | None
    metric: Metric
    range: Range
    step_seconds: Annotated[int, Meta(examples=[300])]
    points: list[PointOut]
