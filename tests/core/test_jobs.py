"""Jobs on a real PostgreSQL: what is enqueued runs, ends once, and survives crashes, restarts and rival workers."""

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import CursorResult, text

from quazzar.core.db import Database
from quazzar.core.errors import Unavailable
from quazzar.core.jobs import (
    JobCancelled,
    JobFailed,
    JobKind,
    JobRun,
    Resource,
    Resources,
    RetryLater,
    Worker,
    cancel,
    enqueue,
    job,
    job_kinds,
    retry,
    wait_for,
)
from quazzar.core.jobs.registry import Schedule
from quazzar.core.jobs.run import KEPT_LINES, clean_line
from quazzar.core.jobs.schedules import corrected, next_run, run_schedules
from quazzar.core.jobs.worker import _BEAT, _CLAIM, _END

SEEN: Resource[list[str]] = Resource("list of what ran")
GATE: Resource[asyncio.Event] = Resource("gate")


@job("test.note", concurrency=0)
async def note(run: JobRun, *, word: str) -> None:
    run.resources[SEEN].append(word)


@job("test.wait", concurrency=2)
async def wait(run: JobRun, *, word: str) -> None:
    run.resources[SEEN].append(word)
    run.progress(0.5, "Waiting at the gate")
    run.log(f"{word} waits")
    await run.resources[GATE].wait()
    run.log(f"{word} passed")


@job("test.stubborn", cancellable=False)
async def stubborn(run: JobRun) -> None:
    await run.resources[GATE].wait()


@job("test.fail", max_attempts=3)
async def fail(run: JobRun, *, how: str) -> None:
    run.resources[SEEN].append(how)
    match how:
        case "final":
            raise JobFailed("The image does not exist")
        case "later":
            raise RetryLater("The registry asks to wait", delay_seconds=0.05)
        case "known":
            raise Unavailable("The engine is away", code="runtime_unavailable")
        case "own timeout":
            raise TimeoutError
        case "once" if run.attempt == 1:
            raise ValueError("password=hunter2")
        case "always":
            raise ValueError("password=hunter2")


@job("test.slow", max_attempts=1, timeout_seconds=0.2)
async def slow(run: JobRun) -> None:
    await asyncio.sleep(60)


KINDS: dict[str, JobKind[Any]] = {kind.kind: kind for kind in (note, wait, stubborn, fail, slow)}


@contextlib.asynccontextmanager
async def working(
    database: Database, *, resources: Resources | None = None, grace: float = 0.2, **given: Any
) -> AsyncIterator[Worker]:
    options: dict[str, Any] = {"kinds": KINDS, "schedules": {}, "retry_seconds": 0.02} | given
    worker = Worker(database, resources or resources_of(), **options)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop(grace)


def resources_of() -> Resources:
    resources = Resources()
    resources[SEEN] = []
    resources[GATE] = asyncio.Event()
    return resources


async def make(database: Database, kind: JobKind[Any], **args: Any) -> str:
    async with database.begin() as session:
        return await enqueue(session, kind, **args)


