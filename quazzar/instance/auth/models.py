"""The table that decides who sets an instance up."""

from datetime import datetime

from sqlalchemy import CheckConstraint, DateTime, SmallInteger, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base


class InstanceSetup(Base):
    """The first run's one row: whoever inserts it has set the instance up."""

    __tablename__ = "instance_setup"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    user_id: Mapped[str] = mapped_column(Text(collation="C"))
    done_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
