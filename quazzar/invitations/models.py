"""The table of invitations."""

from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)


class Invitation(Base):
    """Someone who is asked in, by the address that they must come with; an address has one at a time.

    On the panel with a tenant, and a role of it as memberships have them; on an instance with a role.
    """

    __tablename__ = "invitations"
    __table_args__ = (
        UniqueConstraint(
            "realm", "tenant_id", "email", name="uq_invitations_address", postgresql_nulls_not_distinct=True
        ),
        CheckConstraint("(realm = 'panel') = (tenant_id IS NOT NULL)", name="realm"),
        CheckConstraint("num_nonnulls(role, role_id) = 1", name="role"),
        ForeignKeyConstraint(["tenant_id", "role_id"], ["roles.tenant_id", "roles.id"], name="fk_invitations_role_id"),
        Index("ix_invitations_role_id", "tenant_id", "role_id"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    realm: Mapped[str] = mapped_column(_Id)
    tenant_id: Mapped[str | None] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    email: Mapped[str] = mapped_column(_Id)
    role: Mapped[str | None] = mapped_column(_Id)
    role_id: Mapped[str | None] = mapped_column(_Id)
    resources: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    invited_by: Mapped[str | None] = mapped_column(_Id, ForeignKey("users.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(_Time)
    accepted_at: Mapped[datetime | None] = mapped_column(_Time)
