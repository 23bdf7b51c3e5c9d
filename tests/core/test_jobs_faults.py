"""Jobs while their database goes away, and while their workers are killed: paused, never lost, never done twice."""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from quazzar.core.db import Database
from quazzar.core.jobs import JobKind, JobRun, Resource, Resources, Worker, enqueue, job, wait_for
from quazzar.core.migrations import upgrade
from quazzar.core.postgres import DatabaseUrls, EmbeddedPostgres

GATE: Resource[asyncio.Event] = Resource("gate")
FULL = os.environ.get("QUAZZAR_TORTURE") == "full"


@job("faults.quick", concurrency=0)
async def quick(run: JobRun) -> None:
    pass


@job("faults.hold")
async def hold(run: JobRun) -> None:
    run.log("holding")
    await run.resources[GATE].wait()
    run.log("let go")


@job("faults.ask", max_attempts=1)
async def ask(run: JobRun) -> None:
    """Asks the database over and over: a restart hits it in the middle."""
    while not run.resources[GATE].is_set():
        async with run.begin() as session:
            await session.execute(text("SELECT 1"))
        await asyncio.sleep(0.01)


KINDS: dict[str, JobKind[[]]] = {kind.kind: kind for kind in (quick, hold, ask)}


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedPostgres]:
    """A server of this module's own: its restarts must not reach other tests."""
    embedded = EmbeddedPostgres(tmp_path_factory.mktemp("faults"))
    urls = await embedded.start()
    await upgrade(urls.owner)
    yield embedded
    await embedded.stop()


@pytest.fixture(scope="module")
async def urls(server: EmbeddedPostgres) -> DatabaseUrls:
    return server.urls


@pytest.fixture(scope="module")
async def database(urls: DatabaseUrls) -> AsyncIterator[Database]:
    database = Database(urls.app)
    yield database
    await database.close()


@pytest.fixture
async def worker(database: Database) -> AsyncIterator[Worker]:
    resources = Resources()
    resources[GATE] = asyncio.Event()
    worker = Worker(database, resources, kinds=KINDS, schedules={}, retry_seconds=0.05)
    await worker.start()
    yield worker
    resources[GATE].set()
    await worker.stop(0.5)


async def make(database: Database, kind: JobKind[[]]) -> str:
    """As a client does it: tried again until the database takes it."""
    while True:
        with contextlib.suppress(Exception):
            async with database.begin() as session:
                return await enqueue(session, kind)
        await asyncio.sleep(0.02)


async def row_of(database: Database, job_id: str) -> dict[str, object]:
    async with database.begin() as session:
        row = (await session.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": job_id})).one()
        return dict(row._mapping)


async def running(database: Database, job_id: str) -> None:
    async with asyncio.timeout(10):
        while (await row_of(database, job_id))["status"] != "running":
            await asyncio.sleep(0.02)


async def restart(server: EmbeddedPostgres, how: signal.Signals) -> None:
    """Let the server end; its supervisor brings it back."""
    assert server.pid is not None
    os.kill(server.pid, how)
    await server.wait()
    await server.wait_running()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "crash"])
async def test_an_idle_worker_runs_jobs_right_after_a_restart(
    server: EmbeddedPostgres, database: Database, worker: Worker, how: signal.Signals
) -> None:
    state = await wait_for(database, await make(database, quick), 10)
    assert state is not None
    assert state.finished
    await restart(server, how)
    # Within a second on a machine that has nothing else to do; it would look by itself after ten.
    state = await wait_for(database, await make(database, quick), 8)
    assert state is not None
    assert state.status == "completed"


async def test_a_running_job_does_not_notice_a_restart(
    server: EmbeddedPostgres, database: Database, worker: Worker
) -> None:
    made = await make(database, hold)
    await running(database, made)
    await restart(server, signal.SIGQUIT)
    worker.resources[GATE].set()
    state = await wait_for(database, made, 20)
    assert state is not None
    row = await row_of(database, made)
    assert (row["status"], row["attempts"]) == ("completed", 1)
    async with database.begin() as session:
        lines = await session.execute(
            text("SELECT line FROM job_logs WHERE job_id = :id ORDER BY number"), {"id": made}
        )
        assert list(lines.scalars()) == ["holding", "let go"]


async def test_a_job_that_ends_during_an_outage_is_recorded_after_it(
    server: EmbeddedPostgres, database: Database, worker: Worker
) -> None:
    made = await make(database, hold)
    await running(database, made)
    await server.stop()
    worker.resources[GATE].set()
    await asyncio.sleep(2.5)
    assert not worker.is_alive
    await server.start()
    back = time.monotonic()
    state = None
    while state is None:
        with contextlib.suppress(Exception):
            state = await wait_for(database, made, 20)
    assert time.monotonic() - back < 9
    assert (state.status, (await row_of(database, made))["attempts"]) == ("completed", 1)
    async with asyncio.timeout(10):
        while not worker.is_alive:
            await asyncio.sleep(0.1)


