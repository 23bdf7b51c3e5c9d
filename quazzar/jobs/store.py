"""Every query about jobs as users see them; each within the scope of its caller."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal, Realm
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.jobs.models import Job, JobLog
from quazzar.core.paging import Page

Found = Row[*tuple[Any, ...]]
"""A row with the columns that its query names."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Whose jobs are meant: those of one API, on the panel of one tenant, with a bound key only about its things."""

    realm: Realm
    tenant_id: str | None = None
    subjects: frozenset[str] | None = None

    @classmethod
    def of(cls, principal: Principal) -> "Scope":
        return cls(realm=principal.realm, tenant_id=principal.tenant_id, subjects=principal.resources)

    @property
    def condition(self) -> ColumnElement[bool]:
        own = and_(Job.realm == self.realm, Job.tenant_id.is_not_distinct_from(self.tenant_id))
        return own if self.subjects is None else and_(own, Job.subject.in_(sorted(self.subjects)))


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What a list is narrowed to; None narrows nothing."""

    status: str | None = None
    kind: str | None = None
    subject: str | None = None


_COLUMNS = (
    Job.id,
    Job.kind,
    Job.subject,
    Job.status,
    Job.progress,
    Job.step,
    Job.error,
    Job.attempts,
    Job.created_at,
    Job.started_at,
    Job.finished_at,
)


def _jobs(scope: Scope) -> Select[*tuple[Any, ...]]:
    return select(*_COLUMNS).where(scope.condition)


async def find_jobs(scope: Scope, session: AsyncSession, narrowed: JobFilter, page: Page) -> Sequence[Found]:
    """Newest first; one more than the page shows."""
    query = _jobs(scope).order_by(Job.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(Job.id < page.after)
    for column, value in ((Job.status, narrowed.status), (Job.kind, narrowed.kind), (Job.subject, narrowed.subject)):
        if value is not None:
            query = query.where(column == value)
    return (await session.execute(query)).all()


async def get_job(scope: Scope, session: AsyncSession, job_id: str) -> Found | None:
    return (await session.execute(_jobs(scope).where(Job.id == job_id))).one_or_none()


async def find_lines(scope: Scope, session: AsyncSession, job_id: str, *, after: int, limit: int) -> Sequence[Found]:
    """Oldest first, those after the number `after`."""
    query = (
        select(JobLog.number, JobLog.at, JobLog.line)
        .join(Job, Job.id == JobLog.job_id)
        .where(scope.condition, JobLog.job_id == job_id, JobLog.number > after)
        .order_by(JobLog.number)
        .limit(limit)
    )
    return (await session.execute(query)).all()


async def count_jobs(database: Database) -> dict[str, int]:
    """How many jobs of all tenants stand in each status."""
    async with database.begin() as session:
        await see_all_tenants(session)
        rows = await session.execute(select(Job.status, func.count()).group_by(Job.status))
        return dict(rows.tuples().all())
