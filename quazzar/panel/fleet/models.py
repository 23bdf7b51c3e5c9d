"""Tables of the fleet. Those with a tenant are under forced row-level security, and keys that join them hold it too."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)

InstanceStatus = Literal["online", "degraded", "offline", "revoked"]


class PanelAuthority(Base):
    """The panel's own certificate authority and the key that it signs commands with; its one row is made once."""

    __tablename__ = "panel_authority"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    certificate: Mapped[str] = mapped_column(Text)
    sealed_key: Mapped[bytes] = mapped_column(LargeBinary)
    signing_public_key: Mapped[bytes] = mapped_column(LargeBinary)
    sealed_signing_key: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())


class FleetGroup(Base):
    """A named set of instances; groups form trees."""

    __tablename__ = "fleet_groups"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "name"),
        ForeignKeyConstraint(["tenant_id", "parent_id"], ["fleet_groups.tenant_id", "fleet_groups.id"]),
        Index(None, "tenant_id", "parent_id"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    parent_id: Mapped[str | None] = mapped_column(_Id)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())


class FleetToken(Base):
    """A registration token, known by its hash. `uses` only grows, by one statement that looks at the limits as well."""

    __tablename__ = "fleet_tokens"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "group_id"], ["fleet_groups.tenant_id", "fleet_groups.id"]),
        CheckConstraint("uses BETWEEN 0 AND max_uses", name="uses"),
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "group_id"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    max_uses: Mapped[int] = mapped_column(Integer)
    uses: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    tags: Mapped[list[str]] = mapped_column(ARRAY(_Id))
    group_id: Mapped[str | None] = mapped_column(_Id)
    created_by: Mapped[str | None] = mapped_column(_Id)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(_Time)
    last_used_at: Mapped[datetime | None] = mapped_column(_Time)


class FleetInstance(Base):
    """A server of the fleet. What it says of itself changes seldom; what each heartbeat changes is its presence.

    `public_key_hash` is of the key that its certificates are for, `machine_id` a digest by which the same machine is
    known again; `url` is where it says that people find it.
    """

    __tablename__ = "fleet_instances"
    __table_args__ = (
        CheckConstraint("status IN ('online', 'degraded', 'offline', 'revoked')", name="status"),
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(["tenant_id", "group_id"], ["fleet_groups.tenant_id", "fleet_groups.id"]),
        Index(
            "ix_fleet_instances_machine",
            "tenant_id",
            "machine_id",
            unique=True,
            postgresql_where=text("status <> 'revoked'"),
        ),
        Index(None, "tenant_id", "group_id"),
        Index("ix_fleet_instances_tags", "tags", postgresql_using="gin"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(_Id)
    status_reason: Mapped[str | None] = mapped_column(Text)
    status_since: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    tags: Mapped[list[str]] = mapped_column(ARRAY(_Id))
    group_id: Mapped[str | None] = mapped_column(_Id)
    token_id: Mapped[str | None] = mapped_column(_Id)
    version: Mapped[str] = mapped_column(Text)
    hostname: Mapped[str] = mapped_column(Text)
    os: Mapped[str] = mapped_column(Text)
    arch: Mapped[str] = mapped_column(Text)
    cpu_cores: Mapped[int] = mapped_column(Integer)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    disk_bytes: Mapped[int] = mapped_column(BigInteger)
    ip: Mapped[str | None] = mapped_column(_Id)
    url: Mapped[str | None] = mapped_column(Text)
    machine_id: Mapped[str] = mapped_column(_Id)
    public_key_hash: Mapped[bytes] = mapped_column(LargeBinary)
    certificate_serial: Mapped[str] = mapped_column(_Id)
    certificate_expires_at: Mapped[datetime] = mapped_column(_Time)
    state_hash: Mapped[str | None] = mapped_column(_Id)
    apps: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    backup_at: Mapped[datetime | None] = mapped_column(_Time)
    health_score: Mapped[int] = mapped_column(SmallInteger, server_default=text("100"))
    checks: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    revoked_at: Mapped[datetime | None] = mapped_column(_Time)


class FleetPresence(Base):
    """When an instance was last heard, by the database's clock, what it measured then, and which socket is its own.

    A narrow table of its own: every heartbeat of every instance updates a row here, and no index.
    """

    __tablename__ = "fleet_presence"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "instance_id"], ["fleet_instances.tenant_id", "fleet_instances.id"], ondelete="CASCADE"
        ),
    )

    instance_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id)
    last_seen_at: Mapped[datetime | None] = mapped_column(_Time)
    connection: Mapped[str | None] = mapped_column(_Id)
    measured_at: Mapped[datetime | None] = mapped_column(_Time)
    measured: Mapped[list[float | None] | None] = mapped_column(ARRAY(Float(53)))
    skew_seconds: Mapped[float] = mapped_column(Float(53), server_default=text("0"))
