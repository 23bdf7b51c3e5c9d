"""Tenants: what belonging to one means, and how they are made, changed and deleted."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.process import Accounts
from quazzar.core.auth import Principal, scope_within
from quazzar.core.db import referenced_or, set_scope
from quazzar.core.errors import Forbidden
from quazzar.core.ids import new_id
from quazzar.core.paging import Page
from quazzar.core.records import Caller, audit
from quazzar.core.schema import UNSET, given
from quazzar.invitations.service import InvitationService
from quazzar.invitations.store import Place as InvitedTo
from quazzar.panel.tenants import own, store
from quazzar.panel.tenants.errors import (
    NotAnMsp,
    ParentAccessForeign,
    PermissionExceeded,
    TenantHasClients,
    TenantInUse,
    TenantNotFound,
    TooManyTenants,
)
from quazzar.panel.tenants.permissions import OWNER, common, permissions_of
from quazzar.panel.tenants.schemas import OwnTenantOut, TenantCreate, TenantOut, TenantUpdate
from quazzar.settings import Settings

MOST_OWNED: Final = 50
"""How many tenants one user may own; client tenants count for whoever made them."""
CLIENTS_ACCESS: Final = "clients:access"


class Place(msgspec.Struct, frozen=True):
    """A user's place in a tenant: `tenant` is its row. `role` is a built-in one, the id of an own one, or what the
    client tenant lets members of its parent be.
    """

    tenant: Any
    role: str
    permissions: frozenset[str]
    resources: frozenset[str] | None


class TenantService:
    """Lookups and the making of tenants. The session's scope is the caller's, or that of the tenant being made."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, tenant_id: str, name: str, *, owner_id: str, **values: Any) -> TenantOut:
        """Make a tenant with its owner; the transaction's scope must be the new tenant."""
        from quazzar.panel.alerts.defaults import seed  # noqa: PLC0415 - an instance loads this, and makes no tenant

        made = await store.add_tenant(self._session, tenant_id, name=name, **values)
        await self.join(tenant_id, owner_id, role=OWNER)
        await seed(self._session, tenant_id)
        return TenantOut.of(made)

    async def home_of(self, user_id: str) -> str | None:
        """The tenant that a fresh login lands in."""
        return await own.find_home(self._session, user_id)

    async def all_of(self, user_id: str) -> Sequence[str]:
        """The ids of all tenants that the user works in."""
        return await own.find_all(self._session, user_id)

    async def place(self, tenant_id: str, user_id: str) -> Place | None:
        """The user's place in the tenant, None when they have none (any more)."""
        row = await store.get_standing(self._session, tenant_id, user_id)
        if row is None:
            return None
        if row.comes_from is None:
            role = row.role or row.role_id
            permissions = permissions_of(role) if row.permissions is None else frozenset(row.permissions)
            return Place(row, role, permissions, None if row.resources is None else frozenset(row.resources))
        granted = row.parent_permissions
        granted = permissions_of(row.parent_role or "") if granted is None else frozenset(granted)
        if not _may_enter(granted, row.parent_resources, row.parent_access):
            return None
        return Place(row, row.parent_access, common(granted, permissions_of(row.parent_access)), None)

    async def clients_of(self, tenant_id: str) -> Sequence[str]:
        """The ids of the client tenants; the transaction's scope must be the tenant."""
        return await store.find_client_ids(self._session, tenant_id)

    async def lock(self, tenant_id: str) -> None:
        """Let what is counted or decided per tenant be done one call after the other."""
        await store.get_tenant(self._session, tenant_id, lock=True)

    async def count_owners(self, tenant_id: str) -> int:
        """Whoever acts on it has locked the tenant."""
        return await store.count_owners(self._session, tenant_id)

    async def join(self, tenant_id: str, user_id: str, **values: Any) -> str | None:
        """Make somebody a member, also who has come in from the parent tenant so far; the transaction's scope must be
        the tenant. Gives the member's id, None for who is one already.
        """
        return await store.add_member(self._session, tenant_id, id=new_id("mem"), user_id=user_id, **values)

    async def forget(self, accounts: Accounts, tenant_id: str) -> None:
        """With the commit, what is remembered of the permissions of its members is void: here, and in its clients."""
        for each in (tenant_id, *await store.find_client_ids(self._session, tenant_id)):
            await accounts.authenticator.drop_with(self._session, each)

    async def enter(self, principal: Principal, tenant_id: str) -> None:
        """Let the caller into a tenant: one that they belong to, or a client of the one that they work in now.

        The transaction's scope is the entered tenant's afterwards. Raises `TenantNotFound`.
        """
        session, user_id, parent_id = self._session, principal.user_id, principal.tenant_id or ""
        client = await store.get_client(session, parent_id, tenant_id)
        await set_scope(session, tenant=tenant_id, user=user_id)
        if await self.place(tenant_id, user_id) is not None:
            return
        if client is None or not _may_enter(principal.scopes, principal.resources, client.parent_access):
            raise TenantNotFound
        async with referenced_or(TenantNotFound()):
            await store.add_guest(session, tenant_id, user_id=user_id, parent_id=parent_id)

    async def reach_into(self, principal: Principal, client_id: str) -> frozenset[str]:
        """What the caller may do in a client of the tenant that they work in: no more than they may here.

        The transaction's scope is the client's afterwards. Raises `TenantNotFound`.
        """
        session = self._session
        client = await store.get_client(session, principal.tenant_id or "", client_id)
        if client is None or principal.resources is not None:
            raise TenantNotFound
        await set_scope(session, tenant=client_id, user=principal.user_id)
        # A key is of one tenant: that its maker belongs to a client as well is not what it was made for.
        place = await self.place(client_id, principal.user_id) if principal.key_id is None else None
        if place is not None:
            # Who is bound there to some instances does nothing there for all of it.
            return frozenset() if place.resources is not None else common(principal.scopes, place.permissions)
        if not _may_enter(principal.scopes, None, client.parent_access):
            raise TenantNotFound
        return common(principal.scopes, permissions_of(client.parent_access))


