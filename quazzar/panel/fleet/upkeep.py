"""The few queries about the fleets of all tenants at once, for work in the background."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import see_all_tenants

# A second process that looks at the same time passes those over that the first one holds.
_SILENT = text(
    """
    UPDATE fleet_instances SET status = 'offline', status_since = clock_timestamp(), health_score = 0, checks = '[]',
        status_reason = :reason, updated_at = clock_timestamp()
    WHERE id IN (
        SELECT i.id FROM fleet_instances i JOIN fleet_presence p ON p.instance_id = i.id
        WHERE i.status IN ('online', 'degraded')
            AND p.last_seen_at < clock_timestamp() - make_interval(secs => :seconds)
        FOR UPDATE OF i SKIP LOCKED
    ) RETURNING id, tenant_id, name
    """
)
# Anybody who reaches a panel may register; whoever does so at the machine itself has it already.
_FIRST_TENANT = text(
    """
    SELECT tenant_id FROM audit_records
    WHERE realm = 'panel' AND action = 'tenant.create' AND after ->> 'at_console' = 'true'
    ORDER BY created_at LIMIT 1
    """
)


async def silence(session: AsyncSession, seconds: float, reason: str) -> Sequence[Any]:
    """Set those offline that were not heard for `seconds`; gives id, tenant and name of each."""
    await see_all_tenants(session)
    return (await session.execute(_SILENT, {"seconds": seconds, "reason": reason})).all()


async def first_tenant(session: AsyncSession) -> str | None:
    """The tenant that was made first by somebody who registered at this machine, None as long as there is none."""
    await see_all_tenants(session)
    return (await session.execute(_FIRST_TENANT)).scalar_one_or_none()
