"""The rules of jobs: who sees which, what can be cancelled or tried again, and how one is followed."""

import re
from collections.abc import AsyncIterator, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core import jobs as queue
from quazzar.core.db import Database
from quazzar.core.jobs.signals import FINISHED
from quazzar.core.paging import MOST, Page
from quazzar.core.records import audit
from quazzar.core.sse import ServerEvent
from quazzar.jobs import store
from quazzar.jobs.errors import JobNotCancellable, JobNotFound, JobNotRetryable
from quazzar.jobs.schemas import JobLineOut, JobOut
from quazzar.jobs.store import Found, JobFilter, Scope

JOB_ID = re.compile(r"job_[2-7a-z]{26}")

POLL_SECONDS = 5.0
"""How often a follower looks without being told: notifications come at once while the line to the database holds."""


class JobService:
    """Jobs within one caller's scope, in one transaction."""

    def __init__(self, session: AsyncSession, scope: Scope) -> None:
        self.session = session
        self.scope = scope

    async def find(self, narrowed: JobFilter, page: Page) -> Sequence[Found]:
        return await store.find_jobs(self.scope, self.session, narrowed, page)

    async def get(self, job_id: str) -> Found:
        known = JOB_ID.fullmatch(job_id) is not None
        job = await store.get_job(self.scope, self.session, job_id) if known else None
        if job is None:
            raise JobNotFound
        return job

    async def lines(self, job_id: str, page: Page) -> Sequence[Found]:
        await self.get(job_id)
        after = int(page.after) if page.after is not None else 0
        return await store.find_lines(self.scope, self.session, job_id, after=after, limit=page.fetch)

    async def cancel(self, job_id: str) -> Found:
        """A queued job ends at once; a running one as soon as its worker has stopped it."""
        job = await self.get(job_id)
        if not await queue.cancel(self.session, job_id):
            raise JobNotCancellable
        audit(self.session, "job.cancel", subject=job_id, before={"status": job.status})
        return await self.get(job_id)

    async def retry(self, job_id: str) -> Found:
        job = await self.get(job_id)
        if not await queue.retry(self.session, job_id, queue.job_kinds()):
            raise JobNotRetryable
        audit(self.session, "job.retry", subject=job_id, before={"status": job.status})
        return await self.get(job_id)


async def follow(database: Database, scope: Scope, job_id: str, *, after: int) -> AsyncIterator[ServerEvent]:
    """The lines after the number `after` as they come, the job whenever it changes, and its end as the last event.

    Each look is a short transaction of its own: none is open while a reader takes its time.
    """
    shown: JobOut | None = None
    async for _ in queue.changes(database, job_id, poll_seconds=POLL_SECONDS):
        ended = False
        while True:
            async with database.begin(tenant=scope.tenant_id) as session:
                row = await store.get_job(scope, session, job_id)
                lines = await store.find_lines(scope, session, job_id, after=after, limit=MOST) if row else []
            if row is None:
                return
            for line in lines:
                after = line.number
                yield ServerEvent(id=str(line.number), event="line", data=JobLineOut.of(line))
            job, ended = JobOut.of(row), row.status in FINISHED
            if len(lines) < MOST:
                break
        if ended:
            yield ServerEvent(event="end", data=job)
            return
        if job != shown:
            shown = job
            yield ServerEvent(event="job", data=job)
