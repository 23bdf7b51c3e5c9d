"""What a transaction leaves behind besides its change: audit records and events, written just before it commits.

Both are collected while the work is done and written last, under one lock per chain or feed that is held until the
commit. So the order of their numbers is the order in which they become visible, the hash chain has no forks, and the
lock is held for no longer than the commit takes. If they can't be written, the change does not happen.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import msgspec
from sqlalchemy import BigInteger, DateTime, Identity, Index, LargeBinary, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.auth import Realm
from quazzar.core.db import Base, before_commit
from quazzar.core.ids import new_id

ActorKind = Literal["user", "key", "job", "panel", "system", "anonymous"]
Outcome = Literal["done", "refused", "failed"]

GENESIS = bytes(32)
"""What the first record of a chain names as the hash before it."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf a transaction works; kept in `session.info["caller"]`. `impersonation` is the session of a
    panel's user in which it does, or which it ends.
    """

    kind: ActorKind
    id: str | None = None
    realm: Realm = "instance"
    tenant_id: str | None = None
    address: str | None = None
    request_id: str | None = None
    impersonation: str | None = None


SYSTEM = Caller(kind="system")


class AuditRecord(Base):
    """One link of a chain: who did what from where. `chain` is the realm, and on the panel the tenant too."""

    __tablename__ = "audit_records"
    __table_args__ = (Index("ix_audit_records_chain_action", "chain", "action"),)

    chain: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    realm: Mapped[str] = mapped_column(Text(collation="C"))
    tenant_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    actor_kind: Mapped[str] = mapped_column(Text(collation="C"))
    actor_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    address: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    action: Mapped[str] = mapped_column(Text(collation="C"))
    subject: Mapped[str | None] = mapped_column(Text(collation="C"))
    outcome: Mapped[str] = mapped_column(Text(collation="C"))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    previous_hash: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    impersonation: Mapped[str | None] = mapped_column(Text(collation="C"))


class AuditHead(Base):
    """The last link of each chain; locking its row is what puts writers in a line."""

    __tablename__ = "audit_heads"

    chain: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class EventRow(Base):
    """One event of the feed; `position` grows in the order in which events become visible."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_scope", "realm", "tenant_id", "position"), Index("ix_events_subject", "subject"))

    position: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    id: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    realm: Mapped[str] = mapped_column(Text(collation="C"))
    tenant_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    type: Mapped[str] = mapped_column(Text(collation="C"))
    subject: Mapped[str | None] = mapped_column(Text(collation="C"))
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())


class Event(msgspec.Struct):
    """Base of all events: defining a class with a `type` registers it. Its fields are the event's `data`."""

    type: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.type:
            if cls.type in _event_types:
                raise ValueError(f"There are two events of the type {cls.type}")
            _event_types[cls.type] = cls


_event_types: dict[str, type[Event]] = {}


def event_types() -> Mapping[str, type[Event]]:
    """Every event whose module has been imported, by type."""
    return _event_types


