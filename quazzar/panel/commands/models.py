"""Tables of commands. Whoever writes a unit holds its command's row: so each rollout takes one step at a time."""

from datetime import datetime
from typing import Any, Final, Literal, get_args

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
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)

CommandStatus = Literal["pending", "running", "paused", "stopping", "completed", "failed", "cancelled", "expired"]
"""`pending` waits for its moment; `stopping` begins nothing more and waits for the units that are under way."""
UnitStatus = Literal["pending", "running", "completed", "failed", "expired", "cancelled", "skipped"]
OfflinePolicy = Literal["queue", "skip", "fail"]

ENDED: Final = ("completed", "failed", "cancelled", "expired")
"""In which states nothing happens to a command by itself any more."""
OPEN: Final = ("pending", "running", "settling")
"""Units that have not ended. A settling one has completed, and its instance is watched for a while."""


def _one_of(column: str, names: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(name) for name in names)})"


class Command(Base):
    """What was asked for, and where its rollout is.

    `batch` is the one whose turn it is, from `next_at` on; `step_at` is when the rollout is to be looked at without
    anything happening. `outcome` is what a stopping command will be: `refused` is cancelled, and leaves alone what is
    under way. `revision` grows with every change of the command or of its units. `args` with secrets in them are
    sealed; what is shown of them has masks.
    """

    __tablename__ = "fleet_commands"
    __table_args__ = (
        CheckConstraint(_one_of("status", get_args(CommandStatus)), name="status"),
        CheckConstraint(_one_of("offline", get_args(OfflinePolicy)), name="offline"),
        UniqueConstraint("tenant_id", "id"),
        Index("ix_fleet_commands_step_at", "step_at", postgresql_where=text("step_at IS NOT NULL")),
        Index("ix_fleet_commands_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(_Id)
    sealed_args: Mapped[bytes] = mapped_column(LargeBinary)
    args: Mapped[dict[str, Any]] = mapped_column(JSONB)
    targets: Mapped[dict[str, Any]] = mapped_column(JSONB)
    offline: Mapped[str] = mapped_column(_Id)
    canary: Mapped[int] = mapped_column(Integer)
    batch_size: Mapped[int] = mapped_column(Integer)
    max_failures: Mapped[int | None] = mapped_column(Integer)
    pause_seconds: Mapped[float] = mapped_column(Float(53))
    health_wait_seconds: Mapped[float] = mapped_column(Float(53))
    expires_in_seconds: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(_Id)
    outcome: Mapped[str | None] = mapped_column(_Id)
    reason: Mapped[str | None] = mapped_column(Text)
    batch: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    next_at: Mapped[datetime] = mapped_column(_Time)
    step_at: Mapped[datetime | None] = mapped_column(_Time)
    revision: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    created_by: Mapped[str] = mapped_column(_Id)
    actor_name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    scheduled_at: Mapped[datetime | None] = mapped_column(_Time)
    expires_at: Mapped[datetime] = mapped_column(_Time)
    started_at: Mapped[datetime | None] = mapped_column(_Time)
    finished_at: Mapped[datetime | None] = mapped_column(_Time)


class CommandUnit(Base):
    """A command on one instance. `order_id` is what the instance knows it by, a new one with each attempt.

    `begun_at` is its turn, `sent_at` when its order left for the instance first and `tried_at` last, `heard_at` when
    the instance last said something of it; `sequence` is that of the last report.
    """

    __tablename__ = "fleet_command_units"
    __table_args__ = (
        CheckConstraint(_one_of("status", (*get_args(UnitStatus), "settling")), name="status"),
        ForeignKeyConstraint(
            ["tenant_id", "command_id"], ["fleet_commands.tenant_id", "fleet_commands.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["tenant_id", "instance_id"], ["fleet_instances.tenant_id", "fleet_instances.id"], ondelete="CASCADE"
        ),
        Index(None, "tenant_id", "instance_id"),
        Index("ix_fleet_command_units_open", "instance_id", postgresql_where=text(_one_of("status", OPEN))),
    )

    command_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    instance_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id)
    batch: Mapped[int] = mapped_column(Integer)
    order_id: Mapped[str] = mapped_column(_Id, unique=True)
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    status: Mapped[str] = mapped_column(_Id, server_default=text("'pending'"))
    revision: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    sequence: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    progress: Mapped[int | None] = mapped_column(SmallInteger)
    step: Mapped[str | None] = mapped_column(Text)
    output: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(_Id)
    health_before: Mapped[int | None] = mapped_column(SmallInteger)
    begun_at: Mapped[datetime | None] = mapped_column(_Time)
    sent_at: Mapped[datetime | None] = mapped_column(_Time)
    tried_at: Mapped[datetime | None] = mapped_column(_Time)
    heard_at: Mapped[datetime | None] = mapped_column(_Time)
    started_at: Mapped[datetime | None] = mapped_column(_Time)
    settles_at: Mapped[datetime | None] = mapped_column(_Time)
    finished_at: Mapped[datetime | None] = mapped_column(_Time)
