"""Every query about audit records; each within one chain."""

from collections.abc import Sequence
from typing import Any, get_args

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.audit.schemas import AuditFilter
from quazzar.core.auth import Principal
from quazzar.core.records import ActorKind, AuditHead, AuditRecord

Found = Row[*tuple[Any, ...]]

_KINDS = frozenset(get_args(ActorKind))


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Whose log is meant: that of one API, on the panel of one tenant, for a bound key only about its things."""

    chain: str
    tenant_id: str | None = None
    subjects: frozenset[str] | None = None

    @classmethod
    def of(cls, principal: Principal) -> "Scope":
        realm, tenant = principal.realm, principal.tenant_id
        chain = realm if tenant is None else f"{realm}:{tenant}"
        return cls(chain=chain, tenant_id=tenant, subjects=principal.resources)

    @property
    def condition(self) -> ColumnElement[bool]:
        own = and_(AuditRecord.chain == self.chain, AuditRecord.tenant_id.is_not_distinct_from(self.tenant_id))
        return own if self.subjects is None else and_(own, AuditRecord.subject.in_(sorted(self.subjects)))


_COLUMNS = tuple(AuditRecord.__table__.columns)


def _records(scope: Scope, narrowed: AuditFilter) -> Select[*tuple[Any, ...]]:
    query = select(*_COLUMNS).where(scope.condition)
    for column, value in (
        (AuditRecord.action, narrowed.action),
        (AuditRecord.subject, narrowed.subject),
        (AuditRecord.outcome, narrowed.outcome),
    ):
        if value is not None:
            query = query.where(column == value)
    if narrowed.actor is not None:
        column = AuditRecord.actor_kind if narrowed.actor in _KINDS else AuditRecord.actor_id
        query = query.where(column == narrowed.actor)
    if narrowed.since is not None:
        query = query.where(AuditRecord.created_at >= narrowed.since)
    if narrowed.until is not None:
        query = query.where(AuditRecord.created_at < narrowed.until)
    return query


async def find_records(
    scope: Scope, session: AsyncSession, narrowed: AuditFilter, *, before: int | None, limit: int
) -> Sequence[Found]:
    """Newest first, those before the number `before`."""
    query = _records(scope, narrowed).order_by(AuditRecord.number.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditRecord.number < before)
    return (await session.execute(query)).all()


async def find_next(
    scope: Scope, session: AsyncSession, narrowed: AuditFilter, *, after: int, limit: int
) -> Sequence[Found]:
    """Oldest first, those after the number `after`."""
    query = _records(scope, narrowed).where(AuditRecord.number > after).order_by(AuditRecord.number).limit(limit)
    return (await session.execute(query)).all()


class Head(msgspec.Struct, frozen=True):
    """Where a chain ends by its head."""

    number: int
    hash: bytes


async def get_head(session: AsyncSession, chain: str) -> Head | None:
    row = (
        await session.execute(select(AuditHead.number, AuditHead.hash).where(AuditHead.chain == chain))
    ).one_or_none()
    return Head(row.number, bytes(row.hash)) if row is not None else None


async def find_links(session: AsyncSession, chain: str, *, after: int, to: int, limit: int) -> Sequence[Found]:
    """Whole rows of a chain in the order of their numbers."""
    query = (
        select(*_COLUMNS)
        .where(AuditRecord.chain == chain, AuditRecord.number > after, AuditRecord.number <= to)
        .order_by(AuditRecord.number)
        .limit(limit)
    )
    return (await session.execute(query)).all()


async def find_beyond_head(session: AsyncSession, chain: str) -> Found | None:
    """The first record that the chain's head does not know of, both as of one moment."""
    head = select(AuditHead.number).where(AuditHead.chain == chain).scalar_subquery()
    query = (
        select(AuditRecord.id, AuditRecord.number)
        .where(AuditRecord.chain == chain, AuditRecord.number > func.coalesce(head, 0))
        .order_by(AuditRecord.number)
        .limit(1)
    )
    return (await session.execute(query)).one_or_none()


async def find_chains(session: AsyncSession) -> Sequence[str]:
    """All chains that have a head or a record."""
    heads = select(AuditHead.chain)
    return (await session.execute(heads.union(select(AuditRecord.chain)).order_by("chain"))).scalars().all()
