"""Every query about tokens for sessions on instances; the tenant comes right after the session."""

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Interval, delete, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.panel.impersonations.models import FleetImpersonation

_KEPT: Final = timedelta(days=90)
"""How long an instance may have no line and still tell what was done."""


async def add_impersonation(session: AsyncSession, tenant_id: str, **values: Any) -> None:
    await session.execute(insert(FleetImpersonation).values(tenant_id=tenant_id, **values))


async def get_impersonation(session: AsyncSession, tenant_id: str, instance_id: str, impersonation_id: str) -> Any:
    """Locked; None for one that was not given out for this instance, or long ago."""
    statement = (
        select(FleetImpersonation.user_id, FleetImpersonation.last_number, FleetImpersonation.deeds)
        .where(
            FleetImpersonation.tenant_id == tenant_id,
            FleetImpersonation.instance_id == instance_id,
            FleetImpersonation.id == impersonation_id,
        )
        .with_for_update()
    )
    return (await session.execute(statement)).one_or_none()


async def update_impersonation(session: AsyncSession, tenant_id: str, impersonation_id: str, **values: Any) -> None:
    await session.execute(
        update(FleetImpersonation)
        .where(FleetImpersonation.tenant_id == tenant_id, FleetImpersonation.id == impersonation_id)
        .values(**values)
    )


async def forget_old(session: AsyncSession, tenant_id: str) -> None:
    limit = func.now() - literal(_KEPT, Interval())
    await session.execute(
        delete(FleetImpersonation).where(
            FleetImpersonation.tenant_id == tenant_id, FleetImpersonation.created_at < limit
        )
    )
