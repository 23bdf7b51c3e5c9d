"""The few queries about the alerts of all tenants at once, for work in the background."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import CursorResult, DateTime, bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import see_all_tenants


class Due(NamedTuple):
    """A tenant, and since when its evaluation is due."""

    tenant_id: str
    due_at: datetime | None


# A tenant without instances has nothing to be judged, but perhaps something to be told.
_DUE = text(
    """
    SELECT tenant_id, due_at FROM alert_turns t WHERE due_at <= :now
        AND (CAST(:after AS timestamptz) IS NULL OR (due_at, tenant_id) > (CAST(:after AS timestamptz), :tenant_id))
        AND (
            NOT seeded
            OR EXISTS (SELECT FROM fleet_instances i WHERE i.tenant_id = t.tenant_id)
            OR EXISTS (SELECT FROM alert_notices n WHERE n.tenant_id = t.tenant_id)
        )
    ORDER BY due_at, tenant_id LIMIT :most
    """
).bindparams(*(bindparam(name, type_=DateTime(timezone=True)) for name in ("now", "after")))
# Those that a process of an older release has made meanwhile.
_ADOPT = text(
    "INSERT INTO alert_turns (tenant_id) SELECT DISTINCT tenant_id FROM fleet_instances i"
    " WHERE NOT EXISTS (SELECT FROM alert_turns t WHERE t.tenant_id = i.tenant_id) ON CONFLICT DO NOTHING"
)
_NOW = text("SELECT clock_timestamp()")
_PRUNE = text(
    "DELETE FROM alerts WHERE id IN (SELECT id FROM alerts WHERE status = 'resolved'"
    " AND resolved_at < now() - make_interval(days => :days) LIMIT :batch FOR UPDATE SKIP LOCKED)"
)


async def database_time(session: AsyncSession) -> datetime:
    """What time it is for all processes alike."""
    now: datetime = (await session.execute(_NOW)).scalar_one()
    return now


async def adopt(session: AsyncSession) -> None:
    """Give every tenant that has instances its turn; with the first one it is given its rules."""
    await see_all_tenants(session)
    await session.execute(_ADOPT)


async def find_due(session: AsyncSession, now: datetime, most: int, *, after: Due | None) -> Sequence[Due]:
    """Tenants whose evaluation is due by now, the longest waiting first; those that follow `after`, where given."""
    await see_all_tenants(session)
    last = after or Due("", None)
    values = {"now": now, "most": most, "after": last.due_at, "tenant_id": last.tenant_id}
    return [Due(*row) for row in await session.execute(_DUE, values)]


async def prune_resolved(session: AsyncSession, *, days: int, batch: int) -> int:
    """Forget up to `batch` alerts that have been over for more than `days`; gives how many."""
    await see_all_tenants(session)
    result = await session.execute(_PRUNE, {"days": days, "batch": batch})
    assert isinstance(result, CursorResult)
    return result.rowcount
