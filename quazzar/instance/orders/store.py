"""Every query about orders of the panel.

Changes are compare-and-set: each names the status that it expects, and says whether it was there.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import CursorResult, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.jobs.models import Job, JobLog
from quazzar.instance.orders.models import PanelOrder
from quazzar.link.messages import OrderStatus

Ended = Literal["completed", "failed", "cancelled", "expired", "refused"]


class Told(msgspec.Struct, frozen=True):
    """What the panel has said."""

    order_id: str
    command_id: str | None
    kind: str | None
    sealed_args: bytes | None
    user_id: str | None
    user_name: str | None
    begin_by: datetime | None
    status: OrderStatus
    job_id: str | None


class Unreported(msgspec.Struct, frozen=True):
    """The last report of an order, as it is sent."""

    order_id: str
    sequence: int
    status: OrderStatus
    reported_at: datetime
    progress: int | None
    step: str | None
    output: str | None
    error: str | None
    error_code: str | None


class Standing(msgspec.Struct, frozen=True):
    """An order that has not ended, and how its job stands; all of the job is None when it is gone."""

    order_id: str
    status: OrderStatus
    progress: int | None
    step: str | None
    is_told: bool
    job_id: str | None
    job_status: str | None
    job_progress: float | None
    job_step: str | None
    job_error: str | None
    job_finished_at: datetime | None


_TOLD = tuple(getattr(PanelOrder, name) for name in Told.__struct_fields__)
_REPORT = tuple(getattr(PanelOrder, name) for name in Unreported.__struct_fields__)
_STANDING = (
    PanelOrder.order_id,
    PanelOrder.status,
    PanelOrder.progress,
    PanelOrder.step,
    PanelOrder.acknowledged >= PanelOrder.sequence,
    Job.id,
    Job.status,
    Job.progress,
    Job.step,
    Job.error,
    Job.finished_at,
)
_unfinished = PanelOrder.finished_at.is_(None)


async def add_order(session: AsyncSession, order_id: str, **values: Any) -> bool:
    """False when the order is known already; nothing is changed then."""
    statement = insert(PanelOrder).values(order_id=order_id, **values).on_conflict_do_nothing()
    return (await session.execute(statement.returning(PanelOrder.order_id))).scalar_one_or_none() is not None


async def set_job(session: AsyncSession, order_id: str, job_id: str) -> None:
    await session.execute(update(PanelOrder).where(PanelOrder.order_id == order_id).values(job_id=job_id))


async def get_order(session: AsyncSession, order_id: str) -> Told | None:
    row = (await session.execute(select(*_TOLD).where(PanelOrder.order_id == order_id))).one_or_none()
    return Told(*row) if row is not None else None


async def lock_order(session: AsyncSession, order_id: str) -> Told | None:
    """As `get_order`, but nothing changes it for the rest of the transaction."""
    row = (await session.execute(select(*_TOLD).where(PanelOrder.order_id == order_id).with_for_update())).one_or_none()
    return Told(*row) if row is not None else None


async def begin_order(session: AsyncSession, order_id: str, job_id: str) -> bool:
    """From now on `job_id` does its work."""
    return await _report(session, order_id, "taken", status="running", job_id=job_id, sealed_args=None)


async def note_progress(session: AsyncSession, order_id: str, *, progress: int, step: str | None) -> bool:
    """A report of progress, unless the one before is still on its way."""
    waited_for = PanelOrder.acknowledged >= PanelOrder.sequence
    return await _report(session, order_id, "running", waited_for, progress=progress, step=step)


async def end_order(
    session: AsyncSession,
    order_id: str,
    status: Ended,
    *,
    of: OrderStatus,
    at: datetime | None = None,
    **values: Any,
) -> bool:
    """The last report; `at` is when it ended, now where that is not given."""
    ended = at if at is not None else func.clock_timestamp()
    last = {"status": status, "reported_at": ended, "finished_at": ended, "sealed_args": None}
    return await _report(session, order_id, of, **last | values)


async def _report(session: AsyncSession, order_id: str, of: OrderStatus, *conditions: Any, **values: Any) -> bool:
    values = {"reported_at": func.clock_timestamp()} | values
    statement = (
        update(PanelOrder)
        .where(PanelOrder.order_id == order_id, PanelOrder.status == of, *conditions)
        .values(sequence=PanelOrder.sequence + 1, **values)
        .returning(PanelOrder.order_id)
    )
    return (await session.execute(statement)).scalar_one_or_none() is not None


async def acknowledge(session: AsyncSession, order_id: str, sequence: int) -> None:
    """The panel has all reports up to `sequence`; one that was never made is not believed."""
    await session.execute(
        update(PanelOrder)
        .where(PanelOrder.order_id == order_id, PanelOrder.sequence >= sequence, PanelOrder.acknowledged < sequence)
        .values(acknowledged=sequence)
    )


async def find_unreported(session: AsyncSession, *, limit: int) -> list[Unreported]:
    """The last reports that the panel does not have, oldest first."""
    statement = select(*_REPORT).where(PanelOrder.acknowledged < PanelOrder.sequence)
    statement = statement.order_by(PanelOrder.reported_at, PanelOrder.order_id).limit(limit)
    return [Unreported(*row) for row in await session.execute(statement)]


async def find_reports(session: AsyncSession, order_ids: Collection[str]) -> list[Unreported]:
    """The last reports of the orders that are known, oldest first."""
    statement = select(*_REPORT).where(PanelOrder.order_id.in_(order_ids)).order_by(PanelOrder.reported_at)
    return [Unreported(*row) for row in await session.execute(statement)]


async def find_open(session: AsyncSession) -> list[Standing]:
    """All orders that have not ended, oldest first, with their jobs."""
    statement = (
        select(*_STANDING)
        .join(Job, Job.id == PanelOrder.job_id, isouter=True)
        .where(_unfinished)
        .order_by(PanelOrder.received_at, PanelOrder.order_id)
    )
    return [Standing(*row) for row in await session.execute(statement)]


async def tell_nobody(session: AsyncSession) -> None:
    """No report is sent any more: whoever gave the orders is not there to hear of them."""
    await session.execute(
        update(PanelOrder).where(PanelOrder.acknowledged < PanelOrder.sequence).values(acknowledged=PanelOrder.sequence)
    )


async def last_lines(session: AsyncSession, job_id: str, *, limit: int) -> list[str]:
    """The newest lines of a job's log, oldest first."""
    statement = select(JobLog.line).where(JobLog.job_id == job_id).order_by(JobLog.number.desc()).limit(limit)
    return [*(await session.execute(statement)).scalars()][::-1]


