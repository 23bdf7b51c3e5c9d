"""Open alerts as the fleet knows them: counted, and ended with their instance."""

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.panel.alerts import store
from quazzar.panel.alerts.ending import end_alerts
from quazzar.panel.fleet.store import Reach


async def open_alerts(session: AsyncSession, tenant_id: str, reach: Reach) -> dict[str, int]:
    """How many alerts are not over, by severity, of what a caller may see."""
    return await store.count_open(session, tenant_id, reach)


async def end_with_instance(session: AsyncSession, tenant_id: str, instance_id: str) -> None:
    """An instance is gone, or begins anew, and with it ends whatever was wrong with it."""
    now, reason = datetime.now(UTC), "The instance left the fleet, or joined anew"
    ids = await store.find_open_of_instance(session, tenant_id, instance_id)
    await end_alerts(session, tenant_id, ids, reason=reason, now=now, told_at=now)
