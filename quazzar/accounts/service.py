"""What a user's account is besides logging in: its sessions, and what an operator may do to it from the console."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.accounts.authenticator import CHANNEL
from quazzar.accounts.errors import SessionNotFound, UserNotFound
from quazzar.accounts.guesses import Guesses
from quazzar.accounts.guests import Guests
from quazzar.accounts.login import open_secret, seal_secret
from quazzar.accounts.policy import check_password
from quazzar.accounts.process import Accounts
from quazzar.core.auth import Principal, Realm
from quazzar.core.crypto import Keyring
from quazzar.core.db import notify, set_scope
from quazzar.core.paging import Page
from quazzar.core.passwords import Passwords
from quazzar.core.records import Caller, audit


class SessionService:
    """The sessions of the caller; one per request."""

    def __init__(self, session: AsyncSession, accounts: Accounts, principal: Principal) -> None:
        self._session = session
        self._accounts = accounts
        self._realm = principal.realm
        self._principal = principal

    @property
    def _guests(self) -> Guests | None:
        """Sessions of guests are an admin's to see and to end."""
        is_admin = self._realm == "instance" and "*" in self._principal.scopes
        return self._accounts.guests if is_admin else None

    async def find(self, page: Page) -> Sequence[Any]:
        """The caller's live sessions, newest first, for an admin of an instance with those of guests."""
        own = await store.find_sessions(self._session, self._realm, self._principal.user_id, page)
        if self._guests is None:
            return own
        guests = await self._guests.find(self._session, page)
        return sorted([*own, *guests], key=lambda row: str(row.id), reverse=True)[: page.fetch]

    async def end(self, session_id: str) -> None:
        """End one of the caller's sessions, for an admin also a guest's; its tokens stop with the commit.

        Raises `SessionNotFound`.
        """
        if await store.end_session(self._session, self._realm, self._principal.user_id, session_id):
            audit(self._session, "session.end", subject=session_id)
        elif self._guests is None or not await self._guests.end(self._session, session_id, "revoked"):
            raise SessionNotFound
        await self._accounts.authenticator.drop_with(self._session, session_id)

    async def end_own(self) -> None:
        """End the session that the call came in; one that has just been ended by another call is ended enough."""
        session_id = self._principal.session_id or ""
        if self._principal.panel_user is not None and self._accounts.guests is not None:
            await self._accounts.guests.end(self._session, session_id, "left")
        elif await store.end_session(self._session, self._realm, self._principal.user_id, session_id):
            audit(self._session, "session.end", subject=session_id)
        await self._accounts.authenticator.drop_with(self._session, session_id)


class AccountService:
    """An operator's way to accounts of one realm, from the console: no caller, and no running server needed."""

    def __init__(self, session: AsyncSession, realm: Realm = "instance") -> None:
        self._session = session
        self._realm = realm

    async def admin_names(self) -> Sequence[str]:
        """What the admins of this realm log in as."""
        return await store.find_admin_names(self._session, self._realm)

    async def user_id(self, name: str) -> str:
        """The id of who logs in as `name`: `reset_password` must run in that user's scope. Raises `UserNotFound`."""
        user = await store.find_user(self._session, self._realm, name)
        if user is None:
            raise UserNotFound
        return str(user.id)

    async def reset_password(self, name: str, password: str, *, disable_totp: bool = False) -> None:
        """Set the password of the user who logs in as `name`, end their sessions, and forget their second factor if
        asked. Running servers hear of it. Raises `UserNotFound`, `PasswordRefused`.
        """
        user = await store.find_user(self._session, self._realm, name)
        if user is None:
            raise UserNotFound
        check_password(password, field="password", own=(name,))
        passwords = Passwords(at_once=1)
        try:
            new_hash = await passwords.hash(password)
        finally:
            passwords.close()
        await set_scope(self._session, user=user.id)
        await store.replace_password(self._session, self._realm, user.id, new_hash)
        await store.end_sessions(self._session, self._realm, user.id)
        if disable_totp:
            await store.replace_recovery_codes(self._session, user.id, [])
            await store.update_user(
                self._session, self._realm, user.id, totp_secret=None, totp_enabled_at=None, totp_last_step=None
            )
        await notify(self._session, CHANNEL, user.id)
        await Guesses(self._realm, name, "-").forget(self._session)
        after = {"totp_disabled": disable_totp}
        caller = Caller(kind="system", realm=self._realm)
        audit(self._session, "user.reset_password", subject=user.id, after=after, caller=caller)


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal every second factor anew under the ring's current key; gives how many. Reads under any key of the ring.

    Raises `SealBroken` when one can't be opened; nothing is changed then.
    """
    rows = await store.find_sealed(session)
    for row in rows:
        secret = open_secret(keyring, row.id, row.totp_secret)
        await store.replace_sealed(session, row.id, seal_secret(keyring, row.id, secret))
    return len(rows)
