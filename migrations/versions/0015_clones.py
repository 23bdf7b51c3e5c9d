"""Which app's data a clone still waits for."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("apps", sa.Column("copies_from", sa.Text(collation="C"), nullable=True))
