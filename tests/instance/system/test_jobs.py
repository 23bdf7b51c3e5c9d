"""The watch over the disk: says it once a day while it lasts."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import text

from quazzar.core.db import Database
from quazzar.core.jobs import Resources, Worker, enqueue, wait_for
from quazzar.instance.system.jobs import DATA_DIR, is_low, watch_disk

GIB = 1024**3


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(
    ("free", "total", "low"),
    [(0, 10 * GIB, True), (GIB // 2, 10 * GIB, True), (2 * GIB, 10 * GIB, False), (6 * GIB, 1000 * GIB, False)],
)
def test_what_is_little(free: int, total: int, low: bool) -> None:
    assert is_low(free, total) is low


@pytest.fixture
async def worker(database: Database, tmp_path: Path) -> AsyncIterator[Worker]:
    resources = Resources()
    resources[DATA_DIR] = tmp_path
    worker = Worker(database, resources, kinds={watch_disk.kind: watch_disk}, schedules={})
    await worker.start()
    yield worker
    await worker.stop(1)


async def look(database: Database) -> list[dict[str, int]]:
    """Let the job run, and give what has been announced so far."""
    async with database.begin() as session:
        job_id = await enqueue(session, watch_disk)
    state = await wait_for(database, job_id, 30)
    assert state is not None
    assert state.status == "completed"
    async with database.begin() as session:
        return list(
            await session.scalars(text("SELECT data FROM events WHERE type = 'system.disk_low' ORDER BY position"))
        )


async def test_a_disk_that_fills_is_announced_once_a_day(
    database: Database, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(100 * GIB, 50 * GIB, 50 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert await look(database) == []
    usage = Usage(100 * GIB, 99 * GIB, GIB)
    said = {"path": str(tmp_path), "free_bytes": GIB, "total_bytes": 100 * GIB}
    assert await look(database) == [said]
    assert await look(database) == [said]
    async with database.begin() as session:
        await session.execute(text("UPDATE events SET created_at = now() - interval '25 hours'"))
    assert await look(database) == [said, said]
