"""Thousands of instances that are none: they enrol, hold a line with mutual TLS each, measure, obey and come back.

What goes over the wire is what real ones send; only what they would do on their machines is made up.
"""

import asyncio
import contextlib
import hashlib
import random
import ssl
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from quazzar import __version__
from quazzar.core.crypto import write_private
from quazzar.instance.enrolment.dialling import KEY_FILE, fetch_ca, send_enrolment, trusting
from quazzar.instance.enrolment.keys import own_key, signing_request
from quazzar.instance.enrolment.line import FIRST_PAUSE, LONGEST_PAUSE, OPEN_SECONDS
from quazzar.instance.enrolment.recording import UNSURE_SECONDS
from quazzar.link.messages import (
    MOST_FRAME_BYTES,
    PROTOCOL,
    AppFacts,
    Cancel,
    Enrol,
    Facts,
    Heartbeat,
    Hello,
    Kept,
    LinkProblem,
    Order,
    Report,
    Reported,
    Sample,
    Samples,
    State,
    Welcome,
    pack,
    unpack_from_panel,
)
from quazzar.link.metrics import APP_METRICS, HOST_METRICS
from quazzar.link.orders import open_order
from quazzar.link.tokens import parse_token

_MEMBERS = "members.json"
_AT_ONCE = 8
_BATCH = 200
_MOST_DIALLING = 300
_MOST_KEPT = 2880


class Member(msgspec.Struct):
    """What an enrolled instance has; all of a folder share its key."""

    instance_id: str
    host: str
    port: int
    ca: str
    certificate: str
    signing_key: bytes


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """How simulated instances behave. `heartbeat_seconds` is the panel's where it is None; an order takes between half
    and one and a half of `order_seconds`.
    """

    apps: int = 3
    heartbeat_seconds: float | None = None
    order_seconds: float = 2.0


