"""Apps in the trash: still there with their data, while their names are free for others."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("apps", sa.Column("trashed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("apps", sa.Column("trashed_ports", JSONB(), nullable=True))
    op.create_index("ix_apps_name", "apps", ["name"], unique=True, postgresql_where=sa.text("trashed_at IS NULL"))
    op.create_index("ix_apps_trashed_at", "apps", ["trashed_at"], postgresql_where=sa.text("trashed_at IS NOT NULL"))
    op.drop_constraint("uq_apps_name", "apps", type_="unique")
