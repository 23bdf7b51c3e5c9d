"""Tables of alerts, each row a tenant's own: rules, what they remember and where they tell, and what they found.

What each evaluation reads and changes is small: a rule remembers an instance only while it is beyond its limits, or for
the points of a window.
"""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)

RuleKind = Literal["threshold", "absence", "rate", "forecast"]
AlertStatus = Literal["firing", "acknowledged", "resolved"]
NoticeKind = Literal["fired", "repeated", "resolved"]


def _of_rule() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", "rule_id"], ["alert_rules.tenant_id", "alert_rules.id"], ondelete="CASCADE"
    )


class AlertTurn(Base):
    """Whose row is locked evaluates the tenant; the row itself says when that is due.

    `resumed_at` is when evaluation began, or went on after a pause of all panel processes: silence before that may have
    been the panel's own. `seeded` tenants have been given the default rules.
    """

    __tablename__ = "alert_turns"
    __table_args__ = (Index(None, "due_at"),)

    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    due_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    evaluated_at: Mapped[datetime | None] = mapped_column(_Time)
    resumed_at: Mapped[datetime | None] = mapped_column(_Time)
    seeded: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))


class AlertRule(Base):
    """What is watched on which instances, and who is told. `limit_value` is compared with what is found by `operator`.

    Targets are every instance, or those named, those with one of the tags, and those of the groups and below.
    """

    __tablename__ = "alert_rules"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        CheckConstraint("kind IN ('threshold', 'absence', 'rate', 'forecast')", name="kind"),
        CheckConstraint("severity IN ('info', 'warning', 'critical')", name="severity"),
        CheckConstraint("operator IN ('>', '>=', '<', '<=')", name="operator"),
        CheckConstraint(
            "(kind = 'absence') = (operator IS NULL) AND (operator IS NULL) = (limit_value IS NULL)", name="limit"
        ),
        CheckConstraint("(kind IN ('rate', 'forecast')) = (window_seconds IS NOT NULL)", name="window"),
        CheckConstraint("(kind = 'forecast') = (horizon_seconds IS NOT NULL)", name="horizon"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(_Id)
    metric: Mapped[str] = mapped_column(_Id)
    operator: Mapped[str | None] = mapped_column(_Id)
    limit_value: Mapped[float | None] = mapped_column(Float(53))
    for_seconds: Mapped[int] = mapped_column(Integer)
    window_seconds: Mapped[int | None] = mapped_column(Integer)
    horizon_seconds: Mapped[int | None] = mapped_column(Integer)
    severity: Mapped[str] = mapped_column(_Id)
    everywhere: Mapped[bool] = mapped_column(Boolean)
    instance_ids: Mapped[list[str]] = mapped_column(ARRAY(_Id))
    tags: Mapped[list[str]] = mapped_column(ARRAY(_Id))
    group_ids: Mapped[list[str]] = mapped_column(ARRAY(_Id))
    every_channel: Mapped[bool] = mapped_column(Boolean)
    quiet_hours: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    repeat_seconds: Mapped[int | None] = mapped_column(Integer)
    enabled: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())


class AlertRuleChannel(Base):
    """Where a rule tells, when that is not everywhere. A channel that a rule names can't be deleted.

    The tenant is named as such, so that with a tenant these go before anybody looks whether its channels are named.
    """

    __tablename__ = "alert_rule_channels"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        _of_rule(),
        ForeignKeyConstraint(
            ["tenant_id", "channel_id"], ["notification_channels.tenant_id", "notification_channels.id"]
        ),
        Index(None, "tenant_id", "channel_id"),
    )

    rule_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    channel_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id)


class AlertState(Base):
    """What a rule remembers of an instance: since when it is beyond the limits (None while it is within), and the
    points of its window, oldest first.
    """

    __tablename__ = "alert_states"
    __table_args__ = (
        _of_rule(),
        ForeignKeyConstraint(
            ["tenant_id", "instance_id"], ["fleet_instances.tenant_id", "fleet_instances.id"], ondelete="CASCADE"
        ),
        Index(None, "instance_id"),
    )

    rule_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    instance_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id)
    since: Mapped[datetime | None] = mapped_column(_Time)
    times: Mapped[list[datetime]] = mapped_column(ARRAY(_Time), server_default=text("'{}'"))
    points: Mapped[list[float]] = mapped_column(ARRAY(Float(53)), server_default=text("'{}'"))


class Alert(Base):
    """What a rule found on an instance. Name and severity are the rule's as they were; `count` is how often it fired
    without being over for long in between. One of a rule and an instance is open at a time.

    Alerts outlive their rule and their instance, as history.
    """

    __tablename__ = "alerts"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        CheckConstraint("status IN ('firing', 'acknowledged', 'resolved')", name="status"),
        CheckConstraint("severity IN ('info', 'warning', 'critical')", name="severity"),
        CheckConstraint("(status = 'resolved') = (resolved_at IS NOT NULL)", name="resolved"),
        ForeignKeyConstraint(
            ["tenant_id", "rule_id"],
            ["alert_rules.tenant_id", "alert_rules.id"],
            ondelete="SET NULL (rule_id)",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "instance_id"],
            ["fleet_instances.tenant_id", "fleet_instances.id"],
            ondelete="SET NULL (instance_id)",
        ),
        Index(
            "ix_alerts_open",
            "tenant_id",
            "rule_id",
            "instance_id",
            unique=True,
            postgresql_where=text("status <> 'resolved'"),
        ),
        Index("ix_alerts_pair", "tenant_id", "rule_id", "instance_id"),
        Index("ix_alerts_instance", "tenant_id", "instance_id", "id"),
        Index("ix_alerts_resolved", "resolved_at", postgresql_where=text("status = 'resolved'")),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    rule_id: Mapped[str | None] = mapped_column(_Id)
    instance_id: Mapped[str | None] = mapped_column(_Id)
    instance_name: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    severity: Mapped[str] = mapped_column(_Id)
    metric: Mapped[str] = mapped_column(_Id)
    status: Mapped[str] = mapped_column(_Id)
    value: Mapped[float | None] = mapped_column(Float(53))
    limit_value: Mapped[float | None] = mapped_column(Float(53))
    reason: Mapped[str] = mapped_column(Text)
    count: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    fired_at: Mapped[datetime] = mapped_column(_Time)
    acknowledged_at: Mapped[datetime | None] = mapped_column(_Time)
    acknowledged_by: Mapped[str | None] = mapped_column(_Id)
    muted_until: Mapped[datetime | None] = mapped_column(_Time)
    resolved_at: Mapped[datetime | None] = mapped_column(_Time)
    resolved_by: Mapped[str | None] = mapped_column(_Id)
    resolved_reason: Mapped[str | None] = mapped_column(Text)
    notified_at: Mapped[datetime | None] = mapped_column(_Time)


class AlertNotice(Base):
    """What is to be told of an alert, from `due_at` on: gathered by rule, and deleted as the telling sets out."""

    __tablename__ = "alert_notices"
    __table_args__ = (
        CheckConstraint("kind IN ('fired', 'repeated', 'resolved')", name="kind"),
        _of_rule(),
        ForeignKeyConstraint(["tenant_id", "alert_id"], ["alerts.tenant_id", "alerts.id"], ondelete="CASCADE"),
        Index(None, "tenant_id", "rule_id", "due_at"),
    )

    alert_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    kind: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id)
    rule_id: Mapped[str] = mapped_column(_Id)
    due_at: Mapped[datetime] = mapped_column(_Time)
