"""Tables of tenants and memberships; row-level security lets a transaction see those of its own tenant or user only."""

from datetime import datetime

from sqlalchemy import DateTime, ForeignKey, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base


class Tenant(Base):
    """An organisation. Everything on the panel belongs to exactly one."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Membership(Base):
    """A user's place in a tenant, with the role that they have there."""

    __tablename__ = "memberships"

    tenant_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    id: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    role: Mapped[str] = mapped_column(Text(collation="C"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
