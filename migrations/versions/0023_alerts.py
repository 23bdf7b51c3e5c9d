"""Notification channels, and the panel's alerts: rules with what they remember, alerts, and what is to be told."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0023"
down_revision = "0022"

# The tenant's own rows; work in the background, which is about the rows of all tenants, says so by app.worker.
_OWN = "tenant_id = NULLIF(current_setting('app.tenant', true), '') OR current_setting('app.worker', true) = 'on'"
_TABLES = ("alert_turns", "alert_rules", "alert_rule_channels", "alert_states", "alerts", "alert_notices")


def _text(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, **options)


def _plain(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _time(name: str, *, nullable: bool = False, now: bool = False) -> sa.Column:
    default = sa.func.now() if now else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _number(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Integer(), nullable=nullable, **options)


def _yes_or_no(name: str, default: str | None = None) -> sa.Column:
    return sa.Column(
        name, sa.Boolean(), nullable=False, server_default=sa.text(default) if default is not None else None
    )


def _ids(name: str) -> sa.Column:
    return sa.Column(name, ARRAY(sa.Text(collation="C")), nullable=False)


def _of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=f"fk_{table}_tenant_id", ondelete="CASCADE")


def _of(table: str, column: str, other: str, ondelete: str | None = "CASCADE") -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", column],
        [f"{other}.tenant_id", f"{other}.id"],
        name=f"fk_{table}_tenant_id_{column}",
        ondelete=ondelete,
    )


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    _channels()
    _rules()
    _alerts()
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY {table}_scope ON {table} USING ({_OWN}) WITH CHECK ({_OWN})")
    op.execute("ALTER TABLE notification_channels ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    visible = f"tenant_id IS NULL OR {_OWN}"
    op.execute(f"CREATE POLICY scope ON notification_channels USING ({visible}) WITH CHECK ({visible})")
    for table in (*_TABLES, "notification_channels"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO quazzar_app")
    # Tenants that are older than this are given the default rules by the first evaluation. Row security binds the
    # owner of the table too, and shows no transaction all tenants.
    op.execute("ALTER TABLE tenants NO FORCE ROW LEVEL SECURITY")
    op.execute("SET LOCAL app.worker = 'on'")
    op.execute("INSERT INTO alert_turns (tenant_id) SELECT id FROM tenants")
    op.execute("ALTER TABLE tenants FORCE ROW LEVEL SECURITY")


def _channels() -> None:
    op.create_table(
        "notification_channels",
        _text("id"),
        _text("realm"),
        _text("tenant_id", nullable=True),
        _plain("name"),
        _text("kind"),
        _yes_or_no("enabled", "true"),
        _plain("url", nullable=True),
        sa.Column("to_addresses", ARRAY(sa.Text()), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("former_sealed", sa.LargeBinary(), nullable=True),
        _time("former_until", nullable=True),
        _time("last_delivered_at", nullable=True),
        _time("last_failed_at", nullable=True),
        _plain("last_error", nullable=True),
        _time("created_at", now=True),
        _time("updated_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_notification_channels"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_notification_channels_tenant_id_id"),
        sa.UniqueConstraint(
            "realm", "tenant_id", "name", name="uq_notification_channels_name", postgresql_nulls_not_distinct=True
        ),
        sa.CheckConstraint("realm IN ('instance', 'panel')", name="ck_notification_channels_realm"),
        sa.CheckConstraint("(realm = 'panel') = (tenant_id IS NOT NULL)", name="ck_notification_channels_tenant"),
        sa.CheckConstraint(
            "CASE kind WHEN 'webhook' THEN num_nulls(url, sealed) = 0 AND to_addresses IS NULL"
            " WHEN 'email' THEN num_nonnulls(url, sealed) = 0 AND to_addresses IS NOT NULL ELSE false END",
            name="ck_notification_channels_kind",
        ),
        _of_tenant("notification_channels"),
    )


def _rules() -> None:
    op.create_table(
        "alert_turns",
        _text("tenant_id"),
        _time("due_at", now=True),
        _time("evaluated_at", nullable=True),
        _time("resumed_at", nullable=True),
        _yes_or_no("seeded", "false"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_alert_turns"),
        _of_tenant("alert_turns"),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index("ix_alert_turns_due_at", "alert_turns", ["due_at"])
    op.create_table(
        "alert_rules",
        _text("id"),
        _text("tenant_id"),
        _plain("name"),
        _text("kind"),
        _text("metric"),
        _text("operator", nullable=True),
        sa.Column("limit_value", sa.Float(53), nullable=True),
        _number("for_seconds"),
        _number("window_seconds", nullable=True),
        _number("horizon_seconds", nullable=True),
        _text("severity"),
        _yes_or_no("everywhere"),
        _ids("instance_ids"),
        _ids("tags"),
        _ids("group_ids"),
        _yes_or_no("every_channel"),
        sa.Column("quiet_hours", JSONB(), nullable=True),
        _number("repeat_seconds", nullable=True),
        _yes_or_no("enabled"),
        _time("created_at", now=True),
        _time("updated_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_alert_rules"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_alert_rules_tenant_id_id"),
        sa.CheckConstraint("kind IN ('threshold', 'absence', 'rate', 'forecast')", name="ck_alert_rules_kind"),
        sa.CheckConstraint("severity IN ('info', 'warning', 'critical')", name="ck_alert_rules_severity"),
        sa.CheckConstraint("operator IN ('>', '>=', '<', '<=')", name="ck_alert_rules_operator"),
        sa.CheckConstraint(
            "(kind = 'absence') = (operator IS NULL) AND (operator IS NULL) = (limit_value IS NULL)",
            name="ck_alert_rules_limit",
        ),
        sa.CheckConstraint(
            "(kind IN ('rate', 'forecast')) = (window_seconds IS NOT NULL)", name="ck_alert_rules_window"
        ),
        sa.CheckConstraint("(kind = 'forecast') = (horizon_seconds IS NOT NULL)", name="ck_alert_rules_horizon"),
        _of_tenant("alert_rules"),
    )
    op.create_table(
        "alert_rule_channels",
        _text("rule_id"),
        _text("channel_id"),
        _text("tenant_id"),
        sa.PrimaryKeyConstraint("rule_id", "channel_id", name="pk_alert_rule_channels"),
        _of_tenant("alert_rule_channels"),
        _of("alert_rule_channels", "rule_id", "alert_rules"),
        _of("alert_rule_channels", "channel_id", "notification_channels", None),
    )
    op.create_index("ix_alert_rule_channels_tenant_id_channel_id", "alert_rule_channels", ["tenant_id", "channel_id"])
    op.create_table(
        "alert_states",
        _text("rule_id"),
        _text("instance_id"),
        _text("tenant_id"),
        _time("since", nullable=True),
        sa.Column("times", ARRAY(sa.DateTime(timezone=True)), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("points", ARRAY(sa.Float(53)), nullable=False, server_default=sa.text("'{}'")),
        sa.PrimaryKeyConstraint("rule_id", "instance_id", name="pk_alert_states"),
        _of("alert_states", "rule_id", "alert_rules"),
        _of("alert_states", "instance_id", "fleet_instances"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_alert_states_instance_id", "alert_states", ["instance_id"])


def _alerts() -> None:
    op.create_table(
        "alerts",
        _text("id"),
        _text("tenant_id"),
        _text("rule_id", nullable=True),
        _text("instance_id", nullable=True),
        _plain("instance_name"),
        _plain("name"),
        _text("severity"),
        _text("metric"),
        _text("status"),
        sa.Column("value", sa.Float(53), nullable=True),
        sa.Column("limit_value", sa.Float(53), nullable=True),
        _plain("reason"),
        _number("count", server_default=sa.text("1")),
        _time("fired_at"),
        _time("acknowledged_at", nullable=True),
        _text("acknowledged_by", nullable=True),
        _time("muted_until", nullable=True),
        _time("resolved_at", nullable=True),
        _text("resolved_by", nullable=True),
        _plain("resolved_reason", nullable=True),
        _time("notified_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_alerts_tenant_id_id"),
        sa.CheckConstraint("status IN ('firing', 'acknowledged', 'resolved')", name="ck_alerts_status"),
        sa.CheckConstraint("severity IN ('info', 'warning', 'critical')", name="ck_alerts_severity"),
        sa.CheckConstraint("(status = 'resolved') = (resolved_at IS NOT NULL)", name="ck_alerts_resolved"),
        _of_tenant("alerts"),
        _of("alerts", "rule_id", "alert_rules", "SET NULL (rule_id)"),
        _of("alerts", "instance_id", "fleet_instances", "SET NULL (instance_id)"),
    )
    op.create_index(
        "ix_alerts_open",
        "alerts",
        ["tenant_id", "rule_id", "instance_id"],
        unique=True,
        postgresql_where=sa.text("status <> 'resolved'"),
    )
    op.create_index("ix_alerts_pair", "alerts", ["tenant_id", "rule_id", "instance_id"])
    op.create_index("ix_alerts_instance", "alerts", ["tenant_id", "instance_id", "id"])
    op.create_index(
        "ix_alerts_resolved", "alerts", ["resolved_at"], postgresql_where=sa.text("status = 'resolved'")
    )
    op.create_table(
        "alert_notices",
        _text("alert_id"),
        _text("kind"),
        _text("tenant_id"),
        _text("rule_id"),
        _time("due_at"),
        sa.PrimaryKeyConstraint("alert_id", "kind", name="pk_alert_notices"),
        sa.CheckConstraint("kind IN ('fired', 'repeated', 'resolved')", name="ck_alert_notices_kind"),
        _of("alert_notices", "rule_id", "alert_rules"),
        _of("alert_notices", "alert_id", "alerts"),
    )
    op.create_index("ix_alert_notices_tenant_id_rule_id_due_at", "alert_notices", ["tenant_id", "rule_id", "due_at"])
