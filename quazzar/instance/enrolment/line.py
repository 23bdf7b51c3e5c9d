"""The line from an instance to its panel: dialled, kept, dialled again with full jitter, and ended."""

import asyncio
import contextlib
import random
import ssl
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus, WebSocketException

from quazzar import __version__
from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring, write_private
from quazzar.core.db import Database
from quazzar.instance.apps.service import list_apps
from quazzar.instance.apps.usage import Usage
from quazzar.instance.enrolment import store
from quazzar.instance.enrolment.dialling import KEY_FILE, is_local, places, trusting
from quazzar.instance.enrolment.measuring import facts_of
from quazzar.instance.enrolment.recording import Recorder
from quazzar.instance.enrolment.spool import Spool
from quazzar.instance.impersonation.telling import noted, untold
from quazzar.instance.orders.clock import PanelClock
from quazzar.instance.orders.desk import OrderDesk
from quazzar.instance.orders.service import Panel, cancel_pending
from quazzar.link.messages import (
    CLOSE_MALFORMED,
    CLOSE_REVOKED,
    MOST_APPS,
    MOST_FRAME_BYTES,
    PROTOCOL,
    AppFacts,
    Cancel,
    Certificate,
    Heartbeat,
    Hello,
    Kept,
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
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
OPEN_SECONDS: Final = 20.0
_ASK_AGAIN: Final = timedelta(hours=1)
"""For so long an answer to the wish for a new certificate is waited for."""
_SELF = Principal(realm="instance", user_id="panel", client="panel", scopes=frozenset({"apps:read"}))


class Line:
    """One per process that serves an instance, in `app.state.panel_line`."""

    def __init__(
        self, database: Database, data_dir: Path, keyring: Keyring, usage: Usage, *, url: str | None = None
    ) -> None:
        self.database = database
        self.data_dir = data_dir
        self.url = url
        self._keyring = keyring
        self.spool = Spool(database)
        self.recorder = Recorder(data_dir, usage, self.spool)
        self.connected = False
        self.clock = PanelClock(None)
        self.error: str | None = None
        self._renew_at = datetime.max.replace(tzinfo=UTC)
        self._wake = asyncio.Event()
        self._wanted = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._linked_as: str | None = None
        # There is a panel, and no line to it.
        self._cut_off = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._keep(), name="panel-line"),
            asyncio.create_task(self._record(), name="panel-line-record"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
        pause = FIRST_PAUSE
        while True:
            self._wake.clear()
            refused = False
            try:
                link = await self._link()
                self._linked_as = None if link is None else link.instance_id
                if link is None:
                    self._cut_off.clear()
                    self.error = None
                    await self._wake.wait()
                    continue
                self._cut_off.set()
                if await self._anywhere(link):
                    pause = FIRST_PAUSE
            except InvalidStatus as error:
                refused = error.response.status_code in (401, 403)
                self.error = "The panel does not know this server any more" if refused else "The panel is not ready"
                if refused:
                    await self._settle(CLOSE_REVOKED)
            except (OSError, WebSocketException, TimeoutError, LinkProblem) as error:
                self.error = f"The panel can't be reached ({type(error).__name__})"
            except Exception as error:
                self.error = "The line to the panel broke off by a fault of its own"
                log.warning("The line to the panel failed", exc_info=error)
            log.info("No line to the panel", reason=self.error)
            # Full jitter: however many lost the same panel at once, they come back spread over the whole pause.
            await self._rest(LONGEST_PAUSE if refused else random.uniform(0, pause))  # noqa: S311 - no secret
            pause = min(LONGEST_PAUSE, pause * 2)

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
        code: int | None = None
        try:
            async with connect(
                f"wss://{host}:{port}/agent/connect",
                ssl=context,
                compression=None,
                max_size=MOST_FRAME_BYTES,
                open_timeout=OPEN_SECONDS,
                proxy=None if is_local(name) else True,
            ) as socket:
                self._socket = socket
                welcome, state = await self._greet(socket, link)
                greeted = self.connected = True
                self._cut_off.clear()
                self.error = None
                log.info("The line to the panel is open", panel=link.panel_url)
                await self._speak(socket, link, welcome, state, self._desk(socket, link))
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else None
            self.error = closed.rcvd.reason if closed.rcvd is not None else "The line to the panel was cut"
            if code == CLOSE_REVOKED:
                greeted = False
        finally:
            self.connected = False
            self._cut_off.set()
            self.clock = PanelClock(None)
            self._socket = None
            await self._settle(code)
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

    async def _settle(self, code: int | None) -> None:
        """A line has ended with this code: what may not have come through is kept, and for whoever has revoked this
        server nothing is.
        """
        with contextlib.suppress(SQLAlchemyError, OSError):
            if code == CLOSE_REVOKED:
                await self._revoked()
                self.recorder.forget()
                await self.spool.clear()
            elif self._linked_as is not None:
                await self.spool.cut(malformed=code == CLOSE_MALFORMED)
                await self.recorder.cut(self._linked_as)

    async def _record(self) -> None:
        """Measure while there is no line, as often as there would be a heartbeat; without a panel never."""
        while True:
            await self._cut_off.wait()
            await self.recorder.rest()
            if self._linked_as is None or not self._cut_off.is_set() or self.recorder.due_in > 0:
                continue
            try:
                await self.recorder.keep(self._linked_as)
            except Exception as error:  # noqa: BLE001 - the next measurement may be kept again
                log.debug("What was measured could not be kept", cause=type(error).__name__)

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
        async with asyncio.timeout(OPEN_SECONDS):
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
            self._listen(socket, link, desk),
            self._beat(socket, link, welcome, state),
            desk.report(send),
            self.spool.deliver(link.instance_id, send),
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

    async def _listen(self, socket: ClientConnection, link: Any, desk: OrderDesk) -> None:
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
                    await self._renewed(link, message)
                case Order():
                    await desk.take(message)
                case Cancel():
                    await desk.cancel(message)
                case Reported():
                    await desk.acknowledge(message)
                case Kept():
                    self.spool.kept(message.batch)
                case Noted():
                    await noted(self.database, message)
                case _:
                    pass

    async def _renewed(self, link: Any, message: Certificate) -> None:
        """Keep the new certificate, if it is one that the next line can be opened with."""
        from quazzar.instance.enrolment import keys  # noqa: PLC0415 - see there

        key = await asyncio.to_thread(keys.own_key, self.data_dir)
        if not keys.opens_lines(message.certificate, link.ca_certificate, key):
            log.warning("The panel has sent a certificate that is not one for this server")
            return
        async with self.database.begin() as session:
            await store.set_certificate(session, message.certificate)
        self._renew_at = keys.renewal_at(message.certificate)
        log.info("The certificate for the panel was renewed")

    async def _beat(self, socket: ClientConnection, link: Any, welcome: Welcome, state: State) -> None:
        seconds = self.recorder.seconds = min(max(welcome.heartbeat_seconds, 1.0), 3600.0)
        known = None if welcome.want_state else state.hash()
        from quazzar.instance.enrolment import keys  # noqa: PLC0415 - see there

        self._renew_at = keys.renewal_at(link.certificate)
        # The second comes at any time, so that those who came back together are not heard together for ever.
        pause = random.uniform(0, seconds)  # noqa: S311 - no secret
        while True:
            # A line may last longer than its certificate.
            if datetime.now(UTC) >= self._renew_at:
                self._renew_at = datetime.now(UTC) + _ASK_AGAIN
                key = await asyncio.to_thread(keys.own_key, self.data_dir)
                await socket.send(pack(Renew(csr=keys.signing_request(key))))
            wanted = self._wanted.is_set()
            self._wanted.clear()
            state = await self._state()
            found = state.hash()
            sample = await self.recorder.measure()
            beat = Heartbeat(
                sent_at=sample.at,
                state_hash=found,
                measured=sample.measured,
                app_measured=sample.apps,
                state=state if wanted or found != known else None,
            )
            self.recorder.sending(sample)
            await socket.send(pack(beat))
            known = found
            for deeds in await untold(self.database, link.instance_id):
                await socket.send(pack(deeds))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
            pause = seconds

    async def _state(self) -> State:
        facts = await asyncio.to_thread(facts_of, self.data_dir, self.url)
        apps = await list_apps(self.database, _SELF, limit=MOST_APPS)
        shown = [
            AppFacts(id=app.id, name=app.name, status=app.status, template=app.template, version=app.version)
            for app in apps
        ]
        return State(facts=facts, apps=shown)
