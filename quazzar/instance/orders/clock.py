"""What time it is on the panel, whose clock orders expire by.

The panel's answer to the dialling names its time, over TLS that only the panel can speak, and this process counts on
from there: a server whose own clock is a day off, or is set while the line is open, still runs what is in time and
refuses what is late. It believes the panel two days at most, so that whoever holds the line can't turn the clock back
to when an order of the past was good: those are known for longer than that.
"""

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

MOST_SKEW: Final = timedelta(days=2)


class PanelClock:
    """Counts from `told`, the `Date` of the panel's answer; without one that can be read it is this server's clock."""

    def __init__(self, told: str | None) -> None:
        self._begun = time.monotonic()
        self._told = _read(told)

    def now(self) -> datetime:
        own = datetime.now(UTC)
        if self._told is None:
            return own
        there = self._told + timedelta(seconds=time.monotonic() - self._begun)
        return min(max(there, own - MOST_SKEW), own + MOST_SKEW)


def _read(told: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(told).astimezone(UTC) if told is not None else None
    except (ValueError, OverflowError):
        return None
