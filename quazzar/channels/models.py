"""The table of channels."""

from datetime import datetime
from typing import Literal

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    DateTime,
    ForeignKey,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)

ChannelKind = Literal["webhook", "email"]


class NotificationChannel(Base):
    """A webhook (`url`, and a sealed secret that signs) or mail addresses (`to_addresses`).

    After a rotation the secret before signs along until `former_until`.
    """

    __tablename__ = "notification_channels"
    __table_args__ = (
        CheckConstraint("realm IN ('instance', 'panel')", name="realm"),
        CheckConstraint("(realm = 'panel') = (tenant_id IS NOT NULL)", name="tenant"),
        CheckConstraint(
            "CASE kind WHEN 'webhook' THEN num_nulls(url, sealed) = 0 AND to_addresses IS NULL"
            " WHEN 'email' THEN num_nonnulls(url, sealed) = 0 AND to_addresses IS NOT NULL ELSE false END",
            name="kind",
        ),
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint(
            "realm", "tenant_id", "name", name="uq_notification_channels_name", postgresql_nulls_not_distinct=True
        ),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    realm: Mapped[str] = mapped_column(_Id)
    tenant_id: Mapped[str | None] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(_Id)
    enabled: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    url: Mapped[str | None] = mapped_column(Text)
    to_addresses: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    former_sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    former_until: Mapped[datetime | None] = mapped_column(_Time)
    last_delivered_at: Mapped[datetime | None] = mapped_column(_Time)
    last_failed_at: Mapped[datetime | None] = mapped_column(_Time)
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
