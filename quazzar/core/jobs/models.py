"""The tables of jobs: what the user sees of each, its log lines, and when schedules run next."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)


class Job(Base):
    """One piece of background work. Its delivery to a worker is a row of the queue's own table, keyed by `id`.

    `attempts` counts the starts and is the fence: a worker may change the row only while `attempts` is the number
    that it started with. `interruptions` are those starts that ended with their process; they do not count against
    `max_attempts`.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("realm IN ('instance', 'panel')", name="realm"),
        CheckConstraint("status IN ('queued', 'running', 'completed', 'failed', 'cancelled')", name="status"),
        CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
        Index("ix_jobs_scope", "realm", "tenant_id", "id"),
        Index("ix_jobs_subject", "subject"),
        Index("ix_jobs_live", "kind", postgresql_where=text("status IN ('queued', 'running')")),
        Index("ix_jobs_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    realm: Mapped[str] = mapped_column(_Id)
    tenant_id: Mapped[str | None] = mapped_column(_Id)
    kind: Mapped[str] = mapped_column(_Id)
    subject: Mapped[str | None] = mapped_column(_Id)
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    status: Mapped[str] = mapped_column(_Id, server_default=text("'queued'"))
    progress: Mapped[float] = mapped_column(Double, server_default=text("0"))
    step: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    interruptions: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    max_attempts: Mapped[int] = mapped_column(Integer)
    cancellable: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    actor: Mapped[str | None] = mapped_column(_Id)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    started_at: Mapped[datetime | None] = mapped_column(_Time)
    finished_at: Mapped[datetime | None] = mapped_column(_Time)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(_Time)


class JobLog(Base):
    """One line of a job's log; `number` counts up over all attempts, and only the newest lines are kept."""

    __tablename__ = "job_logs"

    job_id: Mapped[str] = mapped_column(_Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    line: Mapped[str] = mapped_column(Text)


class JobSchedule(Base):
    """When a schedule's next job is due. `rule` is what `next_run_at` was computed from."""

    __tablename__ = "job_schedules"

    name: Mapped[str] = mapped_column(_Id, primary_key=True)
    rule: Mapped[str] = mapped_column(Text)
    next_run_at: Mapped[datetime] = mapped_column(_Time)
    last_run_at: Mapped[datetime | None] = mapped_column(_Time)
