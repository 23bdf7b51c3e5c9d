"""The rules of orders: which are taken, what becomes of them, and what the panel is told."""

import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.crypto import Keyring
from quazzar.core.errors import Invalid
from quazzar.core.jobs import cancel, enqueue
from quazzar.core.jobs.run import clean_line
from quazzar.core.records import audit
from quazzar.core.schema import In
from quazzar.instance.orders import jobs, store
from quazzar.instance.orders.jobs import LATE, caller_of, open_args, record, seal_args
from quazzar.instance.orders.kinds import CARRIED_OUT
from quazzar.instance.orders.reports import output_of, sentence
from quazzar.instance.orders.store import Standing, Unreported
from quazzar.link.commands import check_args
from quazzar.link.messages import Report
from quazzar.link.orders import OrderBody

MOST_SEQUENCE: Final = 2**31 - 1

_ID: Final = re.compile(r"[\x21-\x7e]{1,64}\Z")
_LONGEST: Final = timedelta(days=366)
_LOG_LINES: Final = 1_000
_LEFT: Final = "This server has left the panel"
_REVOKED: Final = "The panel has revoked this server"
_UNKNOWN_END: Final = "What became of the order can't be known; it is not run again"


class Panel(msgspec.Struct, frozen=True):
    """Whose orders count, and for whom they must be; `signing_key` is a raw Ed25519 key."""

    instance_id: str
    tenant_id: str
    signing_key: bytes


class Refusal(msgspec.Struct, frozen=True):
    status: Literal["refused", "expired"]
    code: str
    text: str


_FOREIGN: Final = Refusal("refused", "not_addressed", "The order is for another server")


def is_id(text: str) -> bool:
    """Whether an order, command or user may be called so: what else comes is not written down."""
    return _ID.match(text) is not None


class OrderService:
    """One per transaction."""

    def __init__(self, session: AsyncSession, keyring: Keyring) -> None:
        self.session = session
        self.keyring = keyring

    async def take(self, panel: Panel, body: OrderBody, now: datetime) -> None:
        """Write an order down that the panel has signed, and have it begun, or write down why it is refused. Nothing
        changes for one that is known. `now` is the time by the panel's clock, which `expires_at` is of.
        """
        args = self._judge(panel, body, now)
        if isinstance(args, Refusal):
            # Of another server's order the panel hears when it comes, and not again on each line: it may not like it.
            told = {"acknowledged": 1} if args is _FOREIGN else {}
            await self.refuse(body.order_id, args, **_described(body), **told)
            return
        fresh = await store.add_order(
            self.session,
            body.order_id,
            status="taken",
            sealed_args=seal_args(self.keyring, body.order_id, args),
            begin_by=datetime.now(UTC) + min(_left(body, now), _LONGEST),
            **_described(body),
        )
        if fresh:
            self.session.info["caller"] = caller_of(body.actor.user_id)
            job_id = await enqueue(self.session, jobs.run_order, subject=body.order_id, order_id=body.order_id)
            await store.set_job(self.session, body.order_id, job_id)

    async def refuse(self, order_id: str, refusal: Refusal, **described: Any) -> None:
        """Write an order down that is not begun, so that it is judged once; nothing changes for one that is known."""
        fresh = await store.add_order(
            self.session,
            order_id,
            status=refusal.status,
            error=refusal.text,
            error_code=refusal.code,
            finished_at=func.clock_timestamp(),
            **described,
        )
        if fresh:
            order = await store.get_order(self.session, order_id)
            assert order is not None
            record(self.session, order, outcome="refused", error_code=refusal.code)

    async def is_known(self, order_id: str) -> bool:
        return await store.get_order(self.session, order_id) is not None

    async def cancel(self, order_id: str) -> None:
        """Have an order not begin, or its work stop; the last report tells when that is so. One that never came is
        written down as cancelled, so that it does not begin when it comes yet.
        """
        order = await store.lock_order(self.session, order_id)
        if order is None:
            values = {"status": "cancelled", "error_code": "order_unknown", "finished_at": func.clock_timestamp()}
            await store.add_order(
                self.session, order_id, error="The order had not come when it was cancelled", **values
            )
        elif order.status in ("taken", "running"):
            await store.end_order(self.session, order_id, "cancelled", of="taken")
            if order.job_id is not None:
                await cancel(self.session, order.job_id)
            audit(self.session, "panel_order.cancel", subject=order_id, caller=caller_of(None))

    async def settle(self) -> int:
        """Follow the jobs of all orders that have not ended; gives how many of them still have not."""
        standing = await store.find_open(self.session)
        return len(standing) - sum([await self._settle(order) for order in standing])

    async def _settle(self, order: Standing) -> bool:
        """Whether the order has ended."""
        running = order.status == "running"
        match order.job_status:
            case "queued":
                return False
            case "running":
                if running:
                    await self._follow(order)
                return False
            case "completed" if running:
                return await self._end(order, "completed", progress=100)
            case "failed" if running:
                return await self._end(order, "failed", error=order.job_error, error_code="operation_failed")
            case "failed":
                return await self._end(order, "failed", error=order.job_error, error_code="internal_error")
            case "cancelled":
                return await self._end(order, "cancelled", error=order.job_error)
            case _:
                return await self._end(order, "failed", error=_UNKNOWN_END, error_code="interrupted")

    async def _follow(self, order: Standing) -> None:
        progress = round((order.job_progress or 0) * 100)
        if order.is_told and (progress, order.job_step) != (order.progress, order.step):
            await store.note_progress(self.session, order.order_id, progress=progress, step=order.job_step)

    async def _end(self, order: Standing, status: store.Ended, **values: Any) -> bool:
        output = None
        if order.job_id is not None and order.status == "running":
            output = output_of(await store.last_lines(self.session, order.job_id, limit=_LOG_LINES))
        return await store.end_order(
            self.session,
            order.order_id,
            status,
            of=order.status,
            at=order.job_finished_at,
            step=order.job_step,
            output=output,
            **values,
        )

    async def unreported(self, *, limit: int) -> Sequence[Report]:
        """The last reports that the panel does not have yet, oldest first."""
        return [_report_of(row) for row in await store.find_unreported(self.session, limit=limit)]

    async def last_reports(self, order_ids: Collection[str]) -> Sequence[Report]:
        """The last reports of these orders, whether the panel has them or not."""
        return [_report_of(row) for row in await store.find_reports(self.session, order_ids)]

    async def acknowledge(self, order_id: str, sequence: int) -> None:
        await store.acknowledge(self.session, order_id, sequence)

    def _judge(self, panel: Panel, body: OrderBody, now: datetime) -> In | Refusal:
        """The checked arguments, or why the order is not taken."""
        if (body.instance_id, body.tenant_id) != (panel.instance_id, panel.tenant_id):
            return _FOREIGN
        if body.kind not in CARRIED_OUT:
            return Refusal("refused", "kind_unsupported", "This server does not know this kind of order")
        if _left(body, now) <= timedelta():
            return Refusal("expired", "expired", LATE)
        try:
            return check_args(body.kind, body.args)
        except Invalid as problem:
            return Refusal("refused", problem.code, sentence(problem))