async def find_sealed(session: AsyncSession) -> list[tuple[str, bytes]]:
    """Id and sealed arguments of the orders that have some, locked: for a change of the master key."""
    statement = select(PanelOrder.order_id, PanelOrder.sealed_args).where(PanelOrder.sealed_args.is_not(None))
    rows = await session.execute(statement.order_by(PanelOrder.order_id).with_for_update())
    return [(order_id, sealed) for order_id, sealed in rows if sealed is not None]


async def replace_sealed(session: AsyncSession, order_id: str, sealed: bytes) -> None:
    await session.execute(update(PanelOrder).where(PanelOrder.order_id == order_id).values(sealed_args=sealed))


async def prune(session: AsyncSession, *, days: int, limit: int) -> int:
    """Forget orders that ended and expired `days` ago and that the panel knows the end of; gives how many."""
    past = func.clock_timestamp() - func.make_interval(0, 0, 0, days)
    old = (
        select(PanelOrder.order_id)
        .where(
            PanelOrder.finished_at < past,
            PanelOrder.acknowledged >= PanelOrder.sequence,
            or_(PanelOrder.expires_at.is_(None), PanelOrder.expires_at < past),
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    result = await session.execute(delete(PanelOrder).where(PanelOrder.order_id.in_(old)))
    assert isinstance(result, CursorResult)
    return result.rowcount
