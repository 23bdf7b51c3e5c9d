"""The names of what instances measure, in the order in which their values travel and are kept.

Lists only grow at their ends: a release that knows more sends longer rows, one that knows less reads the beginning.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

HostMetric = Literal[
    "cpu_percent",
    "memory_used_bytes",
    "memory_percent",
    "swap_used_bytes",
    "disk_used_bytes",
    "disk_percent",
    "disk_read_bytes_per_second",
    "disk_write_bytes_per_second",
    "network_rx_bytes_per_second",
    "network_tx_bytes_per_second",
    "load_1",
    "load_5",
    "load_15",
    "processes",
    "uptime_seconds",
    "temperature_celsius",
]
HOST_METRICS: Final[tuple[str, ...]] = get_args(HostMetric)
APP_METRICS: Final = (
    "cpu_percent",
    "memory_bytes",
    "memory_limit_bytes",
    "network_rx_bytes",
    "network_tx_bytes",
    "disk_read_bytes",
    "disk_write_bytes",
    "pids",
    "restarts",
)
MOST_VALUES: Final = 64
"""How many values a row may have, so that newer releases can add some."""


def measures(values: Sequence[float | None] | None, names: Sequence[str] = HOST_METRICS) -> dict[str, float]:
    """The values by their names, without those that were not measured."""
    return {name: value for name, value in zip(names, values or (), strict=False) if value is not None}


def row_of(values: Mapping[str, float | None], names: Sequence[str] = HOST_METRICS) -> list[float | None]:
    """The values in their order; None for what is missing or not finite."""
    found = (values.get(name) for name in names)
    return [float(value) if value is not None and math.isfinite(value) else None for value in found]
