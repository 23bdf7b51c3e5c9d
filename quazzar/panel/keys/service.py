"""The rules of a tenant's keys: each is a member's, and others are revoked by those who may all that they may."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.accounts.api_keys import ApiKeyService, delete_key, get_key
from quazzar.accounts.errors import ApiKeyNotFound
from quazzar.accounts.process import Accounts
from quazzar.accounts.store import KeyPlace
from quazzar.core.auth import Principal
from quazzar.core.errors import Invalid
from quazzar.core.paging import Page
from quazzar.panel.fleet.service import known_ids
from quazzar.panel.keys.schemas import TenantKeyCreate, TenantKeyCreated
from quazzar.panel.tenants.errors import PermissionExceeded
from quazzar.panel.tenants.permissions import is_within


class TenantKeyService:
    """The keys of the caller's tenant; one per request. Who is bound to some instances sees their own alone."""

    def __init__(self, session: AsyncSession, accounts: Accounts, principal: Principal) -> None:
        self._session = session
        self._accounts = accounts
        self._principal = principal
        self._tenant_id = principal.tenant_id or ""
        self._own = ApiKeyService(session, accounts, principal)
        self._place = KeyPlace(None if principal.resources is None else principal.user_id, self._tenant_id)

    async def create(self, data: TenantKeyCreate) -> TenantKeyCreated:
        """Raises what `ApiKeyService.create` raises; `Invalid` too for resources that are none of the tenant's."""
        known = await known_ids(self._session, self._tenant_id, data.resources or ())
        problems = {
            f"resources.{index}": "There is no such group" if one.startswith("grp_") else "There is no such instance"
            for index, one in enumerate(data.resources or ())
            if one not in known
        }
        if problems:
            raise Invalid(details=problems)
        return TenantKeyCreated(user_id=self._principal.user_id, **await self._own.create(data))

    async def find(self, page: Page) -> Sequence[Any]:
        """Newest first, those that expired in the last month among them."""
        return await store.find_api_keys(self._session, self._place, page)

    async def get(self, key_id: str) -> Any:
        """Raises `ApiKeyNotFound`."""
        return await get_key(self._session, self._place, key_id)

    async def delete(self, key_id: str) -> None:
        """Revoke a key; it stops with the commit. Raises `ApiKeyNotFound`, `PermissionExceeded`."""
        row = await store.get_api_key(self._session, self._place, key_id)
        if row is None:
            raise ApiKeyNotFound
        me = self._principal
        is_own = key_id == me.key_id or (me.session_id is not None and row.user_id == me.user_id)
        if not is_own and not is_within(frozenset(row.scopes), me.scopes):
            raise PermissionExceeded
        await delete_key(self._session, self._accounts, self._place, key_id)
