"""The table of template sources; their templates are rows of `templates` that name the source."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base


class TemplateSource(Base):
    """`public_key` signs the index, or `digest` pins it; `serial` is the highest that was taken, so none goes back."""

    __tablename__ = "template_sources"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    name: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    url: Mapped[str] = mapped_column(Text)
    public_key: Mapped[str | None] = mapped_column(Text)
    digest: Mapped[str | None] = mapped_column(Text)
    serial: Mapped[int | None] = mapped_column(BigInteger)
    job_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    error: Mapped[str | None] = mapped_column(Text)
    problems: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    synced_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
