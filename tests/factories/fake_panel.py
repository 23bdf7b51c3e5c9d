"""A panel of a test's own: real certificates, a real TLS socket, and whatever it likes to say on it."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from quazzar.core.ids import new_id
from quazzar.instance.enrolment.keys import own_key, signing_request
from quazzar.link.messages import (
    PROTOCOL,
    Heartbeat,
    Hello,
    Leave,
    Message,
    Order,
    Renew,
    Report,
    Reported,
    Welcome,
    pack,
    unpack_from_instance,
)
from quazzar.link.orders import OrderActor, OrderBody, sign_order
from quazzar.panel.fleet.authority import new_authority, read_request

USER = "usr_ada"


class FakePanel:
    """What its one instance reports is in `reports`, in the order of arrival, and acknowledged while `acknowledges`. In
    `presented` are the certificates (DER) that its lines were opened with.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = new_authority()
        self.signer = Ed25519PrivateKey.generate()
        self.instance_id, self.tenant_id = new_id("inst"), new_id("ten")
        self.reports: list[Report] = []
        self.heartbeats: list[Heartbeat] = []
        self.renewals: list[Renew] = []
        self.presented: list[bytes] = []
        self.lines = 0
        self.acknowledges = True
        self.heartbeat_seconds = 60.0
        self.refuses: int | None = None
        self.says: Callable[[], datetime | None] = lambda: datetime.now(UTC)
        self.port = 0
        self._folder = folder
        self._socket: ServerConnection | None = None
        self._server: Server | None = None

    async def start(self) -> None:
        certificate = self._folder / "panel.pem"
        certificate.write_text(self.authority.issue_server(["127.0.0.1"]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.load_verify_locations(cadata=self.authority.pem)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = await serve(
            self._hold,
            "127.0.0.1",
            self.port,
            ssl=context,
            compression=None,
            process_request=self._refuse,
            process_response=self._dated,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def link(self, data_dir: Path) -> dict[str, Any]:
        """The columns of an instance's row that belongs to this panel, with the key of the data folder."""
        request = read_request(signing_request(own_key(data_dir)))
        issued = self.authority.issue_client(request, instance_id=self.instance_id, tenant_id=self.tenant_id)
        return {
            "instance_id": self.instance_id,
            "panel_url": "https://panel.example.com",
            "host": "127.0.0.1",
            "port": self.port,
            "ca_certificate": self.authority.pem,
            "certificate": issued.certificate,
            "signing_key": self.signer.public_key().public_bytes_raw(),
        }

    def body(self, kind: str, args: dict[str, Any], **changed: Any) -> OrderBody:
        now = datetime.now(UTC)
        values: dict[str, Any] = {
            "order_id": new_id("ord"),
            "command_id": new_id("cmd"),
            "tenant_id": self.tenant_id,
            "instance_id": self.instance_id,
            "kind": kind,
            "args": args,
            "actor": OrderActor(user_id=USER, name="Ada"),
            "issued_at": now,
            "expires_at": now + timedelta(minutes=10),
        }
        return OrderBody(**values | changed)

    def signed(self, kind: str, args: dict[str, Any], **changed: Any) -> tuple[str, Order]:
        body = self.body(kind, args, **changed)
        return body.order_id, sign_order(body, self.signer)

    async def order(self, kind: str, args: dict[str, Any], **changed: Any) -> str:
        """Send an order, and give its id."""
        order_id, order = self.signed(kind, args, **changed)
        await self.send(order)
        return order_id

    async def send(self, message: Message) -> None:
        await self.send_frame(pack(message))

    async def send_frame(self, frame: bytes) -> None:
        await self.until(lambda: self._socket is not None)
        assert self._socket is not None
        await self._socket.send(frame)

    async def cut(self) -> None:
        """As a broken network: nothing is said any more."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.transport.abort()
            await socket.wait_closed()

    async def close(self, code: int) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close(code, "So it is")

    def of(self, order_id: str) -> list[Report]:
        return [report for report in self.reports if report.order_id == order_id]

    async def end_of(self, order_id: str, *, seconds: float = 20) -> Report:
        """The final report of an order."""

        def final() -> Report | None:
            ended = (report for report in self.of(order_id) if report.status not in {"taken", "running"})
            return next(ended, None)

        found = await self.until(final, seconds=seconds)
        assert isinstance(found, Report)
        return found

    async def until(self, found: Callable[[], Any], *, seconds: float = 20) -> Any:
        end = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < end, f"it did not come to pass; reports: {self.reports}"
            await asyncio.sleep(0.01)
        return value

    def _refuse(self, connection: ServerConnection, _: Request) -> Response | None:
        return connection.respond(self.refuses, "no") if self.refuses is not None else None

    def _dated(self, _: ServerConnection, __: Request, response: Response) -> None:
        said = self.says()
        del response.headers["Date"]
        if said is not None:
            response.headers["Date"] = said.strftime("%a, %d %b %Y %H:%M:%S GMT")

    async def _hold(self, socket: ServerConnection) -> None:
        hello = unpack_from_instance(await socket.recv())
        assert isinstance(hello, Hello)
        assert hello.instance_id == self.instance_id
        seconds = self.heartbeat_seconds
        await socket.send(pack(Welcome(protocol=PROTOCOL, version="0.1.0", heartbeat_seconds=seconds)))
        self._socket = socket
        self.presented.append(socket.transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
        self.lines += 1
        with contextlib.suppress(ConnectionClosed):
            while True:
                match unpack_from_instance(await socket.recv()):
                    case Report() as report:
                        self.reports.append(report)
                        if self.acknowledges:
                            await socket.send(pack(Reported(order_id=report.order_id, sequence=report.sequence)))
                    case Heartbeat() as heartbeat:
                        self.heartbeats.append(heartbeat)
                    case Renew() as renewal:
                        self.renewals.append(renewal)
                    case Leave():
                        await self.close(1000)
                    case _:
                        pass


@contextlib.asynccontextmanager
async def fake_panel(folder: Path) -> AsyncIterator[FakePanel]:
    panel = FakePanel(folder)
    await panel.start()
    try:
        yield panel
    finally:
        await panel.stop()
