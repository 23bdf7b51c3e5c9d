"""What a rollout does next: a decision from its plan, where it is, and how many units are in which condition.

It knows no database and no clock, so that whichever process looks decides the same. Each decision is one move; the
caller makes it and asks again until there is none left to make.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from quazzar.panel.commands.models import ENDED, OfflinePolicy

Condition = Literal[
    "present",
    "absent",
    "called",
    "lapsed",
    "flying",
    "lost",
    "settling",
    "settled",
    "worse",
    "revoked",
    "completed",
    "failed",
    "expired",
    "cancelled",
    "skipped",
]
"""Units whose turn has not come are `present` or, with an instance that is offline, `absent`. Those whose turn has come
are `called` until their order is sent, or `lapsed` when the instance went offline before; then `flying` until the
instance's last word, or `lost` when nothing was heard for too long. Afterwards they are `settling` while the instance
is watched, then `settled` or `worse`.
"""
OVER: Final[tuple[Condition, ...]] = ("completed", "failed", "expired", "cancelled", "skipped")
WAITING: Final = ("present", "absent")
UNDER_WAY: Final = ("called", "flying", "settling")

Counts = Mapping[tuple[int, Condition], int]
"""How many units of each batch are in each condition."""
Ending = Literal["completed", "failed", "expired", "cancelled", "skipped"]

_LOOK: Final = timedelta(seconds=2)
"""How often a rollout is looked at in which something may change without anybody telling."""
_RARE_LOOK: Final = timedelta(minutes=10)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """With a canary it is the first batch, of `canary` units; the failure of one of them ends the rollout."""

    canary: int
    batch_size: int
    max_failures: int | None
    pause: timedelta
    offline: OfflinePolicy
    expires_at: datetime
    scheduled_at: datetime | None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rollout is: the batch whose turn it is from `next_at` on."""

    status: str
    outcome: str | None
    batch: int
    next_at: datetime


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Units in these conditions, of batches up to `batch` and at most so many, get a final status."""

    conditions: tuple[Condition, ...]
    status: Ending
    error: str | None = None
    error_code: str | None = None
    batch: int | None = None
    most: int | None = None


class Recall(msgspec.Struct, frozen=True):
    """The turn of units whose order never left is taken back."""

    conditions: tuple[Condition, ...]


class Begin(msgspec.Struct, frozen=True):
    """The turn of so many present units of batches up to `batch` has come."""

    batch: int
    most: int


class Turn(msgspec.Struct, frozen=True):
    """It is the turn of the batches up to this one, from `next_at` on."""

    batch: int
    next_at: datetime


class Start(msgspec.Struct, frozen=True):
    """The moment that it was waiting for has come."""


class Stop(msgspec.Struct, frozen=True):
    """Nothing more begins; once nothing is under way any more the command is failed."""

    reason: str


class Refuse(msgspec.Struct, frozen=True):
    """Made in the place of a `Begin` whose command's giver may not give it any more: nothing more begins; once nothing
    is under way any more the command is cancelled.
    """

    reason: str


class Finish(msgspec.Struct, frozen=True):
    """Every unit has ended, and with them the command."""

    status: Literal["completed", "failed", "expired", "cancelled"]


Move = End | Recall | Begin | Turn | Start | Stop | Finish


class _Tally:
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def of(self, *conditions: Condition, upto: int | None = None, beyond: int = 0) -> int:
        return sum(
            count
            for (batch, condition), count in self._counts.items()
            if condition in conditions and batch > beyond and (upto is None or batch <= upto)
        )

    @property
    def all(self) -> int:
        return sum(self._counts.values())

    @property
    def open(self) -> int:
        return self.all - self.of(*OVER)

    def next_open(self, batch: int) -> int | None:
        """The first batch after this one that is not through."""
        return min(self._after(batch, *OVER), default=None)

    def next_there(self, batch: int) -> int | None:
        """The first batch after this one for which somebody is there, else the last that is not through."""
        return min(self._after(batch, "absent", *OVER), default=max(self._after(batch, *OVER), default=None))

    def _after(self, batch: int, *but: Condition) -> list[int]:
        return [
            number for (number, what), count in self._counts.items() if number > batch and count and what not in but
        ]


def decide(plan: Plan, place: Place, counts: Counts, now: datetime) -> Move | None:
    """The next move; None when there is nothing to do before something happens or `look_at` comes."""
    tally = _Tally(counts)
    if place.status in ENDED:
        return None
    move = _tidied(tally)
    if move is not None:
        return move
    if place.status != "running":
        unsent = tally.of("called", "lapsed")
        if unsent:
            return Recall(("called", "lapsed"))
    elif tally.of("lapsed"):
        return Recall(("lapsed",))
    if place.status == "stopping":
        if tally.of(*WAITING):
            return End(conditions=WAITING, status="cancelled")
        return Finish(_outcome(place)) if tally.open == 0 else None
    reason = _too_bad(plan, tally)
    if reason is not None:
        return Stop(reason)
    if tally.open == 0:
        return Finish(_ending(tally))
    if now >= plan.expires_at and tally.of("present", "absent", "called"):
        return End(conditions=("present", "absent", "called"), status="expired")
    if place.status == "pending":
        return Start() if plan.scheduled_at is None or now >= plan.scheduled_at else None
    if place.status == "paused":
        return None
    return _onwards(plan, place, tally, now)


def _tidied(tally: _Tally) -> Move | None:
    """What has come to an end by itself."""
    if tally.of("revoked"):
        error = "The instance was revoked"
        return End(conditions=("revoked",), status="cancelled", error=error, error_code="instance_revoked")
    if tally.of("lost"):
        error = "Nothing was heard of it for a day; it may have run"
        return End(conditions=("lost",), status="failed", error=error, error_code="no_answer")
    if tally.of("worse"):
        error = "It went through, but the instance is offline or worse than before"
        return End(conditions=("worse",), status="failed", error=error, error_code="health_worse")
    if tally.of("settled"):
        return End(conditions=("settled",), status="completed")
    return None


def _too_bad(plan: Plan, tally: _Tally) -> str | None:
    """Why nothing more is to begin."""
    failed = tally.of("failed")
    if plan.canary and tally.of("failed", upto=1):
        return "A canary failed"
    canaries_left = tally.of(*WAITING, *UNDER_WAY, "lapsed", upto=1)
    rest = tally.of(*WAITING, beyond=1)
    if plan.canary and rest and not canaries_left and not tally.of("completed", upto=1):
        return "No canary went through"
    # A limit of none is reached by the first failure, as is a limit of one.
    if plan.max_failures is not None and failed >= max(1, plan.max_failures):
        return f"{failed} of {tally.all} failed, and the limit is {plan.max_failures}"
    return None


def _onwards(plan: Plan, place: Place, tally: _Tally, now: datetime) -> Move | None:
    # While the batches rest, only those that missed their turn are let in.
    ripe = place.batch if now >= place.next_at else place.batch - 1
    if tally.of("absent", upto=ripe):
        if plan.offline == "skip":
            return End(conditions=("absent",), status="skipped", batch=ripe)
        if plan.offline == "fail":
            left = None if plan.max_failures is None else max(1, plan.max_failures) - tally.of("failed")
            error = "The instance was offline"
            return End(
                conditions=("absent",),
                status="failed",
                error=error,
                error_code="instance_offline",
                batch=ripe,
                most=1 if plan.canary and ripe == 1 else left,
            )
    under_way = tally.of(*UNDER_WAY)
    room = plan.batch_size - under_way
    if room > 0 and tally.of("present", upto=ripe):
        return Begin(ripe, room)
    through = ripe == place.batch and not under_way and not tally.of("present", upto=ripe)
    if plan.canary and place.batch == 1:
        # Canaries that are offline are waited for: without one nothing is proved.
        through = through and not tally.of("absent", upto=1)
    # Without pauses, batches that nobody is there for pass in the same moment: as one move, however many they are.
    following = tally.next_open(place.batch) if plan.pause else tally.next_there(place.batch)
    if through and following is not None:
        return Turn(following, now + plan.pause)
    return None


def _ending(tally: _Tally) -> Literal["completed", "failed", "expired", "cancelled"]:
    if tally.of("failed"):
        return "failed"
    if tally.of("expired"):
        return "expired"
    return "cancelled" if tally.of("cancelled") == tally.all else "completed"


def _outcome(place: Place) -> Literal["failed", "cancelled"]:
    return "cancelled" if place.outcome in ("cancelled", "refused") else "failed"


def look_at(plan: Plan, place: Place, counts: Counts, now: datetime) -> datetime | None:
    """When to look again if nothing happens meanwhile; None once the command has ended."""
    tally = _Tally(counts)
    if place.status in ENDED:
        return None
    moments = [now + _RARE_LOOK]
    if place.status == "pending" and plan.scheduled_at is not None:
        moments.append(plan.scheduled_at)
    if place.status == "running" and place.next_at > now:
        moments.append(place.next_at)
    if tally.of(*WAITING, "called"):
        moments.append(plan.expires_at)
    if tally.of("settling", "called"):
        moments.append(now + _LOOK)
    return max(now, min(moments))
