"""Every query about one tenant. The tenant comes right after the session, and row-level security checks it again."""

from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.panel.tenants.models import Membership, Tenant


async def add_tenant(session: AsyncSession, tenant_id: str, name: str) -> Any:
    """Insert the tenant; gives when."""
    statement = insert(Tenant).values(id=tenant_id, name=name).returning(Tenant.created_at)
    return (await session.execute(statement)).scalar_one()


async def add_membership(session: AsyncSession, tenant_id: str, *, id: str, user_id: str, role: str) -> None:  # noqa: A002
    await session.execute(insert(Membership).values(tenant_id=tenant_id, id=id, user_id=user_id, role=role))


async def get_standing(session: AsyncSession, tenant_id: str, user_id: str) -> Any:
    """The tenant, and the user's role in it; None when they do not belong to it."""
    statement = (
        select(Tenant.id, Tenant.name, Tenant.created_at, Membership.role)
        .join(Membership, Membership.tenant_id == Tenant.id)
        .where(Tenant.id == tenant_id, Membership.user_id == user_id)
    )
    return (await session.execute(statement)).one_or_none()