async def cancel_pending(session: AsyncSession) -> None:
    """For a server that was revoked: what the panel has ordered and has not begun never begins."""
    await _cancel_pending(session, _REVOKED)


async def forget_panel(session: AsyncSession) -> None:
    """For a server that leaves its panel or joins another: what has not begun never begins, what runs goes on to its
    end, and nobody is told of either.
    """
    await _cancel_pending(session, _LEFT)
    for order in await store.find_open(session):
        await store.end_order(session, order.order_id, "cancelled", of=order.status, error=_LEFT)
    await store.tell_nobody(session)


async def _cancel_pending(session: AsyncSession, reason: str) -> None:
    for order in await store.find_open(session):
        if order.status == "running" and order.job_status != "queued":
            continue
        await store.lock_order(session, order.order_id)
        cancelled = order.job_id is not None and await cancel(session, order.job_id)
        # The job of an uninstall can't be taken back, once it waits for its turn.
        if cancelled or order.status == "taken":
            await store.end_order(session, order.order_id, "cancelled", of=order.status, error=reason)


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal the arguments of waiting orders anew under the ring's current key; gives how many. Raises `SealBroken`."""
    rows = await store.find_sealed(session)
    for order_id, sealed in rows:
        await store.replace_sealed(
            session, order_id, seal_args(keyring, order_id, open_args(keyring, order_id, sealed))
        )
    return len(rows)


def _left(body: OrderBody, now: datetime) -> timedelta:
    """How long the order may still be begun. It was issued before it came, whatever clocks say."""
    return body.expires_at - max(now, body.issued_at)


def _described(body: OrderBody) -> dict[str, Any]:
    return {
        "command_id": body.command_id,
        "kind": clean_line(body.kind),
        "user_id": body.actor.user_id,
        "user_name": clean_line(body.actor.name),
        "expires_at": body.expires_at,
    }


def _report_of(row: Unreported) -> Report:
    values = {name: getattr(row, name) for name in Unreported.__struct_fields__}
    return Report(at=values.pop("reported_at"), **values)
