"""What apps use right now, for whoever asks at a pace of their own, as the panel's heartbeats do."""

from collections.abc import Sequence
from time import monotonic
from typing import Final

from quazzar.instance.apps.points import Sample

FRESH_SECONDS: Final = 60.0
_ADDED_UP: Final = ("network_rx_bytes", "network_tx_bytes", "disk_read_bytes", "disk_write_bytes", "restarts")


class Usage:
    """Filled with each round of the collector, emptied by one reader."""

    def __init__(self) -> None:
        self._newest: dict[str, Sample] = {}
        self._since_taken: dict[str, list[Sample]] = {}
        self._added_at: float | None = None

    def add(self, samples: Sequence[Sample]) -> None:
        """One round: what each running app used since the round before."""
        self._newest = {one.app_id: one for one in samples}
        for one in samples:
            self._since_taken.setdefault(one.app_id, []).append(one)
        self._added_at = monotonic()

    def take(self) -> dict[str, dict[str, float]]:
        """By app the values of `quazzar.link.metrics.APP_METRICS`. Over the rounds since they were taken last, CPU is a
        mean, and network, disk and restarts are sums; the others are of the newest round. Apps that it did not find,
        and all of them once it is too long ago, are left out.
        """
        taken, self._since_taken = self._since_taken, {}
        if self._added_at is None or monotonic() - self._added_at > FRESH_SECONDS:
            return {}
        return {app_id: _values(one, taken.get(app_id, ())) for app_id, one in self._newest.items()}


def _values(newest: Sample, rounds: Sequence[Sample]) -> dict[str, float]:
    values: dict[str, float] = {
        "cpu_percent": sum(one.cpu_percent for one in rounds) / len(rounds) if rounds else newest.cpu_percent,
        "memory_bytes": newest.memory_bytes,
        "memory_limit_bytes": newest.memory_limit_bytes,
        "pids": newest.pids,
    }
    return values | {name: sum(getattr(one, name) for one in rounds) for name in _ADDED_UP}
