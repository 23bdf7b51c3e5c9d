"""Tables of own templates; the packaged ones live in files."""

from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, ForeignKey, Integer, Text, func
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base


class Template(Base):
    __tablename__ = "templates"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    slug: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    source_id: Mapped[str | None] = mapped_column(
        Text(collation="C"), ForeignKey("template_sources.id", ondelete="CASCADE"), index=True
    )
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class TemplateVersion(Base):
    """One version of an own template; the highest `number` is the default.

    `compose` is the file as it was sent, `definition` what it was checked to mean.
    """

    __tablename__ = "template_versions"

    template_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer)
    compose: Mapped[str] = mapped_column(Text)
    definition: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
