"""What processes share of the work on endpoints: leases on lanes, due deliveries, and results, fenced by the lease.

A lane belongs to one process at a time. That keeps the concurrency of an endpoint and its circuit in one place, and
makes each delivery cost one read and one write.
"""

import uuid
from collections.abc import Sequence
from typing import Any, TypeAlias

import asyncpg
import msgspec

from quazzar.core.jobs.line import OWNER_LOCK
from quazzar.webhooks.sending import Message
from quazzar.webhooks.store import MOST_ATTEMPTS_KEPT

LEASE_SECONDS = 60
CIRCUIT_FAILURES = 5
"""So many failures in a row pause the endpoint: after them it is asked with one delivery at a time."""
GIVE_UP_DAYS = 5
RESULTS_AT_ONCE = 100

Connection: TypeAlias = "asyncpg.Connection[Any]"


class Claimed(msgspec.Struct, frozen=True):
    """A lane that is ours for `LEASE_SECONDS`."""

    webhook_id: str
    failures: int


class Due(msgspec.Struct, frozen=True):
    """A delivery whose time has come."""

    id: str
    tries: int
    message: Message


class Load(msgspec.Struct, frozen=True):
    """An endpoint as it is now, and what is due to it. `sealed` are ids and sealed secrets, newest first."""

    realm: Any
    tenant_id: str | None
    url: str
    sealed: Sequence[tuple[str, bytes]]
    due: Sequence[Due]


class Result(msgspec.Struct, frozen=True):
    """An attempt to be written down; `delay` is in seconds until the next one, None when there is none."""

    delivery_id: str
    webhook_id: str
    tries: int
    status: str
    attempt: str
    delay: float | None


class Health(msgspec.Struct, frozen=True):
    """How an endpoint fared since it was last written down."""

    webhook_id: str
    failures: int
    succeeded: bool


