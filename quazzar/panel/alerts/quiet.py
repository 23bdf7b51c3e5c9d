"""Quiet hours: by the clocks of a time zone, over midnight and through changes of the clock."""

from datetime import datetime, time
from zoneinfo import ZoneInfo

from quazzar.panel.alerts.schemas import QuietHours


def is_quiet(hours: QuietHours | None, severity: str, now: datetime) -> bool:
    """Whether what is of this severity is kept back at `now`. Hours that a change of the clock leaves out are not there
    on that day, those that it repeats are there twice.
    """
    if hours is None or (severity == "critical" and hours.critical_passes):
        return False
    clock = now.astimezone(ZoneInfo(hours.time_zone)).time()
    start, end = time.fromisoformat(hours.start), time.fromisoformat(hours.end)
    if start <= end:
        return start <= clock < end
    return clock >= start or clock < end