async def row_of(database: Database, job_id: str) -> Any:
    async with database.begin() as session:
        return (await session.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": job_id})).one_or_none()


async def value(database: Database, sql: str, **values: Any) -> Any:
    async with database.begin() as session:
        result = await session.execute(text(sql), values)
        return result.scalar() if isinstance(result, CursorResult) and result.returns_rows else None


async def lines_of(database: Database, job_id: str) -> list[str]:
    async with database.begin() as session:
        query = text("SELECT line FROM job_logs WHERE job_id = :id ORDER BY number")
        return list((await session.execute(query, {"id": job_id})).scalars())


async def ended(database: Database, job_id: str, within: float = 10) -> Any:
    state = await wait_for(database, job_id, within)
    assert state is not None
    assert state.finished, f"the job is still {state.status}"
    return await row_of(database, job_id)


async def until(check: Callable[[], Any], within: float = 10) -> None:
    limit = time.monotonic() + within
    while True:
        found = check()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < limit, "it did not come true in time"
        await asyncio.sleep(0.02)


async def status_is(database: Database, job_id: str, status: str) -> bool:
    return bool((await row_of(database, job_id)).status == status)


@pytest.fixture
def rare_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker looks around at its start alone: what comes about is no find of its beats."""
    monkeypatch.setattr("quazzar.core.jobs.worker.BEAT_SECONDS", 3600.0)


@pytest.fixture(autouse=True)
async def clean(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("DELETE FROM jobs"))
        await session.execute(text("DELETE FROM pgqueuer"))
        await session.execute(text("DELETE FROM job_schedules"))


async def test_a_job_runs_and_ends(database: Database) -> None:
    async with working(database) as worker:
        made = await make(database, note, word="hello", subject="app_1", actor="usr_1")
        row = await ended(database, made)
        assert worker.resources[SEEN] == ["hello"]
    assert (row.status, row.progress, row.attempts, row.error) == ("completed", 1.0, 1, None)
    assert (row.kind, row.subject, row.actor, row.realm, row.args) == (
        "test.note",
        "app_1",
        "usr_1",
        "instance",
        {"word": "hello"},
    )
    assert row.created_at <= row.started_at <= row.finished_at
    assert await value(database, "SELECT count(*) FROM pgqueuer") == 0


@pytest.mark.parametrize("first", [True, False])
async def test_a_rolled_back_enqueue_leaves_nothing(database: Database, first: bool) -> None:
    """Whether or not anything went through the session before: the driver's transaction starts with a statement."""
    with contextlib.suppress(ZeroDivisionError):
        async with database.begin() as session:
            if not first:
                await session.execute(text("SELECT 1"))
            await enqueue(session, note, word="never")
            raise ZeroDivisionError
    assert await value(database, "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM pgqueuer)") == 0


async def test_nothing_runs_before_the_commit(database: Database) -> None:
    async with working(database) as worker:
        async with database.begin() as session:
            made = await enqueue(session, note, word="committed")
            await asyncio.sleep(0.3)
            assert worker.resources[SEEN] == []
        await ended(database, made)


async def test_wrong_arguments_are_refused_when_enqueueing(database: Database) -> None:
    async with database.begin() as session:
        with pytest.raises(TypeError):
            await enqueue(session, note, wort="x")


async def test_a_delayed_job_waits(database: Database) -> None:
    async with working(database):
        made = await make(database, note, word="later", delay_seconds=0.6)
        row = await ended(database, made)
        assert row.started_at - row.created_at >= timedelta(seconds=0.6)


def test_a_kind_is_declared_once_and_well() -> None:
    async def function(run: JobRun) -> None: ...

    async def clashing(run: JobRun, *, subject: str) -> None: ...

    assert job_kinds()["test.note"] is note
    for kind, body in (("test.note", function), ("Nodots", function), ("test.clash", clashing)):
        with pytest.raises(ValueError, match=r"[Jj]ob"):
            job(kind)(body)


async def test_a_failed_attempt_is_made_again(database: Database) -> None:
    async with working(database) as worker:
        row = await ended(database, await make(database, fail, how="once"))
        assert worker.resources[SEEN] == ["once", "once"]
    assert (row.status, row.attempts, row.error) == ("completed", 2, None)


@pytest.mark.parametrize(
    ("how", "attempts", "error"),
    [
        ("always", 3, "Unexpected error (ValueError)"),
        ("later", 3, "The registry asks to wait"),
        ("known", 3, "The engine is away"),
        ("own timeout", 3, "Unexpected error (RuntimeError)"),
        ("final", 1, "The image does not exist"),
    ],
)
async def test_a_dead_job_says_why(database: Database, how: str, attempts: int, error: str) -> None:
    async with working(database):
        row = await ended(database, await make(database, fail, how=how))
    assert (row.status, row.attempts) == ("failed", attempts)
    assert row.error.startswith(error)
    assert "hunter2" not in row.error
    assert await value(database, "SELECT count(*) FROM pgqueuer") == 0


async def test_an_attempt_that_takes_too_long_is_stopped(database: Database) -> None:
    async with working(database):
        row = await ended(database, await make(database, slow))
    assert (row.status, row.error) == ("failed", "The attempt took too long and was stopped")


async def test_a_failed_job_can_be_retried(database: Database) -> None:
    async with working(database) as worker:
        made = await make(database, fail, how="final")
        await ended(database, made)
        async with database.begin() as session:
            assert await retry(session, made, KINDS)
        await until(lambda: len(worker.resources[SEEN]) == 2)
        row = await ended(database, made)
        assert (row.status, row.attempts, row.max_attempts) == ("failed", 2, 4)


async def test_only_ended_jobs_of_known_kinds_can_be_retried(database: Database) -> None:
    queued = await make(database, note, word="x")
    async with database.begin() as session:
        assert not await retry(session, queued, KINDS)
        assert not await retry(session, "job_unknown", KINDS)
        await session.execute(text("UPDATE jobs SET status = 'failed'"))
        assert not await retry(session, queued, {})
    assert await value(database, "SELECT count(*) FROM pgqueuer") == 1


async def test_a_queued_job_is_cancelled_at_once(database: Database) -> None:
    made = await make(database, note, word="x")
    async with database.begin() as session:
        assert await cancel(session, made)
    async with database.begin() as session:
        assert not await cancel(session, made)
    row = await row_of(database, made)
    assert (row.status, row.attempts) == ("cancelled", 0)
    assert row.finished_at is not None
    async with working(database) as worker:
        await ended(database, await make(database, note, word="next"))
        assert worker.resources[SEEN] == ["next"]


@pytest.mark.usefixtures("rare_beats")
async def test_a_running_job_is_interrupted(database: Database) -> None:
    async with working(database) as worker:
        made = await make(database, wait, word="a")
        await until(lambda: worker.resources[SEEN] == ["a"])
        async with database.begin() as session:
            assert await cancel(session, made)
        row = await ended(database, made)
    assert (row.status, row.error) == ("cancelled", None)
    assert await value(database, "SELECT count(*) FROM pgqueuer") == 0
    async with working(database) as worker:
        worker.resources[GATE].set()
        async with database.begin() as session:
            assert await retry(session, made, KINDS)
        assert (await ended(database, made)).status == "completed"


async def test_a_cancellation_that_nobody_heard_is_seen_by_the_next_beat(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quazzar.core.jobs.worker.BEAT_SECONDS", 0.2)
    async with working(database) as worker:
        made = await make(database, wait, word="a")
        await until(lambda: status_is(database, made, "running"))
        await value(database, "UPDATE jobs SET cancel_requested_at = now() WHERE id = :id", id=made)
        assert (await ended(database, made)).status == "cancelled"
        await until(lambda: worker.is_alive)


async def test_a_job_that_must_end_is_not_cancelled(database: Database) -> None:
    async with working(database) as worker:
        made = await make(database, stubborn)
        await until(lambda: status_is(database, made, "running"))
        async with database.begin() as session:
            assert not await cancel(session, made)
        worker.resources[GATE].set()
        assert (await ended(database, made)).status == "completed"


def test_code_in_threads_asks_whether_it_is_cancelled(database: Database) -> None:
    run = JobRun(job_id="job_1", kind="test.note", attempt=1, database=database, resources=Resources())
    run.check_cancelled()
    run.cancelled.set()
    with pytest.raises(JobCancelled):
        run.check_cancelled()


async def test_progress_and_log_are_seen_while_it_runs(database: Database) -> None:
    async with working(database) as worker:
        made = await make(database, wait, word="a")
        await until(lambda: lines_of(database, made))
        row = await row_of(database, made)
        assert (row.status, row.progress, row.step) == ("running", 0.5, "Waiting at the gate")
        worker.resources[GATE].set()
        await ended(database, made)
        assert await lines_of(database, made) == ["a waits", "a passed"]


async def test_a_log_keeps_its_newest_lines(database: Database) -> None:
    async def chatter(run: JobRun) -> None:
        for number in range(KEPT_LINES + 500):
            run.log(f"line {number}")
            if number % 700 == 0:
                await asyncio.sleep(0.3)

    kind: JobKind[Any] = JobKind(
        chatter, "test.chatter", concurrency=0, max_attempts=1, timeout_seconds=None, cancellable=True
    )
    async with working(database, kinds={kind.kind: kind}):
        made = await make(database, kind)
        await ended(database, made)
    lines = await lines_of(database, made)
    assert len(lines) == KEPT_LINES
    assert lines[-1] == f"line {KEPT_LINES + 499}"


def test_lines_are_made_safe() -> None:
    assert clean_line("a\x00b\nc\x1b[31m") == "a b c [31m"
    assert clean_line("\udcff") == " "
    assert len(clean_line("x" * 5000)) == 2000
    assert "hunter2" not in clean_line("connecting with password=hunter2")


async def test_the_same_lines_written_twice_are_there_once(database: Database) -> None:
    """As after a connection that was lost between the write and its answer."""
    async with working(database) as worker:
        made = await make(database, wait, word="a")
        await until(lambda: lines_of(database, made))
        active = next(iter(worker._active.values()))
        for _ in range(3):
            active.run.give_back([(1, "a waits"), (2, "more")])
            await worker._write_news(active.run)
        assert await lines_of(database, made) == ["a waits", "more"]


async def test_two_workers_run_each_job_once(database: Database) -> None:
    resources = resources_of()
    async with working(database, resources=resources), working(database, resources=resources):
        async with database.begin() as session:
            made = [await enqueue(session, note, word=str(number)) for number in range(200)]
        for each in made:
            assert (await ended(database, each, within=30)).attempts == 1
    seen = resources[SEEN]
    assert sorted(seen, key=int) == [str(number) for number in range(200)]


async def test_no_more_of_a_kind_run_than_it_allows(database: Database) -> None:
    resources = resources_of()
    async with working(database, resources=resources), working(database, resources=resources):
        made = [await make(database, wait, word=str(number)) for number in range(5)]
        await until(lambda: len(resources[SEEN]) == 2)
        await asyncio.sleep(0.5)
        assert len(resources[SEEN]) == 2
        # Another kind is not held up.
        await ended(database, await make(database, note, word="other"))
        resources[GATE].set()
        for each in made:
            await ended(database, each)
    assert len(resources[SEEN]) == 6


@pytest.mark.usefixtures("rare_beats")
async def test_a_worker_that_was_taken_over_changes_nothing(database: Database) -> None:
    async with working(database, grace=0.1) as worker:
        made = await make(database, wait, word="a")
        await until(lambda: status_is(database, made, "running"))
        delivery = next(iter(worker._active))
        rival = uuid.uuid4()
        connection = await database.connect()
        await connection.execute("UPDATE pgqueuer SET queue_manager_id = $1", rival)
        assert len(await connection.fetch(_CLAIM, made, delivery, rival)) == 1
        # The first worker's function comes to its end, and its result counts no more.
        worker.resources[GATE].set()
        await until(lambda: not worker._active)
        await asyncio.sleep(0.3)
        row = await row_of(database, made)
        assert (row.status, row.attempts, row.interruptions) == ("running", 2, 1)
        assert "a passed" not in await lines_of(database, made)
        assert await connection.fetchval("SELECT queue_manager_id FROM pgqueuer") == rival
        assert await connection.fetch(_END, made, 1, "failed", "stale", delivery, worker.owner) == []
        assert len(await connection.fetch(_END, made, 2, "completed", None, delivery, rival)) == 1
        await connection.close()


async def test_a_worker_notices_that_it_was_taken_over(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quazzar.core.jobs.worker.BEAT_SECONDS", 0.2)
    async with working(database) as worker:
        made = await make(database, wait, word="a")
        await until(lambda: status_is(database, made, "running"))
        await value(database, "UPDATE jobs SET attempts = attempts + 1 WHERE id = :id", id=made)
        # Interrupted, and since nobody else holds the delivery, soon run again under the new number.
        await until(lambda: worker.resources[SEEN] == ["a", "a"])
        assert (await row_of(database, made)).attempts == 3


async def test_leases_are_renewed_by_the_databases_clock(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quazzar.core.jobs.worker.BEAT_SECONDS", 0.1)
    async with working(database):
        made = await make(database, wait, word="a")
        await until(lambda: status_is(database, made, "running"))
        before = await value(database, "SELECT heartbeat FROM pgqueuer")
        await until(lambda: _later(database, before))


async def _later(database: Database, before: datetime) -> bool:
    found = await value(database, "SELECT heartbeat FROM pgqueuer")
    return bool(found is not None and found > before)


async def test_a_stale_worker_can_not_renew(database: Database) -> None:
    connection = await database.connect()
    await make(database, note, word="x")
    assert await connection.fetch(_BEAT, [await connection.fetchval("SELECT id FROM pgqueuer")], uuid.uuid4()) == []
    await connection.close()


@pytest.mark.slow
async def test_an_expired_lease_is_taken_over_even_when_its_owner_seems_alive(database: Database) -> None:
    """A machine that lost its power: its connection still looks open, but its heartbeat has stopped."""
    made = await make(database, note, word="x")
    rival = uuid.uuid4()
    holder = await database.connect()
    sql = "SELECT pg_advisory_lock(hashtextextended('quazzar worker ' || $1::text, 0))"
    await holder.execute(sql, str(rival))
    await value(
        database,
        "UPDATE pgqueuer SET status = 'picked', queue_manager_id = :rival, heartbeat = now() - interval '20 seconds'",
        rival=rival,
    )
    await value(database, "UPDATE jobs SET status = 'running', attempts = 1")
    async with working(database):
        await asyncio.sleep(0.3)
        assert (await row_of(database, made)).status == "running"
        await value(database, "UPDATE pgqueuer SET heartbeat = now() - interval '31 seconds'")
        row = await ended(database, made, within=30)
    assert (row.status, row.attempts, row.interruptions) == ("completed", 2, 1)
    await holder.close()


async def test_a_lost_answer_to_a_claim_strands_no_job(database: Database) -> None:
    """The queue gave the job to this worker, but the connection was lost before it heard of it."""
    made = await make(database, note, word="x")
    worker = Worker(database, resources_of(), kinds=KINDS, schedules={})
    await value(database, "UPDATE pgqueuer SET status = 'picked', queue_manager_id = :owner", owner=worker.owner)
    await worker.start()
    assert (await ended(database, made)).status == "completed"
    await worker.stop(0.1)


async def test_a_job_without_a_delivery_gets_one(database: Database) -> None:
    made = await make(database, note, word="x")
    await value(database, "DELETE FROM pgqueuer")
    async with working(database):
        assert (await ended(database, made)).status == "completed"


async def test_a_delivery_without_a_job_goes(database: Database) -> None:
    await make(database, note, word="x")
    await value(database, "DELETE FROM jobs")
    async with working(database):
        await until(lambda: _empty(database))


async def _empty(database: Database) -> bool:
    return bool(await value(database, "SELECT count(*) = 0 FROM pgqueuer"))


async def test_a_job_that_ends_its_process_is_given_up(database: Database) -> None:
    made = await make(database, note, word="poison")
    await value(database, "UPDATE jobs SET status = 'running', interruptions = 20, attempts = 20")
    async with working(database) as worker:
        row = await ended(database, made)
        assert worker.resources[SEEN] == []
    assert (row.status, row.error) == ("failed", "The process ended too often while this job ran")


async def test_a_kind_that_nobody_knows_ends_after_a_day(database: Database) -> None:
    gone: JobKind[Any] = JobKind(
        stubborn.function, "test.gone", concurrency=0, max_attempts=1, timeout_seconds=None, cancellable=True
    )
    old, young = await make(database, gone), await make(database, gone)
    await value(database, "UPDATE jobs SET created_at = now() - interval '25 hours' WHERE id = :id", id=old)
    async with working(database):
        assert (await ended(database, old)).error == "No process knows this kind of job"
        assert (await row_of(database, young)).status == "queued"
    assert await value(database, "SELECT count(*) FROM pgqueuer") == 1


async def test_a_clock_that_is_set_back_delays_nothing(database: Database) -> None:
    """Rows stamped an hour ahead are what the database is left with when its clock goes back an hour."""
    made = await make(database, note, word="x")
    await value(
        database,
        "UPDATE pgqueuer SET created = created + interval '1 hour', updated = updated + interval '1 hour', "
        "heartbeat = heartbeat + interval '1 hour', execute_after = execute_after + interval '1 hour'",
    )
    async with working(database):
        assert (await ended(database, made, within=5)).status == "completed"


async def test_a_running_job_may_end_during_shutdown(database: Database) -> None:
    worker = Worker(database, resources_of(), kinds=KINDS, schedules={})
    await worker.start()
    made = await make(database, wait, word="a")
    await until(lambda: status_is(database, made, "running"))
    asyncio.get_running_loop().call_later(0.3, worker.resources[GATE].set)
    await worker.stop(10)
    row = await row_of(database, made)
    assert (row.status, row.attempts) == ("completed", 1)
    queued = await make(database, note, word="after")
    await asyncio.sleep(0.3)
    assert (await row_of(database, queued)).status == "queued"


@pytest.mark.usefixtures("rare_beats")
async def test_a_shutdown_hands_running_jobs_to_others_at_once(database: Database) -> None:
    first, second = resources_of(), resources_of()
    second[GATE].set()
    async with working(database, resources=first, grace=0.1) as worker:
        made = await make(database, wait, word="a")
        await until(lambda: lines_of(database, made))
        async with working(database, resources=second, grace=1):
            await worker.stop(0.1)
            row = await ended(database, made)
    assert first[SEEN] == ["a"]
    assert (row.status, row.attempts, row.interruptions) == ("completed", 2, 1)
    assert second[SEEN] == ["a"]
    assert await lines_of(database, made) == ["a waits", "a waits", "a passed"]


_VICTIM = """
import asyncio, sys
from quazzar.core.db import Database
from quazzar.core.jobs import Worker, job
@job("test.wait", concurrency=2)
async def wait(run, *, word):
    run.log("the victim has it")
    await asyncio.sleep(600)
async def main():
    url, role, identity = sys.argv[1:]
    worker = Worker(Database(url, role=role or None), identity=identity or None)
    await worker.start()
    await asyncio.sleep(600)
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def victim(database: Database, tmp_path: Path, identity: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    script = tmp_path / "victim.py"
    script.write_text(textwrap.dedent(_VICTIM))
    role = database._server_settings.get("role", "")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), database.url, role, identity, env=environment
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize(("identity", "suspect_seconds"), [("this folder", 3600.0), ("", 2.0)])
async def test_a_killed_workers_job_is_run_again_soon(
    database: Database, tmp_path: Path, identity: str, suspect_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quazzar.core.jobs.worker.SUSPECT_SECONDS", suspect_seconds)
    made = await make(database, wait, word="a")
    async with victim(database, tmp_path, identity) as process:
        await until(lambda: lines_of(database, made), within=20)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    resources = resources_of()
    resources[GATE].set()
    async with working(database, resources=resources, identity=identity or None):
        row = await ended(database, made, within=20)  # its lease lasts longer
    assert (row.status, row.attempts, row.interruptions) == ("completed", 2, 1)
    assert await lines_of(database, made) == ["the victim has it", "a waits", "a passed"]


async def test_a_worker_of_the_same_place_does_not_rob_a_living_one(database: Database, tmp_path: Path) -> None:
    made = await make(database, wait, word="a")
    async with victim(database, tmp_path, "this folder"):
        await until(lambda: lines_of(database, made), within=20)
        async with working(database, identity="this folder") as worker:
            await asyncio.sleep(3)
            assert worker.resources[SEEN] == []
    assert (await row_of(database, made)).attempts == 1


def scheduled(**rule: Any) -> dict[str, Schedule]:
    function: Any = stubborn
    return {
        "test.tick": Schedule(
            "test.tick",
            function,
            cron=rule.get("cron"),
            every_seconds=rule.get("every_seconds"),
            zone=rule.get("zone", "UTC"),
            realm="instance",
        )
    }


NOON = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rule", "after", "expected"),
    [
        ({"cron": "0 3 * * *"}, NOON, datetime(2026, 3, 2, 3, tzinfo=UTC)),
        ({"cron": "*/5 * * * *"}, NOON, datetime(2026, 3, 1, 12, 5, tzinfo=UTC)),
        ({"cron": "0 3 * * *", "zone": "Europe/Berlin"}, NOON, datetime(2026, 3, 2, 2, tzinfo=UTC)),
        ({"every_seconds": 90}, NOON, NOON + timedelta(seconds=90)),
    ],
)
def test_the_next_run(rule: dict[str, Any], after: datetime, expected: datetime) -> None:
    assert next_run(scheduled(**rule)["test.tick"], after) == expected


def test_an_interval_keeps_its_beat_but_makes_up_for_nothing() -> None:
    schedule = scheduled(every_seconds=60)["test.tick"]
    assert next_run(schedule, NOON, last=NOON - timedelta(seconds=2)) == NOON + timedelta(seconds=58)
    assert next_run(schedule, NOON, last=NOON - timedelta(hours=2)) == NOON + timedelta(seconds=60)


def test_a_clock_that_is_set_back_neither_stops_nor_doubles_a_schedule() -> None:
    hour, day = timedelta(hours=1), timedelta(days=1)
    frequent = scheduled(cron="*/5 * * * *")["test.tick"]
    assert corrected(frequent, frequent.rule, NOON + hour, NOON + hour, NOON) == NOON.replace(minute=5, second=0)
    every = scheduled(every_seconds=60)["test.tick"]
    assert corrected(every, every.rule, NOON + hour, NOON + hour, NOON) == NOON + timedelta(seconds=60)
    assert corrected(every, every.rule, NOON + timedelta(seconds=30), NOON - timedelta(seconds=30), NOON) is None
    daily = scheduled(cron="30 12 * * *")["test.tick"]
    done = NOON.replace(minute=30, second=1)
    # 12:30 has been done and the clock went back to 12:00: it is not done again, unless the clock was very wrong.
    assert corrected(daily, daily.rule, done.replace(second=0) + day, done, NOON) is None
    assert corrected(daily, daily.rule, done + 9 * day, done + 8 * day, NOON) == done.replace(second=0)
    assert corrected(daily, daily.rule, done.replace(second=0), done - day, NOON) is None
    # A changed rule holds at once.
    assert corrected(daily, "0 1 * * * UTC", done + day, done, NOON) == done.replace(second=0)


async def test_two_processes_make_one_job_of_each_occurrence(database: Database) -> None:
    schedules = scheduled(every_seconds=3600)
    async with working(database, kinds={}, schedules={}) as one, working(database, kinds={}, schedules={}) as two:
        for worker in (one, two):
            await run_schedules(worker._line, database, schedules)
        assert await value(database, "SELECT count(*) FROM jobs") == 0
        for _ in range(3):
            await value(database, "UPDATE job_schedules SET next_run_at = now() - interval '5 hours'")
            await asyncio.gather(*(run_schedules(worker._line, database, schedules) for worker in (one, two)))
            # The occurrences missed in five hours make one job, and none more while it is there.
            assert await value(database, "SELECT count(*) FROM jobs") == 1
            assert await value(database, "SELECT next_run_at > now() FROM job_schedules")


async def test_a_worker_runs_its_schedules(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quazzar.core.jobs.worker.BEAT_SECONDS", 0.1)
    resources = resources_of()
    resources[GATE].set()
    async with working(database, resources=resources, schedules=scheduled(every_seconds=0.3)):
        await until(lambda: _ran(database), within=5)
    assert await value(database, "SELECT actor FROM jobs LIMIT 1") == "system"


async def _ran(database: Database) -> bool:
    return bool(await value(database, "SELECT count(*) >= 2 FROM jobs WHERE status = 'completed'"))


async def test_waiting_for_a_job(database: Database) -> None:
    assert await wait_for(database, "job_unknown", 1) is None
    made = await make(database, note, word="x")
    state = await wait_for(database, made, 0.2)
    assert state is not None
    assert state.status == "queued"
    async with working(database):
        state = await wait_for(database, made, 5)
        assert state is not None
        assert state.finished
