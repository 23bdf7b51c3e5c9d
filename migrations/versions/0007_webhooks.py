"""Webhooks: endpoints, sealed secrets, deliveries, and the lanes and cursor that processes share."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0007"
down_revision = "0005"

_VISIBLE = (
    "tenant_id IS NULL OR tenant_id = NULLIF(current_setting('app.tenant', true), '') "
    "OR current_setting('app.worker', true) = 'on'"
)


def _text(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, **options)


def _time(name: str, *, nullable: bool = False, now: bool = False) -> sa.Column:
    default = sa.func.now() if now else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _of_webhook(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["webhook_id"], ["webhooks.id"], name=f"fk_{table}_webhook_id", ondelete="CASCADE"
    )


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "webhooks",
        _text("id"),
        _text("realm"),
        _text("tenant_id", nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", ARRAY(sa.Text(collation="C")), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("start_position", sa.BigInteger(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        _time("disabled_at", nullable=True),
        _time("created_at", now=True),
        _time("updated_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
        sa.CheckConstraint("realm IN ('instance', 'panel')", name="ck_webhooks_realm"),
    )
    op.create_index("ix_webhooks_scope", "webhooks", ["realm", "tenant_id", "id"])
    op.create_table(
        "webhook_secrets",
        _text("id"),
        _text("webhook_id"),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        _time("created_at", now=True),
        _time("expires_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_secrets"),
        _of_webhook("webhook_secrets"),
    )
    op.create_index("ix_webhook_secrets_webhook_id", "webhook_secrets", ["webhook_id"])
    op.create_table(
        "webhook_lanes",
        _text("webhook_id"),
        _time("due_at", nullable=True),
        _time("paused_until", nullable=True),
        sa.Column("owner", sa.Uuid(), nullable=True),
        _time("leased_until", nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _time("failing_since", nullable=True),
        _time("updated_at", now=True),
        sa.PrimaryKeyConstraint("webhook_id", name="pk_webhook_lanes"),
        _of_webhook("webhook_lanes"),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "ix_webhook_lanes_due_at", "webhook_lanes", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL")
    )
    op.create_table(
        "webhook_deliveries",
        _text("id"),
        _text("webhook_id"),
        _text("realm"),
        _text("tenant_id", nullable=True),
        _text("event_id"),
        _text("type"),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        _text("status", server_default=sa.text("'pending'")),
        sa.Column("tries", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("attempts", JSONB(), nullable=False, server_default=sa.text("'[]'")),
        _time("next_attempt_at", nullable=True),
        _time("created_at", now=True),
        _time("updated_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        _of_webhook("webhook_deliveries"),
        sa.CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="ck_webhook_deliveries_status"),
    )
    op.create_index("ix_webhook_deliveries_webhook_id", "webhook_deliveries", ["webhook_id", "id"])
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["webhook_id", "next_attempt_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_table(
        "webhook_cursor",
        sa.Column("singleton", sa.Boolean(), nullable=False, server_default=sa.text("true")),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("singleton", name="pk_webhook_cursor"),
        sa.CheckConstraint("singleton", name="ck_webhook_cursor_singleton"),
    )
    # The feed is older than this table: nobody waits for what was in it. Row security binds the owner too.
    op.execute("SET LOCAL app.worker = 'on'")
    op.execute("INSERT INTO webhook_cursor (position) SELECT COALESCE(max(position), 0) FROM events")
    for table in ("webhooks", "webhook_deliveries"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY {table}_scope ON {table} USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})")
    # Whoever sees the webhook sees what hangs on it: the inner query is bound by the policy of webhooks.
    for table in ("webhook_secrets", "webhook_lanes"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY {table}_scope ON {table} "
            "USING (EXISTS (SELECT FROM webhooks WHERE webhooks.id = webhook_id))"
        )
    for table in ("webhooks", "webhook_secrets", "webhook_lanes", "webhook_deliveries", "webhook_cursor"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO quazzar_app")
