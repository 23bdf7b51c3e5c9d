"""Tokens of links that are mailed, whether an address is confirmed, and API keys of the panel's tenants."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

_TENANT = "NULLIF(current_setting('app.tenant', true), '')"
# Keys of an instance belong to no tenant. Who presents a key may see it before anything is known about them.
_VISIBLE = f"tenant_id IS NULL OR tenant_id = {_TENANT} OR current_setting('app.worker', true) = 'on'"
_PRESENTED = "key_hash = decode(NULLIF(current_setting('app.presented', true), ''), 'hex')"


def _text(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("users", sa.Column("email_verified_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "mailed_tokens",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        _text("purpose"),
        _text("user_id"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_mailed_tokens"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_mailed_tokens_user_id", ondelete="CASCADE"),
        sa.CheckConstraint("purpose IN ('reset_password', 'verify_email')", name="ck_mailed_tokens_purpose"),
    )
    op.create_index("ix_mailed_tokens_user_id", "mailed_tokens", ["user_id"])
    op.add_column("api_keys", _text("tenant_id", nullable=True))
    # Who leaves a tenant loses the keys there.
    op.create_foreign_key(
        "fk_api_keys_tenant_id",
        "api_keys",
        "memberships",
        ["tenant_id", "user_id"],
        ["tenant_id", "user_id"],
        ondelete="CASCADE",
    )
    op.create_index("ix_api_keys_tenant_id_user_id", "api_keys", ["tenant_id", "user_id"])
    op.execute("ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY scope ON api_keys USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})")
    op.execute(f"CREATE POLICY presented ON api_keys FOR SELECT USING ({_PRESENTED})")
