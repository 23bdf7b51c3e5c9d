"""Every query about the one row of the link."""

from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.enrolment.models import PanelLink

_COLUMNS = tuple(PanelLink.__table__.columns)


async def get_link(session: AsyncSession, *, lock: bool = False) -> Any:
    """The row, also of a panel that was left; None before the first. Locked against changes where asked."""
    statement = select(*_COLUMNS)
    return (await session.execute(statement.with_for_update() if lock else statement)).one_or_none()


async def put_link(session: AsyncSession, **values: Any) -> None:
    """In place of one that was left."""
    await session.execute(delete(PanelLink).where(PanelLink.left_at.is_not(None)))
    await session.execute(insert(PanelLink).values(id=1, **values))


async def set_certificate(session: AsyncSession, certificate: str) -> None:
    await session.execute(update(PanelLink).values(certificate=certificate))


async def update_link(session: AsyncSession, **values: Any) -> None:
    await session.execute(update(PanelLink).values(**values))


async def leave(session: AsyncSession) -> None:
    await session.execute(update(PanelLink).values(left_at=func.clock_timestamp()))


async def hold_link(session: AsyncSession, instance_id: str) -> bool:
    """Whether this server belongs to the panel as `instance_id`; it does not leave before the transaction ends."""
    held = select(PanelLink.id).where(PanelLink.left_at.is_(None), PanelLink.instance_id == instance_id)
    return (await session.execute(held.with_for_update(read=True))).first() is not None
