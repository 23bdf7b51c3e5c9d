"""Every query about channels; each within the scope of its caller."""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.channels.models import NotificationChannel
from quazzar.core.auth import Realm
from quazzar.core.db import see_all_tenants, wait_alone
from quazzar.core.paging import Page

Found = Row[*tuple[Any, ...]]
"""A row with the columns that its query names."""


class Scope(msgspec.Struct, frozen=True):
    """Whose channels are meant: those of the instance, or of one tenant of the panel."""

    realm: Realm
    tenant_id: str | None = None

    @property
    def condition(self) -> ColumnElement[bool]:
        own = NotificationChannel.tenant_id.is_not_distinct_from(self.tenant_id)
        return and_(NotificationChannel.realm == self.realm, own)


_COLUMNS = tuple(NotificationChannel.__table__.columns)


async def find_channels(scope: Scope, session: AsyncSession, page: Page) -> Sequence[Found]:
    """Newest first; one more than the page shows."""
    query = select(*_COLUMNS).where(scope.condition).order_by(NotificationChannel.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(NotificationChannel.id < page.after)
    return (await session.execute(query)).all()


async def find_enabled(scope: Scope, session: AsyncSession, ids: Collection[str] | None) -> Sequence[Found]:
    """Those of `ids` that are enabled; all that are with None."""
    query = select(*_COLUMNS).where(scope.condition, NotificationChannel.enabled)
    if ids is not None:
        query = query.where(NotificationChannel.id.in_(ids))
    return (await session.execute(query.order_by(NotificationChannel.id))).all()


async def find_known(scope: Scope, session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Those of `ids` that exist; they are there until this transaction has ended."""
    query = select(NotificationChannel.id).where(scope.condition, NotificationChannel.id.in_(ids))
    locked = query.order_by(NotificationChannel.id).with_for_update(read=True, key_share=True)
    return set((await session.execute(locked)).scalars())


async def get_channel(scope: Scope, session: AsyncSession, channel_id: str, *, lock: bool = False) -> Found | None:
    """With `lock` nobody else changes it before this transaction has ended."""
    query = select(*_COLUMNS).where(scope.condition, NotificationChannel.id == channel_id)
    return (await session.execute(query.with_for_update(key_share=True) if lock else query)).one_or_none()


async def count_channels(scope: Scope, session: AsyncSession) -> int:
    """Nobody else counts before this transaction has ended."""
    await wait_alone(session, f"notification_channels {scope.realm} {scope.tenant_id}")
    query = select(func.count()).select_from(NotificationChannel).where(scope.condition)
    return (await session.execute(query)).scalar_one()


async def add_channel(scope: Scope, session: AsyncSession, **values: Any) -> None:
    await session.execute(insert(NotificationChannel).values(realm=scope.realm, tenant_id=scope.tenant_id, **values))


async def update_channel(scope: Scope, session: AsyncSession, channel_id: str, **values: Any) -> None:
    await session.execute(
        update(NotificationChannel)
        .where(scope.condition, NotificationChannel.id == channel_id)
        .values(updated_at=func.clock_timestamp(), **values)
    )


async def note_delivered(scope: Scope, session: AsyncSession, channel_id: str) -> None:
    await _note(scope, session, channel_id, last_delivered_at=func.clock_timestamp(), last_error=None)


async def note_failed(scope: Scope, session: AsyncSession, channel_id: str, error: str) -> None:
    await _note(scope, session, channel_id, last_failed_at=func.clock_timestamp(), last_error=error)


async def _note(scope: Scope, session: AsyncSession, channel_id: str, **values: Any) -> None:
    own = update(NotificationChannel).where(scope.condition, NotificationChannel.id == channel_id)
    await session.execute(own.values(**values))


async def delete_channel(scope: Scope, session: AsyncSession, channel_id: str) -> None:
    await session.execute(delete(NotificationChannel).where(scope.condition, NotificationChannel.id == channel_id))


async def find_sealed(session: AsyncSession) -> Sequence[Found]:
    """Every secret of every channel of every tenant, locked."""
    await see_all_tenants(session)
    query = select(NotificationChannel.id, NotificationChannel.sealed, NotificationChannel.former_sealed)
    return (await session.execute(query.where(NotificationChannel.sealed.is_not(None)).with_for_update())).all()


async def replace_sealed(session: AsyncSession, channel_id: str, **sealed: bytes | None) -> None:
    await session.execute(update(NotificationChannel).where(NotificationChannel.id == channel_id).values(**sealed))
