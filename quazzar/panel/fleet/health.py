"""What is wrong with an instance, from what it measured and what is known of it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from quazzar.panel.fleet.schemas import CheckOut

_CERTIFICATE_LEFT = timedelta(days=14)
_SKEW_SECONDS = 60.0
BAD_APPS = frozenset({"crashed", "failed", "unhealthy"})


def failing(
    measured: Mapping[str, float],
    apps: Sequence[Mapping[str, Any]],
    *,
    skew_seconds: float,
    certificate_expires_at: datetime,
    now: datetime,
) -> list[CheckOut]:
    """Every check that fails; an empty list is a healthy instance."""
    found = []
    for name, label in (("disk", "The disk"), ("memory", "The memory")):
        percent = measured.get(f"{name}_percent", 0)
        if percent >= 90:
            critical = percent >= 97
            reason = f"{label} is {percent:.0f} % full"
            found.append(CheckOut(name, "critical" if critical else "warning", reason, 50 if critical else 25))
    down = sorted(app["name"] for app in apps if app["status"] in BAD_APPS)
    if down:
        names = ", ".join(down[:5]) + (f" and {len(down) - 5} more" if len(down) > 5 else "")
        found.append(CheckOut("apps", "warning", f"Not as they should be: {names}", min(40, 10 * len(down))))
    if abs(skew_seconds) > _SKEW_SECONDS:
        found.append(CheckOut("clock", "warning", f"Its clock is off by {abs(skew_seconds):.0f} seconds", 10))
    if certificate_expires_at - now < _CERTIFICATE_LEFT:
        found.append(CheckOut("certificate", "warning", "Its certificate ends soon and was not renewed", 20))
    return found


def score_of(checks: Sequence[CheckOut]) -> int:
    return max(0, 100 - sum(check.penalty for check in checks))
