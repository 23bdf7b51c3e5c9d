"""Tables of tenants, their own roles and their members; row-level security lets a transaction see those of its own
tenant or user only.
"""

from datetime import datetime

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, ForeignKeyConstraint, Index, Text, UniqueConstraint, func
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)


class Tenant(Base):
    """An organisation. Everything on the panel belongs to exactly one.

    A client tenant lies below an MSP's; `parent_access` is the role that the parent's members have in it at most.
    """

    __tablename__ = "tenants"
    __table_args__ = (
        CheckConstraint("kind IN ('standard', 'msp', 'client')", name="kind"),
        CheckConstraint("(kind = 'client') = (parent_id IS NOT NULL)", name="parent"),
        CheckConstraint("parent_access IN ('none', 'viewer', 'operator', 'admin')", name="parent_access"),
        UniqueConstraint("id", "parent_id"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(_Id, server_default=sql("'standard'"))
    parent_id: Mapped[str | None] = mapped_column(_Id, ForeignKey("tenants.id"), index=True)
    parent_access: Mapped[str] = mapped_column(_Id, server_default=sql("'none'"))
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())


class Role(Base):
    """A role that a tenant made for itself."""

    __tablename__ = "roles"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, server_default=sql("''"))
    permissions: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())


class Membership(Base):
    """A user's place in a tenant: with a built-in role, with an own one (`role_id`), or as a member of the parent.

    `resources` are the groups and instances that a member is bound to, None for all.
    """

    __tablename__ = "memberships"
    __table_args__ = (
        CheckConstraint("num_nonnulls(role, role_id, parent_id) = 1", name="role"),
        ForeignKeyConstraint(["tenant_id", "role_id"], ["roles.tenant_id", "roles.id"], name="fk_memberships_role_id"),
        ForeignKeyConstraint(
            ["tenant_id", "parent_id"], ["tenants.id", "tenants.parent_id"], name="fk_memberships_parent"
        ),
        ForeignKeyConstraint(
            ["parent_id", "user_id"],
            ["memberships.tenant_id", "memberships.user_id"],
            name="fk_memberships_parent_member",
            ondelete="CASCADE",
        ),
        Index("ix_memberships_role_id", "tenant_id", "role_id"),
        Index("ix_memberships_parent_id", "parent_id", "user_id"),
    )

    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[str] = mapped_column(_Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True)
    id: Mapped[str] = mapped_column(_Id, unique=True)
    role: Mapped[str | None] = mapped_column(_Id)
    role_id: Mapped[str | None] = mapped_column(_Id)
    parent_id: Mapped[str | None] = mapped_column(_Id)
    resources: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
