"""The instance's place in a panel's fleet; its key is a file in the data folder, not here."""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Identity,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    func,
    true,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

_Time = DateTime(timezone=True)


class PanelLink(Base):
    """At most one row. After leaving it stays, with `left_at`: an instance that has left does not join by itself.

    `addresses` are further places where the panel listens; `impersonation` is whether its users may open sessions here.
    """

    __tablename__ = "panel_link"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    instance_id: Mapped[str] = mapped_column(Text(collation="C"))
    panel_url: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(Text)
    port: Mapped[int] = mapped_column(Integer)
    ca_certificate: Mapped[str] = mapped_column(Text)
    certificate: Mapped[str] = mapped_column(Text)
    signing_key: Mapped[bytes] = mapped_column(LargeBinary)
    linked_at: Mapped[datetime] = mapped_column(_Time, server_default=func.now())
    left_at: Mapped[datetime | None] = mapped_column(_Time)
    addresses: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=sql("'{}'"))
    impersonation: Mapped[bool] = mapped_column(Boolean, server_default=true())


class PanelSpool(Base):
    """A `quazzar.link.messages.Sample` in msgpack that the panel has not got yet; sent in the order of the numbers, and
    only to the panel that knows this server by `instance_id`.
    """

    __tablename__ = "panel_spool"

    number: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    instance_id: Mapped[str] = mapped_column(Text(collation="C"))
    at: Mapped[datetime] = mapped_column(_Time)
    sample: Mapped[bytes] = mapped_column(LargeBinary)
