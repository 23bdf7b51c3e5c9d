"""The tables of webhooks: endpoints, their secrets, what is to be sent to each, and who is at it."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)


class Webhook(Base):
    """An endpoint. `start_position` is the last event of the feed that is older than its wish to be told."""

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint("realm IN ('instance', 'panel')", name="realm"),
        Index("ix_webhooks_scope", "realm", "tenant_id", "id"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    realm: Mapped[str] = mapped_column(_Id)
    tenant_id: Mapped[str | None] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str]] = mapped_column(ARRAY(_Id))
    active: Mapped[bool] = mapped_column(Boolean)
    start_position: Mapped[int] = mapped_column(BigInteger)
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    disabled_at: Mapped[datetime | None] = mapped_column(_Time)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())


class WebhookSecret(Base):
    """A signing secret, sealed; the newest has no end, those before it sign along until `expires_at`."""

    __tablename__ = "webhook_secrets"

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(_Id, ForeignKey("webhooks.id", ondelete="CASCADE"), index=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    expires_at: Mapped[datetime | None] = mapped_column(_Time)


class WebhookLane(Base):
    """The line of deliveries to one endpoint: only one process at a time works on it, under a lease.

    `due_at` is when there may be something to send; `failures` are those in a row, and after enough of them
    `paused_until` keeps everybody away for a while.
    """

    __tablename__ = "webhook_lanes"
    __table_args__ = (Index("ix_webhook_lanes_due_at", "due_at", postgresql_where=text("due_at IS NOT NULL")),)

    webhook_id: Mapped[str] = mapped_column(_Id, ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True)
    due_at: Mapped[datetime | None] = mapped_column(_Time)
    paused_until: Mapped[datetime | None] = mapped_column(_Time)
    owner: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    leased_until: Mapped[datetime | None] = mapped_column(_Time)
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failing_since: Mapped[datetime | None] = mapped_column(_Time)
    updated_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())


class WebhookDelivery(Base):
    """One event on its way to one endpoint. `body` are the bytes that are signed, the same at each attempt.

    `tries` counts the attempts since the delivery was made or asked for again, and is the fence of their results.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
        Index("ix_webhook_deliveries_webhook_id", "webhook_id", "id"),
        Index(
            "ix_webhook_deliveries_due",
            "webhook_id",
            "next_attempt_at",
            postgresql_where=text("status = 'pending'"),
        ),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(_Id, ForeignKey("webhooks.id", ondelete="CASCADE"))
    realm: Mapped[str] = mapped_column(_Id)
    tenant_id: Mapped[str | None] = mapped_column(_Id)
    event_id: Mapped[str] = mapped_column(_Id)
    type: Mapped[str] = mapped_column(_Id)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[str] = mapped_column(_Id, server_default=text("'pending'"))
    tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    next_attempt_at: Mapped[datetime | None] = mapped_column(_Time)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())


class WebhookCursor(Base):
    """How far the feed has been read; its one row is what dispatchers of all processes take turns at."""

    __tablename__ = "webhook_cursor"
    __table_args__ = (CheckConstraint("singleton", name="singleton"),)

    singleton: Mapped[bool] = mapped_column(Boolean, primary_key=True, server_default=text("true"))
    position: Mapped[int] = mapped_column(BigInteger)
