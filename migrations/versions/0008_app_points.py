"""Points of what apps use: minutes, hours and days."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_DOUBLES = ("cpu_percent", "cpu_percent_max")
_LARGE = (
    "memory_bytes",
    "memory_bytes_max",
    "memory_limit_bytes",
    "network_rx_bytes",
    "network_tx_bytes",
    "disk_read_bytes",
    "disk_write_bytes",
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "app_points",
        sa.Column("app_id", sa.Text(collation="C"), nullable=False),
        sa.Column("step_seconds", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in _DOUBLES),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _LARGE),
        sa.Column("pids", sa.Integer(), nullable=False),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("app_id", "step_seconds", "at", name="pk_app_points"),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name="fk_app_points_app_id", ondelete="CASCADE"),
        # The minute that goes on is written again and again: room for that without touching the indexes.
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_app_points_at", "app_points", ["step_seconds", "at"])
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON app_points TO quazzar_app")
