"""How often passwords and codes may be guessed: slower and slower for who guesses wrong, never locked for good.

Counts lie in the database, so that several processes share them. What is counted is a digest of the name as it was
typed: unknown names are throttled alike, and no typed text is kept.
"""

import asyncio
import hashlib
import math
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.core.addresses import rate_key
from quazzar.core.auth import Realm
from quazzar.core.errors import RateLimited


class Limit(msgspec.Struct, frozen=True):
    amount: int
    window: timedelta


PAIR: Final = Limit(5, timedelta(minutes=15))
"""Wrong passwords for one account from one address, after which each further guess has to wait."""
ADDRESS: Final = Limit(20, timedelta(minutes=15))
"""Wrong passwords from one address, whatever the account."""
ACCOUNT: Final = Limit(100, timedelta(hours=1))
"""Guesses at one account from all addresses where its owner is not logged in."""
STEP: Final = Limit(5, timedelta(minutes=10))
"""Codes for one temporary token; the window outlives the token."""
CODE: Final = Limit(10, timedelta(minutes=15))
"""Codes for one account, however many logins they belong to."""

_FIRST_WAIT_SECONDS: Final = 0.25
_LONGEST_WAIT_SECONDS: Final = 900.0
# A short wait is waited out here; for a longer one the caller is sent away and told when to come back.
_WAITED_OUT_SECONDS: Final = 4.0
_MAX_WAITING: Final = 100


class Guesses:
    """Guesses at one account from one address."""

    _waiting = 0

    def __init__(self, realm: Realm, account: str, address: str) -> None:
        place = rate_key(address)
        self._pair = _key(realm, "pair", account, place)
        self._place = _key(realm, "address", place)
        self._account = _key(realm, "account", account)
        self._codes = _key(realm, "codes", account)

    async def count_password(self, session: AsyncSession, *, at_home: bool) -> float:
        """Count one guess at the password before it is judged; gives how many seconds it has to wait first.

        `at_home`: the account is logged in from this address, so what others guess elsewhere does not hold it up.
        Raises `RateLimited`; the caller's transaction is to end before the wait.
        """
        waits = []
        for key, limit in ((self._pair, PAIR), (self._place, ADDRESS)):
            failures, seconds_ago = await store.read_attempts(session, key, limit.window)
            waits.append(_wait(failures - limit.amount) - seconds_ago)
        if (longest := max(waits)) > _WAITED_OUT_SECONDS:
            raise _come_back(longest)
        if not at_home:
            count, ends_at = await store.count_attempt(session, self._account, ACCOUNT.window)
            if count > ACCOUNT.amount:
                raise _come_back((ends_at - datetime.now(UTC)).total_seconds())
        return max(0.0, longest)

    async def wait(self, seconds: float) -> None:
        """Wait out what `count_password` gave; raises `RateLimited` when too many are waiting already."""
        if seconds <= 0:
            return
        if Guesses._waiting >= _MAX_WAITING:
            raise _come_back(seconds)
        Guesses._waiting += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            Guesses._waiting -= 1

    async def password_was_wrong(self, session: AsyncSession) -> None:
        # In the order of the keys, so that two failures at once wait for each other and never in a circle.
        for key, limit in sorted(((self._pair, PAIR), (self._place, ADDRESS)), key=lambda item: item[0]):
            await store.count_attempt(session, key, limit.window)

    async def password_was_right(self, session: AsyncSession, *, at_home: bool) -> None:
        await store.forgive_attempts(session, self._pair)
        if not at_home:
            await store.forgive_attempts(session, self._account, 1)

    async def count_code(self, session: AsyncSession) -> None:
        """Count one code before it is judged. Raises `RateLimited`; the count is to be committed before judging."""
        count, ends_at = await store.count_attempt(session, self._codes, CODE.window)
        if count > CODE.amount:
            raise _come_back((ends_at - datetime.now(UTC)).total_seconds())

    async def code_was_right(self, session: AsyncSession) -> None:
        await store.forgive_attempts(session, self._codes, 1)

    async def forget(self, session: AsyncSession) -> None:
        """Forget what was guessed at the account, wherever from: an operator lets its owner in again."""
        for key in sorted((self._account, self._codes)):
            await store.forgive_attempts(session, key)


async def count_step(session: AsyncSession, token_id: str) -> bool:
    """Count one use of a temporary token; False when it is used up. To be committed before the code is judged."""
    count, _ = await store.count_attempt(session, _key("step", token_id), STEP.window)
    return count <= STEP.amount


async def end_step(session: AsyncSession, token_id: str) -> bool:
    """Use the token up for good; False when somebody else has done so already."""
    count, _ = await store.count_attempt(session, _key("step", token_id), STEP.window, _ENDED)
    return count < 2 * _ENDED


_ENDED: Final = 1_000_000


def _wait(beyond: int) -> float:
    """Seconds after the last failure before the next guess: doubling from a quarter to a quarter of an hour."""
    if beyond < 0:
        return 0.0
    return min(_FIRST_WAIT_SECONDS * 2.0 ** min(beyond, 20), _LONGEST_WAIT_SECONDS)


def _come_back(seconds: float) -> RateLimited:
    return RateLimited(headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def _key(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()
