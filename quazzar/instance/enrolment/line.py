"""The line from an instance to its panel: dialled, kept, dialled again with full jitter, and ended."""

import asyncio
import contextlib
import random
import ssl
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus, WebSocketException

from quazzar import __version__
from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring, write_private
from quazzar.core.db import Database
from quazzar.instance.apps.service import list_apps
from quazzar.instance.enrolment import store
from quazzar.instance.enrolment.dialling import KEY_FILE, places, trusting
from quazzar.instance.enrolment.measuring import Meter, facts_of
from quazzar.instance.impersonation.telling import noted, untold
from quazzar.instance.orders.clock import PanelClock
from quazzar.instance.orders.desk import OrderDesk
from quazzar.instance.orders.service import Panel, cancel_pending
from quazzar.link.messages import (
    CLOSE_REVOKED,
    MOST_APPS,
    MOST_FRAME_BYTES,
    PROTOCOL,
    AppFacts,
    Cancel,
    Certificate,
    Heartbeat,
    Hello,
    Leave,
    LinkProblem,
    Message,
    Noted,
    Order,
    Renew,
    Reported,
    State,
    Welcome,
    pack,
    unpack_from_panel,
)

log = structlog.get_logger(__name__)

_CERTIFICATE_FILE: Final = "panel-link.crt"
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_OPEN_SECONDS: Final = 20.0
_SELF = Principal(realm="instance", user_id="panel", client="panel", scopes=frozenset({"apps:read"}))


