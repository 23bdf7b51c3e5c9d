"""PgQueuer as our worker drives it: its claims and its loop, with every write fenced by who holds the delivery.

Imported only by a running worker, since the library costs memory.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import asyncpg
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder, QuerySchedulerBuilder
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.core.executors import AbstractEntrypointExecutor, EntrypointExecutorParameters
from pgqueuer.core.qm import QueueManager
from pgqueuer.domain import models, types
from pgqueuer.domain.errors import RetryRequested

from quazzar.core.jobs.line import LineClosed, WorkerLine
from quazzar.core.jobs.queue import WAKE, queue_settings
from quazzar.core.jobs.registry import JobKind
from quazzar.core.logs import get_logger

if TYPE_CHECKING:
    from pgqueuer.ports.driver import Driver

log = get_logger(__name__)

LEASE = timedelta(seconds=30)
POLL = timedelta(seconds=10)
"""How long an idle worker sleeps when no notification comes."""
MOST_AT_ONCE = 64
BATCH = 10


@dataclass(frozen=True)
class HandBack:
    """What is to become of a delivery that did not end its job.

    With `job_id` the job goes back to the queue too, as far as `attempt` still is the running one.
    """

    delivery: int
    delay_seconds: float
    job_id: str | None = None
    attempt: int = 0
    error: str | None = None
    interrupted: bool = False


_HAND_BACK = f"""
WITH job AS (
    UPDATE jobs SET status = 'queued', error = $4, interruptions = interruptions + $5
    WHERE id = $1 AND attempts = $2 AND status = 'running' RETURNING id
), delivery AS (
    UPDATE pgqueuer SET status = 'queued', queue_manager_id = NULL, slot = NULL, updated = now(),
        attempts = attempts + 1, execute_after = now() + make_interval(secs => $3)
    FROM (SELECT count(*) FROM job) AS first
    WHERE pgqueuer.id = $6 AND queue_manager_id = $7 AND status = 'picked' RETURNING pgqueuer.id
)
SELECT (SELECT pg_notify('quazzar_jobs', id) FROM job), {WAKE} FROM delivery
"""  # noqa: S608 - constants only


class FencedQueries(Queries):
    """The library's queries, but a worker that lost a delivery can change nothing about it.

    The library deletes and re-queues by id alone. Here ended jobs take their delivery along in one statement of the
    worker, so what the library reports afterwards is either known (`settled`) or means that the delivery goes back.
    """

    def __init__(self, line: WorkerLine, owner: uuid.UUID) -> None:
        settings = queue_settings()
        super().__init__(
            cast("Driver", line),
            qbe=QueryBuilderEnvironment(settings),
            qbq=QueryQueueBuilder(settings),
            qbs=QuerySchedulerBuilder(settings),
        )
        self.line = line
        self.owner = owner
        self.taken: set[int] = set()
        """Deliveries that this worker has in hand."""
        self.settled: set[int] = set()
        """Deliveries that are gone together with the end of their job."""
        self.verdicts: dict[int, HandBack] = {}

    async def dequeue(self, *args: Any, **kwargs: Any) -> list[models.Job]:
        try:
            jobs = await super().dequeue(*args, **kwargs)
        except asyncpg.PostgresError as error:
            # A full disk, say: it must not end the loop, which would wait for all running jobs first.
            log.error("Jobs can't be claimed", reason=type(error).__name__)
            await asyncio.sleep(1)
            return []
        self.taken.update(job.id for job in jobs)
        return jobs

    async def log_jobs(
        self, job_status: list[tuple[models.Job, types.JOB_STATUS, models.TracebackRecord | None]]
    ) -> None:
        for job, _, _ in job_status:
            if job.id in self.settled:
                self.settled.discard(job.id)
            else:
                await self.hand_back(self.verdicts.pop(job.id, HandBack(job.id, 1.0)))

    async def retry_job(
        self, job: models.Job, delay: timedelta, traceback_record: models.TracebackRecord | None
    ) -> None:
        del traceback_record
        await self.hand_back(self.verdicts.pop(job.id, HandBack(job.id, delay.total_seconds())))

    async def update_heartbeat(self, job_ids: list[types.JobId]) -> None:
        """The worker beats for its jobs itself: more often, and fenced."""

    async def hand_back(self, back: HandBack) -> None:
        self.taken.discard(back.delivery)
        try:
            await self.line.fetch_surely(
                _HAND_BACK,
                back.job_id,
                back.attempt,
                back.delay_seconds,
                back.error,
                int(back.interrupted),
                back.delivery,
                self.owner,
            )
        except LineClosed:
            # Whoever comes next finds that this worker's lock is free, and takes the delivery.
            log.info("A job is left to the next worker", delivery=back.delivery)


@dataclass
class _Executor(AbstractEntrypointExecutor):
    kind: JobKind[Any]
    perform: Callable[[int, str, JobKind[Any]], Awaitable[HandBack | None]]
    queries: FencedQueries

    async def execute(self, job: models.Job, context: models.Context) -> None:
        """Run the job; anything but its end becomes a request to hand the delivery back."""
        del context
        try:
            back = await self.perform(job.id, (job.payload or b"").decode(), self.kind)
        except LineClosed:
            back = HandBack(job.id, 0.0)
        except Exception as error:
            # Whatever went wrong here, the job must not be lost.
            log.error("A job's bookkeeping failed", kind=self.kind.kind, exc_info=error)
            back = HandBack(job.id, 5.0)
        if back is None:
            self.queries.settled.add(job.id)
            self.queries.taken.discard(job.id)
            return
        self.queries.verdicts[job.id] = back
        raise RetryRequested(timedelta(seconds=back.delay_seconds))


async def _never(_: models.Job) -> None:
    """The library wants a function with each executor; ours does not call it."""


def make_manager(
    queries: FencedQueries,
    kinds: list[JobKind[Any]],
    perform: Callable[[int, str, JobKind[Any]], Awaitable[HandBack | None]],
) -> QueueManager:
    """A manager that claims for `queries.owner` and hands each delivery to `perform`.

    `perform` gives None when the job has ended and its delivery with it.
    """
    manager = QueueManager(queries, channel=types.Channel(queue_settings().channel))
    manager.queue_manager_id = types.QueueManagerId(queries.owner)
    # The pace at which a backlog behind a full kind is looked at; the end of a job wakes the manager anyway.
    manager.min_dequeue_poll_interval = timedelta(seconds=0.25)
    for kind in kinds:
        parameters = EntrypointExecutorParameters(concurrency_limit=kind.concurrency, func=_never)
        manager.register_executor(kind.kind, _Executor(parameters, kind, perform, queries))
    return manager


async def run_manager(manager: QueueManager) -> None:
    """Claim and run until `manager.shutdown` is set, then wait for the running ones."""
    await manager.run(
        dequeue_timeout=POLL,
        batch_size=BATCH,
        max_concurrent_tasks=MOST_AT_ONCE,
        heartbeat_timeout=LEASE,
        # Nobody reads the library's statistics.
        log_aggregation_interval=timedelta(0),
    )
