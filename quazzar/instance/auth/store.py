"""Queries about the first setup."""

from sqlalchemy import exists, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.auth.models import InstanceSetup


async def is_set_up(session: AsyncSession) -> bool:
    return bool((await session.execute(select(exists().where(InstanceSetup.id == 1)))).scalar_one())


async def claim_setup(session: AsyncSession, user_id: str) -> None:
    """Insert the one row; breaks its unique constraint for all but the first, who wait for the first to commit."""
    await session.execute(insert(InstanceSetup).values(id=1, user_id=user_id))