class Line:
    """One per process that serves an instance, in `app.state.panel_line`."""

    def __init__(self, database: Database, data_dir: Path, keyring: Keyring, url: str | None = None) -> None:
        self.database = database
        self.data_dir = data_dir
        self.url = url
        self._keyring = keyring
        self.connected = False
        self.clock = PanelClock(None)
        self.error: str | None = None
        self._wake = asyncio.Event()
        self._wanted = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="panel-line")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def changed(self) -> None:
        """The link was made, or ended: look at it now."""
        self._wake.set()

    def tell_state(self) -> None:
        """Have the panel told the whole state anew, now if there is a line."""
        self._wanted.set()

    async def say_farewell(self) -> None:
        """Tell the panel that this instance leaves, if there is a line to say it on."""
        socket = self._socket
        if socket is not None:
            with contextlib.suppress(ConnectionClosed, OSError, TimeoutError):
                async with asyncio.timeout(5):
                    await socket.send(pack(Leave()))
                    await socket.wait_closed()

    async def hang_up(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        self.changed()

    async def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            self._wake.clear()
            refused = False
            try:
                link = await self._link()
                if link is None:
                    self.error = None
                    await self._wake.wait()
                    continue
                if await self._anywhere(link):
                    pause = _FIRST_PAUSE
            except InvalidStatus as error:
                refused = error.response.status_code in (401, 403)
                if refused:
                    await self._revoked()
                self.error = "The panel does not know this server any more" if refused else "The panel is not ready"
            except (OSError, WebSocketException, TimeoutError, LinkProblem) as error:
                self.error = f"The panel can't be reached ({type(error).__name__})"
            except Exception as error:
                self.error = "The line to the panel broke off by a fault of its own"
                log.warning("The line to the panel failed", exc_info=error)
            log.info("No line to the panel", reason=self.error)
            # Full jitter: however many lost the same panel at once, they come back spread over the whole pause.
            await self._rest(_LONGEST_PAUSE if refused else random.uniform(0, pause))  # noqa: S311 - no secret
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _link(self) -> Any:
        async with self.database.begin() as session:
            link = await store.get_link(session)
        return link if link is not None and link.left_at is None else None

    async def _anywhere(self, link: Any) -> bool:
        """As `_once`, at the first listener of the panel that answers; in any order, so that many instances spread."""
        known = places(link)
        for name, port in random.sample(known, len(known) - 1):
            with contextlib.suppress(OSError, TimeoutError, InvalidMessage):
                return await self._once(link, name, port)
            known.remove((name, port))
        return await self._once(link, *known[0])

    async def _once(self, link: Any, name: str, port: int) -> bool:
        """Dial and speak until the line ends; true when it had come to a greeting."""
        context = await asyncio.to_thread(self._context, link)
        host = f"[{name}]" if ":" in name else name
        greeted = False
        try:
            async with connect(
                f"wss://{host}:{port}/agent/connect",
                ssl=context,
                compression=None,
                max_size=MOST_FRAME_BYTES,
                open_timeout=_OPEN_SECONDS,
                proxy=None if name in ("127.0.0.1", "::1", "localhost") else True,
            ) as socket:
                self._socket = socket
                welcome, state = await self._greet(socket, link)
                greeted = self.connected = True
                self.error = None
                log.info("The line to the panel is open", panel=link.panel_url)
                await self._speak(socket, link, welcome, state, self._desk(socket, link))
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else None
            self.error = closed.rcvd.reason if closed.rcvd is not None else "The line to the panel was cut"
            if code == CLOSE_REVOKED:
                greeted = False
                await self._revoked()
        finally:
            self.connected = False
            self.clock = PanelClock(None)
            self._socket = None
        return greeted

    async def _revoked(self) -> None:
        """What has been ordered and is not begun must not begin; what is done the panel may still want to know."""
        try:
            async with self.database.begin() as session:
                await cancel_pending(session)
        except Exception as error:  # noqa: BLE001 - the next time that the panel refuses the line it is tried again
            log.warning("Orders that wait could not be cancelled yet", cause=type(error).__name__)

    def _desk(self, socket: ClientConnection, link: Any) -> OrderDesk:
        from quazzar.instance.enrolment import keys  # noqa: PLC0415 - see there

        self.clock = PanelClock(socket.response.headers.get("Date") if socket.response is not None else None)
        return OrderDesk(
            self.database,
            self._keyring,
            Panel(link.instance_id, keys.tenant_of(link.certificate), link.signing_key),
            self.clock,
            holds=partial(store.hold_link, instance_id=link.instance_id),
            on_ended=self.tell_state,
        )

    def _context(self, link: Any) -> ssl.SSLContext:
        context = trusting(link.ca_certificate)
        certificate = self.data_dir / _CERTIFICATE_FILE
        write_private(certificate, link.certificate)
        context.load_cert_chain(certificate, self.data_dir / KEY_FILE)
        return context

    async def _greet(self, socket: ClientConnection, link: Any) -> tuple[Welcome, State]:
        state = await self._state()
        hello = Hello(
            instance_id=link.instance_id,
            protocol=PROTOCOL,
            version=__version__,
            sent_at=datetime.now(UTC),
            state_hash=state.hash(),
        )
        await socket.send(pack(hello))
        async with asyncio.timeout(_OPEN_SECONDS):
            welcome = unpack_from_panel(await socket.recv())
        if not isinstance(welcome, Welcome):
            raise LinkProblem("The panel did not greet")
        if welcome.addresses != link.addresses:
            async with self.database.begin() as session:
                await store.update_link(session, addresses=welcome.addresses)
        return welcome, state

    async def _speak(
        self, socket: ClientConnection, link: Any, welcome: Welcome, state: State, desk: OrderDesk
    ) -> None:
        async def send(message: Message) -> None:
            await socket.send(pack(message))

        work = (
            self._listen(socket, desk),
            self._beat(socket, link, welcome, state),
            desk.report(send),
            self._outlive(link),
        )
        tasks = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _outlive(self, link: Any) -> None:
        """Returns once this server has left the panel of `link`, or has joined anew: whatever that panel does, its line
        is over.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            now = await self._link()
            if now is None or now.linked_at != link.linked_at:
                self._wake.set()
                return

    async def _listen(self, socket: ClientConnection, desk: OrderDesk) -> None:
        while True:
            frame = await socket.recv()
            try:
                message = unpack_from_panel(frame)
            except LinkProblem as problem:
                # Dialling anew would only have it sent again.
                log.warning("A message of the panel can't be read", cause=str(problem))
                continue
            match message:
                case Certificate():
                    async with self.database.begin() as session:
                        await store.set_certificate(session, message.certificate)
                    log.info("The certificate for the panel was renewed")
                case Order():
                    await desk.take(message)
                case Cancel():
                    await desk.cancel(message)
                case Reported():
                    await desk.acknowledge(message)
                case Noted():
                    await noted(self.database, message)
                case _:
                    pass

    async def _beat(self, socket: ClientConnection, link: Any, welcome: Welcome, state: State) -> None:
        meter = await asyncio.to_thread(Meter, self.data_dir)
        seconds = min(max(welcome.heartbeat_seconds, 1.0), 3600.0)
        known = None if welcome.want_state else state.hash()
        from quazzar.instance.enrolment import keys  # noqa: PLC0415 - see there

        if keys.wants_renewal(link.certificate, datetime.now(UTC)):
            key = await asyncio.to_thread(keys.own_key, self.data_dir)
            await socket.send(pack(Renew(csr=keys.signing_request(key))))
        while True:
            wanted = self._wanted.is_set()
            self._wanted.clear()
            state = await self._state()
            found = state.hash()
            beat = Heartbeat(
                sent_at=datetime.now(UTC),
                state_hash=found,
                measured=await asyncio.to_thread(meter.measure),
                state=state if wanted or found != known else None,
            )
            await socket.send(pack(beat))
            known = found
            for deeds in await untold(self.database, link.instance_id):
                await socket.send(pack(deeds))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wanted.wait()

    async def _state(self) -> State:
        facts = await asyncio.to_thread(facts_of, self.data_dir, self.url)
        apps = await list_apps(self.database, _SELF, limit=MOST_APPS)
        shown = [
            AppFacts(id=app.id, name=app.name, status=app.status, template=app.template, version=app.version)
            for app in apps
        ]
        return State(facts=facts, apps=shown)
