"""What the API shows of events, and what it can be asked for."""

from datetime import datetime
from typing import Annotated, Any

import msgspec

from quazzar.core.errors import BadRequest
from quazzar.core.schema import Meta, Out, read_time


class EventOut(Out):
    """Something that happened. `subject` is the id of what it happened to; `data` is described by its `type`."""

    id: Annotated[str, Meta(examples=["evt_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    type: Annotated[str, Meta(examples=["app.installed"])]
    created_at: datetime
    subject: Annotated[str | None, Meta(examples=["app_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    data: Annotated[dict[str, Any], Meta(examples=[{"app_id": "app_3k2m4v7q3n5t2ac6xk2m4v7q3n", "name": "blog"}])]

    @classmethod
    def of(cls, row: Any) -> "EventOut":
        return cls(row.id, row.type, row.created_at, row.subject, row.data)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a feed is narrowed to. `areas` are the parts of types before the dot; an empty narrowing narrows nothing."""

    types: frozenset[str] = frozenset()
    areas: frozenset[str] = frozenset()
    subject: str | None = None
    since: datetime | None = None

    def fits(self, event: EventOut) -> bool:
        """As the store's query decides, for an event that was read already."""
        if (self.types or self.areas) and event.type not in self.types and area_of(event.type) not in self.areas:
            return False
        if self.subject is not None and event.subject != self.subject:
            return False
        return self.since is None or event.created_at >= self.since


def area_of(event_type: str) -> str:
    return event_type.partition(".")[0]


def wanted_of(types: str | None, subject: str | None, since: str | None) -> Wanted:
    """From the query: `types` is a list by commas of types and of whole areas (`app.*`).

    Raises `BadRequest` when `since` is no time in RFC 3339 form with a zone.
    """
    names = frozenset(types.split(",")) if types else frozenset()
    try:
        moment = read_time(since) if since is not None else None
    except msgspec.ValidationError:
        details = {"since": "Since must be a time in RFC 3339 form with a zone"}
        raise BadRequest("A parameter can't be read", details=details) from None
    return Wanted(
        types=frozenset(name for name in names if not name.endswith(".*")),
        areas=frozenset(name.removesuffix(".*") for name in names if name.endswith(".*")),
        subject=subject,
        since=moment,
    )
