"""Registration and the own profile."""

import contextlib
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.accounts.policy import check_password
from quazzar.accounts.process import Accounts
from quazzar.core.auth import Principal
from quazzar.core.db import set_scope
from quazzar.core.errors import Invalid, Unauthorized
from quazzar.core.ids import new_id
from quazzar.core.jobs import enqueue
from quazzar.core.records import SYSTEM, Caller, audit
from quazzar.core.schema import given
from quazzar.mail.service import mail_configured
from quazzar.panel.accounts import jobs
from quazzar.panel.accounts.schemas import PanelMeOut, PanelUserOut, ProfileUpdate, Register, RegisterOut
from quazzar.panel.tenants.schemas import TenantOut
from quazzar.panel.tenants.service import TenantService


class RegistrationService:
    """Makes users with a tenant of their own. The session is not touched before the password is hashed."""

    def __init__(self, session: AsyncSession, accounts: Accounts) -> None:
        self._session = session
        self._accounts = accounts

    async def register(self, data: Register, *, at_console: bool) -> RegisterOut:
        """Make a user and their tenant. For an address in use the answer is of the same form and nothing is made, so
        that nobody learns from it who is registered here. Whose tenant is made at the machine itself gets the server of
        this process, see `first_tenant`. Raises `PasswordRefused`.
        """
        email = data.email.lower()
        await self._accounts.count_name("panel", "register", email)
        own_names = (email, email.partition("@")[0], data.name, data.organization)
        check_password(data.password, field="password", own=own_names)
        password_hash = await self._accounts.passwords.hash(data.password)
        user_id, tenant_id = new_id("usr"), new_id("ten")
        person = {"id": user_id, "name": data.name, "password_hash": password_hash}
        used = await store.find_user(self._session, "panel", email) is not None
        made = None if used else await self._make(tenant_id, data.organization, email=email, **person)
        if made is None:
            made = await self._pretend(tenant_id, data.organization, email=f"{user_id}@invalid", **person)
            audit(self._session, "user.register", outcome="refused")
        else:
            caller: Caller = self._session.info.get("caller", SYSTEM)
            self._session.info["caller"] = structs.replace(caller, kind="user", id=user_id, tenant_id=tenant_id)
            after = {"name": data.organization, "at_console": at_console}
            audit(self._session, "tenant.create", subject=tenant_id, after=after)
        if mail_configured(self._accounts.settings):
            await enqueue(self._session, jobs.mail_registered, caller=SYSTEM, email=email, user_id=user_id)
        user = PanelUserOut(
            id=user_id,
            email=email,
            name=data.name,
            timezone="UTC",
            created_at=made.created_at,
            last_login_at=None,
            totp_enabled=False,
            email_verified=False,
        )
        return RegisterOut(user=user, tenant=made)

    async def _make(self, tenant_id: str, organization: str, **person: Any) -> TenantOut | None:
        """The user and their tenant; None when the address is in use by now."""
        async with self._session.begin_nested():
            return await self._insert(tenant_id, organization, **person)

    async def _pretend(self, tenant_id: str, organization: str, **person: Any) -> TenantOut:
        """As `_make`, with the same statements, and all of it taken back: the time that an answer takes tells no more
        than the answer.
        """
        made = None
        with contextlib.suppress(_TakenBack):
            async with self._session.begin_nested():
                made = await self._insert(tenant_id, organization, **person)
                raise _TakenBack
        assert made is not None
        return made

    async def _insert(self, tenant_id: str, organization: str, **person: Any) -> TenantOut | None:
        if await store.add_user(self._session, "panel", **person) is None:
            return None
        await set_scope(self._session, tenant=tenant_id, user=person["id"])
        return await TenantService(self._session).create(tenant_id, organization, owner_id=person["id"])


class _TakenBack(Exception):
    """Nothing is wrong; what was done is not to stay."""


class ProfileService:
    """The caller's own profile; one per request."""

    def __init__(self, session: AsyncSession, accounts: Accounts, principal: Principal) -> None:
        self._session = session
        self._accounts = accounts
        self._principal = principal

    async def update(self, data: ProfileUpdate) -> PanelMeOut:
        """Change what was sent; gives the whole profile. Raises `Invalid` for an unknown time zone."""
        values = given(data)
        if "timezone" in values and not is_timezone(values["timezone"]):
            raise Invalid(details={"timezone": "There is no such time zone; it is written as in Europe/Berlin"})
        user_id = self._principal.user_id
        before = await store.get_person(self._session, "panel", user_id)
        if before is None:
            raise Unauthorized
        if values:
            await store.update_user(self._session, "panel", user_id, **values)
            await self._accounts.authenticator.drop_with(self._session, user_id)
            former = {name: getattr(before, name) for name in values}
            audit(self._session, "user.update", subject=user_id, before=former, after=values)
        after = structs.replace(before, **values)
        me: PanelMeOut = self._principal.profile
        return structs.replace(me, user=PanelUserOut.of(after))


@lru_cache(1024)
def is_timezone(name: str) -> bool:
    """Whether this machine's time zone database has it; `UTC` always counts."""
    if name == "UTC":
        return True
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        return False
    return True