_CLAIM = """
WITH due AS (
    SELECT lane.webhook_id FROM webhook_lanes AS lane JOIN webhooks ON webhooks.id = lane.webhook_id
    WHERE due_at <= now() AND (paused_until IS NULL OR paused_until <= now())
        AND (owner IS NULL OR leased_until <= now()) AND active AND (failures < $4 OR NOT $3)
    ORDER BY due_at LIMIT $2 FOR NO KEY UPDATE OF lane SKIP LOCKED
)
UPDATE webhook_lanes AS lane SET owner = $1, leased_until = now() + make_interval(secs => $5), updated_at = now()
FROM due WHERE lane.webhook_id = due.webhook_id RETURNING lane.webhook_id, failures
"""
_NEXT_DUE = """
SELECT extract(epoch FROM min(GREATEST(due_at, paused_until)) - now())::float8
FROM webhook_lanes JOIN webhooks ON webhooks.id = webhook_id
WHERE due_at IS NOT NULL AND owner IS NULL AND active
"""
_ENDPOINT = """
SELECT realm, tenant_id, url FROM webhooks WHERE id = $1 AND active AND EXISTS (
    SELECT FROM webhook_lanes WHERE webhook_lanes.webhook_id = $1 AND owner = $2
)
"""
_SECRETS = """
SELECT id, sealed FROM webhook_secrets WHERE webhook_id = $1 AND (expires_at IS NULL OR expires_at > now())
ORDER BY expires_at DESC NULLS FIRST, id DESC
"""
_DUE = """
SELECT id, tries, event_id, type, body FROM webhook_deliveries
WHERE webhook_id = $1 AND status = 'pending' AND next_attempt_at <= now() ORDER BY next_attempt_at LIMIT $2
"""
# Late results of a lost lease are dropped: its new owner sends the delivery itself. The status is asked for in a way
# that keeps the planner from the index of pending ones, all of which it would compare with all results.
_RECORD = f"""
UPDATE webhook_deliveries AS delivery SET status = result.status, tries = delivery.tries + 1, updated_at = now(),
    next_attempt_at = now() + make_interval(secs => result.delay),
    attempts = CASE WHEN jsonb_array_length(attempts) >= {MOST_ATTEMPTS_KEPT} THEN attempts - 0 ELSE attempts END
        || result.attempt::jsonb
FROM unnest($2::text[], $3::text[], $4::int[], $5::text[], $6::text[], $7::float8[])
        AS result (id, webhook_id, tries, status, attempt, delay)
    JOIN webhook_lanes AS lane ON lane.webhook_id = result.webhook_id AND owner = $1
WHERE delivery.id = result.id AND delivery.id = ANY ($2::text[]) AND delivery.tries = result.tries
    AND delivery.status <> 'delivered' AND delivery.status <> 'failed'
"""  # noqa: S608 - constants only
_HEALTH = f"""
WITH health AS (
    SELECT * FROM unnest($2::text[], $3::int[], $4::bool[]) AS health (webhook_id, failures, succeeded)
), mine AS (
    SELECT webhook_id FROM webhook_lanes WHERE webhook_id IN (SELECT webhook_id FROM health) AND owner = $1
    ORDER BY webhook_id FOR NO KEY UPDATE
)
UPDATE webhook_lanes AS lane SET failures = health.failures, updated_at = now(), failing_since = CASE
        WHEN health.failures = 0 THEN NULL WHEN health.succeeded THEN now() ELSE COALESCE(failing_since, now()) END
FROM mine JOIN health USING (webhook_id) WHERE lane.webhook_id = mine.webhook_id
RETURNING lane.webhook_id, failing_since < now() - interval '{GIVE_UP_DAYS} days' AS worn_out
"""  # noqa: S608 - constants only
_LOCK = "SELECT 1 FROM webhook_lanes WHERE webhook_id = $1 AND owner = $2 FOR NO KEY UPDATE"
_IS_DUE = """
SELECT EXISTS (
    SELECT FROM webhook_deliveries WHERE webhook_id = $1 AND status = 'pending' AND next_attempt_at <= now()
)
"""
_LEAVE = """
UPDATE webhook_lanes SET owner = NULL, leased_until = NULL, updated_at = now(),
    paused_until = now() + make_interval(secs => $2),
    due_at = (SELECT min(next_attempt_at) FROM webhook_deliveries WHERE webhook_id = $1 AND status = 'pending')
WHERE webhook_id = $1
"""
_RENEW = """
WITH mine AS (
    SELECT webhook_id FROM webhook_lanes WHERE owner = $1 ORDER BY webhook_id FOR NO KEY UPDATE
)
UPDATE webhook_lanes AS lane SET updated_at = now(),
    leased_until = CASE WHEN lane.webhook_id = ANY ($2::text[]) THEN now() + make_interval(secs => $3) END,
    owner = CASE WHEN lane.webhook_id = ANY ($2::text[]) THEN $1 END
FROM mine WHERE lane.webhook_id = mine.webhook_id RETURNING lane.webhook_id
"""
_OWNERS = f"""
SELECT owner, EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32 | objid::bigint) = {OWNER_LOCK % "owner"}
) AS alive
FROM (SELECT DISTINCT owner FROM webhook_lanes WHERE owner IS NOT NULL AND owner <> $1) AS others
"""  # noqa: S608 - constants only
_FREE = """
UPDATE webhook_lanes SET owner = NULL, leased_until = NULL, updated_at = now() WHERE owner = ANY ($1::uuid[])
RETURNING webhook_id
"""
# Stamps of the future say that the server's clock was set back; what waits must not wait for it to catch up.
_LANES_FOLLOW_CLOCK = """
UPDATE webhook_lanes SET due_at = due_at - (updated_at - now()), paused_until = NULL, updated_at = now(),
    leased_until = now() + make_interval(secs => $1)
WHERE updated_at > now() + interval '5 seconds' RETURNING webhook_id
"""
_DELIVERIES_FOLLOW_CLOCK = """
UPDATE webhook_deliveries SET next_attempt_at = next_attempt_at - (updated_at - now()), updated_at = now()
WHERE status = 'pending' AND updated_at > now() + interval '5 seconds'
"""


