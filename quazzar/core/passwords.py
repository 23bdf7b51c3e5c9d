"""Password hashing: Argon2id in a few low-priority threads behind a short queue, so that logins starve nothing else."""

import asyncio
import base64
import contextlib
import os
import secrets
import threading
import unicodedata
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from quazzar.core.errors import Unavailable

# OWASP's floor for Argon2id (t=2, 19 MiB, p=1; RFC 9106 names the parameters). Measured on two cores: 67 hashes a
# second, against 9 with t=3 and 64 MiB, where a handful of logins would already fill the queue below.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, hash_len=32, type=Type.ID)

_NICENESS: Final = 10

T = TypeVar("T")


def _lower_priority() -> None:
    """Hashing takes what the event loop leaves: on Linux niceness belongs to the thread."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _cores() -> int:
    """How many this process may use, which a container's limit can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _plain(password: str) -> bytes:
    # The same letters typed on different keyboards and systems are the same password (RFC 8265, section 4).
    return unicodedata.normalize("NFC", password).encode()


def _nobody() -> str:
    """A hash that no password has, with the parameters of a real one: verifying against it takes as long."""

    def text(size: int) -> str:
        return base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")

    cost = f"m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}"
    return f"$argon2id$v=19${cost}${text(_HASHER.salt_len)}${text(_HASHER.hash_len)}"


class Passwords:
    """Hashes and verifies, one hash at once for each core but one, and `waiting` more in the queue (2 seconds' worth).

    The core that is left is for the event loop: even a thread of low priority makes it wait for some milliseconds.
    """

    def __init__(self, *, at_once: int | None = None, waiting: int | None = None) -> None:
        self._at_once = at_once or max(1, _cores() - 1)
        self._most = self._room = self._at_once + (64 * self._at_once if waiting is None else waiting)
        self._threads = ThreadPoolExecutor(self._at_once, "passwords", initializer=_lower_priority)
        self._unknown = _nobody()
        self._turns = asyncio.Semaphore(2 * self._at_once)
        self._turns_wanted = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A turn for the work around a hash, so that a crowd of logins does not fill the event loop with theirs.

        Twice as many at once as hashes, in the order of their coming. Raises `Unavailable` (503) when the queue is
        full. Nothing that waits for anything but the database and the hash belongs into a turn.
        """
        if self._turns_wanted >= self._most:
            raise _too_many()
        self._turns_wanted += 1
        try:
            async with self._turns:
                yield
        finally:
            self._turns_wanted -= 1

    async def hash(self, password: str) -> str:
        """The encoded hash with a salt of its own. Raises `Unavailable` (503) when the queue is full."""
        return await self._run(partial(_HASHER.hash, _plain(password)))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether `password` is the one; None stands for an unknown user and takes as long to say no.

        Raises `Unavailable` (503) when the queue is full.
        """
        return await self._run(partial(_verify, password_hash or self._unknown, _plain(password)))

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than those of today, so that it should be made anew."""
        return _HASHER.check_needs_rehash(password_hash)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._room <= 0:
            raise _too_many()
        self._room -= 1
        try:
            future = self._threads.submit(work)
        except BaseException:
            self._room += 1
            raise
        # Room is given back when the thread is done, not when its caller left: work that has begun can't be stopped.
        future.add_done_callback(partial(self._finished, asyncio.get_running_loop()))
        return await asyncio.wrap_future(future)

    def _finished(self, loop: asyncio.AbstractEventLoop, _: "Future[Any]") -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to count for
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._room += 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _too_many() -> Unavailable:
    return Unavailable("Too many logins at once; try again in a moment", code="busy", retry_after=2)


def _verify(password_hash: str, password: bytes) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
