"""The rules of members: nobody gives or takes more than they have, and a tenant always has an owner."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.process import Accounts
from quazzar.core.auth import Principal
from quazzar.core.db import set_scope
from quazzar.core.errors import Forbidden, Invalid
from quazzar.core.paging import Page
from quazzar.core.records import audit, publish
from quazzar.core.schema import UNSET
from quazzar.invitations.schemas import InvitationLink
from quazzar.invitations.service import InvitationService
from quazzar.invitations.store import Place
from quazzar.mail.service import mail_configured, send_mail_of
from quazzar.panel.fleet.service import known_ids
from quazzar.panel.members import store
from quazzar.panel.members.errors import LastOwner, MemberExists, MemberNotFound, MemberOfParent
from quazzar.panel.members.events import MemberInvited, MemberRemoved, MemberUpdated
from quazzar.panel.members.schemas import MemberInvite, MemberInvitedOut, MemberOut, MemberScope, MemberUpdate
from quazzar.panel.roles.service import RoleService
from quazzar.panel.tenants.errors import PermissionExceeded
from quazzar.panel.tenants.permissions import OWNER, is_within
from quazzar.panel.tenants.service import TenantService, take_back

WRITE = "members:write"


async def has_proved(session: AsyncSession, tenant_id: str, email: str) -> bool:
    """Whether a member of the tenant has confirmed that the address is theirs."""
    return await store.has_proved(session, tenant_id, email)


class MemberService:
    """The members of the caller's tenant, and who is invited; one per request."""

    def __init__(self, session: AsyncSession, accounts: Accounts, principal: Principal) -> None:
        self._session = session
        self._accounts = accounts
        self._principal = principal
        self._tenant_id = principal.tenant_id or ""
        self._roles = RoleService(session, accounts, principal)
        self._tenants = TenantService(session)
        self._invitations = InvitationService(session, accounts.settings, Place("panel", self._tenant_id))

    async def find(self, page: Page) -> Sequence[Any]:
        """Newest first; one more than the page shows."""
        return await store.find_members(self._session, self._tenant_id, page)

    async def get(self, member_id: str) -> MemberOut:
        """A member, or an invitation that can still be accepted. Raises `MemberNotFound`."""
        row = await store.get_member(self._session, self._tenant_id, member_id)
        row = row or await store.get_invited(self._session, self._tenant_id, member_id)
        if row is None:
            raise MemberNotFound
        return MemberOut.of(row)

    async def invite(self, data: MemberInvite) -> MemberInvitedOut:
        """Invite an address; an invitation that it had before is replaced. Where there is a mail server the link goes
        to the address alone, else it is in the answer.

        Raises `Invalid` by field, `PermissionExceeded`, `MemberExists`, `TooManyInvitations`, `RateLimited`,
        `MailLimitReached`.
        """
        email = data.email.lower()
        await self._lock()
        role = await self._roles.pick(data.role, "role")
        resources = await self._resources(data.scope, role.role)
        self._check_bounds(resources)
        if await store.has_member(self._session, self._tenant_id, email):
            raise MemberExists
        await self._check_former(email)
        row, invitation = await self._invitations.invite(
            email, role=role.role, role_id=role.role_id, resources=resources, invited_by=self._principal.user_id
        )
        sent = mail_configured(self._accounts.settings)
        if sent:
            # Counted by address: who invites may not fill a stranger's mailbox.
            await self._accounts.count_name("panel", "invite", email)
            await self._send(email, invitation)
        given = {"email": email, "role": data.role, "resources": resources}
        audit(self._session, "member.invite", subject=row.id, after=given)
        publish(self._session, MemberInvited(invitation_id=row.id, email=email, role=data.role), subject=row.id)
        shown = await store.get_invited(self._session, self._tenant_id, row.id)
        return MemberInvitedOut.of(shown, invitation=None if sent else invitation)

    async def _lock(self) -> None:
        """Members are changed one call after the other. Raises `PermissionExceeded` when the one before has taken from
        the caller what theirs was let in by.
        """
        me = self._principal
        await self._tenants.lock(self._tenant_id)
        place = await self._tenants.place(self._tenant_id, me.user_id)
        if place is None or not is_within(me.scopes, place.permissions):
            raise PermissionExceeded
        if place.resources is not None and (me.resources is None or not me.resources <= place.resources):
            raise PermissionExceeded

    async def _send(self, email: str, invitation: InvitationLink) -> None:
        name: str = self._principal.profile.tenant.name
        organization = "".join(letter if letter.isprintable() else " " for letter in name)
        text = _INVITED.format(organization=organization, link=invitation.url)
        subject = f"You are invited to {organization}"
        await send_mail_of(self._session, self._tenant_id, to=email, subject=subject, text=text)

    async def _check_former(self, email: str) -> None:
        """An open invitation to more than the caller has is not theirs to replace."""
        for row in await self._invitations.find():
            if row.email == email:
                await self._check(row)

    async def update(self, member_id: str, data: MemberUpdate) -> MemberOut:
        """Give a member, or who is invited, another role or other bounds; it holds for their next call. When they may
        less by that, what they have made to let others in is taken back, as of those who are removed.

        Raises `MemberNotFound`, `MemberOfParent`, `LastOwner`, `PermissionExceeded`, and `Invalid` by field.
        """
        await self._lock()
        before = await self._get(member_id)
        if before.parent_id is not None:
            raise MemberOfParent
        await self._check(before)
        values: dict[str, Any] = {}
        if data.role is not UNSET:
            picked = await self._roles.pick(data.role, "role")
            values |= {"role": picked.role, "role_id": picked.role_id}
        role = values["role"] if values else before.role
        if data.scope is not UNSET:
            values["resources"] = await self._resources(data.scope, role)
        elif role == OWNER and before.resources is not None:
            values["resources"] = None
        self._check_bounds(values.get("resources", before.resources))
        if before.user_id is not None and before.role == OWNER != role:
            await self._check_owners()
        values = {name: value for name, value in values.items() if value != getattr(before, name)}
        if values:
            await self._write(before, values)
        return MemberOut.of(await self._get(member_id))

    async def _write(self, before: Any, values: dict[str, Any]) -> None:
        former = {name: getattr(before, name) for name in values}
        if before.user_id is None:
            await self._invitations.update(before.id, **values)
        else:
            await store.update_member(self._session, self._tenant_id, before.id, **values)
            await self._forget(before.user_id)
            if await self._may_less(before, values):
                await self._take_back(before.user_id)
            role = values.get("role", before.role) or values.get("role_id", before.role_id)
            news = MemberUpdated(member_id=before.id, user_id=before.user_id, role=role)
            publish(self._session, news, subject=before.id)
        audit(self._session, "member.update", subject=before.id, before=former, after=values)

    async def _may_less(self, before: Any, values: dict[str, Any]) -> bool:
        """Whether something that a member may is taken away by `values`."""
        former = await self._roles.permissions_of(before.role, before.role_id)
        role, role_id = values.get("role", before.role), values.get("role_id", before.role_id)
        bounds = values.get("resources")
        narrowed = bounds is not None and (before.resources is None or not set(bounds).issuperset(before.resources))
        return narrowed or not is_within(former, await self._roles.permissions_of(role, role_id))

    async def delete(self, member_id: str) -> None:
        """Remove a member, take an invitation back, or leave: whoever is a member may do that.

        With a member go their sessions and keys, the invitations that they made and that nobody has accepted yet, and
        their registration tokens; here, and in the client tenants that they came into from here.
        Raises `MemberNotFound`, `LastOwner`, `PermissionExceeded`, and `Forbidden` for others than oneself.
        """
        await self._lock()
        own = await store.get_member_of(self._session, self._tenant_id, self._principal.user_id)
        leaves = own is not None and own.id == member_id and self._principal.session_id is not None
        if not leaves and not self._principal.allows(WRITE):
            raise Forbidden(f"This needs the scope {WRITE}", code="scope_missing")
        before = await self._get(member_id)
        if not leaves:
            await self._check(before)
            self._check_bounds(before.resources)
        audit(self._session, "member.remove", subject=member_id, before={"email": before.email})
        if before.user_id is None:
            await self._invitations.revoke(member_id)
            return
        if before.role == OWNER:
            await self._check_owners()
        await self._take_back(before.user_id)
        await store.delete_member(self._session, self._tenant_id, member_id)
        await self._forget(before.user_id)
        publish(self._session, MemberRemoved(member_id=member_id, user_id=before.user_id), subject=member_id)

    async def _take_back(self, user_id: str) -> None:
        """What a member has made to let others in, or themselves again."""
        session, me = self._session, self._principal.user_id
        for client_id in await self._tenants.clients_of(self._tenant_id):
            await set_scope(session, tenant=client_id, user=me)
            place = await store.get_member_of(session, client_id, user_id)
            if place is None or place.parent_id is not None:
                await take_back(session, self._accounts.settings, client_id, user_id)
        await set_scope(session, tenant=self._tenant_id, user=me)
        await take_back(session, self._accounts.settings, self._tenant_id, user_id)

    async def _get(self, member_id: str) -> Any:
        """A member or an open invitation, locked. Raises `MemberNotFound`."""
        row = await store.get_member(self._session, self._tenant_id, member_id, lock=True)
        row = row or await store.get_invited(self._session, self._tenant_id, member_id, lock=True)
        if row is None:
            raise MemberNotFound
        return row

    async def _forget(self, user_id: str) -> None:
        await self._accounts.authenticator.drop_with(self._session, user_id)

    async def _check(self, row: Any) -> None:
        """Raises `PermissionExceeded` when a member or invitation may more than the caller."""
        if row.role is not None or row.role_id is not None:
            self._roles.check(await self._roles.permissions_of(row.role, row.role_id))
        self._check_bounds(row.resources)

    def _check_bounds(self, resources: list[str] | None) -> None:
        """Raises `PermissionExceeded` when a caller who is bound reaches for what they are not bound to."""
        own = self._principal.resources
        if own is not None and (resources is None or not own.issuperset(resources)):
            raise PermissionExceeded

    async def _check_owners(self) -> None:
        """Raises `LastOwner` when one owner less would leave none; the tenant is locked, so that two can't at once."""
        if await self._tenants.count_owners(self._tenant_id) <= 1:
            raise LastOwner

    async def _resources(self, scope: MemberScope | None, role: str | None) -> list[str] | None:
        """What a scope binds to. Raises `Invalid` with every id that is none of this tenant's."""
        if scope is None:
            return None
        if role == OWNER:
            raise Invalid(details={"scope": "An owner can't be bound"})
        wanted = {"scope.groups": ("grp_", scope.groups), "scope.instances": ("inst_", scope.instances)}
        known = await known_ids(self._session, self._tenant_id, {*scope.groups, *scope.instances})
        problems = {
            f"{field}.{index}": "There is no such group" if prefix == "grp_" else "There is no such instance"
            for field, (prefix, ids) in wanted.items()
            for index, one in enumerate(ids)
            if not one.startswith(prefix) or one not in known
        }
        if not scope.groups and not scope.instances:
            problems["scope"] = "Scope must name a group or an instance, or be null"
        if problems:
            raise Invalid(details=problems)
        return sorted({*scope.groups, *scope.instances})


_INVITED: Final = """\
You are invited to join the organization {organization} on Quazzar. Accept here:

{link}

The link works once, for this address alone, within 72 hours. If you do not know who invited you, ignore this mail.
"""
