"""Tenants: made at registration, and what belonging to one means."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.ids import new_id
from quazzar.panel.tenants import own, store
from quazzar.panel.tenants.permissions import OWNER
from quazzar.panel.tenants.schemas import TenantOut


class TenantService:
    """One per request. The session's scope is the caller's, or has been set to the tenant that is being made."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, tenant_id: str, name: str, *, owner_id: str) -> TenantOut:
        """Make a tenant with its owner; the transaction's scope must be the new tenant."""
        created_at = await store.add_tenant(self._session, tenant_id, name)
        await store.add_membership(self._session, tenant_id, id=new_id("mem"), user_id=owner_id, role=OWNER)
        return TenantOut(id=tenant_id, name=name, created_at=created_at)

    async def find_own(self, user_id: str) -> Sequence[Any]:
        """The tenants that the user belongs to, newest first."""
        return await own.find_tenants(self._session, user_id)

    async def home_of(self, user_id: str) -> str | None:
        """The tenant that a fresh login lands in."""
        return await own.find_home(self._session, user_id)

    async def standing(self, tenant_id: str, user_id: str) -> Any:
        """The tenant and the user's role in it, None when they do not belong to it."""
        return await store.get_standing(self._session, tenant_id, user_id)
