"""What the API takes and shows of alerts and their rules."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quazzar.alerts.events import Severity
from quazzar.core.schema import UNSET, In, Line, OptionalIn, Out, UnsetType, message
from quazzar.link.metrics import HostMetric
from quazzar.panel.accounts.schemas import TimezoneName
from quazzar.panel.alerts.models import AlertStatus, RuleKind
from quazzar.panel.commands.schemas import Targets

StandingMetric = Literal[
    "apps_down",
    "backup_age_seconds",
    "certificate_left_seconds",
    "clock_skew_seconds",
    "health_score",
]
"""What the panel knows of an instance besides: how many apps are crashed, failed or unhealthy, how old its newest
backup is, how long its certificate lasts, how far its clock is off.
"""

Metric = Literal[HostMetric, StandingMetric]
Sign = Literal["heartbeat", "backup", HostMetric]
"""What may be missing: any sign of life, a backup, or a value."""

_AnyMetric = Literal[Sign, StandingMetric]

Operator = Literal[">", ">=", "<", "<="]

_DAY = 86_400
_HOUR = 3_600

RuleId = Annotated[str, Meta(examples=["rul_23oc77vtak2bdwdlqw5ffwpz33"])]
AlertId = Annotated[str, Meta(examples=["alr_23oc77vtak2bdwdlqw5ffwpz33"])]
ChannelRef = Annotated[
    str,
    Meta(
        pattern=r"^chn_[a-z2-7]{20,40}\Z",
        extra=message("{label} must hold ids of notification channels"),
        examples=["chn_23oc77vtak2bdwdlqw5ffwpz33"],
    ),
]
Limit = Annotated[float, Meta(ge=-1e15, le=1e15, examples=[90.0])]
ForSeconds = Annotated[int, Meta(ge=0, le=7 * _DAY, examples=[300])]
WindowSeconds = Annotated[int, Meta(ge=300, le=7 * _DAY)]
HorizonSeconds = Annotated[int, Meta(ge=_HOUR, le=90 * _DAY)]
RepeatSeconds = Annotated[int, Meta(ge=300, le=7 * _DAY, examples=[14_400])]
ClockTime = Annotated[
    str,
    Meta(
        pattern=r"^(?:[01][0-9]|2[0-3]):[0-5][0-9]\Z",
        extra=message("{label} must be a time of day from 00:00 to 23:59"),
        examples=["22:00"],
    ),
]
Channels = Annotated[list[ChannelRef], Meta(max_length=50)]


class QuietHours(In):
    """Each day from `start` to `end` by the clocks of `time_zone`, over midnight where `end` comes first, nothing is
    told; it is told when they end. What is critical is told all the same with `critical_passes`.
    """

    start: ClockTime
    end: Annotated[ClockTime, Meta(examples=["07:00"])]
    time_zone: TimezoneName
    critical_passes: bool = False


class _Rule(In, kw_only=True):
    name: Line
    severity: Severity = "warning"
    targets: Targets = msgspec.field(default_factory=lambda: Targets(all=True))
    channels: Annotated[
        Channels | None,
        Meta(
            description="null: every channel of the tenant; an empty list: none",
            examples=[["chn_23oc77vtak2bdwdlqw5ffwpz33"]],
        ),
    ] = None
    quiet_hours: QuietHours | None = None
    repeat_seconds: Annotated[
        RepeatSeconds | None,
        Meta(description="Tell again so often, until it is acknowledged or over", examples=[14_400]),
    ] = None
    enabled: bool = True


class ThresholdRule(_Rule, tag_field="kind", tag="threshold", kw_only=True):
    """Fires when `metric` has been `operator` `value` for `for_seconds`."""

    metric: Metric
    operator: Operator = ">="
    value: Limit
    for_seconds: ForSeconds = 0


class AbsenceRule(_Rule, tag_field="kind", tag="absence", kw_only=True):
    """Fires when there has been no `metric` for `for_seconds`: no sign of life, no backup, or no such value."""

    metric: Sign = "heartbeat"
    for_seconds: Annotated[int, Meta(ge=60, le=30 * _DAY, examples=[300])] = 300


class RateRule(_Rule, tag_field="kind", tag="rate", kw_only=True):
    """Fires when `metric` has changed within `window_seconds` by an amount that is `operator` `value`, for
    `for_seconds`. A fall is a negative amount.
    """

    metric: HostMetric
    operator: Operator = ">="
    value: Limit
    window_seconds: WindowSeconds = _HOUR
    for_seconds: ForSeconds = 0


class ForecastRule(_Rule, tag_field="kind", tag="forecast", kw_only=True):
    """Fires when `metric`, going on as it went in `window_seconds`, will be `operator` `value` in `horizon_seconds`."""

    metric: HostMetric
    operator: Operator = ">="
    value: Limit
    window_seconds: WindowSeconds = 6 * _HOUR
    horizon_seconds: HorizonSeconds = 2 * _DAY
    for_seconds: ForSeconds = 0


AlertRuleCreate = ThresholdRule | AbsenceRule | RateRule | ForecastRule


class AlertRuleUpdate(In):
    """What is left out stays as it is; the kind of a rule does not change. Only fields of its kind may be given.

    A rule that watches for something else now ends its alerts, and finds what is so anew.
    """

    name: Line | UnsetType = UNSET
    severity: Severity | UnsetType = UNSET
    metric: _AnyMetric | UnsetType = UNSET
    operator: Operator | UnsetType = UNSET
    value: Limit | UnsetType = UNSET
    for_seconds: Annotated[int, Meta(ge=0, le=30 * _DAY)] | UnsetType = UNSET
    window_seconds: WindowSeconds | UnsetType = UNSET
    horizon_seconds: HorizonSeconds | UnsetType = UNSET
    targets: Targets | UnsetType = UNSET
    channels: Channels | None | UnsetType = UNSET
    quiet_hours: QuietHours | None | UnsetType = UNSET
    repeat_seconds: RepeatSeconds | None | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class TargetsOut(Out):
    instances: list[str]
    tags: list[str]
    groups: list[str]
    all: bool


class AlertRuleOut(Out):
    """Fields that the rule's kind does not have are null."""

    id: RuleId
    name: Annotated[str, Meta(examples=["Disk 90 % full"])]
    kind: RuleKind
    metric: Annotated[str, Meta(examples=["disk_percent"])]
    operator: Operator | None
    value: float | None
    for_seconds: int
    window_seconds: int | None
    horizon_seconds: int | None
    severity: Severity
    targets: TargetsOut
    channels: list[str] | None
    quiet_hours: QuietHours | None
    repeat_seconds: int | None
    enabled: bool
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Any) -> "AlertRuleOut":
        plain = set(cls.__struct_fields__) - {"value", "targets", "channels", "quiet_hours"}
        return cls(
            **{name: getattr(row, name) for name in plain},
            value=row.limit_value,
            targets=TargetsOut(row.instance_ids, row.tags, row.group_ids, row.everywhere),
            channels=None if row.every_channel else row.channels,
            quiet_hours=msgspec.convert(row.quiet_hours, QuietHours | None),
        )


