"""Measuring with each heartbeat, whether there is a line to tell it on or not."""

import asyncio
from asyncio import sleep
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Final

from quazzar.instance.apps.usage import Usage
from quazzar.instance.enrolment.measuring import Meter
from quazzar.instance.enrolment.spool import Spool
from quazzar.link.messages import MOST_APPS, Sample
from quazzar.link.metrics import APP_METRICS, row_of

UNSURE_SECONDS: Final = 60.0
"""For so long a line may be dead without our noticing: a ping each 20 seconds, and 20 more for its answer."""


class Recorder:
    """One per process that serves an instance. `seconds` is from one measurement to the next."""

    def __init__(self, data_dir: Path, usage: Usage, spool: Spool) -> None:
        self.seconds = 30.0
        self._data_dir = data_dir
        self._usage = usage
        self._spool = spool
        self._meter: Meter | None = None
        self._measuring = asyncio.Lock()
        self._measured_at = monotonic()
        self._sent: deque[tuple[float, Sample]] = deque()

    async def measure(self) -> Sample:
        """What this server and its apps use now."""
        async with self._measuring:
            self._measured_at = monotonic()
            return await asyncio.to_thread(self._measure, datetime.now(UTC), self._usage.take())

    def _measure(self, now: datetime, apps: dict[str, dict[str, float]]) -> Sample:
        if self._meter is None:
            self._meter = Meter(self._data_dir)
        shown = {app_id: row_of(values, APP_METRICS) for app_id, values in list(apps.items())[:MOST_APPS]}
        return Sample(now, self._meter.measure(), shown)

    @property
    def due_in(self) -> float:
        """Seconds until it is time for the next measurement, none or less once it is."""
        return self._measured_at + self.seconds - monotonic()

    async def rest(self) -> None:
        """Until the next measurement is due, but a second at the most: the panel may want them more often by then."""
        await sleep(min(max(0.0, self.due_in), 1.0))

    def sending(self, sample: Sample) -> None:
        """It goes over the line now; whether it arrives is not known before a while has passed."""
        now = monotonic()
        self._sent.append((now, sample))
        while self._sent[0][0] < now - UNSURE_SECONDS:
            self._sent.popleft()

    async def cut(self, instance_id: str) -> None:
        """The line has ended: what was sent on it lately is kept to be sent again. What has arrived counts once."""
        since = monotonic() - UNSURE_SECONDS
        unsure = [sample for sent_at, sample in self._sent if sent_at >= since]
        await self._spool.add(instance_id, unsure)
        self._sent.clear()

    def forget(self) -> None:
        """What was sent is of no use to anybody any more."""
        self._sent.clear()

    async def keep(self, instance_id: str) -> None:
        """Measure, and keep it for later."""
        await self._spool.add(instance_id, [await self.measure()])
