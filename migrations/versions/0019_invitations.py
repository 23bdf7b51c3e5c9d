"""Invitations into both realms: one for each address, known by the hash of its token."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0019"
down_revision = "0018"

_VISIBLE = (
    "tenant_id IS NULL OR tenant_id = NULLIF(current_setting('app.tenant', true), '') "
    "OR current_setting('app.worker', true) = 'on'"
)
# Who holds a token may see what it opens, before anything is known about them.
_PRESENTED = "token_hash = decode(NULLIF(current_setting('app.presented', true), ''), 'hex')"


def _text(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, **options)


def _time(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, **options)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.create_table(
        "invitations",
        _text("id"),
        _text("realm"),
        _text("tenant_id", nullable=True),
        _text("email"),
        _text("role", nullable=True),
        _text("role_id", nullable=True),
        sa.Column("resources", ARRAY(sa.Text()), nullable=True),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        _text("invited_by", nullable=True),
        _time("created_at", server_default=sa.func.now()),
        _time("expires_at"),
        _time("accepted_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
        sa.UniqueConstraint("token_hash", name="uq_invitations_token_hash"),
        sa.UniqueConstraint(
            "realm", "tenant_id", "email", name="uq_invitations_address", postgresql_nulls_not_distinct=True
        ),
        sa.CheckConstraint("(realm = 'panel') = (tenant_id IS NOT NULL)", name="ck_invitations_realm"),
        sa.CheckConstraint("num_nonnulls(role, role_id) = 1", name="ck_invitations_role"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_invitations_tenant_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "role_id"], ["roles.tenant_id", "roles.id"], name="fk_invitations_role_id"
        ),
        sa.ForeignKeyConstraint(["invited_by"], ["users.id"], name="fk_invitations_invited_by", ondelete="SET NULL"),
    )
    op.create_index("ix_invitations_role_id", "invitations", ["tenant_id", "role_id"])
    op.create_index("ix_invitations_invited_by", "invitations", ["invited_by"])
    op.execute("ALTER TABLE invitations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY scope ON invitations USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})")
    op.execute(f"CREATE POLICY presented ON invitations FOR SELECT USING ({_PRESENTED})")
