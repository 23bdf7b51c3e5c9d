"""Every query on what the panel has not got yet."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.enrolment.models import PanelLink, PanelSpool


async def add_samples(session: AsyncSession, instance_id: str, samples: Sequence[tuple[datetime, bytes]]) -> None:
    """For the panel in which this instance has this id; without such a link nothing is kept."""
    for at, sample in samples:
        kept = select(PanelLink.instance_id, literal(at, PanelSpool.at.type), literal(sample, PanelSpool.sample.type))
        await session.execute(
            insert(PanelSpool).from_select(
                ["instance_id", "at", "sample"],
                kept.where(PanelLink.instance_id == instance_id, PanelLink.left_at.is_(None)),
            )
        )


async def find_samples(session: AsyncSession, instance_id: str, *, limit: int) -> Sequence[Any]:
    """The oldest: number and sample of each."""
    query = select(PanelSpool.number, PanelSpool.sample).where(PanelSpool.instance_id == instance_id)
    return (await session.execute(query.order_by(PanelSpool.number).limit(limit))).all()


async def delete_samples(session: AsyncSession, *, until: int) -> None:
    await session.execute(delete(PanelSpool).where(PanelSpool.number <= until))


async def prune_samples(session: AsyncSession, *, before: datetime, most: int) -> None:
    """Forget those that are older, and the oldest of more than `most`."""
    newest = select(PanelSpool.number).order_by(PanelSpool.number.desc()).offset(most).limit(1).scalar_subquery()
    await session.execute(delete(PanelSpool).where(or_(PanelSpool.at < before, PanelSpool.number <= newest)))


async def clear_samples(session: AsyncSession) -> None:
    await session.execute(delete(PanelSpool))
