"""The feed over HTTP, the same in both APIs."""

from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, Page, page_of, paged
from quazzar.core.routing import get
from quazzar.core.sse import last_event_id, server_events
from quazzar.events.schemas import EventOut, Wanted, wanted_of
from quazzar.events.service import EVENT_ID, EventService, follow
from quazzar.events.store import Scope

_TYPE = r"[a-z][a-z0-9_]{0,40}\.(?:[a-z][a-z0-9_]{0,40}|\*)"

Types = Annotated[
    str | None,
    QueryParameter(
        max_length=1000,
        pattern=rf"^{_TYPE}(?:,{_TYPE})*\Z",
        description="Only events of these types, by commas: `app.crashed`, or `app.*` for a whole area.",
    ),
]
Subject = Annotated[
    str | None,
    QueryParameter(pattern=r"^[A-Za-z0-9_.-]{1,100}\Z", description="Only events about the thing of this id."),
]
Since = Annotated[
    str | None,
    QueryParameter(max_length=50, description="Only events from this time on.", schema_extra={"format": "date-time"}),
]
Follow = Annotated[bool, QueryParameter(description="Keep sending what comes, as server-sent events.")]


async def provide_events(session: NamedDependency[AsyncSession], request: Request[Any, Any, Any]) -> EventService:
    return EventService(session, Scope.of(principal_of(request)))


class EventController(Controller):
    path = "/events"
    tags = ("Events",)
    dependencies = {"events": Provide(provide_events)}

    @get(
        guards=[requires("jobs:read")],
        operation_id="ListEvents",
        summary="Events, newest first",
        responses={200: ResponseSpec(list[EventOut], description="Events, newest first", generate_examples=False)},
    )
    async def list_events(
        self,
        request: Request[Any, Any, Any],
        events: NamedDependency[EventService],
        type: Types = None,  # noqa: A002 - its name in the query
        subject: Subject = None,
        since: Since = None,
        follow: Follow = False,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[Any]:
        """What happened. Events of logins and keys (`auth.*`) are shown to who may also read the audit log, and a key
        that is bound to apps sees the events about those alone. Kept for 90 days.

        With `follow=true` the answer is a stream of server-sent events, oldest first, one for each event with its `id`:
        from now on, from `since` on, or right after the one that `Last-Event-ID` names, without a gap. A reader that is
        too slow is dropped, and may come again with the last `id` that it saw.
        """
        wanted = wanted_of(type, subject, since)
        page = page_of(limit, cursor, key=EVENT_ID.pattern)
        return await (_follow(request, events, wanted) if follow else _list(request, events, wanted, page))


async def _list(request: Request[Any, Any, Any], events: EventService, wanted: Wanted, page: Page) -> Response[Any]:
    return paged(request, page, await events.find(wanted, page), EventOut.of, lambda event: event.id)


async def _follow(request: Request[Any, Any, Any], events: EventService, wanted: Wanted) -> Response[Any]:
    position = await events.start_of(wanted, last_event_id(request))
    return server_events(request, follow(request.app.state.feed, events.scope, wanted, position=position))


handlers: list[type[Controller]] = [EventController]
