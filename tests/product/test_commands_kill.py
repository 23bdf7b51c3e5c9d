"""A panel that is killed in the middle of rollouts: every instance gets its order, runs it once, and is heard."""

import contextlib
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from quazzar.link.messages import Heartbeat, Order, Report, Reported, Welcome, pack, unpack_from_panel
from quazzar.link.orders import OrderBody, open_order
from tests.product.process import Product, product
from tests.product.test_database_restart import kill_database
from tests.product.test_link import Machine, hello

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]

FULL = os.environ.get("QUAZZAR_TORTURE") == "full"
INSTANCES = 12 if FULL else 4
KILLS = 25 if FULL else 2
COMMANDS = "/api/fleet/commands"


class Server:
    """An instance that keeps what it has begun as a disk would, dials again whenever its line breaks, and tells the
    last of each order until the panel has acknowledged it.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.made = machine.enrol()
        self.begun: list[str] = []
        self.refused: list[str] = []
        self._reports: dict[str, Report] = {}
        self._acknowledged: dict[str, int] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def _live(self) -> None:
        context = self.machine.context(self.made.certificate)
        while not self._ending.is_set():
            with contextlib.suppress(WebSocketException, OSError, EOFError):
                self._speak(context)
            self._ending.wait(random.uniform(0.05, 0.3))

    def _speak(self, context: ssl.SSLContext) -> None:
        url = f"wss://127.0.0.1:{self.machine.token.port}/agent/connect"
        with connect(url, ssl=context, compression=None, proxy=None, open_timeout=5, close_timeout=1) as line:
            line.send(hello(self.made.instance_id))
            assert isinstance(unpack_from_panel(line.recv(timeout=10)), Welcome)
            line.send(pack(Heartbeat(sent_at=datetime.now(UTC), state_hash="", measured=[1.0])))
            for report in list(self._reports.values()):
                if self._acknowledged.get(report.order_id, 0) < report.sequence:
                    line.send(pack(report))
            while not self._ending.is_set():
                with contextlib.suppress(TimeoutError):
                    self._hear(line, unpack_from_panel(line.recv(timeout=0.2)))

    def _hear(self, line: Any, message: Any) -> None:
        match message:
            case Order():
                body = open_order(message, self.made.signing_key)
                self._take(body)
                line.send(pack(self._reports[body.order_id]))
                if self._reports[body.order_id].status == "running":
                    time.sleep(random.uniform(0, 0.05))
                    self._tell(body.order_id, "completed")
                    line.send(pack(self._reports[body.order_id]))
            case Reported():
                self._acknowledged[message.order_id] = message.sequence

    def _take(self, body: OrderBody) -> None:
        assert body.instance_id == self.made.instance_id
        if body.order_id not in self._reports:
            self.begun.append(body.command_id)
            self._tell(body.order_id, "running")

    def _tell(self, order_id: str, status: Any) -> None:
        former = self._reports.get(order_id)
        sequence = 1 if former is None else former.sequence + 1
        self._reports[order_id] = Report(
            order_id=order_id, sequence=sequence, status=status, at=datetime.now(UTC), output=status
        )


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("commands")
    with product(folder / "data", mode="panel", QUAZZAR_AGENT_PUBLIC_HOST="127.0.0.1") as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def owner(panel: Product) -> dict[str, str]:
    return panel.register()


@pytest.fixture(scope="module")
def servers(panel: Product, owner: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("machines")
    made = [Server(Machine(folder / str(number), panel, owner, path="/api")) for number in range(INSTANCES)]
    yield made
    for server in made:
        server.stop()


def rolled_out(panel: Product, owner: dict[str, str], made: dict[str, Any]) -> dict[str, Any]:
    """The command once it has ended, whatever happens to the panel meanwhile."""

    found: dict[str, Any] = made
    deadline = time.monotonic() + 180
    while found["finished_at"] is None:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
        with contextlib.suppress(httpx.TransportError):
            answer = panel.http.get(f"{COMMANDS}/{made['id']}", headers=owner)
            found = answer.json() if answer.status_code == 200 else found
    return found


def give(panel: Product, owner: dict[str, str], servers: list[Server], **strategy: Any) -> dict[str, Any]:
    targets = {"instances": [server.made.instance_id for server in servers]}
    body = {"kind": "app.restart", "args": {"app": "cloud"}, "targets": targets, "strategy": strategy}
    answer = panel.http.post(COMMANDS, json=body, headers=owner)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def check(panel: Product, owner: dict[str, str], servers: list[Server], given: list[dict[str, Any]]) -> None:
    for made in given:
        done = rolled_out(panel, owner, made)
        assert done["status"] == "completed", done
        assert {unit["status"] for unit in done["instances"]} == {"completed"}
        assert {unit["output"] for unit in done["instances"]} == {"completed"}
        for server in servers:
            assert server.begun.count(made["id"]) == 1, "run twice, or not at all"
    events = panel.http.get("/api/events?type=command.finished&limit=200", headers=owner).json()
    ended = [event["subject"] for event in events]
    assert all(ended.count(made["id"]) == 1 for made in given)


def test_a_killed_panel_goes_on_with_its_rollouts(panel: Product, owner: dict[str, str], servers: list[Server]) -> None:
    given = []
    for _ in range(KILLS):
        given += [give(panel, owner, servers, batch_size=1, canary=1), give(panel, owner, servers, batch_size=3)]
        time.sleep(random.uniform(0, 0.4))
        panel.kill()
        panel.start()
    check(panel, owner, servers, given)


def test_rollouts_outlive_their_database(panel: Product, owner: dict[str, str], servers: list[Server]) -> None:
    given = []
    for _ in range(KILLS):
        given.append(give(panel, owner, servers, batch_size=1))
        time.sleep(random.uniform(0, 0.4))
        kill_database(panel)
        panel.wait_ready(30)
    check(panel, owner, servers, given)
