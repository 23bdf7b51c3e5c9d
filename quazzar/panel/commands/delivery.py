"""Between commands and the sockets of this process: orders go out, reports come in, and rollouts are looked at in time.

Any number of processes do this at once. Which of them sends an order is decided by who holds the instance's socket,
which of them takes a step by the lock of the command's row; what one of them has in memory may be lost at any moment.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, assert_never

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.crypto import SealBroken
from quazzar.core.db import Database, Listener, see_all_tenants
from quazzar.core.envelope import is_database_away
from quazzar.core.jobs.signals import Signals
from quazzar.link.messages import CLOSE_MALFORMED, CLOSE_REFUSED, Cancel, Order, Report, Reported
from quazzar.link.orders import OrderActor, OrderBody
from quazzar.panel.commands import upkeep
from quazzar.panel.commands.engine import CHANNEL, advance
from quazzar.panel.commands.sealing import open_args
from quazzar.panel.commands.upkeep import Word
from quazzar.panel.fleet.hub import Closed, Socket
from quazzar.panel.fleet.process import Fleet

log = structlog.get_logger(__name__)

ORDER_LIFE: Final = timedelta(minutes=10)
"""How long an order may be on its way; it is signed anew each time that it is sent."""
MOST_OUTPUT_BYTES: Final = 64 * 1024
_POLL_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 1.0
_SEND_SECONDS: Final = 20.0
_AT_ONCE: Final = 500
_TRY_AGAIN_LATER: Final = 1013
_ORDER_ID: Final = re.compile(r"ord_[a-z2-7]{26}\Z")


class Delivery:
    """One per process that serves the panel; the hub tells it of its sockets (`Work`)."""

    def __init__(self, fleet: Fleet) -> None:
        self.signals = Signals()
        self._fleet = fleet
        self._database: Database = fleet.database
        self._listener = Listener(
            self._database, [CHANNEL], lambda _, command_id: self.signals.changed(command_id), self.signals.all_changed
        )
        self._wanted: set[str] = set()
        self._greeted: set[str] = set()
        self._look_for_overdue = True
        self._wake = asyncio.Event()
        self._reports: list[_Waiting] = []
        self._reported = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._listener.start()
        steps = (self._send_on, self._write_on, self._tick_on)
        self._tasks = [asyncio.create_task(_forever(step), name=f"commands {step.__name__}") for step in steps]

    async def stop(self) -> None:
        await self._listener.stop()
        ending = [*self._tasks, *self._sending]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    # --- what the hub tells --------------------------------------------------------------------------------------

    def told(self, instance_ids: Iterable[str]) -> None:
        """There may be orders for these, whose sockets are here."""
        self._wanted.update(instance_ids)
        self._wake.set()

    def greeted(self, instance_id: str) -> None:
        """It has opened a line: whatever is open for it is sent again, and rollouts that waited for it go on."""
        self._greeted.add(instance_id)
        self._wake.set()

    def gap(self) -> None:
        """Words may have been missed."""
        self._look_for_overdue = True
        self._wake.set()

    async def reported(self, socket: Socket, report: Report) -> None:
        """Write a report down, and tell the instance once that is durable. Raises `Closed` for an order that is not
        this instance's, and for a report that can't be written. Waits for as long as the database is away.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._reports.append(_Waiting(socket, report, done))
        self._reported.set()
        if not await done:
            raise Closed(CLOSE_REFUSED, "The order is of another instance")
        await socket.send(Reported(order_id=report.order_id, sequence=report.sequence))

    # --- orders --------------------------------------------------------------------------------------------------

    async def _send_on(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._wake.wait()
                # Those that come together are sent together.
                await asyncio.sleep(0)
        self._look_for_overdue |= not self._wake.is_set()
        self._wake.clear()
        await self.send()

    async def send(self) -> None:
        """Send what there is for the instances of this process that something was told of, or that are overdue."""
        greeted, self._greeted = self._greeted, set()
        wanted, self._wanted = self._wanted, set()
        overdue, self._look_for_overdue = self._look_for_overdue, False
        try:
            again = set(greeted)
            if overdue:
                async with self._all_tenants() as session:
                    again.update(await upkeep.find_overdue(session))
            here = [name for name in sorted(again | wanted) if self._socket(name) is not None]
            for start in range(0, len(here), _AT_ONCE):
                await self._send_some(here[start : start + _AT_ONCE], again)
        except BaseException:
            # Some may be marked as sent already, and a commit whose answer was lost may have marked more.
            self._greeted |= greeted | wanted
            self._look_for_overdue |= overdue
            raise

    async def _send_some(self, instance_ids: Sequence[str], again: Collection[str]) -> None:
        async with self._all_tenants() as session:
            found = await upkeep.find_open(session, instance_ids)
            if not found:
                return
            await upkeep.lock_commands(session, [row.command_id for row in found])
            for row in found:
                if row.waiting:
                    await advance(session, row.tenant_id, row.command_id)
            commands = [row.command_id for row in found]
            orders = await upkeep.mark_sent(session, commands, instance_ids, again)
            contents = await upkeep.find_contents(session, {row.command_id for row in orders})
        # Only what is marked as sent leaves: whoever looks later knows that it may have arrived.
        await self._send_orders(orders, {row.id: row for row in contents})

    def _socket(self, instance_id: str) -> Socket | None:
        """The line to an instance, if it is here and open; who is about to be welcomed is greeted then."""
        socket = self._fleet.hub.sockets.get(instance_id)
        return socket if socket is not None and socket.welcomed else None

    async def _send_orders(self, orders: Sequence[Any], contents: dict[str, Any]) -> None:
        authority = await self._fleet.authority()
        args: dict[str, Any] = {}
        for command_id, content in contents.items():
            try:
                args[command_id] = open_args(self._fleet.keyring, command_id, content.sealed_args)
            except SealBroken:
                log.error("The arguments of a command can't be opened: their key is gone", command_id=command_id)
        for row in orders:
            socket = self._socket(row.instance_id)
            if socket is None or row.command_id not in args:
                continue
            if row.cancelling:
                self._hand_over(socket, Cancel(order_id=row.order_id))
            else:
                body = _body(row, contents[row.command_id], args[row.command_id])
                self._hand_over(socket, authority.sign_order(body))

    def _hand_over(self, socket: Socket, message: Order | Cancel) -> None:
        """Each in a task of its own: nobody waits for an instance that takes nothing."""
        task = asyncio.create_task(_push(socket, message))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    # --- reports -------------------------------------------------------------------------------------------------

    async def _write_on(self) -> None:
        if not self._reports:
            self._reported.clear()
            await self._reported.wait()
        some = self._reports[:_AT_ONCE]
        await self._write(some)
        # Only now: while the database is away they stay the first in the line.
        del self._reports[: len(some)]

    async def _write(self, waiting: Sequence["_Waiting"]) -> None:
        try:
            own = await self.apply([(one.socket, one.report) for one in waiting])
        except Exception as error:
            if is_database_away(error):
                raise
            if len(waiting) > 1:
                # One that can't be written must not keep the others from it.
                for one in waiting:
                    await self._write([one])
                return
            log.error("A report can't be written", instance_id=waiting[0].socket.identity.instance_id, exc_info=error)
            waiting[0].end(Closed(CLOSE_MALFORMED, "The report can't be written"))
        else:
            for one, is_own in zip(waiting, own, strict=True):
                one.end(is_own)

    async def apply(self, reports: Sequence[tuple[Socket, Report]]) -> list[bool]:
        """Write reports down, of several about one order the newest, and carry their rollouts on. Gives of each whether
        it was the instance's own; one about an order that is not known any more is nobody's, and counts as such.
        """
        async with self._all_tenants() as session:
            ids = {report.order_id for _, report in reports if _ORDER_ID.match(report.order_id)}
            found = await upkeep.find_orders(session, ids)
            orders = {row.order_id: row for row in found}
            own = [_is_own(socket, orders.get(report.order_id)) for socket, report in reports]
            known = [
                _word(socket, report)
                for (socket, report), is_own in zip(reports, own, strict=True)
                if is_own and report.order_id in orders
            ]
            words = list({word.order_id: word for word in sorted(known, key=lambda word: word.sequence)}.values())
            tenants = {orders[word.order_id].command_id: orders[word.order_id].tenant_id for word in words}
            await upkeep.lock_commands(session, tenants)
            news = await upkeep.apply_words(session, words)
            await upkeep.mark_heard(session, [word.order_id for word in words if word.order_id not in news])
            for command_id in sorted({orders[order_id].command_id for order_id in news}):
                await advance(session, tenants[command_id], command_id)
        return own

    # --- time ----------------------------------------------------------------------------------------------------

    async def _tick_on(self) -> None:
        await asyncio.sleep(_TICK_SECONDS)
        await self.tick()

    async def tick(self) -> None:
        """Take the step of every command whose time has come: of its moment, its pause, its end."""
        async with self._all_tenants() as session:
            due = await upkeep.find_due(session, _AT_ONCE)
        for row in due:
            try:
                async with self._all_tenants() as session:
                    if await upkeep.claim(session, row.tenant_id, row.id):
                        await advance(session, row.tenant_id, row.id)
            except Exception as error:
                if is_database_away(error):
                    raise
                log.error("The rollout of a command is held up", command_id=row.id, exc_info=error)

    @contextlib.asynccontextmanager
    async def _all_tenants(self) -> AsyncIterator[AsyncSession]:
        async with self._database.begin() as session:
            await see_all_tenants(session)
            yield session


class _Waiting:
    """A report whose instance waits to hear that it is durable."""

    def __init__(self, socket: Socket, report: Report, done: "asyncio.Future[bool]") -> None:
        self.socket = socket
        self.report = report
        self.done = done

    def end(self, result: bool | Closed) -> None:
        """Nothing for a line that was given up meanwhile."""
        if self.done.done():
            return
        if isinstance(result, Closed):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


def _is_own(socket: Socket, order: Any) -> bool:
    identity = socket.identity
    return order is None or (order.instance_id, order.tenant_id) == (identity.instance_id, identity.tenant_id)


def _body(row: Any, content: Any, args: dict[str, Any]) -> OrderBody:
    return OrderBody(
        order_id=row.order_id,
        command_id=row.command_id,
        tenant_id=row.tenant_id,
        instance_id=row.instance_id,
        kind=content.kind,
        args=args,
        actor=OrderActor(user_id=content.created_by, name=content.actor_name[:200]),
        issued_at=content.now,
        expires_at=min(content.expires_at, content.now + ORDER_LIFE),
    )


async def _push(socket: Socket, message: Order | Cancel) -> None:
    """An instance that takes nothing is cut: it comes again, and hears again what is open."""
    try:
        async with asyncio.timeout(_SEND_SECONDS):
            await socket.send(message)
    except TimeoutError:
        socket.end(_TRY_AGAIN_LATER, "The instance takes nothing")
    except Exception as error:  # noqa: BLE001 - a line that breaks meanwhile; what was sent is sent again on the next
        log.debug("An order did not leave", instance_id=socket.identity.instance_id, cause=type(error).__name__)


def _word(socket: Socket, report: Report) -> Word:
    status, error_code = _status_of(report)
    return Word(
        order_id=report.order_id,
        # The link allows one more than the column holds.
        sequence=min(report.sequence, 2**31 - 1),
        status=status,
        begun=report.status in ("running", "completed", "failed"),
        at=_moment(report.at, socket.skew_seconds),
        progress=report.progress,
        step=_text(report.step),
        output=_cut(_text(report.output)),
        error=_text(report.error),
        error_code=error_code,
    )


def _status_of(report: Report) -> tuple[str, str | None]:
    """The unit's status; an order that is taken and not begun is still pending."""
    code = _text(report.error_code)
    match report.status:
        case "taken":
            return "pending", code
        case "refused":
            return "failed", code or "refused"
        case "running" | "completed" | "failed" | "cancelled" | "expired":
            return report.status, code
        case _:
            assert_never(report.status)


def _moment(at: datetime, skew_seconds: float) -> datetime:
    """By the panel's clock. What no calendar holds is now."""
    try:
        return at.astimezone(UTC) - timedelta(seconds=skew_seconds)
    except OverflowError:
        return datetime.now(UTC)


def _text(value: str | None) -> str | None:
    """Without the one character that PostgreSQL has no place for."""
    return value.replace("\x00", "") if value is not None else None


def _cut(output: str | None) -> str | None:
    """The end of what is too long: that is where an error stands."""
    if output is None or len(output.encode()) <= MOST_OUTPUT_BYTES:
        return output
    return output.encode()[-MOST_OUTPUT_BYTES:].decode(errors="ignore")


async def _forever(step: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await step()
        except Exception as error:  # noqa: BLE001 - the database is away for a moment; what was to be done is kept
            log.warning("Commands are held up", cause=type(error).__name__)
            await asyncio.sleep(1)
