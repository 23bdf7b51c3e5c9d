"""What the account services of one process share."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.accounts.authenticator import AccountAuthenticator
from quazzar.accounts.guests import Guests
from quazzar.accounts.tenancy import Tenancy
from quazzar.core.auth import Principal, Realm
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.errors import RateLimited, Unauthorized
from quazzar.core.passwords import Passwords
from quazzar.core.ratelimit import RateLimiter, parse_bucket
from quazzar.core.tokens import Tokens
from quazzar.settings import Settings

log = structlog.get_logger(__name__)

_TIDY_SECONDS: Final = 3600.0


class Accounts:
    """One per process, in `app.state.accounts`. `authenticator` is the gate's; the rest is for the services."""

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        database: Database,
        limiter: RateLimiter,
        *,
        tenancy: Tenancy | None = None,
        guests: Guests | None = None,
    ) -> None:
        self.settings = settings
        self.keyring = keyring
        self.database = database
        self.limiter = limiter
        self.tenancy = tenancy
        self.guests = guests
        self.tokens = Tokens(keyring)
        self.passwords = Passwords()
        self.authenticator = AccountAuthenticator(database, self.tokens, tenancy=tenancy, guests=guests)
        self._per_name = parse_bucket("auth-name", settings.rate_limit.auth)
        # Logins queue for each other's locks; they must not do that on connections that other requests wait for.
        self.login_turns = asyncio.Semaphore(max(1, settings.database.pool_size // 3))
        self._tidier: asyncio.Task[None] | None = None

    @property
    def access_seconds(self) -> int:
        return self.settings.auth.access_minutes * 60

    @property
    def session_life(self) -> timedelta:
        return timedelta(days=self.settings.auth.refresh_days)

    async def start(self) -> None:
        await self.authenticator.start()
        self._tidier = asyncio.create_task(self._tidy_often(), name="tidy-accounts")

    async def stop(self) -> None:
        if self._tidier is not None:
            self._tidier.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tidier
        await self.authenticator.stop()
        self.passwords.close()

    async def count_name(self, realm: Realm, what: str, name: str) -> None:
        """Count an attempt at `what` under an account's name; the gate counts the address. Raises `RateLimited`.

        Each `what` is counted by itself: whoever asks for one thing in another's name keeps them from nothing else.
        """
        hit = await self.limiter.hit(self._per_name, f"{realm}:{what}:{name}")
        if not hit.allowed:
            raise RateLimited(headers={"Retry-After": str(hit.retry_after())})

    async def lock_user(self, session: AsyncSession, principal: Principal) -> None:
        """Let what is counted per user be counted one call after the other. Raises `Unauthorized` for a user who is
        gone.
        """
        if await store.get_secrets(session, principal.realm, principal.user_id, lock=True) is None:
            raise Unauthorized

    async def _tidy_often(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            try:
                await self.tidy()
            except Exception as error:  # noqa: BLE001 - what is over does no harm; the next hour tries again
                log.warning("Ended sessions could not be tidied away", cause=type(error).__name__)

    async def tidy(self) -> None:
        """Delete what is over: sessions, counts of guesses, last uses. Safe to run in several processes at once."""
        async with self.database.begin() as session:
            await store.prune_attempts(session)
            await store.prune_last_uses(session)
            await store.prune_mailed_tokens(session)
        for realm in ("instance", "panel"):
            async with self.database.begin() as session:
                users = await store.find_users_with_old_tokens(session, realm, datetime.now(UTC) - store.IDLE)
            for user_id in users:
                async with self.database.begin(user=user_id) as session:
                    await store.get_secrets(session, realm, user_id, lock=True)
                    await store.end_surplus_sessions(session, realm, user_id, keep=1000)
