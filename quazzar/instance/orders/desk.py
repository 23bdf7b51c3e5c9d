"""The orders of one line: what comes in is written down before anything is done, what is to be told goes out until the
panel has it.

Each of its verbs is a short transaction of its own. One that fails because the database is away ends the line; the
panel sends again what was not reported to it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.instance.orders.clock import PanelClock
from quazzar.instance.orders.service import MOST_SEQUENCE, OrderService, Panel, Refusal, is_id
from quazzar.link.messages import Cancel, LinkProblem, Order, Report, Reported
from quazzar.link.orders import OrderBody, OrderForged, claimed_id, open_order

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 0.5
"""How often the jobs of orders that have not ended are looked at."""
MOST_ON_THE_WAY: Final = 16
"""So many reports are sent before the panel has acknowledged the first of them, so that heartbeats get their turn."""

_MALFORMED: Final = Refusal("refused", "order_malformed", "The order can't be read")
_FORGED: Final = "The order is not signed by the panel that this server belongs to"


class OrderDesk:
    """`holds` says in a transaction whether the server still belongs to the panel, and keeps it so to its end;
    `on_ended` is called when orders have ended, and what the panel shows of this server may have changed.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        panel: Panel,
        clock: PanelClock,
        *,
        holds: Callable[[AsyncSession], Awaitable[bool]],
        on_ended: Callable[[], None],
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._panel = panel
        self._clock = clock
        self._holds = holds
        self._on_ended = on_ended
        self._wake = asyncio.Event()
        self._asked: set[str] = set()
        self._turned_away: dict[str, Report] = {}
        self._has_warned = False

    async def take(self, message: Order) -> None:
        """Write an order down and have it begun, or refuse it; one that is known is answered with its last report."""
        order_id = claimed_id(message)
        if order_id is None or not is_id(order_id):
            log.warning("An order of the panel can't be read")
            return
        try:
            body: OrderBody | None = _checked(open_order(message, self._panel.signing_key))
        except OrderForged:
            await self._turn_away(order_id)
            return
        except LinkProblem:
            body = None
        async with self._database.begin() as session:
            # One that comes while the server leaves its panel must not begin afterwards.
            if not await self._holds(session):
                return
            orders = OrderService(session, self._keyring)
            if body is None:
                await orders.refuse(order_id, _MALFORMED)
            else:
                await orders.take(self._panel, body, self._clock.now())
        self._answer(order_id)

    async def _turn_away(self, order_id: str) -> None:
        """Not written down: whoever can make up an order must not spoil the id of a real one."""
        if not self._has_warned:
            log.warning("The line brings orders that the panel has not signed", order_id=order_id)
            self._has_warned = True
        async with self._database.begin() as session:
            known = await OrderService(session, self._keyring).is_known(order_id)
        if not known and len(self._turned_away) < MOST_ON_THE_WAY:
            self._turned_away[order_id] = Report(
                order_id=order_id,
                sequence=1,
                status="refused",
                at=datetime.now(UTC),
                error=_FORGED,
                error_code="signature_invalid",
            )
        self._answer(order_id)

    async def cancel(self, message: Cancel) -> None:
        if not is_id(message.order_id):
            return
        async with self._database.begin() as session:
            if await self._holds(session):
                await OrderService(session, self._keyring).cancel(message.order_id)
        self._answer(message.order_id)

    async def acknowledge(self, message: Reported) -> None:
        if not is_id(message.order_id) or not 1 <= message.sequence <= MOST_SEQUENCE:
            return
        async with self._database.begin() as session:
            await OrderService(session, self._keyring).acknowledge(message.order_id, message.sequence)
        self._wake.set()

    def _answer(self, order_id: str) -> None:
        self._asked.add(order_id)
        self._wake.set()

    async def report(self, send: Callable[[Report], Awaitable[None]]) -> None:
        """Send reports, oldest first, for as long as the line stands. What the panel has not acknowledged when it
        breaks is sent on the next one.
        """
        sent: dict[str, int] = {}
        unended = 0
        while True:
            self._wake.clear()
            asked, self._asked = self._asked, set()
            refused, self._turned_away = self._turned_away, {}
            async with self._database.begin() as session:
                orders = OrderService(session, self._keyring)
                left = await orders.settle()
                fresh = await orders.unreported(limit=MOST_ON_THE_WAY)
                again = await orders.last_reports(asked)
            new = [one for one in fresh if sent.get(one.order_id) != one.sequence and one.order_id not in asked]
            sent = {one.order_id: one.sequence for one in fresh}
            for one in (*refused.values(), *again, *new):
                await send(one)
            if left < unended:
                self._on_ended()
            unended = left
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if left else None):
                    await self._wake.wait()


def _checked(body: OrderBody) -> OrderBody:
    """Raises `LinkProblem` for what decodes and can still not be written down."""
    try:
        body.expires_at.astimezone(UTC)
        body.issued_at.astimezone(UTC)
    except OverflowError:
        raise LinkProblem("An order has a time of no year in UTC") from None
    if not (is_id(body.command_id) and is_id(body.actor.user_id)):
        raise LinkProblem("An order has an id that is none")
    return body
