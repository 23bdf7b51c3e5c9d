"""Every query on private registries."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import wait_alone
from quazzar.core.paging import Page
from quazzar.instance.registries.models import Registry

Found = Row[*tuple[Any, ...]]
"""A row with the columns of `_SHOWN`."""

_SHOWN = (Registry.id, Registry.host, Registry.username, Registry.created_at, Registry.updated_at)


async def find_registries(session: AsyncSession, page: Page) -> Sequence[Found]:
    """Newest first; one more than the page shows."""
    query = select(*_SHOWN).order_by(Registry.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(Registry.id < page.after)
    return (await session.execute(query)).all()


async def get_registry(session: AsyncSession, registry_id: str, *, lock: bool = False) -> Found | None:
    """With `lock` nobody else changes it before this transaction has ended."""
    query = select(*_SHOWN).where(Registry.id == registry_id)
    return (await session.execute(query.with_for_update() if lock else query)).one_or_none()


async def count_registries(session: AsyncSession) -> int:
    """Nobody else counts before this transaction has ended."""
    await wait_alone(session, "registries")
    return (await session.execute(select(func.count()).select_from(Registry))).scalar_one()


async def add_registry(session: AsyncSession, **values: Any) -> None:
    """The unique index on the host decides who was first."""
    await session.execute(insert(Registry).values(**values))


async def update_registry(session: AsyncSession, registry_id: str, **values: Any) -> None:
    await session.execute(
        update(Registry).where(Registry.id == registry_id).values(**values, updated_at=func.clock_timestamp())
    )


async def delete_registry(session: AsyncSession, registry_id: str) -> None:
    await session.execute(delete(Registry).where(Registry.id == registry_id))


async def find_logins(session: AsyncSession, hosts: Collection[str]) -> Sequence[Row[str, str, str, bytes]]:
    """Id, host, user name and sealed password of those of `hosts` that have a login."""
    query = select(Registry.id, Registry.host, Registry.username, Registry.sealed).where(Registry.host.in_(hosts))
    return (await session.execute(query)).all()


async def find_sealed(session: AsyncSession) -> Sequence[Row[str, str, bytes]]:
    """Id, host and sealed password of all, held against other changes."""
    query = select(Registry.id, Registry.host, Registry.sealed).order_by(Registry.id).with_for_update()
    return (await session.execute(query)).all()


async def replace_sealed(session: AsyncSession, registry_id: str, sealed: bytes) -> None:
    """The same password under another key: nothing that anybody would call a change."""
    await session.execute(update(Registry).where(Registry.id == registry_id).values(sealed=sealed))
