"""Commands to the instances of a fleet, and how far each is on each of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0021"
down_revision = "0020"

_VISIBLE = (
    "tenant_id = NULLIF(current_setting('app.tenant', true), '') OR current_setting('app.worker', true) = 'on'"
)
_OPEN = "status IN ('pending', 'running', 'settling')"


def _text(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, **options)


def _plain(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _integer(name: str, default: int | None = None, *, kind: type = sa.Integer, nullable: bool = False) -> sa.Column:
    server_default = sa.text(str(default)) if default is not None else None
    return sa.Column(name, kind(), nullable=nullable, server_default=server_default)


def _seconds(name: str) -> sa.Column:
    return sa.Column(name, sa.Float(53), nullable=False)


def _time(name: str, *, nullable: bool = True, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, **options)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "fleet_commands",
        _text("id"),
        _text("tenant_id"),
        _text("kind"),
        sa.Column("sealed_args", sa.LargeBinary(), nullable=False),
        sa.Column("args", JSONB(), nullable=False),
        sa.Column("targets", JSONB(), nullable=False),
        _text("offline"),
        _integer("canary"),
        _integer("batch_size"),
        _integer("max_failures", nullable=True),
        _seconds("pause_seconds"),
        _seconds("health_wait_seconds"),
        _integer("expires_in_seconds"),
        _text("status"),
        _text("outcome", nullable=True),
        _plain("reason", nullable=True),
        _integer("batch", 1),
        _time("next_at", nullable=False),
        _time("step_at"),
        _integer("revision", 1, kind=sa.BigInteger),
        _text("created_by"),
        _plain("actor_name"),
        _time("created_at", nullable=False, server_default=sa.func.now()),
        _time("scheduled_at"),
        _time("expires_at", nullable=False),
        _time("started_at"),
        _time("finished_at"),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_commands"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_fleet_commands_tenant_id_id"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_fleet_commands_tenant_id", ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'running', 'paused', 'stopping', 'completed', 'failed', 'cancelled', 'expired')",
            name="ck_fleet_commands_status",
        ),
        sa.CheckConstraint("offline IN ('queue', 'skip', 'fail')", name="ck_fleet_commands_offline"),
    )
    for column in ("step_at", "finished_at"):
        op.create_index(
            f"ix_fleet_commands_{column}", "fleet_commands", [column], postgresql_where=sa.text(f"{column} IS NOT NULL")
        )
    op.create_table(
        "fleet_command_units",
        _text("command_id"),
        _text("instance_id"),
        _text("tenant_id"),
        _integer("batch"),
        _text("order_id"),
        _integer("attempt", 1),
        _text("status", server_default=sa.text("'pending'")),
        _integer("revision", 1, kind=sa.BigInteger),
        _integer("sequence", 0),
        _integer("progress", kind=sa.SmallInteger, nullable=True),
        _plain("step", nullable=True),
        _plain("output", nullable=True),
        _plain("error", nullable=True),
        _text("error_code", nullable=True),
        _integer("health_before", kind=sa.SmallInteger, nullable=True),
        _time("begun_at"),
        _time("sent_at"),
        _time("tried_at"),
        _time("heard_at"),
        _time("started_at"),
        _time("settles_at"),
        _time("finished_at"),
        sa.PrimaryKeyConstraint("command_id", "instance_id", name="pk_fleet_command_units"),
        sa.UniqueConstraint("order_id", name="uq_fleet_command_units_order_id"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "command_id"],
            ["fleet_commands.tenant_id", "fleet_commands.id"],
            name="fk_fleet_command_units_tenant_id_command_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "instance_id"],
            ["fleet_instances.tenant_id", "fleet_instances.id"],
            name="fk_fleet_command_units_tenant_id_instance_id",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'running', 'completed', 'failed', 'expired', 'cancelled', 'skipped', 'settling')",
            name="ck_fleet_command_units_status",
        ),
        # Several times in its life each row is changed, in columns that no index has.
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "ix_fleet_command_units_tenant_id_instance_id", "fleet_command_units", ["tenant_id", "instance_id"]
    )
    op.create_index(
        "ix_fleet_command_units_open", "fleet_command_units", ["instance_id"], postgresql_where=sa.text(_OPEN)
    )
    for table in ("fleet_commands", "fleet_command_units"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY {table}_scope ON {table} USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})")
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO quazzar_app")
