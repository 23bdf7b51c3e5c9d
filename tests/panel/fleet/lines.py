"""Instances as rows, and lines to them that are not open: what is told on them is written by a real ingestion."""

import asyncio
import secrets
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event, text

from quazzar.core.db import Database, see_all_tenants
from quazzar.core.ids import new_id
from quazzar.link.messages import AppFacts, Facts, Heartbeat, Sample, Samples, State
from quazzar.panel.fleet import store
from quazzar.panel.fleet.authority import Identity
from quazzar.panel.fleet.ingest import Ingest


class Told:
    """A line that notes how it was ended."""

    def __init__(self, tenant_id: str, instance_id: str, *, skew_seconds: float = 0.0) -> None:
        self.identity = Identity(instance_id, tenant_id, "1", b"key")
        self.skew_seconds = skew_seconds
        self.ended: list[int] = []

    def end(self, code: int, reason: str) -> None:
        self.ended.append(code)


async def make_instance(database: Database, tenant_id: str, **values: Any) -> Told:
    """An instance that has joined and was not heard yet."""
    instance_id = new_id("inst")
    row = {
        "id": instance_id,
        "name": f"server-{instance_id[-6:]}",
        "status": "offline",
        "tags": [],
        "version": "0.1.0",
        "hostname": "server",
        "os": "Debian",
        "arch": "x86_64",
        "cpu_cores": 4,
        "memory_bytes": 8_000_000_000,
        "disk_bytes": 100_000_000_000,
        "machine_id": secrets.token_hex(32),
        "public_key_hash": b"key",
        "certificate_serial": "1",
        "certificate_expires_at": datetime.now(UTC) + timedelta(days=90),
    }
    async with database.begin(tenant=tenant_id) as session:
        await store.add_instance(session, tenant_id, **row | values)
    return Told(tenant_id, instance_id)


def app_facts(*app_ids: str, status: str = "running") -> list[AppFacts]:
    return [AppFacts(id=app_id, name=app_id, status=status) for app_id in app_ids]


def state_of(*apps: AppFacts, name: str = "server") -> State:
    facts = Facts(
        name=name,
        hostname=name,
        machine_id="0" * 64,
        version="0.2.0",
        os="Debian",
        arch="x86_64",
        cpu_cores=4,
        memory_bytes=8_000_000_000,
        disk_bytes=100_000_000_000,
    )
    return State(facts=facts, apps=list(apps))


def beat(
    *measured: float | None, sent_at: datetime | None = None, state: State | None = None, **apps: list[Any]
) -> Heartbeat:
    return Heartbeat(
        sent_at=sent_at or datetime.now(UTC),
        state_hash="" if state is None else state.hash(),
        measured=list(measured) or None,
        app_measured=apps,
        state=state,
    )


def past(*moments: datetime, value: float = 1.0, batch: int = 1, **apps: list[Any]) -> Samples:
    return Samples(batch=batch, points=[Sample(at, [value], apps) for at in moments])


async def tell(ingest: Ingest, line: Told, message: Heartbeat | Samples) -> None:
    """As a socket would, and at once."""
    if isinstance(message, Heartbeat):
        await ingest.heard(line, message)
        await ingest.write_beats()
    else:
        kept = asyncio.create_task(ingest.keep(line, message))
        await asyncio.sleep(0)
        await ingest.write_past()
        await kept


async def ask(database: Database, query: str, **values: Any) -> list[Any]:
    """Rows of all tenants."""
    async with database.begin() as session:
        await see_all_tenants(session)
        return list((await session.execute(text(query), values)).all())


async def samples_of(database: Database, line: Told, app_id: str = "") -> list[Any]:
    query = "SELECT at, measured FROM fleet_samples WHERE instance_id = :id AND app_id = :app_id ORDER BY at"
    return await ask(database, query, id=line.identity.instance_id, app_id=app_id)


_COUNTING: ContextVar[object] = ContextVar("counting", default=None)


class Counted:
    """How many statements go to the database meanwhile, without those that begin a transaction, nor those of the app
    whose process works beside the test: what counts is what is begun within the block.
    """

    def __init__(self, database: Database) -> None:
        self._engine = database.engine.sync_engine
        self._patch = pytest.MonkeyPatch()
        self.statements: list[str] = []

    def __enter__(self) -> list[str]:
        self._token = _COUNTING.set(self)
        event.listen(self._engine, "before_cursor_execute", self._note)
        # What goes past the library, on the driver's own connection.
        for name in ("fetch", "copy_to_table"):
            self._patch.setattr(asyncpg.Connection, name, self._noting(getattr(asyncpg.Connection, name)))
        return self.statements

    def __exit__(self, *_: object) -> None:
        _COUNTING.reset(self._token)
        event.remove(self._engine, "before_cursor_execute", self._note)
        self._patch.undo()

    def _note(self, _conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "set_config" not in statement and _COUNTING.get() is self:
            self.statements.append(statement)

    def _noting(self, method: Any) -> Any:
        def note(connection: Any, statement: str, *values: Any, **options: Any) -> Any:
            if "fleet_" in statement and _COUNTING.get() is self:
                self.statements.append(statement)
            return method(connection, statement, *values, **options)

        return note
