"""What apps have on the engine's disk."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "app_disks",
        sa.Column("app_id", sa.Text(collation="C"), nullable=False),
        sa.Column("volumes", JSONB(), nullable=False),
        sa.Column("containers_bytes", sa.BigInteger(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("app_id", name="pk_app_disks"),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name="fk_app_disks_app_id", ondelete="CASCADE"),
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON app_disks TO quazzar_app")
