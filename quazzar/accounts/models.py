"""Tables of users in both realms: who they are, how they prove it, and what is open under their name."""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base


class User(Base):
    """A person of one realm: known by `username` on an instance, by `email` (kept in lower case) on the panel.

    On an instance `role` is theirs; on the panel roles belong to memberships. A TOTP secret counts only once
    `totp_enabled_at` is set; until then it waits to be confirmed. `totp_last_step` is the last time step whose code
    was taken.
    """

    __tablename__ = "users"
    __table_args__ = (
        UniqueConstraint("realm", "username"),
        UniqueConstraint("realm", "email"),
        CheckConstraint(
            "(realm = 'instance' AND username IS NOT NULL AND role IN ('admin', 'operator', 'viewer'))"
            " OR (realm = 'panel' AND email IS NOT NULL AND role IS NULL)",
            name="realm",
        ),
        CheckConstraint("totp_enabled_at IS NULL OR totp_secret IS NOT NULL", name="totp"),
    )

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    realm: Mapped[str] = mapped_column(Text(collation="C"))
    username: Mapped[str | None] = mapped_column(Text(collation="C"))
    email: Mapped[str | None] = mapped_column(Text(collation="C"))
    name: Mapped[str | None] = mapped_column(Text)
    timezone: Mapped[str] = mapped_column(Text(collation="C"), server_default=text("'UTC'"))
    role: Mapped[str | None] = mapped_column(Text(collation="C"))
    password_hash: Mapped[str] = mapped_column(Text(collation="C"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    last_login_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    email_verified_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    totp_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    totp_enabled_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    totp_last_step: Mapped[int | None] = mapped_column(BigInteger)


class Session(Base):
    """One login. A row that is gone is a session that has ended; `expires_at` is its absolute end. `totp_at` is when a
    code of the second factor was last shown in it.
    """

    __tablename__ = "sessions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["memberships.tenant_id", "memberships.user_id"], ondelete="CASCADE"
        ),
        CheckConstraint("(realm = 'panel') = (tenant_id IS NOT NULL)", name="realm"),
        Index(None, "tenant_id", "user_id"),
    )

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    realm: Mapped[str] = mapped_column(Text(collation="C"))
    user_id: Mapped[str] = mapped_column(Text(collation="C"), ForeignKey("users.id", ondelete="CASCADE"), index=True)
    tenant_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    ip: Mapped[str] = mapped_column(Text(collation="C"))
    user_agent: Mapped[str] = mapped_column(Text)
    totp_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class RefreshToken(Base):
    """One refresh token of a session's chain, known by its hash; used ones stay, so that a second use is noticed."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    session_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("sessions.id", ondelete="CASCADE"), index=True
    )
    user_id: Mapped[str] = mapped_column(Text(collation="C"))
    realm: Mapped[str] = mapped_column(Text(collation="C"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), index=True)
    used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class RecoveryCode(Base):
    """A recovery code that is still good; using it deletes its row."""

    __tablename__ = "recovery_codes"

    user_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    code_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)


class MailedToken(Base):
    """The token of a link that was sent to a user's address, known by its hash; using it deletes its row."""

    __tablename__ = "mailed_tokens"
    __table_args__ = (CheckConstraint("purpose IN ('reset_password', 'verify_email')", name="purpose"),)

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    purpose: Mapped[str] = mapped_column(Text(collation="C"))
    user_id: Mapped[str] = mapped_column(Text(collation="C"), ForeignKey("users.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class ApiKey(Base):
    """An API key, known by its hash; `prefix` and `suffix` let its owner recognise it. On the panel it is a member's in
    one tenant.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["memberships.tenant_id", "memberships.user_id"],
            name="fk_api_keys_tenant_id",
            ondelete="CASCADE",
        ),
        Index("ix_api_keys_tenant_id_user_id", "tenant_id", "user_id"),
    )

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    user_id: Mapped[str] = mapped_column(Text(collation="C"), ForeignKey("users.id", ondelete="CASCADE"), index=True)
    tenant_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    name: Mapped[str] = mapped_column(Text)
    key_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    prefix: Mapped[str] = mapped_column(Text(collation="C"))
    suffix: Mapped[str] = mapped_column(Text(collation="C"))
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    resources: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    allowed_ips: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class LastUse(Base):
    """When and from where a session or key was last used, to the minute.

    A table of its own: these many small updates leave the wide, tenant-isolated rows alone, and one statement can
    write those of all tenants.
    """

    __tablename__ = "last_uses"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    used_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    ip: Mapped[str] = mapped_column(Text(collation="C"))


class LoginAttempt(Base):
    """A count of guesses in a window that began at `started_at`; `key` is a digest of what is counted."""

    __tablename__ = "login_attempts"

    key: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    count: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), index=True)
    last_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
