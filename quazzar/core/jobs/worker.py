"""The worker of a process: claims jobs, runs them, keeps their leases, and takes over what a dead worker left."""

import asyncio
import contextlib
import hashlib
import importlib
import random
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import asyncpg
import msgspec
import sqlalchemy.exc

from quazzar.core.db import Database
from quazzar.core.errors import AppError, DatabaseUnavailable
from quazzar.core.jobs.line import OWNER_LOCK, LineClosed, WorkerLine
from quazzar.core.jobs.queue import CHANNEL, WAKE
from quazzar.core.jobs.registry import JobKind, Schedule, job_kinds, job_schedules
from quazzar.core.jobs.run import KEPT_LINES, JobCancelled, JobFailed, JobRun, Resources, RetryLater, clean_line
from quazzar.core.jobs.schedules import run_schedules
from quazzar.core.jobs.signals import signals_of
from quazzar.core.logs import get_logger

log = get_logger(__name__)

BEAT_SECONDS = 5.0
"""How often leases (30 s) are renewed and dead workers looked for."""
SUSPECT_SECONDS = 2.0
"""How long a worker's lock must be free before it counts as dead: it may be about to reconnect."""
NEWS_SECONDS = 0.25
MOST_INTERRUPTIONS = 20
"""A job that was running at the end of so many processes is probably what ends them."""
UNKNOWN_KIND_HOURS = 24

StopReason = Literal["cancel", "shutdown", "lost"]

_CLAIM = """
WITH claimed AS (
    UPDATE jobs SET status = 'running', attempts = attempts + 1,
        interruptions = interruptions + CASE status WHEN 'running' THEN 1 ELSE 0 END,
        started_at = COALESCE(started_at, now()), error = NULL
    WHERE id = $1 AND status IN ('queued', 'running') AND EXISTS (
        SELECT FROM pgqueuer WHERE pgqueuer.id = $2 AND queue_manager_id = $3 AND pgqueuer.status = 'picked'
    )
    RETURNING *
)
SELECT claimed.*, (SELECT COALESCE(max(number), 0) FROM job_logs WHERE job_id = $1) AS last_line,
    pg_notify('quazzar_jobs', claimed.id)
FROM claimed
"""

_END = """
WITH job AS (
    UPDATE jobs SET status = $3, error = $4, finished_at = now(),
        progress = CASE $3 WHEN 'completed' THEN 1 ELSE progress END
    WHERE id = $1 AND attempts = $2 AND status = 'running' RETURNING id
), delivery AS (
    DELETE FROM pgqueuer WHERE id = $5 AND queue_manager_id = $6 AND EXISTS (SELECT FROM job)
)
SELECT id, pg_notify('quazzar_jobs', id) FROM job
"""

# A delivery without a job that could run is nobody's; one of a live job stays.
_DROP_OBSOLETE = """
DELETE FROM pgqueuer WHERE id = $1 AND queue_manager_id = $2 AND NOT EXISTS (
    SELECT FROM jobs WHERE jobs.id = $3 AND jobs.status IN ('queued', 'running')
) RETURNING id
"""

_NEWS = """
WITH job AS (
    UPDATE jobs SET progress = $3, step = $4 WHERE id = $1 AND attempts = $2 AND status = 'running' RETURNING id
), lines AS (
    INSERT INTO job_logs (job_id, number, attempt, line)
    SELECT job.id, said.number, $2, said.line FROM job, UNNEST($5::int[], $6::text[]) AS said (number, line)
    ON CONFLICT DO NOTHING
), old AS (
    DELETE FROM job_logs WHERE job_id = $1 AND number <= $7 AND EXISTS (SELECT FROM job)
)
SELECT id, pg_notify('quazzar_jobs', id) FROM job
"""

_BEAT = """
WITH mine AS (
    UPDATE pgqueuer SET heartbeat = now()
    WHERE id = ANY ($1::bigint[]) AND queue_manager_id = $2 AND status = 'picked' RETURNING id, dedupe_key
)
SELECT mine.id, jobs.attempts, jobs.status, jobs.cancel_requested_at IS NOT NULL AS cancel
FROM mine JOIN jobs ON jobs.id = mine.dedupe_key COLLATE "C"
"""

_OWNERS = f"""
SELECT owner, EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32 | objid::bigint) = {OWNER_LOCK % "owner"}
) AS alive
FROM (
    SELECT DISTINCT queue_manager_id AS owner FROM pgqueuer
    WHERE status = 'picked' AND queue_manager_id IS NOT NULL AND queue_manager_id <> $1
) AS others
"""  # noqa: S608 - constants only

