"""Template sources, and which source a template came from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "template_sources",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("name", sa.Text(collation="C"), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("serial", sa.BigInteger(), nullable=True),
        sa.Column("job_id", sa.Text(collation="C"), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("problems", JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("id", name="pk_template_sources"),
        sa.UniqueConstraint("name", name="uq_template_sources_name"),
    )
    op.add_column("templates", sa.Column("source_id", sa.Text(collation="C"), nullable=True))
    op.create_foreign_key(
        "fk_templates_source_id", "templates", "template_sources", ["source_id"], ["id"], ondelete="CASCADE"
    )
    op.create_index("ix_templates_source_id", "templates", ["source_id"])
