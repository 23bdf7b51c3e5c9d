"""What alerts say: a reason for each, and the notification of several."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from quazzar.channels.schemas import Notification
from quazzar.panel.alerts.judging import Change

MOST_TOLD: Final = 12
"""How many alerts a notification names of those that fired, and of those that are over; the rest it counts. So it
stays below 20 KB, which receivers of webhooks can be asked to take.
"""

_UNITS: Final = {
    "_bytes_per_second": "bytes/s",
    "_percent": "%",
    "_bytes": "bytes",
    "_seconds": "seconds",
    "_celsius": "°C",
}
_SIGNS: Final = {">": "more than {}", ">=": "{} or more", "<": "less than {}", "<=": "{} or less"}
_LABELS: Final = {
    "cpu_percent": "CPU use",
    "memory_percent": "Memory use",
    "disk_percent": "Disk use",
    "apps_down": "The number of apps that are down",
    "backup_age_seconds": "The age of its newest backup",
    "certificate_left_seconds": "The time that its certificate is still good for",
    "clock_skew_seconds": "The error of its clock",
    "health_score": "Its health score",
}
_TIMES: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_SIZES: Final = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def reason_of(rule: Any, change: Change, now: datetime) -> str:
    """Why this change fires, in a sentence."""
    match rule.kind:
        case "absence":
            return _absence(rule, change, now)
        case "rate":
            span = duration(rule.window_seconds)
            said = f"{label(rule.metric)} has changed by {_shown(rule.metric, change.found)} within {span}"
        case "forecast":
            then = duration(rule.horizon_seconds)
            said = (
                f"{label(rule.metric)} is {_shown(rule.metric, change.value)} and, going on so, will be "
                f"{_shown(rule.metric, change.found)} in {then}"
            )
        case _:
            said = f"{label(rule.metric)} is {_shown(rule.metric, change.found)}"
            if change.down:
                said += f" ({_names(change.down)})"
    limit = _SIGNS[rule.operator].format(_shown(rule.metric, rule.limit_value))
    held = (now - change.since).total_seconds()
    return f"{said}: {limit}" + (f", for {duration(held)}" if rule.for_seconds else "")


def _absence(rule: Any, change: Change, now: datetime) -> str:
    found = change.found if change.found is not None else (now - change.since).total_seconds()
    match rule.metric:
        case "heartbeat":
            return f"Nothing was heard of it for {duration(found)}"
        case "backup":
            return f"There was no backup for {duration(found)}"
        case _:
            missed = max(found, (now - change.since).total_seconds())
            return f"{label(rule.metric)} was not measured for {duration(missed)}"


def label(metric: str) -> str:
    """What people call a metric."""
    if metric in _LABELS:
        return _LABELS[metric]
    unit = next((suffix for suffix in _UNITS if metric.endswith(suffix)), "")
    return metric.removesuffix(unit).replace("_", " ").capitalize()


def _shown(metric: str, value: float | None) -> str:
    """A value with its unit."""
    assert value is not None
    match next((unit for suffix, unit in _UNITS.items() if metric.endswith(suffix)), ""):
        case "%":
            return f"{_number(value)} %"
        case "bytes":
            return _size(value)
        case "bytes/s":
            return f"{_size(value)}/s"
        case "seconds":
            return duration(value)
        case unit:
            return f"{_number(value)} {unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _size(value: float) -> str:
    for factor, unit in _SIZES:
        if abs(value) >= factor:
            return f"{_number(value / factor)} {unit}"
    return f"{_number(value)} bytes"


def duration(seconds: float) -> str:
    """To the two greatest units: `3 hours`, `1 day 4 hours`."""
    left, parts = round(abs(seconds)), []
    for length, name in _TIMES:
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {name}" + ("s" if count != 1 else ""))
        elif parts:
            break
    text = " ".join(parts[:2]) or "0 seconds"
    return f"-{text}" if seconds < 0 else text


def _names(names: Sequence[str]) -> str:
    shown = [_cut(name, 40) for name in names[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _cut(name: str, most: int = 100) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def notification_of(rule: Any, fired: Sequence[Any], over: Sequence[Any], url: str) -> Notification:
    """One for all of a rule's alerts that are to be told of now; `fired` go on, `over` have ended."""
    return Notification(
        type="alert.notification",
        subject=_subject(rule, fired, over),
        text=_text(rule, fired, over, url),
        data={
            "rule_id": rule.id,
            "name": rule.name,
            "severity": rule.severity,
            "firing": [_told(row) for row in fired[:MOST_TOLD]],
            "firing_count": len(fired),
            "resolved": [_told(row) for row in over[:MOST_TOLD]],
            "resolved_count": len(over),
            "panel_url": url,
        },
    )


def _subject(rule: Any, fired: Sequence[Any], over: Sequence[Any]) -> str:
    mark, rows = (rule.severity, fired) if fired else ("resolved", over)
    where = _cut(rows[0].instance_name) if len(rows) == 1 else f"{len(rows)} servers"
    return f"[{mark}] {_cut(rule.name)}: {where}"


def _text(rule: Any, fired: Sequence[Any], over: Sequence[Any], url: str) -> str:
    firing = [f"- {_cut(row.instance_name)}: {row.reason} (since {_moment(row.fired_at)})" for row in fired[:MOST_TOLD]]
    ended = [f"- {_cut(row.instance_name)}: {row.resolved_reason} ({_span(row)})" for row in over[:MOST_TOLD]]
    heading = ["Over:"] if fired and over else []
    lines = [f"{rule.name} ({rule.severity})", "", *firing, *_rest(fired), *heading, *ended, *_rest(over)]
    return "\n".join([*lines, url, ""])


def _rest(rows: Sequence[Any]) -> list[str]:
    """What closes a list of alerts, if there is one."""
    more = [f"- and {len(rows) - MOST_TOLD} more"] if len(rows) > MOST_TOLD else []
    return [*more, ""] if rows else []


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _span(row: Any) -> str:
    return f"{_moment(row.fired_at)} to {_moment(row.resolved_at)}"


def _told(row: Any) -> dict[str, Any]:
    return {
        "alert_id": row.id,
        "instance_id": row.instance_id,
        "instance_name": _cut(row.instance_name),
        "status": row.status,
        "value": row.value,
        "limit": row.limit_value,
        "reason": row.reason,
        "count": row.count,
        "fired_at": row.fired_at.astimezone(UTC),
        "resolved_at": row.resolved_at.astimezone(UTC) if row.resolved_at is not None else None,
    }