async def test_an_outage_is_not_the_jobs_fault(server: EmbeddedPostgres, database: Database, worker: Worker) -> None:
    """A job of one attempt that fails only because the database was away is run again."""
    made = await make(database, ask)
    await running(database, made)
    await restart(server, signal.SIGQUIT)
    async with asyncio.timeout(10):
        while (await row_of(database, made))["attempts"] != 2:
            await asyncio.sleep(0.05)
    worker.resources[GATE].set()
    await wait_for(database, made, 10)
    row = await row_of(database, made)
    assert (row["status"], row["attempts"], row["interruptions"]) == ("completed", 2, 1)


async def test_a_stop_during_an_outage_is_quick_and_the_job_goes_on_later(
    server: EmbeddedPostgres, database: Database
) -> None:
    resources = Resources()
    resources[GATE] = asyncio.Event()
    first = Worker(database, resources, identity="here", kinds=KINDS, schedules={})
    await first.start()
    made = await make(database, hold)
    await running(database, made)
    await server.stop()
    started = time.monotonic()
    await first.stop(0.5)
    assert time.monotonic() - started < 9
    await server.start()
    resources[GATE].set()
    second = Worker(database, resources, identity="here", kinds=KINDS, schedules={})
    await second.start()
    state = None
    while state is None:
        with contextlib.suppress(Exception):
            state = await wait_for(database, made, 20)
    await second.stop(0.5)
    row = await row_of(database, made)
    assert (row["status"], row["attempts"], row["interruptions"]) == ("completed", 2, 1)


@pytest.mark.slow
async def test_a_frozen_connection_is_given_up(
    urls: DatabaseUrls, database: Database, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's line is open but answers nothing, and its server process still holds the worker's lock."""
    monkeypatch.setattr("quazzar.core.jobs.line.WorkerLine.STATEMENT_SECONDS", 0.5)
    await wait_for(database, await make(database, quick), 10)
    connection = await asyncpg.connect(urls.owner)
    frozen = await connection.fetchval("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1")
    await connection.close()
    os.kill(frozen, signal.SIGSTOP)
    try:
        state = await wait_for(database, await make(database, quick), 15)
        assert state is not None
        assert state.status == "completed"
        assert not worker._line.holds_lock
    finally:
        os.kill(frozen, signal.SIGCONT)
    async with asyncio.timeout(10):
        while not worker._line.holds_lock:
            await asyncio.sleep(0.1)


_WORKER = """
import asyncio, random, sys
from sqlalchemy import text
from quazzar.core.db import Database
from quazzar.core.jobs import Worker, job
@job("faults.count", concurrency=8)
async def count(run):
    async with run.begin() as session:
        await session.execute(text("INSERT INTO starts (job_id) VALUES (:id)"), {"id": run.job_id})
    await asyncio.sleep(random.uniform(0, 0.05))
    async with run.begin() as session:
        done = text("INSERT INTO effects (job_id) VALUES (:id) ON CONFLICT DO NOTHING")
        await session.execute(done, {"id": run.job_id})
async def main():
    worker = Worker(Database(sys.argv[1]), identity=sys.argv[2], schedules={})
    await worker.start()
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.mark.torture
@pytest.mark.timeout(1200)
async def test_workers_that_are_killed_lose_nothing(urls: DatabaseUrls, database: Database, tmp_path: Path) -> None:
    """Two worker processes, one of them killed every other second; each job is done, and only killed ones twice."""
    amount, pause, most_kills = (10_000, 2.0, 10_000) if FULL else (300, 0.5, 3)
    owner = await asyncpg.connect(urls.owner)
    for table, key in (("starts", ""), ("effects", "PRIMARY KEY")):
        await owner.execute(f"CREATE TABLE {table} (job_id text {key}); GRANT ALL ON {table} TO quazzar_app")
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    async def start(name: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(sys.executable, str(script), urls.app, name, env=environment)

    count: JobKind[[]] = JobKind(
        quick.function, "faults.count", concurrency=8, max_attempts=5, timeout_seconds=None, cancellable=True
    )
    processes = {name: await start(name) for name in ("one", "two")}
    kills = 0
    try:
        made = []
        for _ in range(amount // 50):
            async with database.begin() as session:
                made += [await enqueue(session, count) for _ in range(50)]
        starts = 0
        while await owner.fetchval("SELECT count(*) FROM jobs WHERE kind = 'faults.count' AND finished_at IS NULL"):
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            so_far = await owner.fetchval("SELECT count(*) FROM starts")
            if kills == most_kills or so_far == starts:
                # Only workers that work are worth killing.
                continue
            starts = so_far
            name = random.choice(list(processes))
            processes[name].kill()
            await processes[name].wait()
            kills += 1
            processes[name] = await start(name)
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert kills > 0
    assert await owner.fetchval("SELECT count(*) FROM effects") == amount
    statuses = await owner.fetch("SELECT DISTINCT status FROM jobs WHERE kind = 'faults.count'")
    assert [row["status"] for row in statuses] == ["completed"]
    twice = await owner.fetchval("SELECT count(*) FROM (SELECT FROM starts GROUP BY job_id HAVING count(*) > 1) t")
    # At most what ran in the killed process at that moment.
    assert twice <= kills * 8
    assert await owner.fetchval("SELECT count(*) FROM pgqueuer WHERE entrypoint = 'faults.count'") == 0
    await owner.execute("DROP TABLE starts, effects")
    await owner.close()
