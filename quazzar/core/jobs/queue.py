"""What a request does with jobs: make one, cancel one, try one again, each in the caller's own transaction."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Realm
from quazzar.core.ids import new_id
from quazzar.core.jobs.registry import JobKind, P
from quazzar.core.records import SYSTEM, Caller

if TYPE_CHECKING:
    from pgqueuer.domain.settings import DBSettings

CHANNEL = "quazzar_jobs"
"""NOTIFY channel: the id of a job that changed, or `cancel:` and the id of one that is to stop."""

QUEUE_CHANNEL = "ch_pgqueuer"

WAKE = f"""pg_notify('{QUEUE_CHANNEL}', json_build_object('channel', '{QUEUE_CHANNEL}', 'operation', 'update',
    'sent_at', now(), 'table', 'pgqueuer', 'type', 'table_changed_event')::text)"""
"""SQL that makes every worker look for work: the library's own trigger is silent on updates."""


@cache
def queue_settings() -> "DBSettings":
    """The library's names, all given: unset ones it would read from variables such as `CHANNEL` of the environment."""
    from pgqueuer.domain.settings import DBSettings, Durability  # noqa: PLC0415 - heavy, and needed with the first job
    from pgqueuer.domain.types import Channel  # noqa: PLC0415

    return DBSettings(
        prefix="",
        db_schema=None,
        channel=Channel(QUEUE_CHANNEL),
        function="fn_pgqueuer_changed",
        statistics_table="pgqueuer_statistics",
        queue_status_type="pgqueuer_status",
        queue_table="pgqueuer",
        queue_table_log="pgqueuer_log",
        trigger="tg_pgqueuer_changed",
        schedules_table="pgqueuer_schedules",
        durability=Durability.durable,
    )


@cache
def _deliver_sql() -> str:
    from pgqueuer.adapters.persistence.qb import QueryQueueBuilder  # noqa: PLC0415 - as above

    return QueryQueueBuilder(settings=queue_settings()).build_enqueue_query("skip")


async def deliver(session: AsyncSession, job_id: str, kind: str, *, delay_seconds: float = 0) -> None:
    """Put the delivery of a job into the queue; a job that has one already gets no second.

    It goes through the session's own connection as a statement of SQLAlchemy: enqueueing on the driver's connection
    would not be part of a transaction in which SQLAlchemy has not run a statement yet.
    """
    connection = await session.connection()
    await connection.exec_driver_sql(
        _deliver_sql(),
        ([0], [kind], [job_id.encode()], [timedelta(seconds=delay_seconds)], [job_id], ["null"]),
    )


_INSERT = text(
    "INSERT INTO jobs (id, realm, tenant_id, kind, subject, args, max_attempts, cancellable, actor) VALUES "
    "(:id, :realm, :tenant_id, :kind, :subject, CAST(:args AS jsonb), :max_attempts, :cancellable, :actor)"
)


async def enqueue(
    session: AsyncSession,
    kind: JobKind[P],
    *,
    realm: Realm | None = None,
    subject: str | None = None,
    actor: str | None = None,
    tenant_id: str | None = None,
    delay_seconds: float = 0,
    caller: Caller | None = None,
    **args: Any,
) -> str:
    """Make a job in the transaction of `session` and give its id; it starts once that is committed.

    `args` must be JSON and hold no secret: they are kept in the clear. `subject` is the id of what the job is about.
    Realm, tenant and actor are those of `caller`, else of the session's caller, where they are not given. Raises
    `TypeError` when the job's function does not take `args`.
    """
    kind.check(args)
    who: Caller = caller if caller is not None else session.info.get("caller", SYSTEM)
    job_id = new_id("job")
    await session.execute(
        _INSERT,
        {
            "id": job_id,
            "realm": realm if realm is not None else who.realm,
            "tenant_id": tenant_id if tenant_id is not None else who.tenant_id,
            "kind": kind.kind,
            "subject": subject,
            "args": msgspec.json.encode(args).decode(),
            "max_attempts": kind.max_attempts,
            "cancellable": kind.cancellable,
            "actor": actor if actor is not None else who.id,
        },
    )
    await deliver(session, job_id, kind.kind, delay_seconds=delay_seconds)
    session.info.setdefault("enqueued", []).append(job_id)
    return job_id


def enqueued(session: AsyncSession) -> Sequence[str]:
    """The ids of the jobs that were made in the transaction of `session` so far, oldest first."""
    made: Sequence[str] = session.info.get("enqueued", ())
    return made


# Both take the job before its delivery, as workers do: one order, so no deadlock.
_CANCEL_QUEUED = text(
    """
    WITH ended AS (
        UPDATE jobs SET status = 'cancelled', finished_at = now(), cancel_requested_at = now()
        WHERE id = :id AND status = 'queued' AND cancellable RETURNING id
    ), gone AS (
        DELETE FROM pgqueuer WHERE dedupe_key IN (SELECT id COLLATE "default" FROM ended)
    )
    SELECT pg_notify(:channel, id) FROM ended
    """
)
_CANCEL_RUNNING = text(
    """
    WITH asked AS (
        UPDATE jobs SET cancel_requested_at = COALESCE(cancel_requested_at, now())
        WHERE id = :id AND status = 'running' AND cancellable RETURNING id
    )
    SELECT pg_notify(:channel, 'cancel:' || id), pg_notify(:channel, id) FROM asked
    """
)


async def cancel(session: AsyncSession, job_id: str) -> bool:
    """Cancel a job: a queued one at once, a running one as soon as its worker has stopped it.

    False when it has ended, may not be cancelled, or does not exist.
    """
    for statement in (_CANCEL_QUEUED, _CANCEL_RUNNING):
        if (await session.execute(statement, {"id": job_id, "channel": CHANNEL})).first() is not None:
            return True
    return False


_RETRY = text(
    """
    UPDATE jobs SET status = 'queued', max_attempts = attempts - interruptions + :more, finished_at = NULL,
        error = NULL, progress = 0, step = NULL, cancel_requested_at = NULL
    WHERE id = :id AND status IN ('failed', 'cancelled') RETURNING kind, pg_notify(:channel, id)
    """
)


async def retry(session: AsyncSession, job_id: str, kinds: Mapping[str, JobKind[Any]]) -> bool:
    """Queue a failed or cancelled job again with all of its kind's attempts.

    False when it is in another state, does not exist, or is of a kind that this release does not know.
    """
    kind = (await session.execute(_KIND_OF, {"id": job_id})).scalar_one_or_none()
    known = kinds.get(kind) if kind is not None else None
    if known is None:
        return False
    values = {"id": job_id, "more": known.max_attempts, "channel": CHANNEL}
    if (await session.execute(_RETRY, values)).first() is None:
        return False
    await deliver(session, job_id, known.kind)
    return True


_KIND_OF = text("SELECT kind FROM jobs WHERE id = :id")
