"""From the feed of events to deliveries: each event once for each endpoint that waits for it.

The cursor moves in the transaction that makes the deliveries, so an event is neither forgotten nor fanned out twice,
however many processes try and wherever one of them is killed.
"""

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from quazzar.core.ids import new_id
from quazzar.webhooks.events import WebhookTested
from quazzar.webhooks.sending import body_of
from quazzar.webhooks.store import CHANNEL

EVENTS_AT_ONCE = 200
DELIVERIES_AT_ONCE = 2_000

# Whoever finds the row locked leaves the work to the one that holds it: both hear of every event.
_CURSOR = "SELECT position FROM webhook_cursor FOR UPDATE SKIP LOCKED"
_EVENTS = """
SELECT position, id, realm, tenant_id, type, data::text AS data, created_at FROM events
WHERE position > $1 ORDER BY position LIMIT $2
"""
_ENDPOINTS = """
SELECT id, realm, tenant_id, events, start_position FROM webhooks
WHERE active AND (tenant_id IS NULL OR tenant_id = ANY ($1::text[]))
"""
_INSERT = """
INSERT INTO webhook_deliveries (id, webhook_id, realm, tenant_id, event_id, type, body, next_attempt_at)
SELECT *, now() + make_interval(secs => $8)
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[])
"""
# Locked in one order by everybody who locks several. The update is never left out: it is what a deliverer that is just
# about to leave the lane has to wait for, or to be waited for by.
_DUE = """
UPDATE webhook_lanes SET due_at = LEAST(due_at, now() + make_interval(secs => $2)), updated_at = now()
WHERE webhook_id IN (
    SELECT webhook_id FROM webhook_lanes WHERE webhook_id = ANY ($1::text[]) ORDER BY webhook_id FOR NO KEY UPDATE
)
"""
_MOVE = "UPDATE webhook_cursor SET position = $1"


class Dispatched(msgspec.Struct, frozen=True):
    """What one step did; `more` says that the feed may hold more already."""

    deliveries: int = 0
    more: bool = False


class _Endpoint:
    """What an endpoint waits for."""

    __slots__ = ("areas", "everything", "id", "key", "start", "types")

    def __init__(self, row: Any) -> None:
        self.id: str = row["id"]
        self.key = (row["realm"], row["tenant_id"])
        self.start: int = row["start_position"]
        names: list[str] = row["events"]
        self.everything = "*" in names
        self.types = frozenset(names)
        self.areas = tuple(name[:-1] for name in names if name.endswith(".*"))

    def waits_for(self, position: int, event_type: str) -> bool:
        wanted = self.everything or event_type in self.types or event_type.startswith(self.areas)
        return wanted and position > self.start


async def dispatch(connection: "asyncpg.Connection[Any]", first_delay: float) -> Dispatched:
    """Fan out the next events of the feed in one transaction; safe to run again whenever it did not succeed."""
    async with connection.transaction():
        position = await connection.fetchval(_CURSOR)
        if position is None:
            return Dispatched()
        events = await connection.fetch(_EVENTS, position, EVENTS_AT_ONCE)
        if not events:
            return Dispatched()
        endpoints: dict[Any, list[_Endpoint]] = {}
        for row in await connection.fetch(_ENDPOINTS, list({event["tenant_id"] for event in events} - {None})):
            endpoint = _Endpoint(row)
            endpoints.setdefault(endpoint.key, []).append(endpoint)
        rows: list[tuple[Any, ...]] = []
        for number, event in enumerate(events):
            found = _deliveries(event, endpoints.get((event["realm"], event["tenant_id"]), ()))
            if rows and len(rows) + len(found) > DELIVERIES_AT_ONCE:
                events = events[:number]
                break
            rows += found
        if rows:
            await connection.execute(_INSERT, *map(list, zip(*rows, strict=True)), first_delay)
            await connection.execute(_DUE, list({row[1] for row in rows}), first_delay)
            await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        await connection.execute(_MOVE, events[-1]["position"])
    return Dispatched(len(rows), more=True)


def _deliveries(event: Any, endpoints: Sequence[_Endpoint]) -> list[tuple[Any, ...]]:
    kind: str = event["type"]
    if kind == WebhookTested.type:
        # It was sent to the endpoint that it is about when it was asked for.
        return []
    waiting = [endpoint for endpoint in endpoints if endpoint.waits_for(event["position"], kind)]
    if not waiting:
        return []
    body = body_of(event["id"], kind, event["created_at"], msgspec.Raw(event["data"].encode()))
    return [
        (new_id("whd"), endpoint.id, event["realm"], event["tenant_id"], event["id"], kind, body)
        for endpoint in waiting
    ]