# A job goes back at once the first time, later after a while: it may be what ends its processes.
_RELEASE = f"""
WITH held AS (
    SELECT id, dedupe_key FROM pgqueuer
    WHERE status = 'picked' AND queue_manager_id = ANY ($1::uuid[]) AND NOT id = ANY ($2::bigint[])
), job AS (
    UPDATE jobs SET status = 'queued', interruptions = interruptions + 1
    WHERE id IN (SELECT dedupe_key COLLATE "C" FROM held) AND status = 'running' RETURNING id, interruptions
), delivery AS (
    UPDATE pgqueuer SET status = 'queued', queue_manager_id = NULL, slot = NULL, updated = now(),
        execute_after = LEAST(execute_after, now())
            + make_interval(secs => LEAST(60, power(2, COALESCE(job.interruptions, 1) - 1) - 1))
    FROM held LEFT JOIN job ON job.id = held.dedupe_key COLLATE "C"
    WHERE pgqueuer.id = held.id AND pgqueuer.status = 'picked' AND queue_manager_id = ANY ($1::uuid[])
    RETURNING pgqueuer.id, held.dedupe_key
)
SELECT dedupe_key AS job_id, pg_notify('quazzar_jobs', dedupe_key), {WAKE} FROM delivery
"""  # noqa: S608 - constants only

# Jobs and deliveries change in one transaction, so a live job without a delivery is a loss from outside.
_REDELIVER = """
INSERT INTO pgqueuer (priority, entrypoint, payload, dedupe_key, status)
SELECT 0, kind, convert_to(id, 'UTF8'), id, 'queued' FROM jobs
WHERE status IN ('queued', 'running') AND NOT EXISTS (
    SELECT FROM pgqueuer WHERE dedupe_key = jobs.id COLLATE "default" AND pgqueuer.status IN ('queued', 'picked')
)
ON CONFLICT DO NOTHING RETURNING dedupe_key
"""

# Stamps of the future say that the server's clock was set back; what waits must not wait for it to catch up.
_FOLLOW_CLOCK = """
UPDATE pgqueuer SET
    execute_after = execute_after - (GREATEST(created, updated, heartbeat) - now()),
    created = LEAST(created, now()), updated = LEAST(updated, now()), heartbeat = LEAST(heartbeat, now())
WHERE GREATEST(created, updated, heartbeat) > now() + interval '5 seconds' RETURNING id
"""

_END_UNKNOWN = f"""
WITH job AS (
    UPDATE jobs SET status = 'failed', error = 'No process knows this kind of job', finished_at = now()
    WHERE status = 'queued' AND NOT kind = ANY ($1::text[])
        AND created_at < now() - interval '{UNKNOWN_KIND_HOURS} hours'
    RETURNING id
), delivery AS (
    DELETE FROM pgqueuer WHERE dedupe_key IN (SELECT id COLLATE "default" FROM job)
)
SELECT id, pg_notify('quazzar_jobs', id) FROM job
"""  # noqa: S608 - constants only


