"""Tokens that were given out, by which what an instance tells of their sessions is known again."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, ForeignKey, ForeignKeyConstraint, Index, Integer, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)


class FleetImpersonation(Base):
    """One token. `last_number` is the last record of the instance's own audit log that was taken over, `deeds` how many
    were.
    """

    __tablename__ = "fleet_impersonations"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "instance_id"], ["fleet_instances.tenant_id", "fleet_instances.id"], ondelete="CASCADE"
        ),
        Index(None, "tenant_id", "instance_id"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    instance_id: Mapped[str] = mapped_column(_Id)
    user_id: Mapped[str] = mapped_column(_Id)
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    last_number: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    deeds: Mapped[int] = mapped_column(Integer, server_default=text("0"))
