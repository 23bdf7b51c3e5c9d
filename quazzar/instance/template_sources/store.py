"""Every query on template sources."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.paging import Page
from quazzar.instance.template_sources.models import TemplateSource

Found = Row[*tuple[Any, ...]]
_SHOWN = tuple(TemplateSource.__table__.columns)


async def find_sources(session: AsyncSession, page: Page) -> Sequence[Found]:
    query = select(*_SHOWN).order_by(TemplateSource.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(TemplateSource.id < page.after)
    return (await session.execute(query)).all()


async def get_source(session: AsyncSession, source_id: str, *, lock: bool = False) -> Found | None:
    query = select(*_SHOWN).where(TemplateSource.id == source_id)
    return (await session.execute(query.with_for_update() if lock else query)).one_or_none()


async def find_ids(session: AsyncSession) -> Sequence[str]:
    return (await session.execute(select(TemplateSource.id).order_by(TemplateSource.id))).scalars().all()


async def add_source(session: AsyncSession, **values: Any) -> None:
    await session.execute(insert(TemplateSource).values(**values))


async def update_source(session: AsyncSession, source_id: str, **values: Any) -> None:
    await session.execute(update(TemplateSource).where(TemplateSource.id == source_id).values(**values))


async def delete_source(session: AsyncSession, source_id: str) -> None:
    """Its templates go with it."""
    await session.execute(delete(TemplateSource).where(TemplateSource.id == source_id))
