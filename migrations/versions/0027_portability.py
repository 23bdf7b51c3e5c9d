"""What apps reserve of the machine."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0027"
down_revision = "0019"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("apps", sa.Column("claim", JSONB(), nullable=False, server_default=sa.text("'{}'")))
