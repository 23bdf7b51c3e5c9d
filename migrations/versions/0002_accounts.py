"""Users of both realms, their sessions and keys, and tenants with row-level security."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0002"
down_revision = "0001"

_TENANT = "NULLIF(current_setting('app.tenant', true), '')"
_USER = "NULLIF(current_setting('app.user', true), '')"


def _text(name: str, *constraints: Any, **options: Any) -> "sa.Column[Any]":
    return sa.Column(name, sa.Text(collation="C"), *constraints, **options)


def _time(name: str, **options: Any) -> "sa.Column[Any]":
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def _owned_by(table: str) -> sa.ForeignKey:
    return sa.ForeignKey(f"{table}.id", ondelete="CASCADE")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    now = sa.func.now()
    op.create_table(
        "users",
        _text("id", primary_key=True),
        _text("realm", nullable=False),
        _text("username"),
        _text("email"),
        sa.Column("name", sa.Text()),
        _text("timezone", nullable=False, server_default=sa.text("'UTC'")),
        _text("role"),
        _text("password_hash", nullable=False),
        _time("created_at", nullable=False, server_default=now),
        _time("last_login_at"),
        sa.Column("totp_secret", sa.LargeBinary()),
        _time("totp_enabled_at"),
        sa.Column("totp_last_step", sa.BigInteger()),
        sa.UniqueConstraint("realm", "username"),
        sa.UniqueConstraint("realm", "email"),
        sa.CheckConstraint(
            "(realm = 'instance' AND username IS NOT NULL AND role IN ('admin', 'operator', 'viewer'))"
            " OR (realm = 'panel' AND email IS NOT NULL AND role IS NULL)",
            name="realm",
        ),
        sa.CheckConstraint("totp_enabled_at IS NULL OR totp_secret IS NOT NULL", name="totp"),
    )
    # The one row of this table decides which of several first setups wins, for ever.
    op.create_table(
        "instance_setup",
        sa.Column("id", sa.SmallInteger(), primary_key=True, autoincrement=False),
        _text("user_id", nullable=False),
        _time("done_at", nullable=False, server_default=now),
        sa.CheckConstraint("id = 1", name="single"),
    )
    op.create_table(
        "tenants",
        _text("id", primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        _time("created_at", nullable=False, server_default=now),
    )
    op.create_table(
        "memberships",
        _text("tenant_id", _owned_by("tenants"), primary_key=True),
        _text("user_id", _owned_by("users"), primary_key=True),
        _text("id", nullable=False, unique=True),
        _text("role", nullable=False),
        _time("created_at", nullable=False, server_default=now),
    )
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"])
    op.create_table(
        "sessions",
        _text("id", primary_key=True),
        _text("realm", nullable=False),
        _text("user_id", _owned_by("users"), nullable=False),
        _text("tenant_id"),
        _time("created_at", nullable=False, server_default=now),
        _time("expires_at", nullable=False),
        _text("ip", nullable=False),
        sa.Column("user_agent", sa.Text(), nullable=False),
        # Who leaves a tenant loses the sessions there.
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["memberships.tenant_id", "memberships.user_id"], ondelete="CASCADE"
        ),
        sa.CheckConstraint("(realm = 'panel') = (tenant_id IS NOT NULL)", name="realm"),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_index("ix_sessions_tenant_id_user_id", "sessions", ["tenant_id", "user_id"])
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.LargeBinary(), primary_key=True),
        _text("session_id", _owned_by("sessions"), nullable=False),
        _text("user_id", nullable=False),
        _text("realm", nullable=False),
        _time("created_at", nullable=False, server_default=now),
        _time("used_at"),
    )
    op.create_index("ix_refresh_tokens_session_id", "refresh_tokens", ["session_id"])
    op.create_index("ix_refresh_tokens_created_at", "refresh_tokens", ["created_at"])
    op.create_table(
        "recovery_codes",
        _text("user_id", _owned_by("users"), primary_key=True),
        sa.Column("code_hash", sa.LargeBinary(), primary_key=True),
    )
    op.create_table(
        "api_keys",
        _text("id", primary_key=True),
        _text("user_id", _owned_by("users"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False, unique=True),
        _text("prefix", nullable=False),
        _text("suffix", nullable=False),
        sa.Column("scopes", ARRAY(sa.Text()), nullable=False),
        sa.Column("resources", ARRAY(sa.Text())),
        sa.Column("allowed_ips", ARRAY(sa.Text())),
        _time("created_at", nullable=False, server_default=now),
        _time("expires_at", nullable=False),
    )
    op.create_index("ix_api_keys_user_id", "api_keys", ["user_id"])
    # When a session or key was last used: many small updates, away from the wide and isolated rows that they are about.
    op.create_table(
        "last_uses",
        _text("id", primary_key=True),
        _time("used_at", nullable=False),
        _text("ip", nullable=False),
        postgresql_with={"fillfactor": "70"},
    )
    # Counts of wrong guesses; a crash of the server may forget them.
    op.create_table(
        "login_attempts",
        _text("key", primary_key=True),
        sa.Column("count", sa.Integer(), nullable=False),
        _time("started_at", nullable=False, server_default=now),
        _time("last_at", nullable=False, server_default=now),
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_login_attempts_started_at", "login_attempts", ["started_at"])

    for table in ("tenants", "memberships", "sessions"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    _policy("tenants", "tenant", "ALL", f"id = {_TENANT}")
    mine = f"SELECT tenant_id FROM memberships WHERE user_id = {_USER}"  # noqa: S608
    _policy("tenants", "own", "SELECT", f"id IN ({mine})")
    _policy("memberships", "tenant", "ALL", f"tenant_id = {_TENANT}")
    _policy("memberships", "own", "SELECT", f"user_id = {_USER}")
    # Sessions of an instance belong to no tenant, those of the panel to their user and, for removal, to the tenant.
    _policy("sessions", "tenant", "ALL", f"realm = 'instance' OR tenant_id = {_TENANT}")
    _policy("sessions", "own", "ALL", f"user_id = {_USER}")


def _policy(table: str, name: str, command: str, condition: str) -> None:
    check = "" if command == "SELECT" else f" WITH CHECK ({condition})"
    op.execute(f"CREATE POLICY {name} ON {table} FOR {command} TO PUBLIC USING ({condition}){check}")
