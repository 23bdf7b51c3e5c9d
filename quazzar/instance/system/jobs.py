"""What watches the server by the clock."""

import asyncio
import shutil
from pathlib import Path
from typing import Final

from quazzar.core.jobs import JobRun, Resource, job, schedule
from quazzar.core.records import publish
from quazzar.events.service import has_been_announced
from quazzar.instance.system.events import DiskLow

DATA_DIR: Resource[Path] = Resource("data folder")
LOW_FRACTION: Final = 0.1
LOW_BYTES: Final = 5 * 1024**3
AGAIN_HOURS: Final = 24


def is_low(free: int, total: int) -> bool:
    """A tenth of the disk is little, but not where that is still a lot."""
    return free < min(total * LOW_FRACTION, LOW_BYTES)


@schedule("*/5 * * * *")
@job("system.watch_disk", concurrency=1, max_attempts=1)
async def watch_disk(run: JobRun) -> None:
    """Announce `system.disk_low` when the disk of the data folder is nearly full."""
    folder = run.resources[DATA_DIR]
    usage = await asyncio.to_thread(shutil.disk_usage, folder)
    if not is_low(usage.free, usage.total):
        return
    async with run.database.begin() as session:
        if not await has_been_announced(session, DiskLow, hours=AGAIN_HOURS):
            news = DiskLow(path=str(folder), free_bytes=usage.free, total_bytes=usage.total)
            publish(session, news, realm="instance")
