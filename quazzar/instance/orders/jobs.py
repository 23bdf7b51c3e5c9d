"""The beginning of an order, and the upkeep of those that are long over."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.errors import AppError, Unavailable
from quazzar.core.jobs import KEYRING, SETTINGS, JobRun, Resource, enqueued, job, schedule
from quazzar.core.records import Caller, Outcome, audit
from quazzar.instance.apps.room import MachineWatch
from quazzar.instance.apps.service import AppService
from quazzar.instance.orders import store
from quazzar.instance.orders.kinds import Means, carry_out
from quazzar.instance.orders.reports import sentence
from quazzar.link.commands import check_args

TELL_STATE: Resource[Callable[[], None]] = Resource("line to the panel")
MACHINE: Resource[MachineWatch] = Resource("knowledge of the machine")

KEPT_DAYS: Final = 7
"""For how long an order that has ended, and that has expired, is still known when it arrives again."""
_BATCH: Final = 1_000
_SCOPES: Final = frozenset({"apps:read", "apps:operate", "apps:deploy", "apps:write"})


class _Overtaken(Exception):
    """The order is not to be begun any more; what was done for it is rolled back."""


# One at a time: two orders for the same app are begun in the order of their arrival.
@job("orders.run", concurrency=1, timeout_seconds=60)
async def run_order(run: JobRun, order_id: str) -> None:
    """What the order asks for, and that it is begun, are one transaction: killed before its commit nothing was done,
    killed after it the job that the order names does the work, and none is made again.
    """
    async with run.database.begin() as session:
        order = await store.get_order(session, order_id)
    if order is None or order.status != "taken":
        run.log("Nothing to do: the order is begun, or has ended")
        return
    assert order.begin_by is not None
    if datetime.now(UTC) >= order.begin_by:
        await _end(run, order, "expired", "expired", LATE)
        return
    try:
        async with run.database.begin() as session:
            await _begin(run, session, order)
    except _Overtaken:
        run.log("Nothing to do: the order was cancelled")
    except Unavailable:
        raise
    except AppError as refusal:
        await _end(run, order, "failed", refusal.code, sentence(refusal))
    except SealBroken:
        await _end(run, order, "failed", "secret_lost", "The key that the order's arguments were sealed with is gone")


async def _begin(run: JobRun, session: AsyncSession, order: store.Told) -> None:
    assert order.kind is not None
    assert order.sealed_args is not None
    assert order.user_id is not None
    me = Principal(realm="instance", user_id=order.user_id, client="panel", scopes=_SCOPES)
    session.info["caller"] = caller_of(order.user_id)
    keyring = run.resources[KEYRING]
    # What there is no room for is refused to a panel as it is to a user.
    machine = run.resources.get(MACHINE)
    apps = AppService(session, me, keyring=keyring, settings=run.resources[SETTINGS], machine=machine)
    args = check_args(order.kind, open_args(keyring, order.order_id, order.sealed_args))
    await carry_out(Means(apps, run.resources[TELL_STATE]), order.kind, args)
    record(session, order, outcome="done")
    # Only now the order's row is locked: its reports and its cancellation don't wait for locks of apps.
    begun = [await store.begin_order(session, order.order_id, job_id) for job_id in enqueued(session)]
    if not all(begun or [await store.end_order(session, order.order_id, "completed", of="taken", progress=100)]):
        raise _Overtaken


async def _end(run: JobRun, order: store.Told, status: store.Ended, code: str, text: str) -> None:
    async with run.database.begin() as session:
        if await store.end_order(session, order.order_id, status, of="taken", error=text, error_code=code):
            record(session, order, outcome="refused" if status == "expired" else "failed", error_code=code)
            run.log(text)


LATE: Final = "The order came too late to be begun"


def caller_of(user_id: str | None) -> Caller:
    """Orders are recorded as done by the user of the panel."""
    return Caller(kind="panel", id=user_id)


def record(session: AsyncSession, order: store.Told, *, outcome: Outcome, **after: str) -> None:
    """What became of an order, in the audit log of this server."""
    shown = {"kind": order.kind, "command_id": order.command_id, "user": order.user_name}
    audit(
        session,
        "panel_order.run",
        subject=order.order_id,
        after=shown | after,
        outcome=outcome,
        caller=caller_of(order.user_id),
    )


def seal_args(keyring: Keyring, order_id: str, args: object) -> bytes:
    """Arguments may hold passwords."""
    return keyring.seal(msgspec.msgpack.encode(args), context=_place(order_id))


def open_args(keyring: Keyring, order_id: str, sealed: bytes) -> object:
    """Raises `SealBroken`."""
    return msgspec.msgpack.decode(keyring.open(sealed, context=_place(order_id)))


def _place(order_id: str) -> str:
    return f"panel_orders.sealed_args {order_id}"


@schedule("37 3 * * *")
@job("orders.prune", concurrency=1)
async def prune(run: JobRun) -> None:
    """Forget orders that ended a week ago, once the panel knows of it and they would be too late in any case."""
    removed = _BATCH
    while removed == _BATCH:
        async with run.begin() as session:
            removed = await store.prune(session, days=KEPT_DAYS, limit=_BATCH)
