"""What apps used over time: a collector that looks at all of them every few seconds, and the ranges that it fills."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from quazzar.core.db import Database
from quazzar.core.errors import Unavailable
from quazzar.instance.apps import points
from quazzar.instance.apps.points import DAY, HOUR, MINUTE, Sample
from quazzar.instance.apps.runtimes.base import Reading, Runtime, RuntimeFailure
from quazzar.instance.apps.schemas import AppHistory, Range
from quazzar.instance.apps.usage import Usage

log = structlog.get_logger(__name__)

ROUND_SECONDS: Final = 10.0
ROUND_LIMIT_SECONDS: Final = 60.0
SUM_UP_SECONDS: Final = 60.0
STALE_SECONDS: Final = 60.0
"""Counters that were read longer ago say nothing about now."""
_PASSING = (Unavailable, RuntimeFailure, SQLAlchemyError, OSError, TimeoutError)

RANGES: Final[dict[Range, tuple[int, timedelta]]] = {
    "1h": (MINUTE, timedelta(hours=1)),
    "6h": (MINUTE, timedelta(hours=6)),
    "24h": (MINUTE, timedelta(hours=24)),
    "7d": (HOUR, timedelta(days=7)),
    "30d": (HOUR, timedelta(days=30)),
    "1y": (DAY, timedelta(days=365)),
}


async def read_history(database: Database, app_id: str, span: Range) -> AppHistory:
    """The points of an app over a range; none for an app that is not there."""
    step, length = RANGES[span]
    found = await points.read_points(database, app_id, step=step, span=length)
    return AppHistory(range=span, step_seconds=step, points=found)


class Collector:
    """One per process. `start` and `stop` are for the lifespan, `collect` and `keep` for tests too.

    Nothing but the counters of the last round is in memory, so a process that is killed loses the one that it was in.
    `usage` has what each round found, for the panel.
    """

    def __init__(self, database: Database, runtime: Runtime) -> None:
        self._database = database
        self._runtime = runtime
        self.usage = Usage()
        self._last: dict[str, Reading] = {}
        self._restarts: dict[str, int] = {}
        self._read_at: float | None = None
        self._summed_at: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._collect_often(), name="apps-history")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _collect_often(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + ROUND_SECONDS
            try:
                async with asyncio.timeout(ROUND_LIMIT_SECONDS):
                    await self.collect()
                    await self.keep()
            except Unavailable:
                pass  # the reconciler says that the engine is away
            except _PASSING as error:
                log.warning("apps.history_failed", error=type(error).__name__)
            except Exception as error:  # this loop must outlive every fault
                log.error("apps.history_failed", exc_info=error)
            await asyncio.sleep(max(1.0, due - loop.time()))

    async def collect(self) -> None:
        """Look at every running service once and write down what each app used since the last round."""
        now = asyncio.get_running_loop().time()
        readings = await self._runtime.measure()
        restarts = await points.count_restarts(self._database)
        passed = now - self._read_at if self._read_at is not None else STALE_SECONDS
        if passed < STALE_SECONDS:
            samples = self._samples(readings, restarts, passed)
            self.usage.add(samples)
            async with self._database.begin() as session:
                await points.add_samples(session, samples)
        # What could not be written is counted into the next round.
        self._last = {one.container_id: one for one in readings}
        self._restarts = restarts
        self._read_at = now

    def _samples(self, readings: Sequence[Reading], restarts: dict[str, int], seconds: float) -> list[Sample]:
        by_app: dict[str, list[Reading]] = {}
        for one in readings:
            by_app.setdefault(one.app_id, []).append(one)
        return [
            _sample(
                app_id,
                [(self._last.get(one.container_id), one) for one in found],
                seconds,
                _grown(self._restarts.get(app_id, 0), restarts.get(app_id, 0)),
            )
            for app_id, found in by_app.items()
        ]

    async def keep(self) -> None:
        """Once a minute: sum up to hours and days, and forget what is old. The first time all that is there counts."""
        now = asyncio.get_running_loop().time()
        if self._summed_at is not None and now - self._summed_at < SUM_UP_SECONDS:
            return
        since = now - self._summed_at + SUM_UP_SECONDS if self._summed_at is not None else 30.0 * DAY
        async with self._database.begin() as session:
            await points.sum_up(session, since_seconds=since)
            await points.prune_points(session)
        self._summed_at = now


def _sample(app_id: str, pairs: Sequence[tuple[Reading | None, Reading]], seconds: float, restarts: int) -> Sample:
    """What the containers of one app used; one that was not there in the last round has used all that it counts."""

    def came(name: str) -> int:
        return sum(_grown(getattr(before, name) if before else 0, getattr(after, name)) for before, after in pairs)

    def total(name: str) -> int:
        return sum(getattr(after, name) for _, after in pairs)

    return Sample(
        app_id=app_id,
        cpu_percent=round(sum(_cpu_percent(before, after, seconds) for before, after in pairs), 2),
        memory_bytes=total("memory_bytes"),
        memory_limit_bytes=total("memory_limit_bytes"),
        network_rx_bytes=came("network_rx_bytes"),
        network_tx_bytes=came("network_tx_bytes"),
        disk_read_bytes=came("disk_read_bytes"),
        disk_write_bytes=came("disk_write_bytes"),
        pids=total("pids"),
        restarts=restarts,
    )


def _grown(before: int, after: int) -> int:
    """How much a counter has grown; it begins anew with each start of a container."""
    return after - before if after >= before else after


def _cpu_percent(before: Reading | None, after: Reading, seconds: float) -> float:
    used = after.cpu_seconds
    if before is not None:
        passed = (after.at - before.at).total_seconds()
        seconds = passed if passed > 0 else seconds
        used = used - before.cpu_seconds if used >= before.cpu_seconds else used
    return used / seconds * 100
