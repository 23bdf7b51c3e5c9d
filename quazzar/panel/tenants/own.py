"""The two questions that span tenants: where a user belongs. Row-level security answers for `app.user` alone."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.panel.tenants.models import Membership, Tenant


async def find_home(session: AsyncSession, user_id: str) -> str | None:
    """The tenant that the user has belonged to for longest; None when they belong to none."""
    statement = (
        select(Membership.tenant_id)
        .where(Membership.user_id == user_id)
        .order_by(Membership.created_at, Membership.id)
        .limit(1)
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def find_tenants(session: AsyncSession, user_id: str) -> Sequence[Any]:
    """All tenants that the user belongs to, newest first, with their role."""
    statement = (
        select(Tenant.id, Tenant.name, Tenant.created_at, Membership.role)
        .join(Membership, Membership.tenant_id == Tenant.id)
        .where(Membership.user_id == user_id)
        .order_by(Tenant.id.desc())
    )
    return (await session.execute(statement)).all()