class _Active:
    """An attempt that runs here."""

    def __init__(self, delivery: int, run: JobRun, task: asyncio.Task[None]) -> None:
        self.delivery = delivery
        self.run = run
        self.task = task
        self.reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Interrupt the function; a lost lease outweighs whatever was asked before."""
        if self.reason is None or reason == "lost":
            first = self.reason is None
            self.reason = reason
            if reason == "cancel":
                self.run.cancelled.set()
            if first:
                self.task.cancel()


class Worker:
    """Runs jobs of all known kinds until it is stopped; an outage of the database is a pause, not an end.

    `identity` names the place where only one process can be at a time, such as a locked data folder. A worker takes
    over from a dead one of its own identity at once, from others when their lock has been free for a moment.
    """

    def __init__(
        self,
        database: Database,
        resources: Resources | None = None,
        *,
        identity: str | None = None,
        kinds: Mapping[str, JobKind[Any]] | None = None,
        schedules: Mapping[str, Schedule] | None = None,
        retry_seconds: float = 2.0,
    ) -> None:
        place = hashlib.sha256(identity.encode()).digest()[:8] if identity is not None else secrets.token_bytes(8)
        self.owner = uuid.UUID(bytes=place + secrets.token_bytes(8))
        self.resources = resources if resources is not None else Resources()
        self._database = database
        self._kinds = dict(kinds if kinds is not None else job_kinds())
        self._schedules = dict(schedules if schedules is not None else job_schedules())
        self._retry_seconds = retry_seconds
        self._line = WorkerLine(database, self.owner)
        self._line.on_connected = self._connected
        self._signals = signals_of(database)
        self._active: dict[int, _Active] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._suspects: dict[uuid.UUID, float] = {}
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._queries: Any = None
        self._manager: Any = None
        self._beaten_at: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the worker has reached the database within the last beats: what readiness asks."""
        recent = self._beaten_at is not None and time.monotonic() - self._beaten_at < 4 * BEAT_SECONDS
        return recent and self._line.connected and not self._stopping.is_set()

    async def start(self) -> None:
        """Begin in the background; returns before the database has answered."""
        self._tasks = [
            asyncio.create_task(self._serve(), name="jobs"),
            asyncio.create_task(self._keep(), name="jobs-leases"),
        ]

    def drain(self) -> None:
        """Claim nothing more; what runs goes on until `stop`. For the moment at which the process begins to end."""
        self._stopping.set()
        if self._manager is not None:
            self._manager.shutdown.set()

    async def stop(self, grace_seconds: float = 1.5) -> None:
        """Claim nothing more, let running jobs end for `grace_seconds`, then interrupt them and hand them back.

        An interrupted job has as long again to clean up; the whole takes no longer than 2.5 times `grace_seconds`,
        and a second where the database does not answer.
        """
        self.drain()
        await self._wait_idle(grace_seconds)
        for active in list(self._active.values()):
            active.stop("shutdown")
        await self._wait_idle(grace_seconds)
        if self._tasks:
            serving, keeping = self._tasks
            keeping.cancel()
            # What has just ended is still being written down.
            await asyncio.wait({serving}, timeout=max(0.2, grace_seconds / 2) if self._line.connected else 0.1)
            self._line.stop_waiting()
            serving.cancel()
            await asyncio.gather(serving, keeping, return_exceptions=True)
        self._line.stop_waiting()
        if self._line.connected:
            with contextlib.suppress(LineClosed, asyncpg.PostgresError):
                await self._line.fetch(_RELEASE, [self.owner], [])
        await self._line.close()

    async def _wait_idle(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def _serve(self) -> None:
        # The library takes a moment to import; meanwhile the process may answer.
        claims = await asyncio.to_thread(importlib.import_module, "quazzar.core.jobs.claims")
        self._queries = claims.FencedQueries(self._line, self.owner)
        while not self._stopping.is_set():
            self._manager = claims.make_manager(self._queries, list(self._kinds.values()), self._perform)
            try:
                await claims.run_manager(self._manager)
            except LineClosed:
                return
            except Exception as error:
                # The process serves requests and must outlive its worker's faults.
                log.error("The worker failed and starts again", exc_info=error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2.0):
                        await self._stopping.wait()

    async def _keep(self) -> None:
        round_number = 0
        while True:
            pause = BEAT_SECONDS
            try:
                if round_number == 0:
                    await self._line.add_listener(CHANNEL, self._heard)
                await self._beat()
                if await self._take_over():
                    pause = SUSPECT_SECONDS / 4
                if not self._stopping.is_set():
                    await run_schedules(self._line, self._database, self._schedules)
                if round_number % 6 == 0:
                    await self._repair()
                self._beaten_at = time.monotonic()
                round_number += 1
            except LineClosed:
                return
            except Exception as error:
                # The next round tries again; leases must not depend on one bad round.
                log.error("The worker's housekeeping failed", exc_info=error)
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - spreads the workers

    async def _connected(self) -> None:
        """After each new connection: deliveries whose answer was lost on the way go back, waiters look again."""
        self._suspects.clear()
        self._signals.all_changed()
        await self._release_strays()

    def _heard(self, payload: str | bytes | bytearray) -> None:
        text = payload if isinstance(payload, str) else payload.decode()
        wish, _, job_id = text.rpartition(":")
        if wish == "cancel":
            for active in list(self._active.values()):
                if active.run.job_id == job_id:
                    active.stop("cancel")
        else:
            self._signals.changed(job_id)

    async def _beat(self) -> None:
        await self._line.ensure_lock()
        beating = dict(self._active)
        if not beating:
            return
        rows = {row["id"]: row for row in await self._line.fetch(_BEAT, list(beating), self.owner)}
        for delivery, active in beating.items():
            row = rows.get(delivery)
            if row is None or row["attempts"] != active.run.attempt or row["status"] != "running":
                active.stop("lost")
            elif row["cancel"]:
                active.stop("cancel")

    async def _take_over(self) -> bool:
        """Release what dead workers held; true while one is suspected and the next look should come soon."""
        now = time.monotonic()
        dead: list[uuid.UUID] = []
        suspects: dict[uuid.UUID, float] = {}
        for row in await self._line.fetch(_OWNERS, self.owner):
            owner = uuid.UUID(str(row["owner"]))
            if row["alive"]:
                continue
            since = self._suspects.get(owner, now)
            if owner.bytes[:8] == self.owner.bytes[:8] or now - since >= SUSPECT_SECONDS:
                dead.append(owner)
            else:
                suspects[owner] = since
        self._suspects = suspects
        if dead:
            released = await self._line.fetch(_RELEASE, dead, [])
            for row in released:
                log.warning("A job is taken over from a worker that is gone", job=row["job_id"])
            self._line.wake()
        return bool(suspects)

    async def _release_strays(self) -> None:
        """Hand back deliveries that are ours in the database but that this worker does not have in hand."""

        def statement(connection: "asyncpg.Connection[Any]") -> Any:
            taken = list(self._queries.taken) if self._queries is not None else []
            return connection.fetch(_RELEASE, [self.owner], taken)

        for row in await self._line.run(statement):
            log.warning("A job's delivery was lost on the way and is made again", job=row["job_id"])

    async def _repair(self) -> None:
        await self._release_strays()
        if await self._line.fetch(_FOLLOW_CLOCK):
            log.warning("The database's clock was set back")
            self._line.wake()
        for row in await self._line.fetch(_REDELIVER):
            log.warning("A job had no delivery any more and got a new one", job=row["dedupe_key"])
        for row in await self._line.fetch(_END_UNKNOWN, list(self._kinds)):
            log.error("A job of a kind that nobody knows has ended", job=row["id"])

    async def _perform(self, delivery: int, job_id: str, kind: JobKind[Any]) -> Any:
        """One delivery; gives None when its job has ended, else how to hand it back."""
        from quazzar.core.jobs.claims import HandBack  # noqa: PLC0415 - only a running worker has the library

        rows = await self._line.fetch_surely(_CLAIM, job_id, delivery, self.owner)
        if not rows:
            dropped = await self._line.fetch_surely(_DROP_OBSOLETE, delivery, self.owner, job_id)
            return None if dropped else HandBack(delivery, 0.0)
        row: dict[str, Any] = rows[0]
        run = JobRun(
            job_id=job_id,
            kind=kind.kind,
            attempt=row["attempts"],
            database=self._database,
            resources=self.resources,
            realm=row["realm"],
            subject=row["subject"],
            tenant_id=row["tenant_id"],
            actor=row["actor"],
            last_line=row["last_line"],
        )
        if row["cancel_requested_at"] is not None:
            return await self._end(delivery, run, "cancelled")
        if row["interruptions"] > MOST_INTERRUPTIONS:
            return await self._end(delivery, run, "failed", "The process ended too often while this job ran")
        error, reason = await self._attempt(delivery, run, kind, msgspec.json.decode(row["args"]))
        await self._write_last_news(run)
        tried = run.attempt - row["interruptions"]
        match error:
            case None:
                return await self._end(delivery, run, "completed")
            case _ if reason == "cancel":
                stopped = isinstance(error, asyncio.CancelledError | JobCancelled)
                return await self._end(delivery, run, "cancelled", None if stopped else self._sentence(error, run))
            case _ if reason in {"lost", "shutdown"}:
                return HandBack(delivery, 0.0, job_id, run.attempt, None, interrupted=True)
            case JobFailed():
                return await self._end(delivery, run, "failed", self._sentence(error, run))
            case _ if self._is_outage(error):
                return HandBack(delivery, 1.0, job_id, run.attempt, "The database was away", interrupted=True)
            case _ if tried >= row["max_attempts"]:
                return await self._end(delivery, run, "failed", self._sentence(error, run))
            case RetryLater(delay_seconds=seconds):
                return HandBack(delivery, seconds, job_id, run.attempt, self._sentence(error, run))
            case _:
                seconds = min(600.0, self._retry_seconds * 3 ** (tried - 1)) * random.uniform(0.8, 1.2)  # noqa: S311
                return HandBack(delivery, seconds, job_id, run.attempt, self._sentence(error, run))

    async def _attempt(
        self, delivery: int, run: JobRun, kind: JobKind[Any], args: dict[str, Any]
    ) -> tuple[BaseException | None, StopReason | None]:
        """Call the function; gives what it raised, and why it was interrupted when it was."""

        async def call() -> None:
            async with asyncio.timeout(kind.timeout_seconds) as limit:
                try:
                    await kind.function(run, **args)
                except TimeoutError as error:
                    if limit.expired():
                        raise
                    # The function's own; it must not look like ours.
                    raise RuntimeError("A wait in the job timed out") from error

        run.attach(asyncio.get_running_loop())
        active = _Active(delivery, run, asyncio.create_task(call(), name=f"{kind.kind} {run.job_id}"))
        self._active[delivery] = active
        self._idle.clear()
        news = asyncio.create_task(self._spread_news(run))
        try:
            await asyncio.wait({active.task})
        finally:
            # Reached by force too: a shutdown that could wait no longer.
            active.task.cancel()
            news.cancel()
            await asyncio.gather(news, return_exceptions=True)
            del self._active[delivery]
            if not self._active:
                self._idle.set()
        if active.task.cancelled():
            return asyncio.CancelledError(), active.reason
        error = active.task.exception()
        if error is not None and not isinstance(error, JobFailed | RetryLater | JobCancelled | AppError):
            log.error("A job's attempt failed", job=run.job_id, kind=kind.kind, attempt=run.attempt, exc_info=error)
        return error, active.reason

    async def _end(self, delivery: int, run: JobRun, status: str, error: str | None = None) -> Any:
        from quazzar.core.jobs.claims import HandBack  # noqa: PLC0415 - as above

        ended = await self._line.fetch_surely(_END, run.job_id, run.attempt, status, error, delivery, self.owner)
        if not ended:
            # Taken over meanwhile, or the answer to the first try was lost on the way.
            dropped = await self._line.fetch_surely(_DROP_OBSOLETE, delivery, self.owner, run.job_id)
            if not dropped:
                log.warning("A job was taken over by another worker", job=run.job_id, attempt=run.attempt)
                return HandBack(delivery, 0.0)
        self._signals.changed(run.job_id)
        return None

    async def _spread_news(self, run: JobRun) -> None:
        assert run.changed is not None
        while True:
            await run.changed.wait()
            run.changed.clear()
            with contextlib.suppress(asyncpg.PostgresError):
                await self._write_news(run)
            await asyncio.sleep(NEWS_SECONDS)

    async def _write_news(self, run: JobRun) -> None:
        if not run.has_news:
            return
        fraction, step, lines = run.take()
        numbers = [number for number, _ in lines]
        oldest = (numbers[-1] if numbers else 0) - KEPT_LINES
        texts = [line for _, line in lines]
        try:
            await self._line.fetch(_NEWS, run.job_id, run.attempt, fraction, step, numbers, texts, oldest)
        except BaseException:
            # The next write, at the latest the last one of the attempt, says it again, numbered as before.
            run.give_back(lines)
            raise

    async def _write_last_news(self, run: JobRun) -> None:
        try:
            await self._write_news(run)
        except asyncpg.PostgresError as error:
            # How the job ended matters more than its last lines.
            log.error("The last lines of a job's log are lost", job=run.job_id, reason=type(error).__name__)

    def _is_outage(self, error: BaseException) -> bool:
        """Whether the attempt failed because the database was away, which is not the job's fault."""
        match error:
            case (
                DatabaseUnavailable()
                | asyncpg.PostgresConnectionError()
                | asyncpg.AdminShutdownError()
                | asyncpg.CrashShutdownError()
                | asyncpg.CannotConnectNowError()
            ):
                return True
            case sqlalchemy.exc.DBAPIError(connection_invalidated=True):
                return True
            case OSError() | TimeoutError() | sqlalchemy.exc.SQLAlchemyError() | asyncpg.InterfaceError() if (
                not self._line.connected
            ):
                return True
            case _:
                # SQLAlchemy wraps the driver's error twice, and one of a connection that was never made says no more.
                return error.__cause__ is not None and self._is_outage(error.__cause__)

    @staticmethod
    def _sentence(error: BaseException, run: JobRun) -> str:
        """What the user reads: the words of errors made for people, else only the kind of error."""
        match error:
            case JobFailed() | RetryLater():
                return clean_line(str(error))
            case AppError():
                return clean_line(error.message)
            case TimeoutError():
                return "The attempt took too long and was stopped"
            case asyncio.CancelledError() | JobCancelled():
                return "The attempt stopped itself"
            case _:
                return f"Unexpected error ({type(error).__name__}); the server's log has it under {run.job_id}"
