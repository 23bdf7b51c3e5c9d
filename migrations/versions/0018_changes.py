"""Changes of apps with a way back: their journal, and what apps were before."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"


def _text(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def _shape() -> list[sa.Column]:
    return [
        _text("template", nullable=True),
        _text("version", nullable=True),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("config", JSONB(), nullable=False),
        sa.Column("secrets", sa.LargeBinary(), nullable=True),
        sa.Column("resources", JSONB(), nullable=False),
        _text("restart_policy", nullable=True),
        sa.Column("images", JSONB(), nullable=False),
    ]


def _made() -> sa.Column:
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("apps", _text("restart_policy", nullable=True))
    for name in ("images", "labels"):
        op.add_column("apps", sa.Column(name, JSONB(), nullable=False, server_default=sa.text("'{}'")))
    op.create_table(
        "app_revisions",
        _text("app_id"),
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        *_shape(),
        _text("snapshot"),
        _made(),
        sa.PrimaryKeyConstraint("app_id", "number", name="pk_app_revisions"),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name="fk_app_revisions_app_id", ondelete="CASCADE"),
    )
    op.create_table(
        "app_changes",
        _text("app_id"),
        _text("kind"),
        _text("phase"),
        sa.Column("stopped", sa.Boolean(), nullable=False),
        *_shape(),
        _text("snapshot", nullable=True),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        _made(),
        sa.PrimaryKeyConstraint("app_id", name="pk_app_changes"),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name="fk_app_changes_app_id", ondelete="CASCADE"),
    )
    for name in ("app_revisions", "app_changes"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO quazzar_app")
