"""What newer there is of apps, and whether they are updated by themselves."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0026"
down_revision = "0025"


def _text(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def _time(name: str) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)


def _list(name: str) -> sa.Column:
    return sa.Column(name, JSONB(), nullable=False, server_default=sa.text("'[]'"))


def _of_app(table: str) -> list[sa.Constraint]:
    return [
        sa.PrimaryKeyConstraint("app_id", name=f"pk_{table}"),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name=f"fk_{table}_app_id", ondelete="CASCADE"),
    ]


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("app_changes", sa.Column("automatic", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "app_update_checks",
        _text("app_id"),
        sa.Column("available", JSONB(), nullable=True),
        _list("announced"),
        _time("checked_at"),
        _time("due_at"),
        sa.Column("error", sa.Text(), nullable=True),
        *_of_app("app_update_checks"),
    )
    op.create_table(
        "app_auto_updates",
        _text("app_id"),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("window", JSONB(), nullable=True),
        _text("hold_version", nullable=True),
        _list("skip_versions"),
        _text("canary_app", nullable=True),
        _list("skipped"),
        _time("opens_at"),
        sa.Column("waits_for", sa.Text(), nullable=True),
        *_of_app("app_auto_updates"),
    )
    op.create_table(
        "registry_pauses",
        _text("host"),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("until_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("host", name="pk_registry_pauses"),
    )
    for name in ("app_update_checks", "app_auto_updates", "registry_pauses"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO quazzar_app")
