"""Terminals that are open, so that an end is recorded also for those that our process did not outlive."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=False)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "app_execs",
        _text("id"),
        _text("app_id"),
        _text("service"),
        _text("actor_id"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_app_execs"),
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON app_execs TO quazzar_app")
