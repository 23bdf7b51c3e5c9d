"""Tables of what instances measure, in partitions of a day (UTC) each, which are dropped when they are old.

There is no foreign key to the instance: it would cost more than the row itself with each heartbeat. What is written
is checked against the instances in the statement that writes it; when one is forgotten a job removes its rows.
"""

from datetime import datetime

from sqlalchemy import DateTime, Float, Index, Integer, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)
_Doubles = ARRAY(Float(53))
_BY_DAY = {"postgresql_partition_by": "RANGE (at)"}


class FleetSample(Base):
    """What was measured at a moment, in the order of `quazzar.link.metrics`: of the host where `app_id` is empty."""

    __tablename__ = "fleet_samples"
    __table_args__ = (Index("ix_fleet_samples_at", "at", postgresql_using="brin"), _BY_DAY)

    tenant_id: Mapped[str] = mapped_column(_Id)
    instance_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    app_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(_Time, primary_key=True)
    measured: Mapped[list[float | None]] = mapped_column(_Doubles)


class _Sums:
    """The samples of one step, which begins at `at`; `counts` is how many samples had each value."""

    tenant_id: Mapped[str] = mapped_column(_Id)
    instance_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    app_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(_Time, primary_key=True)
    minimum: Mapped[list[float | None]] = mapped_column(_Doubles)
    average: Mapped[list[float | None]] = mapped_column(_Doubles)
    maximum: Mapped[list[float | None]] = mapped_column(_Doubles)
    counts: Mapped[list[int]] = mapped_column(ARRAY(Integer))


class FleetFiveMinutes(_Sums, Base):
    """Five minutes, summed up from samples."""

    __tablename__ = "fleet_five_minutes"
    __table_args__ = (Index("ix_fleet_five_minutes_at", "at", postgresql_using="brin"), _BY_DAY)


class FleetHour(_Sums, Base):
    """An hour, summed up from its five minutes."""

    __tablename__ = "fleet_hours"
    __table_args__ = _BY_DAY


class FleetLate(Base):
    """An hour of an instance (its beginning is `at`) that got samples after it was summed up."""

    __tablename__ = "fleet_late"

    tenant_id: Mapped[str] = mapped_column(_Id)
    instance_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(_Time, primary_key=True)


class FleetRollup(Base):
    """Up to when all samples are summed up to steps of this length; locking the row makes one process do it."""

    __tablename__ = "fleet_rollups"

    step_seconds: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    done_until: Mapped[datetime] = mapped_column(_Time)
