"""Every query about sessions of panel users."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Interval, bindparam, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.models import LastUse
from quazzar.core.db import Query
from quazzar.core.paging import Page
from quazzar.core.records import AuditHead, AuditRecord
from quazzar.instance.impersonation.models import Impersonation

CHAIN: Final = "instance"
_KEPT: Final = timedelta(days=30)

_open = (Impersonation.ended_at.is_(None), Impersonation.expires_at > func.now())


class Opened(msgspec.Struct, frozen=True):
    """A session that is open now."""

    id: str
    panel_user: str
    panel_user_name: str
    reason: str
    ip: str
    created_at: datetime
    expires_at: datetime


_OPENED = tuple(getattr(Impersonation, name) for name in Opened.__struct_fields__)

opened_by_cookie: Query[Opened] = Query(
    select(*_OPENED).where(Impersonation.cookie_hash == bindparam("cookie_hash"), *_open), Opened
)
opened_by_id: Query[Opened] = Query(select(*_OPENED).where(Impersonation.id == bindparam("id"), *_open), Opened)


async def claim(session: AsyncSession, **values: Any) -> bool:
    """Open a session for a token; False when the token was used before. Of several at once one gets it."""
    told = select(func.coalesce(func.max(AuditHead.number), 0)).where(AuditHead.chain == CHAIN).scalar_subquery()
    statement = (
        insert(Impersonation)
        .values(told_number=told, **values)
        .on_conflict_do_nothing(index_elements=[Impersonation.token_id])
        .returning(Impersonation.id)
    )
    return (await session.execute(statement)).scalar_one_or_none() is not None


async def find_open(session: AsyncSession, page: Page) -> Sequence[Any]:
    """Newest first."""
    statement = (
        select(
            *_OPENED,
            Impersonation.user_agent,
            func.coalesce(LastUse.used_at, Impersonation.created_at).label("last_used_at"),
        )
        .outerjoin(LastUse, LastUse.id == Impersonation.id)
        .where(*_open)
        .order_by(Impersonation.id.desc())
        .limit(page.fetch)
    )
    if page.after is not None:
        statement = statement.where(Impersonation.id < page.after)
    return (await session.execute(statement)).all()


async def end(session: AsyncSession, *, only: str | None = None) -> Sequence[Any]:
    """End the session `only`, or all, that nobody has ended yet; gives id and panel user of each.

    One whose time is over is among them: somebody has to write its end down.
    """
    statement = update(Impersonation).where(Impersonation.ended_at.is_(None)).values(ended_at=func.now())
    if only is not None:
        statement = statement.where(Impersonation.id == only)
    return (await session.execute(statement.returning(Impersonation.id, Impersonation.panel_user))).all()


async def forget_old(session: AsyncSession) -> None:
    """Their records stay in the audit log; a token is long over by then."""
    limit = func.now() - literal(_KEPT, Interval())
    await session.execute(delete(Impersonation).where(Impersonation.created_at < limit))


# --- what the panel is told ----------------------------------------------------------------------------------------


async def find_untold(session: AsyncSession, instance_id: str) -> Sequence[Any]:
    """The sessions under this link of which the panel may not know everything yet, oldest first."""
    statement = (
        select(Impersonation.id, Impersonation.token_id, Impersonation.told_number, Impersonation.ended_at)
        .where(Impersonation.told_at.is_(None), Impersonation.instance_id == instance_id)
        .order_by(Impersonation.id)
    )
    return (await session.execute(statement)).all()


async def find_deeds(session: AsyncSession, impersonation_id: str, *, after: int, limit: int) -> Sequence[Any]:
    """What the audit log has of a session behind the number `after`, in order."""
    statement = (
        select(
            AuditRecord.number,
            AuditRecord.created_at,
            AuditRecord.action,
            AuditRecord.subject,
            AuditRecord.outcome,
            AuditRecord.actor_kind,
        )
        .where(AuditRecord.chain == CHAIN, AuditRecord.number > after, AuditRecord.impersonation == impersonation_id)
        .order_by(AuditRecord.number)
        .limit(limit)
    )
    return (await session.execute(statement)).all()


async def mark_told(session: AsyncSession, token_id: str, number: int) -> None:
    """The panel knows what was done up to this number."""
    told = func.greatest(Impersonation.told_number, number)
    await session.execute(update(Impersonation).where(Impersonation.token_id == token_id).values(told_number=told))


async def mark_all_told(session: AsyncSession, impersonation_id: str, *, ended_for: timedelta) -> None:
    """Nothing more comes of a session that ended that long ago."""
    over = Impersonation.ended_at < func.now() - literal(ended_for, Interval())
    await session.execute(
        update(Impersonation).where(Impersonation.id == impersonation_id, over).values(told_at=func.now())
    )