async def take_back(session: AsyncSession, settings: Settings, tenant_id: str, user_id: str) -> None:
    """What a user has made in the tenant to let others in, or themselves again; the transaction's scope must be the
    tenant.
    """
    from quazzar.panel.fleet.service import revoke_tokens_of  # noqa: PLC0415 - that needs this one

    await InvitationService(session, settings, InvitedTo("panel", tenant_id)).revoke_of(user_id)
    await revoke_tokens_of(session, tenant_id, user_id)


def _may_enter(granted: frozenset[str], resources: Any, parent_access: str) -> bool:
    """Whether a member of the parent may work in a client tenant: not one who is bound to some instances."""
    allowed = CLIENTS_ACCESS in granted or "*" in granted
    return allowed and resources is None and parent_access != "none"


class OwnTenantService:
    """The tenants that a caller may see and change: those that they belong to, and clients of the one that they work
    in; one per request.
    """

    def __init__(self, session: AsyncSession, accounts: Accounts, principal: Principal) -> None:
        self._session = session
        self._accounts = accounts
        self._principal = principal
        self._tenant_id = principal.tenant_id or ""

    @property
    def _parent_id(self) -> str | None:
        """The tenant whose clients the caller may work in, too."""
        enters = self._principal.allows(CLIENTS_ACCESS) and self._principal.resources is None
        return self._tenant_id if enters else None

    async def find(self, page: Page) -> Sequence[Any]:
        """The tenants that the caller can switch to, newest first; one more than the page shows."""
        return await own.find_tenants(
            self._session, self._principal.user_id, current=self._tenant_id, parent_id=self._parent_id, page=page
        )

    async def get(self, tenant_id: str) -> Any:
        """One of those. Raises `TenantNotFound`."""
        row = await own.get_tenant(
            self._session, self._principal.user_id, tenant_id, current=self._tenant_id, parent_id=self._parent_id
        )
        if row is None:
            raise TenantNotFound
        return row

    async def create(self, data: TenantCreate) -> OwnTenantOut:
        """A tenant of the caller's; a client lies below the tenant that they work in.

        Raises `TooManyTenants`, `NotAnMsp`, and `Forbidden` without the permission to make clients.
        """
        session, me, new = self._session, self._principal, new_id("ten")
        values: dict[str, Any] = {"kind": data.kind}
        if data.kind == "client":
            if not me.allows("clients:write") or me.resources is not None:
                raise Forbidden("This needs the scope clients:write", code="scope_missing")
            # Locked, so that its kind stays what it is until there is a client.
            parent = await store.get_tenant(session, self._tenant_id, lock=True)
            if parent is None or parent.kind != "msp":
                raise NotAnMsp
            access = "none" if data.parent_access is UNSET else data.parent_access
            values |= {"parent_id": self._tenant_id, "parent_access": access}
        elif data.parent_access not in (UNSET, "none"):
            raise ParentAccessForeign("Only a client organization has a parent")
        await self._accounts.lock_user(session, me)
        if await own.count_owned(session, me.user_id) >= MOST_OWNED:
            raise TooManyTenants
        await set_scope(session, tenant=new, user=me.user_id)
        made = await TenantService(session).create(new, data.name, owner_id=me.user_id, **values)
        after = {"name": data.name, **values}
        audit(session, "tenant.create", subject=new, after=after)
        audit(session, "tenant.create", subject=new, after=after, caller=self._caller_in(new))
        return OwnTenantOut.of(made, role=OWNER, current=False)

    def _caller_in(self, tenant_id: str) -> Caller:
        caller: Caller = self._session.info["caller"]
        return msgspec.structs.replace(caller, tenant_id=tenant_id)

    async def _lock(self, tenant_id: str, needed: str) -> Any:
        """The tenant of this id, locked, with the transaction's scope set to it: the current one, a client of it, or
        another one that the caller is a member of, where they may do what is `needed`.

        Raises `TenantNotFound`, `PermissionExceeded`, and `Forbidden` without that permission.
        """
        if tenant_id == self._tenant_id:
            if self._principal.resources is not None:
                raise PermissionExceeded
        elif await store.get_client(self._session, self._tenant_id, tenant_id) is not None:
            if not self._principal.allows("clients:write") or self._principal.resources is not None:
                raise Forbidden("This needs the scope clients:write", code="scope_missing")
            await set_scope(self._session, tenant=tenant_id, user=self._principal.user_id)
        else:
            return await self._reach(tenant_id, needed)
        tenant = await store.get_tenant(self._session, tenant_id, lock=True)
        if tenant is None:
            raise TenantNotFound
        return tenant

    async def _reach(self, tenant_id: str, needed: str) -> Any:
        """Another tenant of the caller's, locked: their session could switch to it, so it need not for this."""
        me = self._principal
        if me.key_id is not None:
            raise TenantNotFound
        await set_scope(self._session, tenant=tenant_id, user=me.user_id)
        # Locked before, so that whoever is put out, or may do less, at this very moment does nothing more.
        tenant = await store.get_tenant(self._session, tenant_id, lock=True)
        place = await TenantService(self._session).place(tenant_id, me.user_id)
        if place is None or place.tenant.comes_from is not None:
            raise TenantNotFound
        if place.resources is not None:
            raise PermissionExceeded
        if not scope_within(needed, place.permissions):
            raise Forbidden(f"This needs the scope {needed} in that organization", code="scope_missing")
        return tenant

    async def update(self, tenant_id: str, data: TenantUpdate) -> TenantOut:
        """Change what was sent. Raises `TenantNotFound`, `ParentAccessForeign`, `NotAnMsp`, `TenantHasClients`."""
        before = await self._lock(tenant_id, "tenant:write")
        values = {name: value for name, value in given(data).items() if value != getattr(before, name)}
        if "parent_access" in values:
            await self._check_access(before)
        if "kind" in values:
            if before.kind == "client":
                raise NotAnMsp("A client organization stays one")
            if await store.find_client_ids(self._session, tenant_id):
                raise TenantHasClients
        if values:
            await store.update_tenant(self._session, tenant_id, **values)
            if "parent_access" in values:
                await self._take_back(tenant_id)
            await self._accounts.authenticator.drop_with(self._session, tenant_id)
            former = {name: getattr(before, name) for name in values}
            audit(
                self._session,
                "tenant.update",
                subject=tenant_id,
                before=former,
                after=values,
                caller=self._caller_in(tenant_id),
            )
        return TenantOut.of(await store.get_tenant(self._session, tenant_id))

    async def _take_back(self, tenant_id: str) -> None:
        """What others than its own members have made to let somebody in, or themselves again: by now they may not make
        it any more, or could make it anew.
        """
        from quazzar.panel.fleet.service import makers_of_tokens  # noqa: PLC0415 - that needs this one

        session, settings = self._session, self._accounts.settings
        invitations = InvitationService(session, settings, InvitedTo("panel", tenant_id))
        makers = {row.invited_by for row in await invitations.find()} | await makers_of_tokens(session, tenant_id)
        for user_id in makers - await store.find_own(session, tenant_id) - {None}:
            await take_back(session, settings, tenant_id, user_id)

    async def _check_access(self, tenant: Any) -> None:
        """Only a client's own members decide what its parent may do; the parent can't help itself to more."""
        if tenant.kind != "client" or tenant.id != self._tenant_id:
            raise ParentAccessForeign
        standing = await store.get_standing(self._session, tenant.id, self._principal.user_id)
        if standing is None or standing.comes_from is not None:
            raise ParentAccessForeign

    async def delete(self, tenant_id: str) -> None:
        """Delete a tenant with all that is in it. Raises `TenantNotFound`, `TenantHasClients`, `TenantInUse`."""
        tenant = await self._lock(tenant_id, "tenant:delete")
        if await store.find_client_ids(self._session, tenant_id):
            raise TenantHasClients
        # Those who work in it now are out with the commit, here and in other processes.
        await self._accounts.authenticator.drop_with(self._session, tenant_id)
        async with referenced_or(TenantInUse()):
            await store.delete_tenant(self._session, tenant_id)
        audit(
            self._session,
            "tenant.delete",
            subject=tenant_id,
            before={"name": tenant.name, "kind": tenant.kind},
            caller=self._caller_in(tenant_id),
        )
        if tenant.parent_id == self._tenant_id:
            audit(self._session, "tenant.delete", subject=tenant_id, before={"name": tenant.name})
