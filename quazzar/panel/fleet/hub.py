"""The sockets that this process holds, and what is written of their instances.

Any number of processes hold sockets; each hears through PostgreSQL when an instance is revoked or has moved to another
one, and looks at all of its own anew when that line had a gap.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar import __version__
from quazzar.core.db import Database, Listener
from quazzar.core.envelope import is_database_away
from quazzar.core.errors import Unauthorized
from quazzar.core.exchange import Message
from quazzar.core.records import publish
from quazzar.link.messages import (
    CLOSE_MALFORMED,
    CLOSE_MOVED,
    CLOSE_PROTOCOL,
    CLOSE_REFUSED,
    CLOSE_REVOKED,
    PROTOCOL,
    Certificate,
    Deeds,
    FromInstance,
    Heartbeat,
    Hello,
    Kept,
    Leave,
    LinkProblem,
    Renew,
    Report,
    Samples,
    Welcome,
    pack,
    unpack_from_instance,
)
from quazzar.panel.fleet import store, upkeep
from quazzar.panel.fleet.authority import Authority, Identity, key_hash, read_request
from quazzar.panel.fleet.channel import CHANNEL
from quazzar.panel.fleet.doors import Arrival, Doors
from quazzar.panel.fleet.errors import RequestRefused
from quazzar.panel.fleet.events import InstanceOffline
from quazzar.panel.fleet.ingest import Ingest
from quazzar.panel.fleet.service import revoke
from quazzar.panel.impersonations.noting import note

log = structlog.get_logger(__name__)

MISSED_HEARTBEATS = 2.5
HELLO_SECONDS = 15.0
_TRY_AGAIN_LATER = 1013
_RETRY_SECONDS = 0.5

T = TypeVar("T")


class Closed(Exception):
    """Ends a socket with a code and a reason for its instance."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Socket:
    """One open line to one instance, which expects nothing before it is `welcomed`."""

    def __init__(self, identity: Identity, send: Callable[[Message], Awaitable[None]]) -> None:
        self.identity = identity
        self.connection = secrets.token_hex(8)
        self.skew_seconds = 0.0
        self.welcomed = False
        self._send = send
        self.ending: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()

    def end(self, code: int, reason: str) -> None:
        """Have the line cut; safe to call again."""
        if not self.ending.done():
            self.ending.set_result(Closed(code, reason))

    async def send(self, message: Any) -> None:
        await self._send({"type": "websocket.send", "bytes": pack(message)})


class Work(Protocol):
    """What instances are told to do and tell of. It is given to the hub, since the fleet knows no commands."""

    def told(self, instance_ids: Iterable[str]) -> None:
        """There may be something for these instances, some of whose sockets are here."""

    def greeted(self, instance_id: str) -> None:
        """Its line is open: from now on it can be sent to."""

    def gap(self) -> None:
        """What other processes said may have been missed."""

    async def reported(self, socket: Socket, report: Report) -> None:
        """Keep a report, and answer it. Raises `Closed` to end the line."""


