"""What was measured while there was no line to the panel: kept on disk for a day, and sent later in its order."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import structlog

from quazzar.core.db import Database
from quazzar.instance.enrolment import spool_store
from quazzar.link.messages import MOST_SAMPLES, Sample, Samples

log = structlog.get_logger(__name__)

KEPT: Final = timedelta(hours=24)
MOST_KEPT: Final = 10_000
"""Samples; at one in 30 seconds a day is 2,880 of them."""
_MOST_BATCH: Final = min(200, MOST_SAMPLES)
_BATCH_BYTES: Final = 64 * 1024
"""A batch goes in one frame, and a heartbeat that is due waits for that: a second, over half a megabit."""
_LOOK_SECONDS: Final = 30.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sample).decode


class Spool:
    """One per process that serves an instance."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._filled = asyncio.Event()
        self._sent: int | None = None
        self._kept = asyncio.Event()

    async def add(self, instance_id: str, samples: Sequence[Sample]) -> None:
        """Keep these for the panel that knows us by this id; what is too old or too much is forgotten."""
        if not samples:
            return
        async with self._database.begin() as session:
            packed = [(sample.at, _encode(sample)) for sample in samples]
            await spool_store.add_samples(session, instance_id, packed)
            await spool_store.prune_samples(session, before=datetime.now(UTC) - KEPT, most=MOST_KEPT)
        self._filled.set()

    async def next_batch(self, instance_id: str) -> Samples | None:
        """The oldest that are kept, None when there are none; they stay until `drop`."""
        async with self._database.begin() as session:
            rows = await spool_store.find_samples(session, instance_id, limit=_MOST_BATCH)
        points: list[Sample] = []
        size = number = 0
        for row in rows:
            size += len(row.sample)
            if points and size > _BATCH_BYTES:
                break
            points.append(_decode(row.sample))
            number = row.number
        return Samples(batch=number, points=points) if points else None

    async def drop(self, batch: int) -> None:
        """The panel has these."""
        async with self._database.begin() as session:
            await spool_store.delete_samples(session, until=batch)

    async def clear(self) -> None:
        """The panel that this was for does not want it any more."""
        async with self._database.begin() as session:
            await spool_store.clear_samples(session)

    # --- over a line -------------------------------------------------------------------------------------------------

    async def deliver(self, instance_id: str, send: Callable[[Samples], Awaitable[None]]) -> None:
        """Send what is kept, and what is added, for as long as the line holds: the next once the last is durable."""
        while True:
            self._filled.clear()
            batch = await self.next_batch(instance_id)
            if batch is None:
                await self._wait()
                continue
            self._kept.clear()
            self._sent = batch.batch
            await send(batch)
            await self._kept.wait()
            await self.drop(batch.batch)
            self._sent = None

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._filled.wait()
        except TimeoutError:
            pass

    def kept(self, batch: int) -> None:
        """The panel says that a batch is durable."""
        if batch == self._sent:
            self._kept.set()

    async def cut(self, *, malformed: bool) -> None:
        """The line has ended. What the panel could not read it would never read: without that the rest goes on."""
        sent, self._sent = self._sent, None
        if malformed and sent is not None:
            log.warning("Some of what was measured could not be sent", until=sent)
            await self.drop(sent)
