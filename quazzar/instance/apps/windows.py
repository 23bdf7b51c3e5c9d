"""Windows of time in which apps may be updated: a cron rule in a time zone, and how long each window lasts.

The rule counts by the clock on the wall. A time that a clock skips in spring stands for the one that would be there
had it not been put forward, and one that it shows twice in autumn for the first of the two (RFC 5545, section 3.3.5).
A window lasts its whole length whatever clocks do.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

if TYPE_CHECKING:
    from croniter import croniter  # type: ignore[import-untyped]

_STEP: Final = timedelta(hours=3)
"""More than any clock is put forward or back."""
_YEARS: Final = 8
"""A rule that fits no time within so many years fits none: the 29th of February is there within eight."""
_ANY: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - the time on some wall


class Window(msgspec.Struct, frozen=True):
    """`cron` has five fields; `timezone` is a name of the IANA database."""

    cron: str
    timezone: str
    duration_minutes: int

    @property
    def duration(self) -> timedelta:
        return timedelta(minutes=self.duration_minutes)


def is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def is_cron(rule: str) -> bool:
    """Whether a rule has five fields that can be read, no random one among them, and fits any time at all."""
    from croniter import CroniterError  # noqa: PLC0415 - see `_rule`

    fields = rule.split()
    if len(fields) != 5 or not rule.isascii() or any(one[0] in "rR" for one in fields):
        return False
    try:
        _rule(rule, _ANY).get_next(datetime)
    except (CroniterError, ValueError, KeyError, OverflowError):
        return False
    return True


def opening(window: Window, now: datetime) -> datetime:
    """When the window that is open at `now` began, else when the next one does."""
    zone = ZoneInfo(window.timezone)
    begun = [start for start in _near(window, zone, now, back=True) if start <= now < start + window.duration]
    return max(begun) if begun else next_opening(window, now)


def next_opening(window: Window, now: datetime) -> datetime:
    """When the first window begins that is not open yet."""
    zone = ZoneInfo(window.timezone)
    return min(start for start in _near(window, zone, now, back=False) if start > now)


def _near(window: Window, zone: ZoneInfo, now: datetime, *, back: bool) -> Iterator[datetime]:
    """The starts around `now`, and the first one behind (or with `back` before) those in which order may be lost.

    Where a clock is put forward or back within hours of `now`, times on the wall come in another order than moments.
    """
    local = now.astimezone(zone).replace(tzinfo=None, microsecond=0)
    even = (now - _STEP).astimezone(zone).utcoffset() == (now + _STEP).astimezone(zone).utcoffset()
    margin = timedelta(0) if even else _STEP
    first = local + margin + timedelta(seconds=1) if back else local - margin - timedelta(seconds=1)
    rule = _rule(window.cron, first)
    step: Callable[[Any], datetime] = rule.get_prev if back else rule.get_next
    while True:
        wall = step(datetime)
        yield wall.replace(tzinfo=zone).astimezone(UTC)
        if (wall < local - margin) if back else (wall > local + margin):
            return


def _rule(rule: str, start: datetime) -> "croniter":
    from croniter import croniter  # noqa: PLC0415 - only where there are cron rules

    return croniter(rule, start, max_years_between_matches=_YEARS)