async def claim(connection: Connection, owner: uuid.UUID, limit: int, *, healthy_only: bool) -> list[Claimed]:
    """Lease up to `limit` lanes that have something to send."""
    rows = await connection.fetch(_CLAIM, owner, limit, healthy_only, CIRCUIT_FAILURES, LEASE_SECONDS)
    return [Claimed(*row) for row in rows]


async def seconds_to_next(connection: Connection) -> float | None:
    """When the next free lane is due; None when there is none."""
    seconds: float | None = await connection.fetchval(_NEXT_DUE)
    return seconds


async def load(connection: Connection, owner: uuid.UUID, webhook_id: str, limit: int) -> Load | None:
    """The endpoint and up to `limit` due deliveries; None when it is gone, not active, or not ours any more."""
    row = await connection.fetchrow(_ENDPOINT, webhook_id, owner)
    if row is None:
        return None
    due = [
        Due(each["id"], each["tries"], Message(each["event_id"], each["type"], each["body"]))
        for each in await connection.fetch(_DUE, webhook_id, limit)
    ]
    sealed = (
        [(secret["id"], secret["sealed"]) for secret in await connection.fetch(_SECRETS, webhook_id)] if due else []
    )
    return Load(row["realm"], row["tenant_id"], row["url"], sealed, due)


async def record(
    connection: Connection, owner: uuid.UUID, results: Sequence[Result], health: Sequence[Health]
) -> list[str]:
    """Write down attempts; gives the endpoints that have only failed for so long that they are to be given up."""
    async with connection.transaction():
        for start in range(0, len(results), RESULTS_AT_ONCE):
            part = results[start : start + RESULTS_AT_ONCE]
            columns = zip(*(msgspec.structs.astuple(result) for result in part), strict=True)
            await connection.execute(_RECORD, owner, *map(list, columns))
        if not health:
            return []
        columns = zip(*(msgspec.structs.astuple(each) for each in health), strict=True)
        rows = await connection.fetch(_HEALTH, owner, *map(list, columns))
    return [row["webhook_id"] for row in rows if row["worn_out"]]


async def leave(
    connection: Connection, owner: uuid.UUID, webhook_id: str, *, pause: float | None, only_if_idle: bool
) -> bool:
    """Give a lane back; false, and it stays ours, when `only_if_idle` and something is due after all."""
    async with connection.transaction():
        # First the lock, then a statement that sees what was committed before it was granted.
        if await connection.fetchval(_LOCK, webhook_id, owner) is None:
            return True
        if only_if_idle and await connection.fetchval(_IS_DUE, webhook_id):
            return False
        await connection.execute(_LEAVE, webhook_id, pause)
    return True


async def renew(connection: Connection, owner: uuid.UUID, in_hand: Sequence[str]) -> set[str]:
    """Prolong the leases of lanes in hand, give back those that are not; gives which were ours."""
    return {row["webhook_id"] for row in await connection.fetch(_RENEW, owner, list(in_hand), LEASE_SECONDS)}


async def other_owners(connection: Connection, owner: uuid.UUID) -> dict[uuid.UUID, bool]:
    """Who else holds lanes, and whether they live."""
    rows = await connection.fetch(_OWNERS, owner)
    return {uuid.UUID(str(row["owner"])): bool(row["alive"]) for row in rows}


async def free(connection: Connection, owners: Sequence[uuid.UUID]) -> int:
    """Take all lanes from `owners`; gives how many."""
    return len(await connection.fetch(_FREE, list(owners)))


async def follow_clock(connection: Connection) -> bool:
    """True when the database's clock had been set back and waiting times were set right."""
    if not await connection.fetch(_LANES_FOLLOW_CLOCK, LEASE_SECONDS):
        return False
    await connection.execute(_DELIVERIES_FOLLOW_CLOCK)
    return True
