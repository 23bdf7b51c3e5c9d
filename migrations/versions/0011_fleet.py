"""The panel's CA and its fleet: groups, registration tokens, instances, and when each was last heard."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0011"
down_revision = "0010"

# The tenant's own rows; work in the background, which is about the rows of all tenants, says so by app.worker.
_VISIBLE = (
    "tenant_id = NULLIF(current_setting('app.tenant', true), '') OR current_setting('app.worker', true) = 'on'"
)


def _text(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, **options)


def _plain(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=False)


def _time(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=nullable, server_default=None if nullable else sa.func.now()
    )


def _of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id"], ["tenants.id"], name=f"fk_{table}_tenant_id", ondelete="CASCADE"
    )


def _of_group(table: str, column: str = "group_id") -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", column],
        ["fleet_groups.tenant_id", "fleet_groups.id"],
        name=f"fk_{table}_tenant_id_{column}",
    )


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "panel_authority",
        sa.Column("id", sa.SmallInteger(), nullable=False, autoincrement=False),
        _plain("certificate"),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.Column("signing_public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_signing_key", sa.LargeBinary(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_panel_authority"),
        sa.CheckConstraint("id = 1", name="ck_panel_authority_single"),
    )
    op.create_table(
        "fleet_groups",
        _text("id"),
        _text("tenant_id"),
        _plain("name"),
        _text("parent_id", nullable=True),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_groups"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_fleet_groups_tenant_id_id"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_fleet_groups_tenant_id_name"),
        _of_tenant("fleet_groups"),
        _of_group("fleet_groups", "parent_id"),
    )
    op.create_index("ix_fleet_groups_tenant_id_parent_id", "fleet_groups", ["tenant_id", "parent_id"])
    op.create_table(
        "fleet_tokens",
        _text("id"),
        _text("tenant_id"),
        _plain("name"),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("tags", ARRAY(sa.Text(collation="C")), nullable=False),
        _text("group_id", nullable=True),
        _text("created_by", nullable=True),
        _time("created_at"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        _time("last_used_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_tokens"),
        sa.UniqueConstraint("token_hash", name="uq_fleet_tokens_token_hash"),
        _of_tenant("fleet_tokens"),
        _of_group("fleet_tokens"),
        sa.CheckConstraint("uses BETWEEN 0 AND max_uses", name="ck_fleet_tokens_uses"),
    )
    op.create_index("ix_fleet_tokens_tenant_id_id", "fleet_tokens", ["tenant_id", "id"])
    op.create_index("ix_fleet_tokens_tenant_id_group_id", "fleet_tokens", ["tenant_id", "group_id"])
    op.create_table(
        "fleet_instances",
        _text("id"),
        _text("tenant_id"),
        _plain("name"),
        _text("status"),
        sa.Column("status_reason", sa.Text(), nullable=True),
        _time("status_since"),
        sa.Column("tags", ARRAY(sa.Text(collation="C")), nullable=False),
        _text("group_id", nullable=True),
        _text("token_id", nullable=True),
        _plain("version"),
        _plain("hostname"),
        _plain("os"),
        _plain("arch"),
        sa.Column("cpu_cores", sa.Integer(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=False),
        _text("ip", nullable=True),
        _text("machine_id"),
        sa.Column("public_key_hash", sa.LargeBinary(), nullable=False),
        _text("certificate_serial"),
        sa.Column("certificate_expires_at", sa.DateTime(timezone=True), nullable=False),
        _text("state_hash", nullable=True),
        sa.Column("apps", JSONB(), nullable=False, server_default=sa.text("'[]'")),
        _time("backup_at", nullable=True),
        sa.Column("health_score", sa.SmallInteger(), nullable=False, server_default=sa.text("100")),
        sa.Column("checks", JSONB(), nullable=False, server_default=sa.text("'[]'")),
        _time("created_at"),
        _time("updated_at"),
        _time("revoked_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_instances"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_fleet_instances_tenant_id_id"),
        _of_tenant("fleet_instances"),
        _of_group("fleet_instances"),
        sa.CheckConstraint(
            "status IN ('online', 'degraded', 'offline', 'revoked')", name="ck_fleet_instances_status"
        ),
    )
    op.create_index(
        "ix_fleet_instances_machine",
        "fleet_instances",
        ["tenant_id", "machine_id"],
        unique=True,
        postgresql_where=sa.text("status <> 'revoked'"),
    )
    op.create_index("ix_fleet_instances_tenant_id_group_id", "fleet_instances", ["tenant_id", "group_id"])
    op.create_index("ix_fleet_instances_tags", "fleet_instances", ["tags"], postgresql_using="gin")
    op.create_table(
        "fleet_presence",
        _text("instance_id"),
        _text("tenant_id"),
        _time("last_seen_at", nullable=True),
        _text("connection", nullable=True),
        _time("measured_at", nullable=True),
        sa.Column("measured", ARRAY(sa.Float(53)), nullable=True),
        sa.Column("skew_seconds", sa.Float(53), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("instance_id", name="pk_fleet_presence"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "instance_id"],
            ["fleet_instances.tenant_id", "fleet_instances.id"],
            name="fk_fleet_presence_tenant_id_instance_id",
            ondelete="CASCADE",
        ),
        postgresql_with={"fillfactor": "50"},
    )
    for table in ("fleet_groups", "fleet_tokens", "fleet_instances", "fleet_presence"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY {table}_scope ON {table} USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})")
    for table in ("panel_authority", "fleet_groups", "fleet_tokens", "fleet_instances", "fleet_presence"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO quazzar_app")
