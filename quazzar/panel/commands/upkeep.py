"""The few queries about the commands of all tenants at once, for work in the background."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Boolean, DateTime, Integer, SmallInteger, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

ANSWER_SECONDS: Final = 30
"""An order that nothing was heard of is sent again after so long; one that runs is asked after hourly."""

_ids = bindparam("ids", type_=ARRAY(Text))

_DUE = text("SELECT tenant_id, id FROM fleet_commands WHERE step_at <= clock_timestamp() ORDER BY step_at LIMIT :most")
# Another process that makes the step just now is left to it.
_CLAIM = text(
    "SELECT id FROM fleet_commands WHERE tenant_id = :tenant_id AND id = :id AND step_at <= clock_timestamp()"
    " FOR NO KEY UPDATE SKIP LOCKED"
)
_OPEN = """
SELECT DISTINCT u.command_id, u.tenant_id,
    bool_or(u.begun_at IS NULL AND c.status = 'running') OVER (PARTITION BY u.command_id) AS waiting
FROM fleet_command_units u JOIN fleet_commands c ON c.id = u.command_id
WHERE u.instance_id = ANY (:ids) AND u.status IN ('pending', 'running') ORDER BY u.command_id
"""
_LOCK = text("SELECT id FROM fleet_commands WHERE id = ANY (:ids) ORDER BY id FOR NO KEY UPDATE").bindparams(_ids)
# What left once is sent again to who asks, so that an answer comes; but a paused command starts nothing by it, and what
# a stopping one may not have started yet is taken back.
_SEND = """
UPDATE fleet_command_units u SET sent_at = COALESCE(u.sent_at, clock_timestamp()), tried_at = clock_timestamp()
FROM fleet_commands c, fleet_instances i
WHERE u.instance_id = ANY (:ids) AND u.command_id = ANY (:commands) AND c.id = u.command_id AND i.id = u.instance_id
    AND i.status <> 'revoked' AND u.status IN ('pending', 'running') AND u.begun_at IS NOT NULL
    AND (
        c.status = 'running' AND u.sent_at IS NULL
        OR c.status = 'stopping' AND c.outcome = 'cancelled'
        OR u.instance_id = ANY (:again) AND (c.status <> 'paused' OR u.heard_at IS NOT NULL)
    )
RETURNING u.order_id, u.command_id, u.tenant_id, u.instance_id,
    c.status = 'stopping' AND (c.outcome = 'cancelled' OR u.heard_at IS NULL) AS cancelling
"""
_SENT = text(_SEND).bindparams(_ids, bindparam("commands", type_=ARRAY(Text)), bindparam("again", type_=ARRAY(Text)))
_CONTENTS = text(
    "SELECT id, kind, sealed_args, created_by, actor_name, expires_at, clock_timestamp() AS now FROM fleet_commands"
    " WHERE id = ANY (:ids)"
).bindparams(_ids)
_OVERDUE = text(
    """
    SELECT DISTINCT u.instance_id FROM fleet_command_units u JOIN fleet_commands c ON c.id = u.command_id
    WHERE u.status IN ('pending', 'running') AND u.begun_at IS NOT NULL AND (
        u.sent_at IS NULL
        OR u.heard_at IS NULL AND u.tried_at < clock_timestamp() - make_interval(secs => :seconds)
        OR c.outcome = 'cancelled' AND u.tried_at < clock_timestamp() - make_interval(secs => :seconds)
        OR GREATEST(u.heard_at, u.tried_at) < clock_timestamp() - interval '1 hour'
    )
    """
)
_ORDERS = text(
    "SELECT order_id, command_id, tenant_id, instance_id FROM fleet_command_units WHERE order_id = ANY (:ids)"
).bindparams(_ids)
_APPLY = text(
    """
    UPDATE fleet_command_units u SET
        sequence = r.sequence,
        revision = c.revision + 1,
        heard_at = clock_timestamp(),
        status = CASE WHEN r.status = 'completed' AND c.health_wait_seconds > 0 THEN 'settling' ELSE r.status END,
        settles_at = CASE WHEN r.status = 'completed' AND c.health_wait_seconds > 0
            THEN clock_timestamp() + make_interval(secs => c.health_wait_seconds) END,
        progress = COALESCE(r.progress, u.progress),
        step = COALESCE(r.step, u.step),
        output = COALESCE(r.output, u.output),
        error = r.error,
        error_code = r.error_code,
        started_at = CASE WHEN r.begun THEN COALESCE(u.started_at, GREATEST(u.begun_at, LEAST(r.at, now.at)))
            ELSE u.started_at END,
        finished_at = CASE WHEN r.status NOT IN ('pending', 'running')
            THEN GREATEST(u.begun_at, u.started_at, LEAST(r.at, now.at)) END
    FROM unnest(:orders, :sequences, :statuses, :begun, :moments, :progress, :steps, :outputs, :errors, :codes)
            AS r (order_id, sequence, status, begun, at, progress, step, output, error, error_code),
        fleet_commands c, (SELECT clock_timestamp() AS at) now
    WHERE u.order_id = r.order_id AND c.id = u.command_id AND u.status IN ('pending', 'running')
        AND u.sent_at IS NOT NULL AND r.sequence > u.sequence
    RETURNING u.order_id
    """
).bindparams(
    bindparam("orders", type_=ARRAY(Text)),
    bindparam("sequences", type_=ARRAY(Integer)),
    bindparam("statuses", type_=ARRAY(Text)),
    bindparam("begun", type_=ARRAY(Boolean)),
    bindparam("moments", type_=ARRAY(DateTime(timezone=True))),
    bindparam("progress", type_=ARRAY(SmallInteger)),
    *(bindparam(name, type_=ARRAY(Text)) for name in ("steps", "outputs", "errors", "codes")),
)
_HEARD = text(
    "UPDATE fleet_command_units SET heard_at = clock_timestamp() WHERE order_id = ANY (:ids) AND sent_at IS NOT NULL"
).bindparams(_ids)
_SEALED = text("SELECT id, tenant_id, sealed_args FROM fleet_commands ORDER BY id FOR NO KEY UPDATE")
_PRUNE = text(
    "DELETE FROM fleet_commands WHERE id IN (SELECT id FROM fleet_commands"
    " WHERE finished_at < now() - make_interval(days => :days) ORDER BY finished_at LIMIT :most FOR UPDATE SKIP LOCKED)"
    " RETURNING id"
)


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance says of an order, as it is written down; `at` is by the panel's clock."""

    order_id: str
    sequence: int
    status: str
    begun: bool
    at: datetime
    progress: int | None
    step: str | None
    output: str | None
    error: str | None
    error_code: str | None


