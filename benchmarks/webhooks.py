"""Signed deliveries a second from one core to a local receiver, and how soon an event is on its way when idle.

`python -m benchmarks.webhooks URL` on a migrated database; the receiver runs on the load's core.
"""

import asyncio
import ipaddress
import os
import secrets
import subprocess
import sys
import time
from typing import cast

from sqlalchemy import text

from benchmarks.load import LOAD_CORE, SERVER_CORE
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.outbound import OutboundPolicy
from quazzar.core.records import Event, publish
from quazzar.webhooks.engine import Webhooks
from quazzar.webhooks.schemas import WebhookCreate
from quazzar.webhooks.service import WebhookService
from quazzar.webhooks.store import Scope

EVENTS = int(os.environ.get("QUAZZAR_BENCH_EVENTS", "10000"))
ENDPOINTS = 10
IDLE_EVENTS = 200


class Measured(Event):
    type = "bench.measured"
    number: int


class Receiver(asyncio.Protocol):
    """Answers 204 to every request, and says when it came to whoever asks with a path of `/times`."""

    times: list[float] = []

    def __init__(self) -> None:
        self.kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not a check: the loop's own class is no subclass of the interface.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.kept += data
        while (end := self.kept.find(b"\r\n\r\n")) >= 0:
            head = self.kept[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self.kept) < end + 4 + size:
                return
            self.kept = self.kept[end + 4 + size :]
            self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            if head.startswith(b"post /idle"):
                sys.stdout.write(f"{time.monotonic()}\n")
                sys.stdout.flush()


async def receive() -> None:
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def measure(url: str) -> None:
    os.sched_setaffinity(0, {int(SERVER_CORE)})
    database = Database(url)
    keyring = Keyring({"k1": secrets.token_bytes(32)})
    policy = OutboundPolicy([ipaddress.ip_network("127.0.0.0/8")])
    command = [sys.executable, "-m", "benchmarks.webhooks", "receive"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        port = int(receiver.stdout.readline())
        try:
            await deliver(database, keyring, policy, port)
            await idle(database, keyring, policy, port, receiver)
        finally:
            receiver.kill()
            await database.close()


async def endpoint(database: Database, keyring: Keyring, policy: OutboundPolicy, url: str) -> None:
    async with database.begin() as session:
        webhooks = WebhookService(session, Scope(realm="instance"), keyring, policy)
        await webhooks.create(WebhookCreate(url=url, events=["bench.*"]))


async def announce(database: Database, first: int, count: int) -> None:
    async with database.begin() as session:
        for number in range(first, first + count):
            publish(session, Measured(number=number), realm="instance")


async def deliver(database: Database, keyring: Keyring, policy: OutboundPolicy, port: int) -> None:
    for number in range(ENDPOINTS):
        await endpoint(database, keyring, policy, f"http://127.0.0.1:{port}/{number}")
    for first in range(0, EVENTS, 500):
        await announce(database, first, min(500, EVENTS - first))
    engine = Webhooks(database, keyring, policy, (0, 5, 300))
    began, used = time.monotonic(), time.process_time()
    await engine.start()
    left = 1
    while left:
        await asyncio.sleep(0.25)
        async with database.begin() as session:
            left = (
                await session.execute(
                    text(
                        "SELECT :all - count(*) FROM webhook_deliveries"
                        " WHERE status = 'delivered' AND type = 'bench.measured'"
                    ),
                    {"all": EVENTS * ENDPOINTS},
                )
            ).scalar_one()
    seconds, used = time.monotonic() - began, time.process_time() - used
    await engine.stop()
    done = EVENTS * ENDPOINTS
    print(f"{EVENTS} events to {ENDPOINTS} endpoints: {done / seconds:.0f} signed deliveries a second", end=" ")
    print(f"({done / used:.0f} a second of this process's CPU)", flush=True)
    async with database.begin() as session:
        await session.execute(text("DELETE FROM webhooks"))


async def idle(
    database: Database, keyring: Keyring, policy: OutboundPolicy, port: int, receiver: subprocess.Popen[str]
) -> None:
    await endpoint(database, keyring, policy, f"http://127.0.0.1:{port}/idle")
    engine = Webhooks(database, keyring, policy, (0, 5, 300))
    await engine.start()
    assert receiver.stdout is not None
    took = []
    for number in range(IDLE_EVENTS):
        await announce(database, number, 1)
        committed = time.monotonic()
        came = float(await asyncio.to_thread(receiver.stdout.readline))
        took.append(max(0.0, came - committed))
        await asyncio.sleep(0.02)
    await engine.stop()
    took = sorted(took[5:])
    middle, late = took[len(took) // 2], took[int(len(took) * 0.99)]
    print(f"from the commit to the first attempt, idle: median {middle * 1000:.1f} ms, p99 {late * 1000:.1f} ms")


if __name__ == "__main__":
    import uvloop

    uvloop.run(receive() if sys.argv[1] == "receive" else measure(sys.argv[1]))
