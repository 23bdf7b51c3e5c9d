"""Every query about one tenant. The tenant comes right after the session, and row-level security checks it again."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from quazzar.core.ids import new_id
from quazzar.panel.tenants.models import Membership, Role, Tenant
from quazzar.panel.tenants.permissions import OWNER

_TENANT = (Tenant.id, Tenant.name, Tenant.kind, Tenant.parent_id, Tenant.parent_access, Tenant.created_at)


async def add_tenant(session: AsyncSession, tenant_id: str, **values: Any) -> Any:
    """Insert the tenant and give it."""
    statement = insert(Tenant).values(id=tenant_id, **values).returning(*_TENANT)
    return (await session.execute(statement)).one()


async def get_tenant(session: AsyncSession, tenant_id: str, *, lock: bool = False) -> Any:
    """With `lock`, changes to the tenant and its owners wait for each other."""
    statement = select(*_TENANT).where(Tenant.id == tenant_id)
    if lock:
        statement = statement.with_for_update()
    return (await session.execute(statement)).one_or_none()


async def get_client(session: AsyncSession, tenant_id: str, client_id: str) -> Any:
    """A client tenant of this one; None for any other id."""
    statement = select(*_TENANT).where(Tenant.id == client_id, Tenant.parent_id == tenant_id)
    return (await session.execute(statement)).one_or_none()


async def find_client_ids(session: AsyncSession, tenant_id: str) -> Sequence[str]:
    return (await session.execute(select(Tenant.id).where(Tenant.parent_id == tenant_id))).scalars().all()


async def update_tenant(session: AsyncSession, tenant_id: str, **values: Any) -> None:
    await session.execute(update(Tenant).where(Tenant.id == tenant_id).values(**values))


async def delete_tenant(session: AsyncSession, tenant_id: str) -> None:
    """With all that hangs on it."""
    await session.execute(_PATIENCE)
    await session.execute(delete(Tenant).where(Tenant.id == tenant_id))


# A month of deliveries of its webhooks may be more than a request's usual time allows.
_PATIENCE = text("SET LOCAL statement_timeout = '60s'")


async def add_member(session: AsyncSession, tenant_id: str, **values: Any) -> str | None:
    """Add a member; who has come in from the parent so far is one from now on, under the id that they have. Gives the
    member's id, None when they are one already.
    """
    made = upsert(Membership).values(tenant_id=tenant_id, **values)
    given = {name: made.excluded[name] for name in ("role", "role_id", "resources", "parent_id")}
    statement = made.on_conflict_do_update(
        index_elements=[Membership.tenant_id, Membership.user_id],
        set_=given | {"created_at": func.now()},
        where=Membership.parent_id.is_not(None),
    )
    return (await session.execute(statement.returning(Membership.id))).scalar_one_or_none()


async def add_guest(session: AsyncSession, tenant_id: str, *, user_id: str, parent_id: str) -> None:
    """A member of the parent who comes in for the first time; nothing changes for one who is here already."""
    values = {"tenant_id": tenant_id, "id": new_id("mem"), "user_id": user_id, "parent_id": parent_id}
    keys = [Membership.tenant_id, Membership.user_id]
    await session.execute(upsert(Membership).values(**values).on_conflict_do_nothing(index_elements=keys))


async def find_own(session: AsyncSession, tenant_id: str) -> set[str]:
    """The ids of the users who are members themselves, and have not come in from the parent."""
    statement = select(Membership.user_id).where(Membership.tenant_id == tenant_id, Membership.parent_id.is_(None))
    return set((await session.execute(statement)).scalars())


async def count_owners(session: AsyncSession, tenant_id: str) -> int:
    """The caller has locked the tenant where two must not count at once."""
    statement = select(func.count()).where(Membership.tenant_id == tenant_id, Membership.role == OWNER)
    return (await session.execute(statement)).scalar_one()


async def get_standing(session: AsyncSession, tenant_id: str, user_id: str) -> Any:
    """The tenant, and the user's place in it with what decides about their permissions; None when there is none.

    `permissions` are those of an own role; `parent_role` and `parent_permissions` say the same of the place in the
    parent tenant that a member comes from.
    """
    origin, origin_role = aliased(Membership), aliased(Role)
    statement = (
        select(
            *_TENANT,
            Membership.role,
            Membership.role_id,
            Membership.resources,
            Membership.parent_id.label("comes_from"),
            Role.permissions,
            origin.role.label("parent_role"),
            origin.resources.label("parent_resources"),
            origin_role.permissions.label("parent_permissions"),
        )
        .join(Membership, Membership.tenant_id == Tenant.id)
        .outerjoin(Role, (Role.tenant_id == Membership.tenant_id) & (Role.id == Membership.role_id))
        .outerjoin(origin, (origin.tenant_id == Membership.parent_id) & (origin.user_id == Membership.user_id))
        .outerjoin(origin_role, (origin_role.tenant_id == origin.tenant_id) & (origin_role.id == origin.role_id))
        .where(Tenant.id == tenant_id, Membership.user_id == user_id)
    )
    return (await session.execute(statement)).one_or_none()
