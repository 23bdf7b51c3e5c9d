"""Proving who one is: passwords, second factors, and the tokens that come of it.

Hashing takes long, so nothing here works in the request's transaction: each step reads or writes in a short one of its
own, and what may have changed in between is checked again by the statement that writes. A refusal that must leave a
trace (a counted guess, a revoked session) is committed before it is raised.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store, totp
from quazzar.accounts.errors import (
    BadCredentials,
    CodeNeeded,
    CodeWrong,
    NoTenant,
    PasswordWrong,
    RefreshRefused,
    SecondFactorRefused,
    TotpEnabled,
    TotpNeeded,
    TotpNotEnabled,
    TotpNotPending,
)
from quazzar.accounts.events import LoggedIn, LoginFailed
from quazzar.accounts.guesses import Guesses, count_step, end_step
from quazzar.accounts.policy import check_password
from quazzar.accounts.process import Accounts
from quazzar.accounts.schemas import TokenPair, TotpConfirmed, TotpRequired, TotpSetup
from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import set_scope
from quazzar.core.errors import Unauthorized
from quazzar.core.ids import new_id
from quazzar.core.records import Caller, audit, publish
from quazzar.core.tokens import (
    INSTANCE_ACCESS,
    INSTANCE_STEP,
    PANEL_ACCESS,
    PANEL_STEP,
    Claims,
    new_opaque,
    opaque_digest,
)

MAX_SESSIONS: Final = 20
STEP_SECONDS: Final = 300
FRESH: Final = timedelta(minutes=5)
"""How long a code of the second factor stands for the session that it was shown in."""
REFRESH_PREFIX: Final = "qzt"
_ISSUER: Final = {"instance": "Quazzar", "panel": "Quazzar Control Panel"}


class LoginService:
    """Logs in and out of one realm; one per request, from what the caller is and where they come from."""

    def __init__(self, accounts: Accounts, caller: Caller, *, user_agent: str) -> None:
        self._accounts = accounts
        self._caller = caller
        self._realm = caller.realm
        self._address = caller.address or "-"
        self._user_agent = user_agent

    # --- logging in ---

    async def login(self, name: str, password: str) -> TokenPair | TotpRequired:
        """A session, or a temporary token for the second step.

        Raises `BadCredentials` for an unknown name as for a wrong password, after the same work.
        """
        await self._accounts.count_name(self._realm, "login", name)
        guesses = self._guesses(name)
        async with self._accounts.passwords.turn(), self._begin() as session:
            user = await store.find_user(session, self._realm, name)
            # The same statements for a name that is unknown.
            user_id = user.id if user is not None else "-"
            await set_scope(session, user=user_id)
            at_home = await store.has_session_from(session, self._realm, user_id, self._address)
            wait = await guesses.count_password(session, at_home=at_home)
        await guesses.wait(wait)
        async with self._accounts.passwords.turn():
            right = await self._accounts.passwords.verify(user.password_hash if user is not None else None, password)
            if user is not None and right:
                return await self._password_was_right(name, user, password, guesses, at_home=at_home)
            async with self._begin() as session:
                await guesses.password_was_wrong(session)
                tried = user.id if user is not None else None
                audit(session, "session.create", subject=tried, outcome="refused")
                await self._announce_failure(session, tried, "password")
        raise BadCredentials

    async def _password_was_right(
        self, name: str, user: Any, password: str, guesses: Guesses, *, at_home: bool, again: bool = True
    ) -> TokenPair | TotpRequired:
        if user.totp_enabled_at is not None:
            async with self._begin() as session:
                await guesses.password_was_right(session, at_home=at_home)
            return self._second_step(user.id, user.password_hash)
        new_hash = user.password_hash
        if self._accounts.passwords.is_outdated(new_hash):
            new_hash = await self._accounts.passwords.hash(password)
        try:
            async with self._begin() as session:
                pair = await self._open(session, user, password_hash=new_hash)
                await guesses.password_was_right(session, at_home=at_home)
                return pair
        except BadCredentials:
            if not again:
                raise
        # Something changed meanwhile: a parallel login renewed the hash, the password is another one now, or the
        # second factor was turned on.
        async with self._begin() as session:
            user = await store.find_user(session, self._realm, name)
        if user is None or not await self._accounts.passwords.verify(user.password_hash, password):
            raise BadCredentials
        return await self._password_was_right(name, user, password, guesses, at_home=at_home, again=False)

    def _second_step(self, user_id: str, password_hash: str) -> TotpRequired:
        # In place of a session: which password was given, so that changing it ends logins that are half done.
        token = self._accounts.tokens.sign(
            INSTANCE_STEP if self._realm == "instance" else PANEL_STEP,
            subject=user_id,
            session_id=_fingerprint(password_hash),
            seconds=STEP_SECONDS,
        )
        return TotpRequired(temp_token=token)

    async def finish(self, temp_token: str, code: str) -> TokenPair:
        """The session that the temporary token stands for.

        Raises `SecondFactorRefused` for a wrong or used code and for a token that is over, used up or foreign;
        `RateLimited` when the account's codes have been guessed at too often.
        """
        claims = self._step_claims(temp_token)
        async with self._begin() as session:
            fresh = await count_step(session, claims.jti)
        if not fresh:
            raise SecondFactorRefused
        async with self._begin() as session:
            user = await store.get_secrets(session, self._realm, claims.sub)
            if user is None or user.totp_enabled_at is None or _fingerprint(user.password_hash) != claims.sid:
                raise SecondFactorRefused
            guesses = self._guesses(_name(user))
            await guesses.count_code(session)
        # One transaction: a code is used up only together with the session that it opens. The user's row comes first,
        # as in every other that locks more than one row about a user.
        async with self._begin() as session:
            user = await store.get_secrets(session, self._realm, claims.sub, lock=True)
            if user is None or user.totp_enabled_at is None or _fingerprint(user.password_hash) != claims.sid:
                raise SecondFactorRefused
            if await self._take_code(session, user, code):
                if not await end_step(session, claims.jti):
                    raise SecondFactorRefused
                pair = await self._open(session, user, password_hash=user.password_hash)
                await guesses.code_was_right(session)
                return pair
            audit(session, "session.create", subject=user.id, outcome="refused", after={"step": "totp"})
            await self._announce_failure(session, user.id, "totp")
        raise SecondFactorRefused

    async def _announce_failure(self, session: AsyncSession, user_id: str | None, step: str) -> None:
        """On the panel in the tenant that the user would have come to; without one nobody would see it."""
        tenant_id = None
        if self._accounts.tenancy is not None and self._realm == "panel":
            # Asked for a name that nobody has as well, so that both take the same time.
            await set_scope(session, user=user_id or "-")
            tenant_id = await self._accounts.tenancy.home(session, user_id or "-")
            if tenant_id is None:
                return
        failed = LoginFailed(user_id=user_id, step=step, address=self._caller.address)
        publish(session, failed, subject=user_id, tenant_id=tenant_id)

    def _step_claims(self, temp_token: str) -> Claims:
        kind = INSTANCE_STEP if self._realm == "instance" else PANEL_STEP
        try:
            return self._accounts.tokens.verify(kind, temp_token.encode())
        except Unauthorized as error:
            raise SecondFactorRefused(code=error.code) from None

    async def _open(self, session: AsyncSession, user: Any, *, password_hash: str) -> TokenPair:
        """A new session of a user who has proved themselves; the oldest beyond the limit ends.

        Raises `BadCredentials` when what they proved themselves with is not `user`'s any more.
        """
        realm, user_id = self._realm, user.id
        await set_scope(session, user=user_id)
        if not await store.mark_login(
            session,
            realm,
            user_id,
            former=user.password_hash,
            password_hash=password_hash,
            totp=user.totp_enabled_at is not None,
        ):
            raise BadCredentials
        tenant_id = None
        if self._accounts.tenancy is not None and realm == "panel":
            tenant_id = await self._accounts.tenancy.home(session, user_id)
            if tenant_id is None:
                raise NoTenant
        await set_scope(session, tenant=tenant_id, user=user_id)
        session_id = new_id("ses")
        expires_at = datetime.now(UTC) + self._accounts.session_life
        await store.add_session(
            session,
            realm,
            id=session_id,
            user_id=user_id,
            tenant_id=tenant_id,
            expires_at=expires_at,
            ip=self._address,
            user_agent=self._user_agent,
        )
        if user.totp_enabled_at is not None:
            # Who has a second factor gets here by a code only.
            await store.mark_code(session, user_id, session_id)
        for ended in await store.end_surplus_sessions(session, realm, user_id, MAX_SESSIONS):
            await self._accounts.authenticator.drop_with(session, ended)
        await self._accounts.authenticator.drop_with(session, user_id)
        session.info["caller"] = msgspec.structs.replace(self._caller, kind="user", id=user_id, tenant_id=tenant_id)
        audit(session, "session.create", subject=session_id)
        begun = LoggedIn(user_id=user_id, session_id=session_id, address=self._caller.address)
        publish(session, begun, subject=user_id)
        return await self._issue(session, user_id, session_id, tenant_id, expires_at)

    async def _issue(
        self, session: AsyncSession, user_id: str, session_id: str, tenant_id: str | None, expires_at: datetime
    ) -> TokenPair:
        refresh = new_opaque(REFRESH_PREFIX)
        digest = opaque_digest(REFRESH_PREFIX, refresh)
        assert digest is not None
        await store.add_refresh_token(session, self._realm, user_id, session_id, digest)
        left = int((expires_at - datetime.now(UTC)).total_seconds())
        seconds = max(1, min(self._accounts.access_seconds, left))
        access = self._accounts.tokens.sign(
            INSTANCE_ACCESS if self._realm == "instance" else PANEL_ACCESS,
            subject=user_id,
            session_id=session_id,
            seconds=seconds,
            tenant_id=tenant_id,
        )
        return TokenPair(access_token=access, refresh_token=refresh, expires_in=seconds)

    # --- going on ---

    async def refresh(self, token: str) -> TokenPair:
        """A new pair for a refresh token, which is used up.

        A token that was used up before ends its whole session: two hold it, and nobody knows which of them is the
        thief. Raises `RefreshRefused` for that and for every other token that is not good any more.
        """
        digest = opaque_digest(REFRESH_PREFIX, token)
        if digest is None:
            raise RefreshRefused
        async with self._begin() as session:
            outcome = await self._rotate(session, digest)
        if isinstance(outcome, TokenPair):
            return outcome
        if outcome == "expired":
            raise RefreshRefused("The session has expired", code="token_expired")
        raise RefreshRefused

    async def _rotate(
        self, session: AsyncSession, digest: bytes
    ) -> TokenPair | Literal["unknown", "reused", "expired"]:
        realm = self._realm
        found = await store.find_refresh_token(session, realm, digest)
        if found is None:
            return "unknown"
        user_id, session_id = found
        await set_scope(session, user=user_id)
        # The session first and the token after it, as where a session ends: so the two never wait in a circle.
        row = await store.lock_session(session, realm, user_id, session_id)
        if row is None:
            return "unknown"
        reused = not await store.take_refresh_token(session, realm, digest)
        if reused or not row.alive:
            await self._end(session, user_id, session_id, tenant_id=row.tenant_id)
            action = "session.refresh_reused" if reused else "session.expire"
            audit(session, action, subject=session_id, outcome="refused" if reused else "done")
            return "reused" if reused else "expired"
        await store.note_uses(session, [(session_id, datetime.now(UTC), self._address)])
        return await self._issue(session, user_id, session_id, row.tenant_id, row.expires_at)

    async def switch_tenant(self, principal: Principal, tenant_id: str) -> TokenPair:
        """Let the caller's session work in another tenant: a new pair, and the tokens before it stop.

        Raises `NotFound` for a tenant that the caller may not enter.
        """
        user_id, session_id = principal.user_id, principal.session_id or ""
        async with self._begin(principal) as session:
            row = await store.lock_session(session, self._realm, user_id, session_id)
            if row is None or not row.alive or self._accounts.tenancy is None:
                raise Unauthorized
            await self._accounts.tenancy.enter(session, principal, tenant_id)
            await store.move_session(session, user_id, session_id, tenant_id)
            await self._accounts.authenticator.drop_with(session, session_id)
            session.info["caller"] = msgspec.structs.replace(self._caller, tenant_id=tenant_id)
            audit(session, "session.switch_tenant", subject=session_id, before={"tenant_id": principal.tenant_id})
            return await self._issue(session, user_id, session_id, tenant_id, row.expires_at)

    async def _end(self, session: AsyncSession, user_id: str, session_id: str, *, tenant_id: str | None) -> None:
        await store.end_session(session, self._realm, user_id, session_id)
        await self._accounts.authenticator.drop_with(session, session_id)
        session.info["caller"] = msgspec.structs.replace(self._caller, kind="user", id=user_id, tenant_id=tenant_id)

    # --- changing what one proves oneself with ---

    async def change_password(self, principal: Principal, current: str, new: str) -> None:
        """Set a new password and end all other sessions. Raises `PasswordWrong`, `PasswordRefused`."""
        user = await self._check_password(principal, current)
        check_password(new, field="new_password", own=_names(user))
        new_hash = await self._accounts.passwords.hash(new)
        async with self._begin(principal) as session:
            if not await store.replace_password(session, self._realm, user.id, new_hash, former=user.password_hash):
                raise PasswordWrong
            await self._end_others(session, principal)
            audit(session, "user.change_password", subject=user.id)

    async def enable_totp(self, principal: Principal, password: str) -> TotpSetup:
        """A new secret that counts once a code of it was shown. Raises `PasswordWrong`, `TotpEnabled`."""
        user = await self._check_password(principal, password)
        secret = totp.new_secret()
        async with self._begin(principal) as session:
            fresh = await store.get_secrets(session, self._realm, user.id, lock=True)
            if fresh is None or fresh.totp_enabled_at is not None:
                raise TotpEnabled
            sealed = seal_secret(self._accounts.keyring, user.id, secret)
            await store.update_user(session, self._realm, user.id, totp_secret=sealed, totp_last_step=None)
            audit(session, "user.totp_prepare", subject=user.id)
        url = totp.provisioning_url(secret, _name(user), _ISSUER[self._realm])
        return TotpSetup(secret=secret, otpauth_url=url, qr_svg=await asyncio.to_thread(totp.qr_svg, url))

    async def confirm_totp(self, principal: Principal, code: str) -> TotpConfirmed:
        """Turn the second factor on, end all other sessions, and show the recovery codes.

        Raises `CodeWrong`, `TotpEnabled`, `TotpNotPending`, `RateLimited`.
        """
        user = await self._count_code(principal)
        async with self._begin(principal) as session:
            fresh = await store.get_secrets(session, self._realm, user.id, lock=True)
            if fresh is None or fresh.totp_secret is None:
                raise TotpNotPending
            if fresh.totp_enabled_at is not None:
                raise TotpEnabled
            if not await self._take_code(session, fresh, code):
                raise CodeWrong
            await self._guesses(_name(user)).code_was_right(session)
            codes = totp.new_recovery_codes()
            hashes = [digest for each in codes if (digest := totp.recovery_digest(user.id, each)) is not None]
            await store.replace_recovery_codes(session, user.id, hashes)
            await store.update_user(session, self._realm, user.id, totp_enabled_at=datetime.now(UTC))
            await store.mark_code(session, user.id, principal.session_id or "")
            await self._end_others(session, principal)
            audit(session, "user.totp_enable", subject=user.id)
        return TotpConfirmed(recovery_codes=codes)

    async def step_up(self, principal: Principal, code: str | None) -> None:
        """Prove the second factor again: by `code`, or by one that this session has shown within the last five minutes.

        Raises `TotpNeeded` without a second factor, `CodeNeeded`, `CodeWrong`, `RateLimited`.
        """
        session_id = principal.session_id or ""
        async with self._begin(principal) as session:
            user = await self._own(session, principal)
            fresh = await store.has_shown_code(session, user.id, session_id, FRESH)
        if user.totp_enabled_at is None:
            raise TotpNeeded
        if code is None:
            if not fresh:
                raise CodeNeeded
            return
        await self._count_code(principal)
        async with self._begin(principal) as session:
            user = await store.get_secrets(session, self._realm, principal.user_id, lock=True)
            right = user is not None and user.totp_enabled_at is not None and await self._take_code(session, user, code)
            if right:
                await self._guesses(_name(user)).code_was_right(session)
                await store.mark_code(session, principal.user_id, session_id)
            else:
                audit(session, "user.step_up", subject=principal.user_id, outcome="refused")
        if not right:
            raise CodeWrong

    async def disable_totp(self, principal: Principal, password: str, code: str) -> None:
        """Turn the second factor off. Raises `PasswordWrong`, `CodeWrong`, `TotpNotEnabled`, `RateLimited`."""
        await self._check_password(principal, password)
        user = await self._count_code(principal)
        async with self._begin(principal) as session:
            fresh = await store.get_secrets(session, self._realm, user.id, lock=True)
            if fresh is None or fresh.totp_enabled_at is None:
                raise TotpNotEnabled
            if not await self._take_code(session, fresh, code):
                raise CodeWrong
            await self._guesses(_name(user)).code_was_right(session)
            await clear_totp(session, self._accounts, self._realm, user.id)
            audit(session, "user.totp_disable", subject=user.id)

    async def _end_others(self, session: AsyncSession, principal: Principal) -> None:
        await store.end_sessions(session, self._realm, principal.user_id, but=principal.session_id)
        await self._accounts.authenticator.drop_with(session, principal.user_id)

    async def _check_password(self, principal: Principal, password: str) -> Any:
        """The caller's secrets, once `password` has proved to be theirs; guesses count as at login."""
        async with self._begin(principal) as session:
            user = await self._own(session, principal)
            guesses = self._guesses(_name(user))
            wait = await guesses.count_password(session, at_home=False)
        await guesses.wait(wait)
        right = await self._accounts.passwords.verify(user.password_hash, password)
        async with self._begin(principal) as session:
            if right:
                await guesses.password_was_right(session, at_home=False)
            else:
                await guesses.password_was_wrong(session)
                audit(session, "user.check_password", subject=user.id, outcome="refused")
        if not right:
            raise PasswordWrong
        return user

    async def _count_code(self, principal: Principal) -> Any:
        async with self._begin(principal) as session:
            user = await self._own(session, principal)
            await self._guesses(_name(user)).count_code(session)
        return user

    async def _own(self, session: AsyncSession, principal: Principal) -> Any:
        user = await store.get_secrets(session, self._realm, principal.user_id)
        if user is None:
            raise Unauthorized
        return user

    async def _take_code(self, session: AsyncSession, user: Any, code: str) -> bool:
        """Use up a code or a recovery code of the user's; False when it is wrong or was used already."""
        if user.totp_secret is None:
            return False
        secret = open_secret(self._accounts.keyring, user.id, user.totp_secret)
        step = totp.accepted_step(secret, code, time.time(), after=user.totp_last_step)
        if step is not None:
            return await store.take_step(session, user.id, step)
        digest = totp.recovery_digest(user.id, code)
        return digest is not None and await store.take_recovery_code(session, user.id, digest)

    def _guesses(self, name: str) -> Guesses:
        return Guesses(self._realm, name, self._address)

    @contextlib.asynccontextmanager
    async def _begin(self, principal: Principal | None = None) -> AsyncIterator[AsyncSession]:
        tenant = principal.tenant_id if principal is not None else None
        user = principal.user_id if principal is not None else None
        async with (
            self._accounts.login_turns,
            self._accounts.database.begin(tenant=tenant, user=user) as session,
        ):
            session.info["caller"] = self._caller
            yield session


def seal_secret(keyring: Keyring, user_id: str, secret: str) -> bytes:
    return keyring.seal(secret.encode(), context=f"users.totp_secret:{user_id}")


def open_secret(keyring: Keyring, user_id: str, sealed: bytes) -> str:
    return keyring.open(sealed, context=f"users.totp_secret:{user_id}").decode()


async def clear_totp(session: AsyncSession, accounts: Accounts, realm: Any, user_id: str) -> None:
    """Forget the second factor and its recovery codes."""
    await store.replace_recovery_codes(session, user_id, [])
    await store.update_user(session, realm, user_id, totp_secret=None, totp_enabled_at=None, totp_last_step=None)
    await accounts.authenticator.drop_with(session, user_id)


def _fingerprint(password_hash: str) -> str:
    return "pwd_" + hashlib.sha256(password_hash.encode()).hexdigest()[:32]


def _name(user: Any) -> str:
    name: str = user.username or user.email or ""
    return name


def _names(user: Any) -> tuple[str, ...]:
    email: str = user.email or ""
    return tuple(filter(None, (user.username, email, email.partition("@")[0])))
