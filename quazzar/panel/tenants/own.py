"""The questions that span tenants: where a user belongs. Row-level security answers for `app.user` alone, and for the
clients of `app.tenant`.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.paging import Page
from quazzar.panel.tenants.models import Membership, Tenant
from quazzar.panel.tenants.permissions import OWNER


async def find_home(session: AsyncSession, user_id: str) -> str | None:
    """The tenant that the user has belonged to for longest; None when they belong to none."""
    statement = (
        select(Membership.tenant_id)
        .where(Membership.user_id == user_id, Membership.parent_id.is_(None))
        .order_by(Membership.created_at, Membership.id)
        .limit(1)
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def find_all(session: AsyncSession, user_id: str) -> Sequence[str]:
    """Every tenant that the user works in, those that they come into from a parent too."""
    return (await session.execute(select(Membership.tenant_id).where(Membership.user_id == user_id))).scalars().all()


async def count_owned(session: AsyncSession, user_id: str) -> int:
    statement = select(func.count()).where(Membership.user_id == user_id, Membership.role == OWNER)
    return (await session.execute(statement)).scalar_one()


def _tenants(user_id: str, current: str, parent_id: str | None) -> Select[*tuple[Any, ...]]:
    """The current tenant, those that the user belongs to, and the clients of `parent_id`, with their role."""
    belongs = [Tenant.id == current, Membership.user_id.is_not(None) & Membership.parent_id.is_(None)]
    if parent_id is not None:
        belongs.append((Tenant.parent_id == parent_id) & (Tenant.parent_access != "none"))
    return (
        select(
            Tenant.id,
            Tenant.name,
            Tenant.kind,
            Tenant.parent_id,
            Tenant.parent_access,
            Tenant.created_at,
            func.coalesce(Membership.role, Membership.role_id).label("role"),
        )
        .outerjoin(Membership, (Membership.tenant_id == Tenant.id) & (Membership.user_id == user_id))
        .where(or_(*belongs))
    )


async def get_tenant(
    session: AsyncSession, user_id: str, tenant_id: str, *, current: str, parent_id: str | None
) -> Any:
    """One of those that `find_tenants` gives, None when it is none of them."""
    statement = _tenants(user_id, current, parent_id).where(Tenant.id == tenant_id)
    return (await session.execute(statement)).one_or_none()


async def find_tenants(
    session: AsyncSession, user_id: str, *, current: str, parent_id: str | None, page: Page
) -> Sequence[Any]:
    """The current tenant, those that the user belongs to, and the clients of `parent_id`, newest first, with their
    role.
    """
    statement = _tenants(user_id, current, parent_id).order_by(Tenant.id.desc()).limit(page.fetch)
    if page.after is not None:
        statement = statement.where(Tenant.id < page.after)
    return (await session.execute(statement)).all()
