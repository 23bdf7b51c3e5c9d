"""Jobs over HTTP, the same in both APIs."""

from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import get, post
from quazzar.core.sse import last_event_id, server_events
from quazzar.jobs.schemas import JobLineOut, JobOut, JobStatus
from quazzar.jobs.service import JOB_ID, JobService, follow
from quazzar.jobs.store import JobFilter, Scope

LINE_NUMBER = r"\d{1,9}"

Status = Annotated[JobStatus | None, QueryParameter(description="Only jobs in this state.")]
Kind = Annotated[
    str | None,
    QueryParameter(pattern=r"^[a-z0-9_.]{1,100}\Z", description="Only jobs of this kind, as `apps.install`."),
]
Subject = Annotated[
    str | None, QueryParameter(pattern=r"^[A-Za-z0-9_.-]{1,100}\Z", description="Only jobs about the thing of this id.")
]
Follow = Annotated[bool, QueryParameter(description="Keep sending what comes, as server-sent events.")]


async def provide_jobs(session: NamedDependency[AsyncSession], request: Request[Any, Any, Any]) -> JobService:
    return JobService(session, Scope.of(principal_of(request)))


class JobController(Controller):
    path = "/jobs"
    tags = ("Jobs",)
    dependencies = {"jobs": Provide(provide_jobs)}

    @get(guards=[requires("jobs:read")], operation_id="ListJobs", summary="Jobs, newest first")
    async def list_jobs(
        self,
        request: Request[Any, Any, Any],
        jobs: NamedDependency[JobService],
        status: Status = None,
        kind: Kind = None,
        subject: Subject = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[JobOut]]:
        """Everything that works in the background: installs, backups, updates."""
        page = page_of(limit, cursor, key=JOB_ID.pattern)
        found = await jobs.find(JobFilter(status=status, kind=kind, subject=subject), page)
        return paged(request, page, found, JobOut.of, lambda job: job.id)

    @get("/{job_id:str}", guards=[requires("jobs:read")], operation_id="GetJob", summary="One job")
    async def get_job(self, jobs: NamedDependency[JobService], job_id: FromPath[str]) -> JobOut:
        """How far it is, and how it ended."""
        return JobOut.of(await jobs.get(job_id))

    @get(
        "/{job_id:str}/logs",
        guards=[requires("jobs:read")],
        operation_id="GetJobLogs",
        summary="What a job said",
        responses={200: ResponseSpec(list[JobLineOut], description="Its lines, oldest first", generate_examples=False)},
    )
    async def get_job_logs(
        self,
        request: Request[Any, Any, Any],
        jobs: NamedDependency[JobService],
        job_id: FromPath[str],
        follow: Follow = False,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[Any]:
        """The newest 2,000 lines are kept.

        With `follow=true` the answer is a stream of server-sent events: `line` (its `id` is the line's number, so that
        `Last-Event-ID` resumes), `job` whenever the job changes, and `end` with the job once it has ended.
        """
        page = page_of(limit, cursor, key=LINE_NUMBER)
        if follow:
            return await _follow(request, jobs, job_id, page.after)
        return paged(request, page, await jobs.lines(job_id, page), JobLineOut.of, lambda line: str(line.number))

    @post(
        "/{job_id:str}/cancel",
        guards=[requires("jobs:write")],
        operation_id="CancelJob",
        summary="Stop a job",
        status_code=200,
    )
    async def cancel_job(self, jobs: NamedDependency[JobService], job_id: FromPath[str]) -> JobOut:
        """A queued job ends at once. A running one is interrupted and cleans up first: follow it until it has ended.

        409 when it has ended already or must not be interrupted.
        """
        return JobOut.of(await jobs.cancel(job_id))

    @post(
        "/{job_id:str}/retry",
        guards=[requires("jobs:write")],
        operation_id="RetryJob",
        summary="Try a job again",
        status_code=200,
    )
    async def retry_job(self, jobs: NamedDependency[JobService], job_id: FromPath[str]) -> JobOut:
        """Queues a failed or cancelled job again, with all its attempts; 409 in any other state."""
        return JobOut.of(await jobs.retry(job_id))


async def _follow(request: Request[Any, Any, Any], jobs: JobService, job_id: str, after: str | None) -> Response[Any]:
    await jobs.get(job_id)
    seen = last_event_id(request) or after
    start = int(seen) if seen is not None and seen.isdecimal() else 0
    return server_events(request, follow(request.app.state.database, jobs.scope, job_id, after=min(start, 2**31 - 1)))


handlers: list[type[Controller]] = [JobController]
