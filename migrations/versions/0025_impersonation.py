"""Sessions that users of a panel open on an instance, on both sides; several addresses of one panel."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0025"
down_revision = "0024"

_VISIBLE = (
    "tenant_id = NULLIF(current_setting('app.tenant', true), '') OR current_setting('app.worker', true) = 'on'"
)


def _text(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def _plain(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=False)


def _time(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, **options)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("sessions", _time("totp_at", nullable=True))
    op.add_column("audit_records", _text("impersonation", nullable=True))
    op.add_column("fleet_instances", sa.Column("url", sa.Text(), nullable=True))
    op.add_column("panel_link", sa.Column("addresses", ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'")))
    op.add_column("panel_link", sa.Column("impersonation", sa.Boolean(), nullable=False, server_default=sa.true()))
    _on_instances()
    _on_the_panel()


def _on_instances() -> None:
    op.create_table(
        "impersonations",
        _text("id"),
        _text("token_id"),
        sa.Column("cookie_hash", sa.LargeBinary(), nullable=False),
        _text("instance_id"),
        _text("panel_user"),
        _plain("panel_user_name"),
        _plain("reason"),
        _text("ip"),
        _plain("user_agent"),
        _time("created_at", server_default=sa.func.now()),
        _time("expires_at"),
        _time("ended_at", nullable=True),
        sa.Column("told_number", sa.BigInteger(), nullable=False),
        _time("told_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_impersonations"),
        sa.UniqueConstraint("token_id", name="uq_impersonations_token_id"),
        sa.UniqueConstraint("cookie_hash", name="uq_impersonations_cookie_hash"),
    )
    op.create_index(
        "ix_impersonations_open", "impersonations", ["expires_at"], postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index("ix_impersonations_untold", "impersonations", ["id"], postgresql_where=sa.text("told_at IS NULL"))
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON impersonations TO quazzar_app")


def _on_the_panel() -> None:
    op.create_table(
        "fleet_impersonations",
        _text("id"),
        _text("tenant_id"),
        _text("instance_id"),
        _text("user_id"),
        _plain("reason"),
        _time("created_at", server_default=sa.func.now()),
        sa.Column("last_number", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("deeds", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_impersonations"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_fleet_impersonations_tenant_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "instance_id"],
            ["fleet_instances.tenant_id", "fleet_instances.id"],
            name="fk_fleet_impersonations_tenant_id_instance_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_fleet_impersonations_tenant_id_instance_id", "fleet_impersonations", ["tenant_id", "instance_id"]
    )
    op.execute("ALTER TABLE fleet_impersonations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY fleet_impersonations_scope ON fleet_impersonations USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})"
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON fleet_impersonations TO quazzar_app")
