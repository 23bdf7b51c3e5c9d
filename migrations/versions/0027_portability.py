"""What apps reserve of the machine, and what of Compose projects is an app's without its labels."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("apps", sa.Column("claim", JSONB(), nullable=False, server_default=sa.text("'{}'")))
    op.create_table(
        "app_adoptions",
        sa.Column("app_id", sa.Text(collation="C"), nullable=False),
        sa.Column("project", sa.Text(collation="C"), nullable=False),
        sa.Column("objects", JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("app_id", name="pk_app_adoptions"),
        sa.UniqueConstraint("project", name="uq_app_adoptions_project"),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name="fk_app_adoptions_app_id", ondelete="CASCADE"),
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON app_adoptions TO quazzar_app")