class AlertOut(Out):
    """`value` is what was found and `limit` what the rule allows; `reason` says both in a sentence.

    `count` is more than 1 for what came back soon after it was over; `resolved_by` is null for what ended by itself.
    `rule_id` and `instance_id` are null once there is no such rule or instance any more.
    """

    id: AlertId
    rule_id: RuleId | None
    name: Annotated[str, Meta(examples=["Disk 90 % full"])]
    severity: Severity
    status: AlertStatus
    instance_id: Annotated[str | None, Meta(examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"])]
    instance_name: Annotated[str, Meta(examples=["berlin-1"])]
    metric: Annotated[str, Meta(examples=["disk_percent"])]
    value: Annotated[float | None, Meta(examples=[93.1])]
    limit: Annotated[float | None, Meta(examples=[90.0])]
    reason: Annotated[str, Meta(examples=["The disk is 93.1 % full: 90 % or more for 5 minutes"])]
    count: Annotated[int, Meta(ge=1, examples=[1])]
    fired_at: datetime
    muted_until: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    resolved_at: datetime | None
    resolved_by: str | None
    resolved_reason: str | None

    @classmethod
    def of(cls, row: Any) -> "AlertOut":
        values = {name: getattr(row, name) for name in cls.__struct_fields__ if name != "limit"}
        return cls(**values, limit=row.limit_value)


class AlertMute(OptionalIn, frozen=True):
    """How long nothing is told of the alert, nor of the next one of the same rule and instance; 0 ends it."""

    duration_seconds: Annotated[int, Meta(ge=0, le=30 * _DAY, examples=[3_600])] = _HOUR


FOR_AN_HOUR = AlertMute()
"""What a call without a body asks for."""
