"""Own templates with their versions, installed apps, and the host ports that they hold."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"

_STATUSES = (
    "'installing', 'starting', 'running', 'unhealthy', 'stopping', 'stopped', 'restarting', 'updating', 'crashed', "
    "'failed', 'uninstalling'"
)


def _text(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, **options)


def _time(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=nullable, server_default=None if nullable else sa.func.now()
    )


def _json(name: str, default: str) -> sa.Column:
    return sa.Column(name, JSONB(), nullable=False, server_default=sa.text(f"'{default}'"))


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "templates",
        _text("id"),
        _text("slug"),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_templates"),
        sa.UniqueConstraint("slug", name="uq_templates_slug"),
    )
    op.create_table(
        "template_versions",
        _text("template_id"),
        _text("version"),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("compose", sa.Text(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("template_id", "version", name="pk_template_versions"),
        sa.ForeignKeyConstraint(
            ["template_id"], ["templates.id"], name="fk_template_versions_template_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "apps",
        _text("id"),
        _text("name"),
        _text("template", nullable=True),
        _text("version", nullable=True),
        sa.Column("definition", sa.JSON(), nullable=False),
        _json("config", "{}"),
        sa.Column("secrets", sa.LargeBinary(), nullable=True),
        _json("resources", "{}"),
        _text("domain", nullable=True),
        _text("status"),
        sa.Column("status_reason", sa.Text(), nullable=True),
        _time("status_since"),
        _text("desired", server_default=sa.text("'running'")),
        _text("job_id", nullable=True),
        _time("deadline_at", nullable=True),
        _time("installed_at", nullable=True),
        _json("expected", "[]"),
        _json("services", "[]"),
        _json("ports", "[]"),
        _json("volumes", "[]"),
        _json("urls", "[]"),
        sa.Column("update_available", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_apps"),
        sa.UniqueConstraint("name", name="uq_apps_name"),
        sa.CheckConstraint(f"status IN ({_STATUSES})", name="ck_apps_status"),
    )
    op.create_table(
        "app_ports",
        sa.Column("host_port", sa.Integer(), nullable=False),
        _text("protocol"),
        _text("app_id"),
        _text("field", nullable=True),
        sa.Column("auto", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.PrimaryKeyConstraint("host_port", "protocol", name="pk_app_ports"),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name="fk_app_ports_app_id", ondelete="CASCADE"),
    )
    op.create_index("ix_app_ports_app_id", "app_ports", ["app_id"])
