"""The rules of the feed: who sees what, how a stream resumes, and how long events are kept."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import Database, see_all_tenants
from quazzar.core.errors import BadRequest, Forbidden
from quazzar.core.paging import MOST, Page
from quazzar.core.records import Event
from quazzar.core.sse import ServerEvent
from quazzar.events import store
from quazzar.events.feed import Feed
from quazzar.events.schemas import EventOut, Wanted, area_of
from quazzar.events.store import Found, Scope

EVENT_ID: Final = re.compile(r"evt_[2-7a-z]{26}")
RETENTION_DAYS: Final = 90
_PRUNE_BATCH: Final = 5_000


class EventService:
    """Events within one caller's scope, in one transaction."""

    def __init__(self, session: AsyncSession, scope: Scope) -> None:
        self.session = session
        self.scope = scope

    async def find(self, wanted: Wanted, page: Page) -> Sequence[Found]:
        """Newest first. Raises `Forbidden` when only events are asked for that the caller must not see."""
        self.check(wanted)
        before = await store.position_of(self.scope, self.session, page.after) if page.after is not None else None
        return await store.find_events(self.scope, self.session, wanted, before=before, limit=page.fetch)

    def check(self, wanted: Wanted) -> None:
        areas = wanted.areas | {area_of(one) for one in wanted.types}
        if areas == {store.ACCOUNT_AREA} and not self.scope.sees_accounts:
            raise Forbidden(f"Events of logins need the scope {store.AUDIT_SCOPE}", code="scope_missing")

    async def start_of(self, wanted: Wanted, last_seen: str | None) -> int | None:
        """The position that a stream goes on from: after `last_seen`, else with `since`; None means from now on.

        Raises `BadRequest` for what is no event's id, and `Forbidden` as `find` does.
        """
        self.check(wanted)
        if last_seen is None:
            return 0 if wanted.since is not None else None
        if EVENT_ID.fullmatch(last_seen) is None:
            details = {"Last-Event-ID": "Last-Event-ID must be the id of an event"}
            raise BadRequest("A header can't be read", details=details)
        return await store.position_of(self.scope, self.session, last_seen)


async def follow(feed: Feed, scope: Scope, wanted: Wanted, *, position: int | None) -> AsyncIterator[ServerEvent]:
    """Events as they happen, without a gap from `position` on; ends when the caller is too slow for the feed."""
    if position is not None:
        # Far behind, a caller reads at its own pace; it joins the feed once it is near its end.
        async for row in _rows(feed.database, scope, wanted, after=position, to=None):
            position = row.position
            yield _shown(EventOut.of(row))
    follower = await feed.join(scope, wanted)
    with feed.leaving(follower, scope):
        if position is not None:
            async for row in _rows(feed.database, scope, wanted, after=position, to=follower.joined_at):
                yield _shown(EventOut.of(row))
        while (event := await follower.next()) is not None:
            yield _shown(event)


def _shown(event: EventOut) -> ServerEvent:
    return ServerEvent(id=event.id, data=event)


async def _rows(
    database: Database, scope: Scope, wanted: Wanted, *, after: int, to: int | None
) -> AsyncIterator[Found]:
    """In batches of a short transaction each: none is open while a reader takes its time."""
    while True:
        async with database.begin(tenant=scope.tenant_id) as session:
            rows = await store.find_next(scope, session, wanted, after=after, to=to, limit=MOST)
        for row in rows:
            after = row.position
            yield row
        if len(rows) < MOST:
            return


async def has_been_announced(session: AsyncSession, kind: type[Event], *, hours: int) -> bool:
    """Whether the instance has announced such an event within the last `hours`: for what is said again now and then."""
    return await store.has_event(session, kind.type, hours=hours)


async def prune_events(database: Database) -> None:
    """Forget events beyond their age, in batches."""
    removed = _PRUNE_BATCH
    while removed == _PRUNE_BATCH:
        async with database.begin() as session:
            await see_all_tenants(session)
            removed = await store.prune_events(session, days=RETENTION_DAYS, limit=_PRUNE_BATCH)