class _Link(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An audit record as its hash covers it; the order of the fields is part of the format.

    What came later has a default, with which it is left out: so the hashes of records from before stay what they are.
    """

    chain: str
    number: int
    id: str
    realm: str
    tenant_id: str | None
    created_at: datetime
    actor_kind: str
    actor_id: str | None
    address: str | None
    request_id: str | None
    action: str
    subject: str | None
    outcome: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    impersonation: str | None = None


_CANONICAL = msgspec.json.Encoder(order="deterministic")


def link_hash(previous: bytes, fields: Mapping[str, Any]) -> bytes:
    """SHA-256 over the hash before and the record's fields as JSON with sorted keys, without spaces, times in UTC."""
    values = {name: fields[name] for name in _Link.__struct_fields__}
    values["created_at"] = values["created_at"].astimezone(UTC)
    return hashlib.sha256(previous + _CANONICAL.encode(_Link(**values))).digest()


class _Pending(msgspec.Struct):
    audits: list[dict[str, Any]] = msgspec.field(default_factory=list)
    events: list[dict[str, Any]] = msgspec.field(default_factory=list)


def audit(
    session: AsyncSession,
    action: str,
    *,
    subject: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    outcome: Outcome = "done",
    caller: Caller | None = None,
) -> None:
    """Record in this transaction that the session's caller did `action` (`noun.verb`) to `subject`.

    `before` and `after` are plain JSON values and must not hold a secret: mask it or leave it out.
    """
    who = caller if caller is not None else session.info.get("caller", SYSTEM)
    _pending(session).audits.append(
        {
            "chain": who.realm if who.tenant_id is None else f"{who.realm}:{who.tenant_id}",
            "id": new_id("aud"),
            "realm": who.realm,
            "tenant_id": who.tenant_id,
            "actor_kind": who.kind,
            "actor_id": who.id,
            "address": who.address,
            "request_id": who.request_id,
            "action": action,
            "subject": subject,
            "outcome": outcome,
            "before": dict(before) if before is not None else None,
            "after": dict(after) if after is not None else None,
            "impersonation": who.impersonation,
        }
    )


def publish(
    session: AsyncSession,
    event: Event,
    *,
    subject: str | None = None,
    realm: Realm | None = None,
    tenant_id: str | None = None,
) -> str:
    """Announce `event` with this transaction, and give its id; nothing is announced when the transaction fails."""
    who: Caller = session.info.get("caller", SYSTEM)
    event_id = new_id("evt")
    _pending(session).events.append(
        {
            "id": event_id,
            "realm": realm or who.realm,
            "tenant_id": tenant_id if tenant_id is not None else who.tenant_id,
            "type": event.type,
            "subject": subject,
            "data": msgspec.json.encode(event).decode(),
        }
    )
    return event_id


def _pending(session: AsyncSession) -> _Pending:
    pending: _Pending | None = session.info.get("records")
    if pending is None:
        pending = session.info["records"] = _Pending()
        before_commit(session, _write)
    return pending


# The head of a chain is a row: locking it waits for the transaction before and then reads what that one wrote.
# Row-level security shows it to its tenant alone, whose the rest of the transaction is: nothing but records follow.
_HEAD = text(
    "WITH whose AS MATERIALIZED (SELECT set_config('app.tenant', :tenant, true))"
    " INSERT INTO audit_heads AS head (chain, number, hash) SELECT :chain, 0, :genesis FROM whose "
    "ON CONFLICT (chain) DO UPDATE SET number = head.number RETURNING number, hash"
)
_SET_HEAD = text("UPDATE audit_heads SET number = :number, hash = :hash WHERE chain = :chain")
_INSERT_AUDIT = text(
    "INSERT INTO audit_records (chain, number, id, realm, tenant_id, created_at, actor_kind, actor_id, address,"
    " request_id, action, subject, outcome, before, after, previous_hash, hash, impersonation)"
    " VALUES (:chain, :number, :id, :realm,"
    " :tenant_id, :created_at, :actor_kind, :actor_id, :address, :request_id, :action, :subject, :outcome,"
    " CAST(:before AS jsonb), CAST(:after AS jsonb), :previous_hash, :hash, :impersonation)"
)
FEED_LOCK = 0x51415A5A41520002
# Taking the lock is a statement of its own: the insert after it then numbers in the order of the commits. What is
# notified leaves with the commit.
_LOCK_FEED = text("SELECT pg_advisory_xact_lock(:key), pg_notify('events', '')")
_INSERT_EVENT = text(
    "INSERT INTO events (id, realm, tenant_id, type, subject, data) VALUES (:id, :realm, :tenant_id, :type,"
    " :subject, CAST(:data AS jsonb))"
)


async def _write(session: AsyncSession) -> None:
    pending: _Pending = session.info.pop("records")
    # Chains in a fixed order, so that two transactions that write to the same two can't wait for each other.
    for chain in sorted({record["chain"] for record in pending.audits}):
        await _append(session, chain, [record for record in pending.audits if record["chain"] == chain])
    if pending.events:
        await session.execute(_LOCK_FEED, {"key": FEED_LOCK})
        await session.execute(_INSERT_EVENT, pending.events)


async def _append(session: AsyncSession, chain: str, records: list[dict[str, Any]]) -> None:
    whose = {"chain": chain, "tenant": records[0]["tenant_id"] or ""}
    number, last = (await session.execute(_HEAD, whose | {"genesis": GENESIS})).one()
    rows = []
    for record in records:
        number += 1
        fields = record | {"number": number, "created_at": datetime.now(UTC)}
        digest = link_hash(last, fields)
        rows.append(
            fields
            | {name: _json(fields[name]) for name in ("before", "after")}
            | {"previous_hash": last, "hash": digest}
        )
        last = digest
    await session.execute(_INSERT_AUDIT, rows)
    await session.execute(_SET_HEAD, {"chain": chain, "number": number, "hash": last})


def _json(value: dict[str, Any] | None) -> str | None:
    return msgspec.json.encode(value).decode() if value is not None else None
