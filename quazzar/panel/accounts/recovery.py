"""Ways back in and proofs of an address: links to it, each good for an hour and one use.

What is asked for by anybody is done by a job, so that the answer comes after the same work whether there is such an
address or not; only who reads its mails learns it.
"""

from datetime import UTC, datetime
from typing import Final

from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.accounts.errors import LinkRefused, MailNotConfigured
from quazzar.accounts.guesses import Guesses
from quazzar.accounts.policy import check_password
from quazzar.accounts.process import Accounts
from quazzar.accounts.store import KeyPlace
from quazzar.core.auth import Principal
from quazzar.core.db import set_scope
from quazzar.core.errors import Forbidden
from quazzar.core.jobs import enqueue
from quazzar.core.records import SYSTEM, Caller, audit
from quazzar.core.schema import UNSET
from quazzar.core.tokens import opaque_digest
from quazzar.mail.service import mail_configured, send_mail
from quazzar.panel.accounts import jobs
from quazzar.panel.accounts.links import RESET, VERIFY
from quazzar.panel.accounts.schemas import ForgottenPassword, PasswordReset
from quazzar.panel.tenants.service import TenantService


class RecoveryService:
    """One per request. The session is not touched before a password is hashed."""

    def __init__(self, session: AsyncSession, accounts: Accounts) -> None:
        self._session = session
        self._accounts = accounts

    async def forget(self, data: ForgottenPassword) -> None:
        """Have a link sent to the address, if it is that of a user."""
        email = data.email.lower()
        await self._accounts.count_name("panel", "reset", email)
        await enqueue(self._session, jobs.mail_reset, caller=SYSTEM, email=email)

    async def reset(self, data: PasswordReset) -> None:
        """Set the password of the user whose link it is; all of their sessions end, and their API keys too where nobody
        had proved before that the address is theirs.

        Raises `LinkRefused`, and then nothing is told of the password; `PasswordRefused`.
        """
        digest = None if data.token is UNSET else opaque_digest(RESET.prefix, data.token)
        if digest is None:
            raise LinkRefused
        async with self._accounts.database.begin() as session:
            user_id = await store.find_mailed_token(session, RESET.name, digest)
            person = None if user_id is None else await store.get_person(session, "panel", user_id)
        if person is None:
            raise LinkRefused
        email = person.email or ""
        check_password(data.password, field="password", own=(email, email.partition("@")[0], person.name or ""))
        password_hash = await self._accounts.passwords.hash(data.password)
        await self._act_as(person.id)
        # The user's row comes first, as in every other transaction that locks more than one row about a user.
        await store.get_secrets(self._session, "panel", person.id, lock=True)
        if await store.take_mailed_token(self._session, RESET.name, digest) is None:
            raise LinkRefused
        if not person.email_verified and mail_configured(self._accounts.settings):
            await self._drop_keys(person.id)
        # Whoever has the link reads what is sent to the address.
        await store.update_user(self._session, "panel", person.id, email_verified_at=datetime.now(UTC))
        await store.replace_password(self._session, "panel", person.id, password_hash)
        await store.end_sessions(self._session, "panel", person.id)
        await self._accounts.authenticator.drop_with(self._session, person.id)
        await Guesses("panel", email, "-").forget(self._session)
        audit(self._session, "user.reset_password", subject=person.id)
        if mail_configured(self._accounts.settings):
            await send_mail(self._session, to=email, subject="Your password was changed", text=_CHANGED)

    async def _drop_keys(self, user_id: str) -> None:
        """All that the user's account was given to come back by without its password.

        Whoever reads what is sent to the address proves it for the first time: it may have been somebody else who
        registered with it, and made keys that outlive a password.
        """
        for tenant_id in await TenantService(self._session).all_of(user_id):
            await set_scope(self._session, tenant=tenant_id, user=user_id)
            await store.delete_api_keys(self._session, KeyPlace(user_id, tenant_id))
        caller: Caller = self._session.info["caller"]
        await set_scope(self._session, tenant=caller.tenant_id, user=user_id)

    async def confirm(self, token: str) -> None:
        """Confirm the address that the link was sent to. Raises `LinkRefused`."""
        digest = opaque_digest(VERIFY.prefix, token)
        user_id = None if digest is None else await store.take_mailed_token(self._session, VERIFY.name, digest)
        if user_id is None:
            raise LinkRefused
        await self._act_as(user_id)
        await store.update_user(self._session, "panel", user_id, email_verified_at=datetime.now(UTC))
        await self._accounts.authenticator.drop_with(self._session, user_id)
        audit(self._session, "user.verify_email", subject=user_id)

    async def ask_to_confirm(self, principal: Principal) -> None:
        """Have a link sent to the caller's address. Raises `MailNotConfigured`, and `Forbidden` for an API key."""
        if principal.session_id is None:
            raise Forbidden("An API key can't do this; log in", code="session_required")
        if not mail_configured(self._accounts.settings):
            raise MailNotConfigured
        await enqueue(self._session, jobs.mail_verification, caller=SYSTEM, user_id=principal.user_id)

    async def _act_as(self, user_id: str) -> None:
        """From here on the transaction is the user's, in the tenant that they would log in to."""
        await set_scope(self._session, user=user_id)
        tenant_id = await TenantService(self._session).home_of(user_id)
        await set_scope(self._session, tenant=tenant_id, user=user_id)
        caller: Caller = self._session.info["caller"]
        self._session.info["caller"] = structs.replace(caller, kind="user", id=user_id, tenant_id=tenant_id)


_CHANGED: Final = """\
The password of your account was changed by a link that was sent to this address, and all of its sessions were ended.

If it was not you who did this, somebody else reads your mails. Secure your mailbox, then set a new password.
"""
