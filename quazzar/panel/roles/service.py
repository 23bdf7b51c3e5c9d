"""The rules of roles: nobody makes, changes or hands on one that allows more than they may."""

from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.process import Accounts
from quazzar.core.auth import Principal
from quazzar.core.db import referenced_or, unique_or
from quazzar.core.errors import Invalid
from quazzar.core.ids import new_id
from quazzar.core.paging import Page
from quazzar.core.records import audit
from quazzar.core.schema import given
from quazzar.panel.roles import store
from quazzar.panel.roles.errors import RoleBuiltIn, RoleInUse, RoleNameTaken, RoleNotFound, TooManyRoles
from quazzar.panel.roles.schemas import RoleCreate, RoleOut, RoleUpdate
from quazzar.panel.tenants.errors import PermissionExceeded
from quazzar.panel.tenants.permissions import BUILT_IN, is_within
from quazzar.panel.tenants.service import TenantService

MOST: Final = 100
NAME_TAKEN: Final = "uq_roles_tenant_id_name"


class Given(msgspec.Struct, frozen=True):
    """A role as memberships and invitations hold it: a built-in one by name, or an own one by id."""

    role: str | None
    role_id: str | None
    permissions: frozenset[str]


class RoleService:
    """The roles of the caller's tenant; one per request."""

    def __init__(self, session: AsyncSession, accounts: Accounts, principal: Principal) -> None:
        self._session = session
        self._accounts = accounts
        self._principal = principal
        self._tenant_id = principal.tenant_id or ""

    async def find(self, page: Page) -> list[RoleOut]:
        """Own ones, newest first, and after them the built-in ones; one more than the page shows."""
        roles = [shown(row) for row in await store.find_roles(self._session, self._tenant_id)]
        roles += [_built_in(name) for name in BUILT_IN]
        places = {role.id: place for place, role in enumerate(roles)}
        start = 0 if page.after is None else places.get(page.after, len(roles)) + 1
        return roles[start : start + page.fetch]

    async def get(self, role_id: str) -> RoleOut:
        """An own role by its id, a built-in one by its name. Raises `RoleNotFound`."""
        if role_id in BUILT_IN:
            return _built_in(role_id)
        row = await store.get_role(self._session, self._tenant_id, role_id)
        if row is None:
            raise RoleNotFound
        return shown(row)

    async def pick(self, role: str, field: str) -> Given:
        """The role that a caller names, so that it may be given to somebody: an own one stays until the commit.

        Raises `Invalid` for `field` when there is none, `PermissionExceeded` when it allows more than the caller may.
        """
        if role in BUILT_IN:
            picked = Given(role, None, BUILT_IN[role])
        else:
            row = await store.get_role(self._session, self._tenant_id, role, lock=True)
            if row is None:
                raise Invalid(details={field: "There is no such role"})
            picked = Given(None, row.id, frozenset(row.permissions))
        self.check(picked.permissions)
        return picked

    async def permissions_of(self, role: str | None, role_id: str | None) -> frozenset[str]:
        """What a role that somebody has allows."""
        if role_id is None:
            return BUILT_IN.get(role or "", frozenset())
        row = await store.get_role(self._session, self._tenant_id, role_id)
        return frozenset() if row is None else frozenset(row.permissions)

    def check(self, permissions: frozenset[str]) -> None:
        """Raises `PermissionExceeded` when the caller has not all of these."""
        if not is_within(permissions, self._principal.scopes):
            raise PermissionExceeded

    async def create(self, data: RoleCreate) -> RoleOut:
        """Raises `PermissionExceeded`, `RoleNameTaken`, `TooManyRoles`."""
        self._check_unbound()
        permissions = sorted(set(data.permissions))
        self.check(frozenset(permissions))
        if data.name.lower() in BUILT_IN:
            raise RoleNameTaken
        # The tenant is locked, so that parallel calls count one after the other.
        await TenantService(self._session).lock(self._tenant_id)
        if await store.count_roles(self._session, self._tenant_id) >= MOST:
            raise TooManyRoles
        values: dict[str, Any] = {"name": data.name, "description": data.description, "permissions": permissions}
        async with unique_or(RoleNameTaken(), constraint=NAME_TAKEN):
            row = await store.add_role(self._session, self._tenant_id, id=new_id("rol"), **values)
        audit(self._session, "role.create", subject=row.id, after=values)
        return shown(row)

    async def update(self, role_id: str, data: RoleUpdate) -> RoleOut:
        """Change what was sent; who has the role may do just that from the next call on.

        Raises `RoleNotFound`, `RoleBuiltIn`, `RoleNameTaken`, and `PermissionExceeded` when the role allows, or is to
        allow, more than the caller may.
        """
        before = await self._lock(role_id)
        self.check(frozenset(before.permissions))
        values = given(data)
        if "permissions" in values:
            values["permissions"] = sorted(set(values["permissions"]))
            self.check(frozenset(values["permissions"]))
        if values.get("name", "").lower() in BUILT_IN:
            raise RoleNameTaken
        values = {name: value for name, value in values.items() if value != getattr(before, name)}
        if values:
            async with unique_or(RoleNameTaken(), constraint=NAME_TAKEN):
                await store.update_role(self._session, self._tenant_id, role_id, **values)
            await TenantService(self._session).forget(self._accounts, self._tenant_id)
            former = {name: getattr(before, name) for name in values}
            audit(self._session, "role.update", subject=role_id, before=former, after=values)
        return shown(await store.get_role(self._session, self._tenant_id, role_id))

    async def delete(self, role_id: str) -> None:
        """Raises `RoleNotFound`, `RoleBuiltIn`, `RoleInUse`, `PermissionExceeded`."""
        before = await self._lock(role_id)
        self.check(frozenset(before.permissions))
        async with referenced_or(RoleInUse()):
            await store.delete_role(self._session, self._tenant_id, role_id)
        former = {"name": before.name, "permissions": before.permissions}
        audit(self._session, "role.delete", subject=role_id, before=former)

    def _check_unbound(self) -> None:
        """Raises `PermissionExceeded` for who is bound to some instances: a role reaches beyond them."""
        if self._principal.resources is not None:
            raise PermissionExceeded

    async def _lock(self, role_id: str) -> Any:
        self._check_unbound()
        if role_id in BUILT_IN:
            raise RoleBuiltIn
        row = await store.get_role(self._session, self._tenant_id, role_id, lock=True)
        if row is None:
            raise RoleNotFound
        return row


def shown(row: Any) -> RoleOut:
    return RoleOut(
        id=row.id,
        name=row.name,
        description=row.description,
        permissions=row.permissions,
        built_in=False,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _built_in(name: str) -> RoleOut:
    return RoleOut(
        id=name,
        name=name,
        description="",
        permissions=sorted(BUILT_IN[name]),
        built_in=True,
        created_at=None,
        updated_at=None,
    )
