"""The few queries about the alerts of all tenants at once, for work in the background."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import CursorResult, DateTime, bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import see_all_tenants

# A tenant without instances has nothing to be judged, but perhaps something to be told.
_DUE = text(
    """
    SELECT tenant_id FROM alert_turns t WHERE due_at <= :now AND (
        NOT seeded
        OR EXISTS (SELECT FROM fleet_instances i WHERE i.tenant_id = t.tenant_id)
        OR EXISTS (SELECT FROM alert_notices n WHERE n.tenant_id = t.tenant_id)
    ) ORDER BY due_at LIMIT :most
    """
).bindparams(bindparam("now", type_=DateTime(timezone=True)))
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


async def find_due(session: AsyncSession, now: datetime, most: int) -> Sequence[str]:
    """Tenants whose evaluation is due by now, the longest waiting first."""
    await see_all_tenants(session)
    return (await session.execute(_DUE, {"now": now, "most": most})).scalars().all()


async def prune_resolved(session: AsyncSession, *, days: int, batch: int) -> int:
    """Forget up to `batch` alerts that have been over for more than `days`; gives how many."""
    await see_all_tenants(session)
    result = await session.execute(_PRUNE, {"days": days, "batch": batch})
    assert isinstance(result, CursorResult)
    return result.rowcount
