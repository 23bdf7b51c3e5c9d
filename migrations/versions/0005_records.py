"""Audit records in hash chains that can only grow, and the feed of events."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"

_VISIBLE = (
    "tenant_id IS NULL OR tenant_id = NULLIF(current_setting('app.tenant', true), '') "
    "OR current_setting('app.worker', true) = 'on'"
)


def _text(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, **options)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "audit_records",
        _text("chain"),
        sa.Column("number", sa.BigInteger(), nullable=False, autoincrement=False),
        _text("id"),
        _text("realm"),
        _text("tenant_id", nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        _text("actor_kind"),
        _text("actor_id", nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        _text("request_id", nullable=True),
        _text("action"),
        _text("subject", nullable=True),
        _text("outcome"),
        sa.Column("before", JSONB(), nullable=True),
        sa.Column("after", JSONB(), nullable=True),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "number", name="pk_audit_records"),
        sa.UniqueConstraint("id", name="uq_audit_records_id"),
    )
    op.create_index("ix_audit_records_chain_action", "audit_records", ["chain", "action"])
    op.create_table(
        "audit_heads",
        _text("chain"),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain", name="pk_audit_heads"),
        postgresql_with={"fillfactor": "50"},
    )
    # Append-only for everybody, the owner included: a trigger says no, and the app's role has no right to begin with.
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_records_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_records "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.execute("REVOKE UPDATE, DELETE, TRUNCATE ON audit_records FROM quazzar_app")
    op.execute("REVOKE DELETE, TRUNCATE ON audit_heads FROM quazzar_app")
    op.create_table(
        "events",
        sa.Column("position", sa.BigInteger(), sa.Identity(), nullable=False),
        _text("id"),
        _text("realm"),
        _text("tenant_id", nullable=True),
        _text("type"),
        _text("subject", nullable=True),
        sa.Column("data", JSONB(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()
        ),
        sa.PrimaryKeyConstraint("position", name="pk_events"),
        sa.UniqueConstraint("id", name="uq_events_id"),
    )
    op.create_index("ix_events_scope", "events", ["realm", "tenant_id", "position"])
    op.create_index("ix_events_subject", "events", ["subject"])
    for table in ("audit_records", "events"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY {table}_scope ON {table} USING ({_VISIBLE}) WITH CHECK (true)")
