"""The sessions of panel users, open ones and those of the last weeks."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Index, LargeBinary, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Id = Text(collation="C")
_Time = DateTime(timezone=True)


class Impersonation(Base):
    """One use of a token; that `token_id` is unique is what makes it the only one.

    `instance_id` says under which link it was opened. `told_number` is the place in the audit log up to which the panel
    knows what was done in it, `told_at` when it knew all.
    """

    __tablename__ = "impersonations"
    __table_args__ = (
        Index("ix_impersonations_open", "expires_at", postgresql_where=text("ended_at IS NULL")),
        Index("ix_impersonations_untold", "id", postgresql_where=text("told_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    token_id: Mapped[str] = mapped_column(_Id, unique=True)
    cookie_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    instance_id: Mapped[str] = mapped_column(_Id)
    panel_user: Mapped[str] = mapped_column(_Id)
    panel_user_name: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    ip: Mapped[str] = mapped_column(_Id)
    user_agent: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(_Time)
    ended_at: Mapped[datetime | None] = mapped_column(_Time)
    told_number: Mapped[int] = mapped_column(BigInteger)
    told_at: Mapped[datetime | None] = mapped_column(_Time)
