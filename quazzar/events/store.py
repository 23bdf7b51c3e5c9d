"""Every query about events; each within the scope of its caller, but for the reader that serves all followers."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, CursorResult, Row, Select, and_, func, not_, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal, Realm
from quazzar.core.records import EventRow
from quazzar.events.schemas import EventOut, Wanted, area_of

Found = Row[*tuple[Any, ...]]

ACCOUNT_AREA: Final = "auth"
"""Who logged in from where is for those who may read the audit log."""

AUDIT_SCOPE: Final = "audit:read"


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Whose events are meant: those of one API, on the panel of one tenant, for a bound key only about its things."""

    realm: Realm
    tenant_id: str | None = None
    subjects: frozenset[str] | None = None
    sees_accounts: bool = True

    @classmethod
    def of(cls, principal: Principal) -> "Scope":
        return cls(
            realm=principal.realm,
            tenant_id=principal.tenant_id,
            subjects=principal.resources,
            sees_accounts=principal.allows(AUDIT_SCOPE),
        )

    @property
    def condition(self) -> ColumnElement[bool]:
        parts = [EventRow.realm == self.realm, EventRow.tenant_id.is_not_distinct_from(self.tenant_id)]
        if self.subjects is not None:
            parts.append(EventRow.subject.in_(sorted(self.subjects)))
        if not self.sees_accounts:
            parts.append(not_(func.starts_with(EventRow.type, f"{ACCOUNT_AREA}.")))
        return and_(*parts)

    def sees(self, event: EventOut) -> bool:
        """As `condition` decides, for an event of this realm and tenant that was read already."""
        if self.subjects is not None and event.subject not in self.subjects:
            return False
        return self.sees_accounts or area_of(event.type) != ACCOUNT_AREA


_COLUMNS = (EventRow.position, EventRow.id, EventRow.type, EventRow.created_at, EventRow.subject, EventRow.data)


def _events(scope: Scope, wanted: Wanted) -> Select[*tuple[Any, ...]]:
    query = select(*_COLUMNS).where(scope.condition)
    if wanted.types or wanted.areas:
        named: list[ColumnElement[bool]] = [EventRow.type.in_(sorted(wanted.types))]
        named += [func.starts_with(EventRow.type, f"{area}.") for area in sorted(wanted.areas)]
        query = query.where(or_(*named))
    if wanted.subject is not None:
        query = query.where(EventRow.subject == wanted.subject)
    if wanted.since is not None:
        query = query.where(EventRow.created_at >= wanted.since)
    return query


async def find_events(
    scope: Scope, session: AsyncSession, wanted: Wanted, *, before: int | None, limit: int
) -> Sequence[Found]:
    """Newest first, those before the position `before`."""
    query = _events(scope, wanted).order_by(EventRow.position.desc()).limit(limit)
    if before is not None:
        query = query.where(EventRow.position < before)
    return (await session.execute(query)).all()


async def find_next(
    scope: Scope, session: AsyncSession, wanted: Wanted, *, after: int, to: int | None, limit: int
) -> Sequence[Found]:
    """Oldest first, those after the position `after` and not beyond `to`."""
    query = _events(scope, wanted).where(EventRow.position > after).order_by(EventRow.position).limit(limit)
    if to is not None:
        query = query.where(EventRow.position <= to)
    return (await session.execute(query)).all()


async def position_of(scope: Scope, session: AsyncSession, event_id: str) -> int:
    """Where the event stands in the feed.

    One that is gone, or that the caller can't see, stands before the first one with a greater id that is left: ids
    begin with the time. Behind everything when there is none.
    """
    own = select(EventRow.position).where(scope.condition)
    found = (await session.execute(own.where(EventRow.id == event_id))).scalar_one_or_none()
    if found is not None:
        return found
    later = select(func.min(EventRow.position) - 1).where(scope.condition, EventRow.id > event_id)
    position: int | None = (await session.execute(later)).scalar_one()
    return position if position is not None else await last_position(session)


async def last_position(session: AsyncSession) -> int:
    """The greatest position that is visible to the transaction; 0 when there is none."""
    return (await session.execute(select(func.coalesce(func.max(EventRow.position), 0)))).scalar_one()


_ANY = select(EventRow.realm, EventRow.tenant_id, *_COLUMNS).order_by(EventRow.position)


async def find_any(session: AsyncSession, *, after: int, limit: int) -> Sequence[Found]:
    """Events of everybody after the position `after`, oldest first, with `realm` and `tenant_id`."""
    return (await session.execute(_ANY.where(EventRow.position > after).limit(limit))).all()


async def has_event(session: AsyncSession, type_: str, *, hours: int) -> bool:
    """Whether the instance has announced an event of the type within the last `hours`."""
    recent = EventRow.created_at > func.clock_timestamp() - func.make_interval(0, 0, 0, 0, hours)
    wanted = select(EventRow.id).where(EventRow.realm == "instance", EventRow.type == type_, recent).limit(1)
    return (await session.execute(wanted)).scalar_one_or_none() is not None


_PRUNE = text(
    "DELETE FROM events WHERE position IN (SELECT position FROM events"
    " WHERE created_at < now() - make_interval(days => :days) ORDER BY position LIMIT :limit)"
)


async def prune_events(session: AsyncSession, *, days: int, limit: int) -> int:
    """Forget up to `limit` events that are older than `days`; gives how many."""
    result = await session.execute(_PRUNE, {"days": days, "limit": limit})
    assert isinstance(result, CursorResult)
    return result.rowcount