class Hub:
    """One per panel process."""

    work: Work | None = None

    def __init__(
        self,
        database: Database,
        heartbeat_seconds: float,
        panel_url: Callable[[], str],
        addresses: Sequence[str] = (),
    ) -> None:
        self.database = database
        self.addresses = list(addresses)
        self.heartbeat_seconds = heartbeat_seconds
        self.ingest = Ingest(database, heartbeat_seconds)
        self._doors = Doors(database)
        self._panel_url = panel_url
        self._sockets: dict[str, Socket] = {}
        self._listener = Listener(database, [CHANNEL], lambda _, payload: self._told(payload), self._gap)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._listener.start()
        await self.ingest.start()
        self._go(self._sweep_often())

    async def stop(self) -> None:
        await self._listener.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.ingest.stop()

    @property
    def connected(self) -> int:
        return len(self._sockets)

    @property
    def sockets(self) -> Mapping[str, Socket]:
        """The lines of this process, by the ids of their instances."""
        return self._sockets

    def _go(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what other processes tell -----------------------------------------------------------------------------------

    def _told(self, payload: str) -> None:
        verb, _, rest = payload.partition(":")
        if verb == "work":
            if self.work is not None:
                self.work.told(rest.split(","))
            return
        instance_id, _, connection = rest.partition(":")
        socket = self._sockets.get(instance_id)
        if socket is None:
            return
        if verb == "revoked":
            socket.end(CLOSE_REVOKED, "The instance was revoked")
        elif verb == "moved" and connection != socket.connection:
            socket.end(CLOSE_MOVED, "The instance has opened another line")

    def _gap(self) -> None:
        if self._sockets:
            self._go(self._check_all())
        if self.work is not None:
            self.work.gap()

    async def _check_all(self) -> None:
        await asyncio.gather(*(self._check_again(socket) for socket in self._sockets.values()))

    async def _check_again(self, socket: Socket) -> None:
        with contextlib.suppress(Exception):
            try:
                await self.check(socket.identity)
            except Unauthorized:
                socket.end(CLOSE_REVOKED, "The instance was revoked")

    async def check(self, identity: Identity) -> None:
        """Raises `Unauthorized` when the certificate does not count."""
        if await self._doors.check(identity) is None:
            raise Unauthorized("This certificate does not count any more")

    # --- one line ------------------------------------------------------------------------------------------

    async def hold(
        self,
        identity: Identity,
        authority: Authority,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        address: str | None,
    ) -> None:
        """Speak with an instance until either side ends; the WebSocket has been accepted."""
        socket = Socket(identity, send)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await self._greet(socket, await _next(receive), address)
            while True:
                coming = asyncio.ensure_future(_next(receive))
                either: set[asyncio.Future[Any]] = {coming, socket.ending}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if socket.ending.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                    raise socket.ending.result()
                await self._handle(socket, authority, coming.result())
        except _Gone:
            pass
        except TimeoutError:
            await _close(send, CLOSE_REFUSED, "No greeting came")
        except LinkProblem as problem:
            await _close(send, CLOSE_MALFORMED, str(problem))
        except Closed as closed:
            await _close(send, closed.code, closed.reason)
        finally:
            if self._sockets.get(identity.instance_id) is socket:
                del self._sockets[identity.instance_id]

    async def _greet(self, socket: Socket, message: FromInstance | None, address: str | None) -> None:
        if not isinstance(message, Hello):
            raise Closed(CLOSE_REFUSED, "The first message must be a greeting")
        identity = socket.identity
        if message.instance_id != identity.instance_id:
            raise Closed(CLOSE_REFUSED, "The certificate is of another instance")
        if abs(message.protocol - PROTOCOL) > 1:
            raise Closed(CLOSE_PROTOCOL, f"This panel speaks protocol {PROTOCOL}")
        socket.skew_seconds = (message.sent_at - datetime.now(UTC)).total_seconds()
        self.ingest.greeted(socket)
        former = self._sockets.get(identity.instance_id)
        self._sockets[identity.instance_id] = socket
        if former is not None:
            former.end(CLOSE_MOVED, "The instance has opened another line")
        # Only now: a revocation that came before is seen here, one that comes later is told to this socket.
        try:
            row = await self._doors.enter(Arrival(identity, socket.connection, socket.skew_seconds, address))
        except (SQLAlchemyError, OSError) as error:
            log.info("An instance could not be let in yet", cause=type(error).__name__)
            raise Closed(_TRY_AGAIN_LATER, "The panel is not ready") from None
        if row is None:
            raise Closed(CLOSE_REVOKED, "The instance was revoked")
        await socket.send(
            Welcome(
                protocol=PROTOCOL,
                version=__version__,
                heartbeat_seconds=self.heartbeat_seconds,
                panel_url=self._panel_url(),
                want_state=row.state_hash != message.state_hash,
                addresses=self.addresses,
            )
        )
        socket.welcomed = True
        if self.work is not None:
            self.work.greeted(identity.instance_id)

    async def _handle(self, socket: Socket, authority: Authority, message: FromInstance | None) -> None:
        match message:
            case Heartbeat():
                await self.ingest.heard(socket, message)
            case Renew():
                await self._renew(socket, authority, message)
            case Leave():
                await self._write(socket, _leave)
                raise Closed(1000, "Farewell")
            case Deeds():
                await socket.send(await self._write(socket, partial(note, message=message)))
            case Report():
                if self.work is not None:
                    await self.work.reported(socket, message)
            case Samples():
                await self.ingest.keep(socket, message)
                await socket.send(Kept(batch=message.batch))
            case Hello():
                raise Closed(CLOSE_REFUSED, "A greeting comes once")
            case None:
                pass

    async def _write(self, socket: Socket, work: Callable[[AsyncSession, str, str], Awaitable[T]]) -> T:
        """Do what may be done twice for the instance of a line, in a transaction of its own. While the database is away
        it is tried again and the line waits: who leaves is not forgotten, and nobody dials anew to say the same.
        """
        identity = socket.identity
        while True:
            try:
                async with self.database.begin(tenant=identity.tenant_id) as session:
                    return await work(session, identity.tenant_id, identity.instance_id)
            except Exception as error:
                if not is_database_away(error):
                    raise
                log.info("What an instance says can't be written yet", cause=type(error).__name__)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _renew(self, socket: Socket, authority: Authority, message: Renew) -> None:
        identity = socket.identity
        try:
            request = read_request(message.csr)
        except RequestRefused:
            raise Closed(CLOSE_MALFORMED, "The certificate signing request can't be used") from None
        if key_hash(request) != identity.public_key_hash:
            raise Closed(CLOSE_REFUSED, "A certificate is renewed for the key that it is of")
        issued = authority.issue_client(request, instance_id=identity.instance_id, tenant_id=identity.tenant_id)
        values: dict[str, Any] = {"certificate_serial": issued.serial, "certificate_expires_at": issued.expires_at}
        await self._write(socket, partial(store.update_instance, **values))
        await socket.send(Certificate(certificate=issued.certificate))

    # --- who is silent ------------------------------------------------------------------------------------------

    async def _sweep_often(self) -> None:
        pause = min(2.0, self.heartbeat_seconds / 4)
        while True:
            began = time.monotonic()
            await asyncio.sleep(pause)
            # Nobody could be heard either while this process did not get to run: their words wait in its sockets.
            if time.monotonic() - began > pause + self.heartbeat_seconds:
                self.ingest.healthy_since = time.monotonic()
            # While the panel itself was away nobody could be heard: silence counts from when it is back.
            if time.monotonic() - self.ingest.healthy_since < MISSED_HEARTBEATS * self.heartbeat_seconds:
                continue
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - the database is away for a moment; the next look tells as much
                self.ingest.healthy_since = time.monotonic()
                log.debug("Silent instances could not be looked for", cause=type(error).__name__)

    async def sweep(self) -> None:
        """Set those offline that were not heard for two and a half heartbeats, by the database's clock."""
        seconds = MISSED_HEARTBEATS * self.heartbeat_seconds
        reason = f"No heartbeat for {seconds:g} seconds"
        async with self.database.begin() as session:
            for row in await upkeep.silence(session, seconds, reason):
                gone = InstanceOffline(instance_id=row.id, name=row.name, reason=reason)
                publish(session, gone, subject=row.id, realm="panel", tenant_id=row.tenant_id)


async def _leave(session: AsyncSession, tenant_id: str, instance_id: str) -> None:
    row = await store.get_credential(session, tenant_id, instance_id)
    if row is not None and row.status != "revoked":
        await revoke(session, tenant_id, instance_id, row.name, "It has left the panel")


class _Gone(Exception):
    """The instance has closed the line."""


async def _next(receive: Callable[[], Awaitable[Message]]) -> FromInstance | None:
    event = await receive()
    if event["type"] != "websocket.receive":
        raise _Gone
    return unpack_from_instance(event.get("bytes"))


async def _close(send: Callable[[Message], Awaitable[None]], code: int, reason: str) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        await send({"type": "websocket.close", "code": code, "reason": reason[:120]})
