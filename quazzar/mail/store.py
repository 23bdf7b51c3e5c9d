"""The queries about mails that wait: their jobs are the only place where they are kept."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import see_all_tenants
from quazzar.core.jobs.models import Job


async def find_unsent(session: AsyncSession, kind: str) -> Sequence[Any]:
    """Id and arguments of the jobs of mails that may still be sent, locked."""
    await see_all_tenants(session)
    statement = select(Job.id, Job.args).where(Job.kind == kind, Job.status != "completed").with_for_update()
    return (await session.execute(statement)).all()


async def replace_args(session: AsyncSession, job_id: str, args: dict[str, Any]) -> None:
    await session.execute(update(Job).where(Job.id == job_id).values(args=args))
