"""Instances as rows and as the far ends of lines that a real hub holds, and panel processes that hold them."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.exchange import Message
from quazzar.core.ids import new_id
from quazzar.link.messages import (
    PROTOCOL,
    Cancel,
    Hello,
    Order,
    Report,
    Reported,
    Welcome,
    pack,
    unpack_from_panel,
)
from quazzar.link.orders import OrderBody, open_order
from quazzar.panel.commands.delivery import Delivery
from quazzar.panel.fleet import store
from quazzar.panel.fleet.authority import Authority, Identity
from quazzar.panel.fleet.hub import Hub
from quazzar.panel.fleet.process import Fleet
from quazzar.settings import Settings

KEY_HASH = b"key"
COMMANDS = "/api/fleet/commands"


async def make_instance(database: Database, tenant_id: str, *, status: str = "online", **values: Any) -> str:
    """An instance that has joined, by default one that is heard; gives its id."""
    instance_id = new_id("inst")
    row = {
        "id": instance_id,
        "name": f"server-{instance_id[-6:]}",
        "status": status,
        "tags": [],
        "version": "0.1.0",
        "hostname": "server",
        "os": "Debian",
        "arch": "x86_64",
        "cpu_cores": 4,
        "memory_bytes": 8_000_000_000,
        "disk_bytes": 100_000_000_000,
        "machine_id": secrets.token_hex(32),
        "public_key_hash": KEY_HASH,
        "certificate_serial": "1",
        "certificate_expires_at": datetime.now(UTC) + timedelta(days=90),
    }
    async with database.begin(tenant=tenant_id) as session:
        await store.add_instance(session, tenant_id, **row | values)
    return instance_id


async def make_group(database: Database, tenant_id: str, parent_id: str | None = None) -> str:
    group_id = new_id("grp")
    async with database.begin(tenant=tenant_id) as session:
        await store.add_group(session, tenant_id, id=group_id, name=group_id, parent_id=parent_id)
    return group_id


async def set_instance(database: Database, instance_id: str, **values: Any) -> None:
    """Change columns of an instance as its heartbeats, or the lack of them, would."""
    changes = ", ".join(f"{name} = :{name}" for name in values)
    await change(
        database, f"UPDATE fleet_instances SET {changes}, status_since = now() WHERE id = :id", id=instance_id, **values
    )


async def change(database: Database, statement: str, **values: Any) -> None:
    async with database.begin() as session:
        await see_all_tenants(session)
        await session.execute(text(statement), values)


async def ask(database: Database, query: str, **values: Any) -> list[Any]:
    """Rows of all tenants."""
    async with database.begin() as session:
        await see_all_tenants(session)
        return list((await session.execute(text(query), values)).all())


async def give(http: httpx.AsyncClient, instances: list[str], **body: Any) -> dict[str, Any]:
    """A command to these instances, as its creation answers it."""
    wanted = {"kind": "app.restart", "args": {"app": "cloud"}, "targets": {"instances": instances}}
    answer = await http.post(COMMANDS, json=wanted | body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def until(found: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.005)
    return value


class PanelProcess:
    """What one process of the panel has besides its HTTP side."""

    def __init__(self, settings: Settings, keyring: Keyring, database: Database) -> None:
        self.database = database
        self.fleet = Fleet(settings, keyring, database)
        self.hub: Hub = self.fleet.hub
        self.delivery = Delivery(self.fleet)
        self.hub.work = self.delivery


@contextlib.asynccontextmanager
async def running_process(settings: Settings, keyring: Keyring, database: Database) -> AsyncIterator[PanelProcess]:
    process = PanelProcess(settings, keyring, database)
    await process.delivery.start()
    await process.hub.start()
    try:
        yield process
    finally:
        await process.hub.stop()
        await process.delivery.stop()


class FakeInstance:
    """The far end of a line; whatever the panel says is kept in the order of its arrival."""

    def __init__(self, tenant_id: str, instance_id: str) -> None:
        self.id = instance_id
        self.identity = Identity(instance_id, tenant_id, "1", KEY_HASH)
        self.orders: list[OrderBody] = []
        self.cancels: list[str] = []
        self.reported: list[Reported] = []
        self.welcomed = False
        self.closed: int | None = None
        self._to_panel: asyncio.Queue[Message] = asyncio.Queue()
        self._line: asyncio.Task[None] | None = None
        self._authority: Authority | None = None

    async def connect(self, process: PanelProcess, *, skew: timedelta = timedelta()) -> None:
        self._authority = await process.fleet.authority()
        self._to_panel = asyncio.Queue()
        self.welcomed, self.closed = False, None
        line = self._to_panel

        async def said(event: Message) -> None:
            # What becomes of a former line does not matter.
            if line is self._to_panel:
                self._said(event)

        self._line = asyncio.create_task(
            process.hub.hold(self.identity, self._authority, line.get, said, "203.0.113.7")
        )
        hello = Hello(
            instance_id=self.id, protocol=PROTOCOL, version="0.1.0", sent_at=datetime.now(UTC) + skew, state_hash=""
        )
        self.say(hello)
        await until(lambda: self.welcomed or self.closed is not None)

    def say(self, message: Any) -> None:
        self._to_panel.put_nowait({"type": "websocket.receive", "bytes": pack(message)})

    async def cut(self) -> None:
        """The line breaks, and both ends notice."""
        assert self._line is not None
        self._to_panel.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await self._line

    def _said(self, event: Message) -> None:
        if event["type"] == "websocket.close":
            self.closed = event["code"]
            return
        match unpack_from_panel(event["bytes"]):
            case Welcome():
                self.welcomed = True
            case Order() as order:
                assert self._authority is not None
                self.orders.append(open_order(order, self._authority.signing_public_key))
            case Cancel(order_id=order_id):
                self.cancels.append(order_id)
            case Reported() as reported:
                self.reported.append(reported)

    async def order(self) -> OrderBody:
        """The newest order, once there is one."""
        await until(lambda: self.orders)
        return self.orders[-1]

    async def report(self, order_id: str, sequence: int, status: str, **more: Any) -> None:
        """Report, and wait until the panel has it, or has cut the line."""
        before = len(self.reported)
        self.tell(order_id, sequence, status, **more)
        await until(lambda: len(self.reported) > before or self.closed is not None)

    def tell(self, order_id: str, sequence: int, status: Any, **more: Any) -> None:
        """Report without waiting."""
        self.say(Report(order_id=order_id, sequence=sequence, status=status, **{"at": datetime.now(UTC)} | more))
