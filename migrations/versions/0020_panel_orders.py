"""What the panel has told this instance to do, and how far that is."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def _text(name: str, *, nullable: bool = True) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def _time(name: str, *, nullable: bool = True, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, **options)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "panel_orders",
        _text("order_id", nullable=False),
        _text("command_id"),
        _text("kind"),
        sa.Column("sealed_args", sa.LargeBinary(), nullable=True),
        _text("user_id"),
        sa.Column("user_name", sa.Text(), nullable=True),
        _time("received_at", nullable=False, server_default=sa.func.now()),
        _time("expires_at"),
        _time("begin_by"),
        _text("status", nullable=False),
        _text("job_id"),
        sa.Column("sequence", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("acknowledged", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("progress", sa.SmallInteger(), nullable=True),
        sa.Column("step", sa.Text(), nullable=True),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        _text("error_code"),
        _time("reported_at", nullable=False, server_default=sa.func.now()),
        _time("finished_at"),
        sa.PrimaryKeyConstraint("order_id", name="pk_panel_orders"),
        sa.CheckConstraint(
            "status IN ('taken', 'running', 'completed', 'failed', 'cancelled', 'expired', 'refused')",
            name="ck_panel_orders_status",
        ),
        sa.CheckConstraint(
            "(finished_at IS NULL) = (status IN ('taken', 'running'))", name="ck_panel_orders_finished"
        ),
    )
    op.create_index(
        "ix_panel_orders_open", "panel_orders", ["job_id"], postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_index(
        "ix_panel_orders_unreported",
        "panel_orders",
        ["reported_at"],
        postgresql_where=sa.text("acknowledged < sequence"),
    )
    op.create_index(
        "ix_panel_orders_finished_at",
        "panel_orders",
        ["finished_at"],
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON panel_orders TO quazzar_app")
