"""What a job's function is given: its place in the world, and the ways to tell how far it is."""

import asyncio
import contextlib
import re
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from quazzar.core.auth import Realm
from quazzar.core.crypto import Keyring
from quazzar.core.logs import redact
from quazzar.core.records import Caller
from quazzar.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from quazzar.core.db import Database

T = TypeVar("T")
D = TypeVar("D")

LINE_LENGTH = 2_000
KEPT_LINES = 2_000
STEP_LENGTH = 200

# Line breaks would break the line format, NUL can't be stored, and the rest can trick a terminal.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class JobFailed(Exception):
    """Raised by a job: it has failed, and trying again would not help. The text is shown to the user."""


class RetryLater(Exception):
    """Raised by a job: try again after `delay_seconds`; it counts as an attempt. The text is shown to the user."""

    def __init__(self, message: str, *, delay_seconds: float) -> None:
        super().__init__(message)
        self.delay_seconds = delay_seconds


class JobCancelled(Exception):
    """Raised by `JobRun.check_cancelled`; a job lets it pass after it has cleaned up."""


class Resource(Generic[T]):
    """The typed name of something that the process shares with its jobs, such as a container runtime."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Resources:
    """What the process shares with its jobs, by typed name."""

    def __init__(self) -> None:
        self._values: dict[Resource[Any], Any] = {}

    def __setitem__(self, key: Resource[T], value: T) -> None:
        self._values[key] = value

    def __getitem__(self, key: Resource[T]) -> T:
        """Raises `LookupError` when the process has not provided it."""
        try:
            value: T = self._values[key]
        except KeyError:
            raise LookupError(f"This process provides no {key.name} to its jobs") from None
        return value

    def __contains__(self, key: Resource[Any]) -> bool:
        return key in self._values

    @overload
    def get(self, key: Resource[T]) -> T | None: ...
    @overload
    def get(self, key: Resource[T], default: D) -> T | D: ...
    def get(self, key: Resource[T], default: D | None = None) -> T | D | None:
        return self._values.get(key, default)


KEYRING: Resource[Keyring] = Resource("keyring")
SETTINGS: Resource[Settings] = Resource("settings")


def clean_line(line: str, length: int = LINE_LENGTH) -> str:
    """`line` as it may be stored and shown: one line, bounded, without control characters or secrets."""
    line = redact(_CONTROL.sub(" ", line[: length * 2]))
    return line if len(line) <= length else line[: length - 1] + "…"


class JobRun:
    """One attempt at a job.

    `progress`, `log` and `check_cancelled` neither wait nor fail and may be called from threads; what they say is
    written within a quarter of a second, and always before the job's end is.
    """

    def __init__(
        self,
        *,
        job_id: str,
        kind: str,
        attempt: int,
        database: "Database",
        resources: Resources,
        realm: Realm = "instance",
        subject: str | None = None,
        tenant_id: str | None = None,
        actor: str | None = None,
        last_line: int = 0,
    ) -> None:
        self.job_id = job_id
        self.kind = kind
        self.attempt = attempt
        self.database = database
        self.resources = resources
        self.realm: Realm = realm
        self.subject = subject
        self.tenant_id = tenant_id
        self.actor = actor
        self.fraction = 0.0
        self.step: str | None = None
        self.cancelled = threading.Event()
        """Set once somebody asked for the job to be cancelled."""
        self.changed: asyncio.Event | None = None
        """Set by `log` and `progress`; the worker waits for it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = last_line
        self._lines: deque[tuple[int, str]] = deque(maxlen=KEPT_LINES)
        self._moved = False
        self._guard = threading.Lock()

    @contextlib.asynccontextmanager
    async def begin(self) -> "AsyncIterator[AsyncSession]":
        """A transaction in the job's tenant, whose audit records and events name the job as their author."""
        async with self.database.begin(tenant=self.tenant_id) as session:
            session.info["caller"] = Caller(kind="job", id=self.job_id, realm=self.realm, tenant_id=self.tenant_id)
            yield session

    def progress(self, fraction: float, step: str | None = None) -> None:
        """How much is done, 0 to 1, and what is being done now (left as it is when None)."""
        with self._guard:
            self.fraction = min(1.0, max(0.0, float(fraction)))
            if step is not None:
                self.step = clean_line(step, STEP_LENGTH)
            self._moved = True
        self._wake()

    def log(self, line: str) -> None:
        """Add a line to the job's log, which the user sees: cut at 2,000 characters, the newest 2,000 lines kept."""
        with self._guard:
            self._number += 1
            self._lines.append((self._number, clean_line(line)))
        self._wake()

    def check_cancelled(self) -> None:
        """Raises `JobCancelled` when the job is to stop. Code that awaits is interrupted without asking."""
        if self.cancelled.is_set():
            raise JobCancelled

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.changed = asyncio.Event()

    def _wake(self) -> None:
        if self._loop is not None and self.changed is not None:
            self._loop.call_soon_threadsafe(self.changed.set)

    @property
    def has_news(self) -> bool:
        return self._moved or bool(self._lines)

    def take(self) -> tuple[float, str | None, list[tuple[int, str]]]:
        """What was said since the last time: progress, step and numbered lines."""
        with self._guard:
            lines = list(self._lines)
            self._lines.clear()
            self._moved = False
            return self.fraction, self.step, lines

    def give_back(self, lines: list[tuple[int, str]]) -> None:
        """What was taken but perhaps not written; writing a line twice changes nothing."""
        with self._guard:
            self._lines.extendleft(reversed(lines))
            self._moved = True
