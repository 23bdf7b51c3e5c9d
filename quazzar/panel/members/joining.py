"""Accepting an invitation: with the account of its address, which is made when there is none."""

from typing import Any

from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store as accounts_store
from quazzar.accounts.policy import check_password
from quazzar.accounts.process import Accounts
from quazzar.core.auth import Principal
from quazzar.core.errors import Forbidden, Invalid
from quazzar.core.ids import new_id
from quazzar.core.records import Caller, audit, publish
from quazzar.core.schema import UNSET
from quazzar.invitations.errors import InvitationForAnother, LoginRequired
from quazzar.invitations.service import Presented, accept, look_up
from quazzar.panel.accounts.schemas import PanelUserOut
from quazzar.panel.members.errors import MemberExists
from quazzar.panel.members.events import MemberJoined
from quazzar.panel.members.schemas import InvitationAccept, InvitationAcceptedOut
from quazzar.panel.tenants.schemas import TenantOut
from quazzar.panel.tenants.service import TenantService


class JoiningService:
    """Lets people in. The session is not touched before a password is hashed."""

    def __init__(self, session: AsyncSession, accounts: Accounts, principal: Principal | None) -> None:
        self._session = session
        self._accounts = accounts
        self._principal = principal

    async def accept(self, data: InvitationAccept) -> InvitationAcceptedOut:
        """Make the invited person a member; who has come in from the parent tenant so far is one then.

        Logged in, they must have the invited address (`InvitationForAnother`). Otherwise the address must have no
        account (`LoginRequired`), and name and password make it. Raises what `look_up` and `accept` raise,
        `MemberExists`, `PasswordRefused`, and `Invalid` by field.
        """
        presented = await look_up(self._accounts.database, "panel", data.token)
        if self._principal is not None:
            user_id = await self._own_account(self._principal, presented)
        else:
            user_id = await self._new_account(data, presented)
        return await self._join(presented, user_id)

    async def _own_account(self, principal: Principal, presented: Presented) -> str:
        if principal.session_id is None:
            raise Forbidden("An API key can't do this; log in", code="session_required")
        person = await accounts_store.get_person(self._session, "panel", principal.user_id)
        if person is None or person.email != presented.row.email:
            raise InvitationForAnother
        return principal.user_id

    async def _new_account(self, data: InvitationAccept, presented: Presented) -> str:
        email: str = presented.row.email
        async with self._accounts.database.begin() as session:
            if await accounts_store.find_user(session, "panel", email) is not None:
                raise LoginRequired
        missing = {
            field: f"{field.capitalize()} is required to make an account"
            for field in ("name", "password")
            if getattr(data, field) is UNSET
        }
        if data.name is UNSET or data.password is UNSET:
            raise Invalid(details=missing)
        check_password(data.password, field="password", own=(email, email.partition("@")[0], data.name))
        password_hash = await self._accounts.passwords.hash(data.password)
        user_id = new_id("usr")
        made = await accounts_store.add_user(
            self._session, "panel", id=user_id, email=email, name=data.name, password_hash=password_hash
        )
        if made is None:
            raise LoginRequired
        return user_id

    async def _join(self, presented: Presented, user_id: str) -> InvitationAcceptedOut:
        row: Any = presented.row
        session, tenants = self._session, TenantService(self._session)
        await accept(session, presented, user_id=user_id)
        given = {"role": row.role, "role_id": row.role_id, "resources": row.resources}
        member_id = await tenants.join(row.tenant_id, user_id, **given)
        if member_id is None:
            raise MemberExists
        await self._accounts.authenticator.drop_with(session, user_id)
        caller: Caller = session.info["caller"]
        session.info["caller"] = structs.replace(caller, kind="user", id=user_id, tenant_id=row.tenant_id)
        role: str = row.role or row.role_id
        audit(session, "member.join", subject=member_id, after={"invitation_id": row.id, "role": role})
        publish(session, MemberJoined(member_id=member_id, user_id=user_id, role=role), subject=member_id)
        place = await tenants.place(row.tenant_id, user_id)
        person = await accounts_store.get_person(session, "panel", user_id)
        assert place is not None
        assert person is not None
        return InvitationAcceptedOut(
            user=PanelUserOut.of(person), tenant=TenantOut.of(place.tenant), member_id=member_id, role=role
        )