async def find_due(session: AsyncSession, most: int) -> Sequence[Any]:
    """`tenant_id` and `id` of commands whose next look has come, the longest due first."""
    return (await session.execute(_DUE, {"most": most})).all()


async def claim(session: AsyncSession, tenant_id: str, command_id: str) -> bool:
    """Lock a command that is still due; False when another process is at it."""
    values = {"tenant_id": tenant_id, "id": command_id}
    return (await session.execute(_CLAIM, values)).scalar_one_or_none() is not None


async def find_open(session: AsyncSession, instance_ids: Collection[str]) -> Sequence[Any]:
    """`command_id`, `tenant_id` of what is to be done on these instances, and whether some of it is `waiting` for
    them to be there.
    """
    return (await session.execute(text(_OPEN).bindparams(_ids), {"ids": list(instance_ids)})).all()


async def lock_commands(session: AsyncSession, command_ids: Collection[str]) -> None:
    """In the order of their ids, as everybody does who locks several."""
    await session.execute(_LOCK, {"ids": list(command_ids)})


async def mark_sent(
    session: AsyncSession, command_ids: Collection[str], instance_ids: Collection[str], again: Collection[str]
) -> Sequence[Any]:
    """The orders that these instances are to be sent now, or told to cancel; to those of `again` all that are open.

    The caller has locked the commands.
    """
    values = {"ids": list(instance_ids), "commands": list(command_ids), "again": list(again)}
    return (await session.execute(_SENT, values)).all()


async def find_contents(session: AsyncSession, command_ids: Collection[str]) -> Sequence[Any]:
    """What the orders of these commands say."""
    return (await session.execute(_CONTENTS, {"ids": list(command_ids)})).all()


async def find_overdue(session: AsyncSession) -> Sequence[str]:
    """Instances that have an order outstanding which should have left, or been answered, by now."""
    return (await session.execute(_OVERDUE, {"seconds": ANSWER_SECONDS})).scalars().all()


async def find_orders(session: AsyncSession, order_ids: Collection[str]) -> Sequence[Any]:
    """Whose orders these are; of one that was given up for a new attempt there is nothing."""
    return (await session.execute(_ORDERS, {"ids": list(order_ids)})).all()


async def apply_words(session: AsyncSession, words: Sequence[Word]) -> set[str]:
    """Write down what instances said of their orders, one word for each; gives the orders for which it was news.

    The caller has locked the commands. One that is not newer than the last, or about what has ended, changes nothing.
    """
    columns = {
        "orders": [word.order_id for word in words],
        "sequences": [word.sequence for word in words],
        "statuses": [word.status for word in words],
        "begun": [word.begun for word in words],
        "moments": [word.at for word in words],
        "progress": [word.progress for word in words],
        "steps": [word.step for word in words],
        "outputs": [word.output for word in words],
        "errors": [word.error for word in words],
        "codes": [word.error_code for word in words],
    }
    return set((await session.execute(_APPLY, columns)).scalars())


async def mark_heard(session: AsyncSession, order_ids: Collection[str]) -> None:
    """They were spoken of again, without news. The caller has locked the commands."""
    await session.execute(_HEARD, {"ids": list(order_ids)})


async def find_sealed(session: AsyncSession) -> Sequence[Any]:
    """The sealed arguments of all commands, locked."""
    return (await session.execute(_SEALED)).all()


async def prune_commands(session: AsyncSession, *, days: int, most: int) -> int:
    """Forget commands that ended so long ago; gives how many."""
    return len((await session.execute(_PRUNE, {"days": days, "most": most})).all())
