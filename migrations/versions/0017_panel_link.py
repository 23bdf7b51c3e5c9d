"""The instance's place in a panel's fleet."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "panel_link",
        sa.Column("id", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("instance_id", sa.Text(collation="C"), nullable=False),
        sa.Column("panel_url", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("ca_certificate", sa.Text(), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("signing_key", sa.LargeBinary(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("left_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_panel_link"),
        sa.CheckConstraint("id = 1", name="ck_panel_link_single"),
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON panel_link TO quazzar_app")
