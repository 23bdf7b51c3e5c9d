"""The orders of the panel, each with its last report."""

from datetime import datetime

from sqlalchemy import CheckConstraint, DateTime, Index, Integer, LargeBinary, SmallInteger, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base
from quazzar.link.messages import OrderStatus

_Id = Text(collation="C")
_Time = DateTime(timezone=True)


class PanelOrder(Base):
    """One order, known by its id for as long as it could arrive again.

    `job_id` is the job that begins it while it is `taken`, and the one that does its work from then on. `sequence`
    counts its reports, of which only the last is kept, and `acknowledged` is the last that the panel has. `sealed_args`
    is gone once it is begun or ended. `begin_by` is its expiry by the clock of this server.
    """

    __tablename__ = "panel_orders"
    __table_args__ = (
        CheckConstraint(
            "status IN ('taken', 'running', 'completed', 'failed', 'cancelled', 'expired', 'refused')", name="status"
        ),
        CheckConstraint("(finished_at IS NULL) = (status IN ('taken', 'running'))", name="finished"),
        Index("ix_panel_orders_open", "job_id", postgresql_where=text("finished_at IS NULL")),
        Index("ix_panel_orders_unreported", "reported_at", postgresql_where=text("acknowledged < sequence")),
        Index("ix_panel_orders_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )

    order_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    command_id: Mapped[str | None] = mapped_column(_Id)
    kind: Mapped[str | None] = mapped_column(_Id)
    sealed_args: Mapped[bytes | None] = mapped_column(LargeBinary)
    user_id: Mapped[str | None] = mapped_column(_Id)
    user_name: Mapped[str | None] = mapped_column(Text)
    received_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    expires_at: Mapped[datetime | None] = mapped_column(_Time)
    begin_by: Mapped[datetime | None] = mapped_column(_Time)
    status: Mapped[OrderStatus] = mapped_column(_Id)
    job_id: Mapped[str | None] = mapped_column(_Id)
    sequence: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    acknowledged: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    progress: Mapped[int | None] = mapped_column(SmallInteger)
    step: Mapped[str | None] = mapped_column(Text)
    output: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(_Id)
    reported_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(_Time)