class Tally:
    """What all of them have seen, since it was made."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.orders: dict[str, list[float]] = {}
        self.done: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()


def enrol(folder: Path, tokens: Sequence[str], wanted: int) -> list[Member]:
    """Members of the folder, with as many as are missing enrolled anew by the tokens, each used up to 1,000 times."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _MEMBERS
    members = msgspec.json.decode(file.read_bytes(), type=list[Member]) if file.exists() else []
    missing = wanted - len(members)
    if missing > 0:
        if not tokens:
            raise SystemExit(f"{missing} instances have to enrol: tokens are needed")
        key = own_key(folder)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            made = threads.map(
                lambda number: _enrol_one(key, tokens[number // 1000 % len(tokens)], number),
                range(len(members), wanted),
            )
            members += made
        write_private(file, msgspec.json.encode(members).decode())
    return members[:wanted]


def _enrol_one(key: ec.EllipticCurvePrivateKey, text: str, number: int) -> Member:
    token = parse_token(text)
    ca = fetch_ca(token)
    made = send_enrolment(token, ca, Enrol(token=text, csr=signing_request(key), facts=_facts(token.tenant_id, number)))
    return Member(made.instance_id, token.host, token.port, ca, made.certificate, made.signing_key)


def _facts(tenant_id: str, number: int) -> Facts:
    return Facts(
        name=f"simulated-{number:05}",
        hostname=f"simulated-{number:05}",
        machine_id=hashlib.sha256(f"{tenant_id} {number}".encode()).hexdigest(),
        version=__version__,
        os="Simulated 1",
        arch="x86_64",
        cpu_cores=4,
        memory_bytes=8_000_000_000,
        disk_bytes=100_000_000_000,
    )


class Instance:
    """One simulated instance."""

    def __init__(
        self, member: Member, folder: Path, number: int, habits: Habits, tally: Tally, dialling: asyncio.Semaphore
    ) -> None:
        self.member = member
        self._dialling = dialling
        self.connected_at: float | None = None
        self._habits = habits
        self._tally = tally
        self._number = number
        self._context = _context(member, folder)
        self._seconds = habits.heartbeat_seconds or 30.0
        apps = [
            AppFacts(id=f"app_{number:013}{app:013}", name=f"app-{app}", status="running", template="hello")
            for app in range(habits.apps)
        ]
        self._state = State(facts=_facts("", number), apps=apps)
        self._hash = self._state.hash()
        self._sent: deque[tuple[float, Sample]] = deque()
        self._kept: deque[Sample] = deque(maxlen=_MOST_KEPT)
        self._confirmed = asyncio.Event()
        self._reports: dict[str, Report] = {}
        self._line: ClientConnection | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._alone: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Hold a line, and dial again with full jitter whenever it ends; until cancelled."""
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    await self._once()
                    pause = FIRST_PAUSE
                except InvalidStatus as error:
                    self._tally.refusals[str(error.response.status_code)] += 1
                except (OSError, WebSocketException, TimeoutError, LinkProblem) as error:
                    self._tally.refusals[type(error).__name__] += 1
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(LONGEST_PAUSE, pause * 2)
        finally:
            for task in (*self._working, *self._alone):
                task.cancel()

    async def _dial(self, stack: contextlib.AsyncExitStack) -> tuple[ClientConnection, Welcome]:
        """A line that is greeted. One machine can't dial for thousands at once: those who wait for it begin later."""
        async with self._dialling:
            line = connect(
                f"wss://{self.member.host}:{self.member.port}/agent/connect",
                ssl=self._context,
                compression=None,
                max_size=MOST_FRAME_BYTES,
                open_timeout=OPEN_SECONDS,
                proxy=None,
            )
            socket = await stack.enter_async_context(line)
            hello = Hello(
                instance_id=self.member.instance_id,
                protocol=PROTOCOL,
                version=__version__,
                sent_at=datetime.now(UTC),
                state_hash=self._hash,
            )
            await socket.send(pack(hello))
            async with asyncio.timeout(OPEN_SECONDS):
                welcome = unpack_from_panel(await socket.recv())
        if not isinstance(welcome, Welcome):
            raise LinkProblem("The panel did not greet")
        return socket, welcome

    async def _once(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            socket, welcome = await self._dial(stack)
            for task in self._alone:
                task.cancel()
            self.connected_at = time.monotonic()
            self._line = socket
            self._tally.count["connects"] += 1
            work = (self._listen(socket), self._beat(socket, welcome), self._deliver(socket))
            tasks = [asyncio.create_task(each) for each in work]
            try:
                with contextlib.suppress(ConnectionClosed):
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.connected_at = self._line = None
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                since = time.monotonic() - UNSURE_SECONDS
                self._kept.extend(sample for at, sample in self._sent if at > since)
                self._sent.clear()
                self._alone = [asyncio.create_task(self._measure_alone())]

    # --- measuring ---------------------------------------------------------------------------------------------------

    def waiting(self, until: datetime) -> int:
        """How many samples until then have not been sent, or not been confirmed."""
        return sum(sample.at <= until for sample in self._kept)

    def _measure(self) -> Sample:
        self._tally.count["measured"] += 1
        host: list[float | None] = [random.uniform(0, 80) for _ in HOST_METRICS]
        apps: dict[str, list[float | None]] = {
            app.id: [random.uniform(0, 1e9) for _ in APP_METRICS] for app in self._state.apps
        }
        return Sample(datetime.now(UTC), host, apps)

    async def _measure_alone(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            self._kept.append(self._measure())

    async def _beat(self, socket: ClientConnection, welcome: Welcome) -> None:
        self._seconds = self._habits.heartbeat_seconds or welcome.heartbeat_seconds
        state = self._state if welcome.want_state else None
        due = time.monotonic()
        pause = random.uniform(0, self._seconds)
        while True:
            sample = self._measure()
            self._sent.append((time.monotonic(), sample))
            while self._sent[0][0] < time.monotonic() - UNSURE_SECONDS:
                self._sent.popleft()
            beat = Heartbeat(
                sent_at=sample.at,
                state_hash=self._hash,
                measured=sample.measured,
                app_measured=sample.apps,
                state=state,
            )
            await socket.send(pack(beat))
            self._tally.count["beats"] += 1
            self._tally.count["late beats"] += time.monotonic() - due > self._seconds / 2
            state = None
            due = time.monotonic() + pause
            await asyncio.sleep(pause)
            pause = self._seconds

    async def _deliver(self, socket: ClientConnection) -> None:
        batch = 0
        while True:
            if not self._kept:
                await asyncio.sleep(5)
                continue
            batch += 1
            points = [self._kept[place] for place in range(min(_BATCH, len(self._kept)))]
            self._confirmed.clear()
            await socket.send(pack(Samples(batch=batch, points=points)))
            await self._confirmed.wait()
            for _ in points:
                self._kept.popleft()
            self._tally.count["kept later"] += len(points)

    # --- obeying -----------------------------------------------------------------------------------------------------

    async def _listen(self, socket: ClientConnection) -> None:
        for report in list(self._reports.values()):
            await socket.send(pack(report))
        while True:
            match unpack_from_panel(await socket.recv()):
                case Kept():
                    self._confirmed.set()
                case Order() as order:
                    body = open_order(order, self.member.signing_key)
                    former = self._reports.get(body.order_id)
                    if former is not None:
                        await socket.send(pack(former))
                        continue
                    self._tally.orders.setdefault(body.command_id, []).append(time.monotonic())
                    # Before anything is waited for: whatever becomes of this line, it is begun, and never again.
                    self._note(body.order_id, 1, "taken")
                    task = asyncio.create_task(self._work(body.command_id, body.order_id))
                    self._working.add(task)
                    task.add_done_callback(self._working.discard)
                case Cancel() | Reported() | None:
                    pass

    async def _work(self, command_id: str, order_id: str) -> None:
        await self._tell(order_id)
        self._note(order_id, 2, "running", progress=50, step="Simulating")
        await self._tell(order_id)
        await asyncio.sleep(self._habits.order_seconds * random.uniform(0.5, 1.5))
        self._note(order_id, 3, "completed", progress=100, output="done\n")
        self._tally.done[command_id] += 1
        await self._tell(order_id)

    def _note(self, order_id: str, sequence: int, status: Any, **more: Any) -> None:
        report = Report(order_id=order_id, sequence=sequence, status=status, at=datetime.now(UTC), **more)
        self._reports[order_id] = report

    async def _tell(self, order_id: str) -> None:
        """On whatever line there is by now; without one it is told with all others on the next."""
        if self._line is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._line.send(pack(self._reports[order_id]))


def _context(member: Member, folder: Path) -> ssl.SSLContext:
    file = folder / f"{member.instance_id}.crt"
    if not file.exists():
        write_private(file, member.certificate)
    context = trusting(member.ca)
    context.load_cert_chain(file, folder / KEY_FILE)
    return context


class Fleet:
    """All simulated instances of one process."""

    def __init__(self, members: Sequence[Member], folder: Path, habits: Habits) -> None:
        self.tally = Tally()
        self.began_at = datetime.now(UTC)
        dialling = asyncio.Semaphore(_MOST_DIALLING)
        self.instances = [
            Instance(member, folder, number, habits, self.tally, dialling) for number, member in enumerate(members)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> int:
        return sum(instance.connected_at is not None for instance in self.instances)

    def waiting(self, until: datetime) -> int:
        return sum(instance.waiting(until) for instance in self.instances)

    async def start(self, *, over_seconds: float) -> None:
        """Let them dial, spread evenly over a while."""
        for instance in self.instances:
            self._tasks.append(asyncio.create_task(instance.run()))
            await asyncio.sleep(over_seconds / len(self.instances))

    async def until_connected(self, seconds: float) -> float:
        """How long it took until all had a line; raises `TimeoutError`."""
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            while self.connected < len(self.instances):
                await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
