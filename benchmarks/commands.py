"""How soon a command is on all of 1,000 instances, and how soon their reports are written down.

`python -m benchmarks.commands URL` on a migrated database. The lines are open in this process: what is measured is
everything of the panel but TLS and frames.
"""

import asyncio
import base64
import os
import secrets
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import insert

from benchmarks.load import SERVER_CORE
from quazzar.accounts.models import User
from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring, parse_keys
from quazzar.core.db import Database, set_scope
from quazzar.core.exchange import Message
from quazzar.core.ids import new_id
from quazzar.core.records import Caller
from quazzar.link.messages import PROTOCOL, Hello, Order, Report, pack, unpack_from_panel
from quazzar.link.orders import OrderBody
from quazzar.panel.commands.delivery import Delivery
from quazzar.panel.commands.schemas import CommandCreate, Targets
from quazzar.panel.commands.service import CommandService
from quazzar.panel.fleet import store
from quazzar.panel.fleet.authority import Identity
from quazzar.panel.fleet.process import Fleet
from quazzar.panel.tenants.service import TenantService
from quazzar.settings import load_settings

INSTANCES = int(os.environ.get("QUAZZAR_BENCH_INSTANCES", "1000"))
ROUNDS = int(os.environ.get("QUAZZAR_BENCH_ROUNDS", "10"))
_KEY_HASH = b"key"


class Line:
    """The far end of a line: notes when an order comes, and reports on it if it is to."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self.came: dict[str, float] = {}
        self.answers = False
        self.to_panel: asyncio.Queue[Message] = asyncio.Queue()

    def say(self, message: Any) -> None:
        self.to_panel.put_nowait({"type": "websocket.receive", "bytes": pack(message)})

    async def heard(self, event: Message) -> None:
        now = time.perf_counter()
        message = unpack_from_panel(event["bytes"])
        if isinstance(message, Order):
            # Its signature is for the instance to look at, on a processor of its own.
            body = msgspec.msgpack.decode(message.body, type=OrderBody)
            self.came[body.command_id] = now
            if self.answers:
                for sequence, status in ((1, "running"), (2, "completed")):
                    self.say(
                        Report(order_id=body.order_id, sequence=sequence, status=status, at=datetime.now(UTC))  # type: ignore[arg-type]
                    )


async def measure(url: str) -> None:
    os.sched_setaffinity(0, {int(SERVER_CORE)})
    database = Database(url)
    keyring = parse_keys(f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}")
    with tempfile.TemporaryDirectory(prefix="quazzar-bench-") as folder:
        settings = load_settings({"server.data_dir": str(Path(folder))}, {"QUAZZAR_RUNTIME_DRIVER": "memory"})
        fleet = Fleet(settings, keyring, database)
        delivery = fleet.hub.work = Delivery(fleet)
        await delivery.start()
        await fleet.hub.start()
        user_id, tenant_id, ids = await _fill(database)
        lines = [Line(instance_id) for instance_id in ids]
        tasks = await _connect(fleet, tenant_id, lines)
        principal = Principal(
            realm="panel", user_id=user_id, client=tenant_id, scopes=frozenset("*"), tenant_id=tenant_id
        )
        took: list[float] = []
        slowest: list[float] = []
        for _ in range(ROUNDS + 1):
            seconds = await _deliver(database, principal, keyring, lines)
            took += seconds
            slowest.append(max(seconds))
        # The first is left out: statements are prepared and code is loaded in it.
        took, slowest = sorted(took[INSTANCES:]), slowest[1:]
        middle, late = took[len(took) // 2], took[int(len(took) * 0.99)]
        print(
            f"a command to {INSTANCES} instances, from call to line: median {middle * 1000:.0f} ms,"
            f" p99 {late * 1000:.0f} ms, on all of them after {max(slowest) * 1000:.0f} ms (2,000 ms at most)"
        )
        for line in lines:
            line.answers = True
        began = time.perf_counter()
        made = await _give(database, principal, keyring, lines)
        while not await _ended(database, principal, keyring, made):
            await asyncio.sleep(0.02)
        seconds_to_end = time.perf_counter() - began
        print(
            f"with two reports of each written down and acknowledged: {seconds_to_end * 1000:.0f} ms,"
            f" {2 * INSTANCES / seconds_to_end:.0f} reports a second",
            flush=True,
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await fleet.hub.stop()
        await delivery.stop()
    await database.close()


async def _fill(database: Database) -> tuple[str, str, list[str]]:
    user_id, tenant_id = new_id("usr"), new_id("ten")
    ids = [new_id("inst") for _ in range(INSTANCES)]
    async with database.begin() as session:
        values = {"id": user_id, "realm": "panel", "email": f"{user_id}@example.com", "password_hash": "!"}
        await session.execute(insert(User).values(**values))
        await set_scope(session, tenant=tenant_id, user=user_id)
        await TenantService(session).create(tenant_id, "Bench", owner_id=user_id)
        for number, instance_id in enumerate(ids):
            await store.add_instance(
                session,
                tenant_id,
                id=instance_id,
                name=f"server-{number:05}",
                status="online",
                tags=[],
                version="0.1.0",
                hostname="server",
                os="Debian",
                arch="x86_64",
                cpu_cores=4,
                memory_bytes=8 * 2**30,
                disk_bytes=100 * 2**30,
                machine_id=secrets.token_hex(32),
                public_key_hash=_KEY_HASH,
                certificate_serial="1",
                certificate_expires_at=datetime.now(UTC) + timedelta(days=90),
            )
    return user_id, tenant_id, ids


async def _connect(fleet: Fleet, tenant_id: str, lines: list[Line]) -> list[asyncio.Task[None]]:
    authority = await fleet.authority()
    tasks = []
    for line in lines:
        identity = Identity(line.instance_id, tenant_id, "1", _KEY_HASH)
        hello = Hello(
            instance_id=line.instance_id, protocol=PROTOCOL, version="0.1.0", sent_at=datetime.now(UTC), state_hash=""
        )
        line.say(hello)
        tasks.append(asyncio.create_task(fleet.hub.hold(identity, authority, line.to_panel.get, line.heard, None)))
        while len(tasks) - sum(socket.welcomed for socket in fleet.hub.sockets.values()) > 8:
            await asyncio.sleep(0.001)
    while sum(socket.welcomed for socket in fleet.hub.sockets.values()) < len(lines):
        await asyncio.sleep(0.01)
    return tasks


async def _give(database: Database, principal: Principal, keyring: Keyring, lines: list[Line]) -> str:
    data = CommandCreate(
        kind="app.restart",
        args={"app": "cloud"},
        targets=Targets(instances=[line.instance_id for line in lines]),
    )
    async with database.begin(tenant=principal.tenant_id) as session:
        session.info["caller"] = Caller(kind="user", realm="panel", id=principal.user_id, tenant_id=principal.tenant_id)
        return (await CommandService(session, principal, keyring).create(data)).id


async def _deliver(database: Database, principal: Principal, keyring: Keyring, lines: list[Line]) -> list[float]:
    """Seconds from the call until the order was on each line."""
    began = time.perf_counter()
    made = await _give(database, principal, keyring, lines)
    while any(made not in line.came for line in lines):
        await asyncio.sleep(0.005)
    return [line.came[made] - began for line in lines]


async def _ended(database: Database, principal: Principal, keyring: Keyring, made: str) -> bool:
    async with database.begin(tenant=principal.tenant_id) as session:
        command = await CommandService(session, principal, keyring).get(made)
    return command.finished_at is not None


if __name__ == "__main__":
    import uvloop

    uvloop.run(measure(sys.argv[1]))
