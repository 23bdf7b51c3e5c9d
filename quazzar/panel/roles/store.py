"""Every query about a tenant's own roles. The tenant comes right after the session."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.panel.tenants.models import Role

_COLUMNS = (Role.id, Role.name, Role.description, Role.permissions, Role.created_at, Role.updated_at)


async def find_roles(session: AsyncSession, tenant_id: str) -> Sequence[Any]:
    """Newest first; there are few."""
    statement = select(*_COLUMNS).where(Role.tenant_id == tenant_id).order_by(Role.id.desc())
    return (await session.execute(statement)).all()


async def get_role(session: AsyncSession, tenant_id: str, role_id: str, *, lock: bool = False) -> Any:
    """With `lock` nobody changes it, or gives it to somebody, before this transaction has ended."""
    statement = select(*_COLUMNS).where(Role.tenant_id == tenant_id, Role.id == role_id)
    return (await session.execute(statement.with_for_update() if lock else statement)).one_or_none()


async def count_roles(session: AsyncSession, tenant_id: str) -> int:
    return (await session.execute(select(func.count()).where(Role.tenant_id == tenant_id))).scalar_one()


async def add_role(session: AsyncSession, tenant_id: str, **values: Any) -> Any:
    statement = insert(Role).values(tenant_id=tenant_id, **values).returning(*_COLUMNS)
    return (await session.execute(statement)).one()


async def update_role(session: AsyncSession, tenant_id: str, role_id: str, **values: Any) -> None:
    await session.execute(
        update(Role)
        .where(Role.tenant_id == tenant_id, Role.id == role_id)
        .values(**values, updated_at=func.clock_timestamp())
    )


async def delete_role(session: AsyncSession, tenant_id: str, role_id: str) -> None:
    await session.execute(delete(Role).where(Role.tenant_id == tenant_id, Role.id == role_id))
