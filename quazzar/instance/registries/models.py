"""The table of private registries and their sealed passwords."""

from datetime import datetime

from sqlalchemy import DateTime, LargeBinary, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base


class Registry(Base):
    """A registry's login. `host` is the name that images carry; `sealed` is the password, bound to row and host."""

    __tablename__ = "registries"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    host: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    username: Mapped[str] = mapped_column(Text)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
