"""Kinds of jobs and their schedules, declared beside the functions that do the work."""

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec

from quazzar.core.auth import Realm

if TYPE_CHECKING:
    from quazzar.core.jobs.run import JobRun

P = ParamSpec("P")

_KIND = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+\Z")
_RESERVED = frozenset({"session", "kind", "realm", "subject", "actor", "tenant_id", "delay_seconds", "caller"})


class JobKind(Generic[P]):
    """A registered kind. Calling it runs the function itself, as tests do."""

    def __init__(
        self,
        function: "Callable[Concatenate[JobRun, P], Awaitable[None]]",
        kind: str,
        *,
        concurrency: int,
        max_attempts: int,
        timeout_seconds: float | None,
        cancellable: bool,
    ) -> None:
        self.function = function
        self.kind = kind
        self.concurrency = concurrency
        self.max_attempts = max_attempts
        self.timeout_seconds = timeout_seconds
        self.cancellable = cancellable
        self._signature = inspect.signature(function)
        taken = _RESERVED & set(list(self._signature.parameters)[1:])
        if taken:
            raise ValueError(f"Job {kind} can't have the arguments {sorted(taken)}: enqueue takes them itself")
        self.__doc__ = function.__doc__

    async def __call__(self, run: "JobRun", *args: P.args, **kwargs: P.kwargs) -> None:
        await self.function(run, *args, **kwargs)

    def check(self, args: Mapping[str, Any]) -> None:
        """Raises `TypeError` when the function does not take these arguments: better now than in a worker."""
        self._signature.bind(None, **args)

    def __repr__(self) -> str:
        return f"<JobKind {self.kind}>"


class Schedule:
    """What makes jobs of one kind by the clock: a cron rule (UTC unless a zone is given) or an interval."""

    def __init__(
        self, name: str, kind: JobKind[Any], *, cron: str | None, every_seconds: float | None, zone: str, realm: Realm
    ) -> None:
        self.name = name
        self.kind = kind
        self.cron = cron
        self.every_seconds = every_seconds
        self.zone = zone
        self.realm = realm

    @property
    def rule(self) -> str:
        return f"{self.cron} {self.zone}" if self.cron is not None else f"every {self.every_seconds} s"


_kinds: dict[str, JobKind[Any]] = {}
_schedules: dict[str, Schedule] = {}


def job(
    kind: str,
    *,
    concurrency: int = 4,
    max_attempts: int = 5,
    timeout_seconds: float | None = 3600,
    cancellable: bool = True,
) -> "Callable[[Callable[Concatenate[JobRun, P], Awaitable[None]]], JobKind[P]]":
    """Declare a job; the function gets a `JobRun` and then what was given to `enqueue`, as keywords.

    It runs at least once, maybe again after a crash, so it must be idempotent by its arguments. At most `concurrency`
    of the kind run at once over all processes (0 means no limit). An attempt that raises is made again after a while,
    `max_attempts` times in all; `timeout_seconds` ends one attempt. Raise `JobFailed` where trying again can't help.
    """

    def register(function: "Callable[Concatenate[JobRun, P], Awaitable[None]]") -> JobKind[P]:
        if _KIND.match(kind) is None:
            raise ValueError(f"A job's kind has the form domain.verb, not {kind!r}")
        if kind in _kinds:
            raise ValueError(f"There are two jobs of the kind {kind}")
        declared = JobKind(
            function,
            kind,
            concurrency=concurrency,
            max_attempts=max_attempts,
            timeout_seconds=timeout_seconds,
            cancellable=cancellable,
        )
        _kinds[kind] = declared
        return declared

    return register


def schedule(
    cron: str | None = None,
    *,
    every_seconds: float | None = None,
    zone: str = "UTC",
    realm: Realm = "instance",
    name: str | None = None,
) -> Callable[[JobKind[P]], JobKind[P]]:
    """Make a job of this kind (without arguments) by a cron rule or each `every_seconds`; stands above `@job`.

    Over any number of processes and restarts each occurrence makes one job. Occurrences that passed while nothing ran
    make one job together, and none is made while the one before is still queued or running.
    """
    if (cron is None) == (every_seconds is None):
        raise ValueError("A schedule has either a cron rule or an interval")

    def register(kind: JobKind[P]) -> JobKind[P]:
        key = name or kind.kind
        if key in _schedules:
            raise ValueError(f"There are two schedules named {key}")
        kind.check({})
        _schedules[key] = Schedule(key, kind, cron=cron, every_seconds=every_seconds, zone=zone, realm=realm)
        return kind

    return register


def job_kinds() -> Mapping[str, JobKind[Any]]:
    """Every kind whose module has been imported."""
    return _kinds


def job_schedules() -> Mapping[str, Schedule]:
    """Every schedule whose module has been imported."""
    return _schedules
