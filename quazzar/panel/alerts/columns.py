"""A rule between its two forms: the body that users write, and the row."""

from typing import Any

import msgspec

from quazzar.panel.alerts.schemas import AbsenceRule, AlertRuleCreate, ForecastRule, RateRule, ThresholdRule

_KINDS: dict[str, type[msgspec.Struct]] = {
    "threshold": ThresholdRule,
    "absence": AbsenceRule,
    "rate": RateRule,
    "forecast": ForecastRule,
}


def columns_of(rule: AlertRuleCreate) -> dict[str, Any]:
    """The row of a rule, but for its id and the channels that it names."""
    targets = rule.targets
    return {
        "name": rule.name,
        "kind": rule.__struct_config__.tag,
        "metric": rule.metric,
        "operator": getattr(rule, "operator", None),
        "limit_value": getattr(rule, "value", None),
        "for_seconds": rule.for_seconds,
        "window_seconds": getattr(rule, "window_seconds", None),
        "horizon_seconds": getattr(rule, "horizon_seconds", None),
        "severity": rule.severity,
        "everywhere": targets.all,
        "instance_ids": sorted(set(targets.instances)),
        "tags": sorted(set(targets.tags)),
        "group_ids": sorted(set(targets.groups)),
        "every_channel": rule.channels is None,
        "quiet_hours": msgspec.to_builtins(rule.quiet_hours),
        "repeat_seconds": rule.repeat_seconds,
        "enabled": rule.enabled,
    }


def body_of(row: Any) -> dict[str, Any]:
    """A rule's row as the body that makes it, with the fields of its kind only."""
    values = {name: getattr(row, name, None) for name in _KINDS[row.kind].__struct_fields__}
    targets = {"instances": row.instance_ids, "tags": row.tags, "groups": row.group_ids, "all": row.everywhere}
    values |= {"kind": row.kind, "targets": targets, "channels": None if row.every_channel else row.channels}
    return values | ({"value": row.limit_value} if "value" in values else {})
