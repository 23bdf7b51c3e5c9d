"""The beginning of an order, and the upkeep of those that are long over."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.errors import AppError, Unavailable
from quazzar.core.jobs import JobRun, Resource, enqueued, job, schedule
from quazzar.core.records import Caller, Outcome, audit
from quazzar.instance.apps.service import AppService
from quazzar.instance.apps.work import KEYRING, SETTINGS
from quazzar.instance.orders import store
from quazzar.instance.orders.kinds import Means, carry_out
from quazzar.instance.orders.reports import sentence
from quazzar.link.commands import check_args

TELL_STATE: Resource[Callable[[], None]] = Resource("line to the panel")

KEPT_DAYS: Final = 7
"""For how long an order that has ended, and that has expired, is still known when it arrives again."""
_BATCH: Final = 1_000
_SCOPES: Final = frozenset({"apps:read", "apps:operate", "apps:deploy", "apps:write"})


# One at a time: two orders for the same app are begun in the order of their arrival.
@job("orders.run", concurrency=1, timeout_seconds=60)
async def run_order(run: JobRun, order_id: str) -> None:
    """What the order asks for, and that it is begun, are one transaction: killed before its commit nothing was done,
    killed after it the job that the order names does the work, and none is made again.
    """
    try:
        async with run.database.begin() as session:
            await _begin(run, session, order_id)
    except Unavailable:
        raise
    except AppError as refusal:
        await _fail(run, order_id, refusal.code, sentence(refusal))
    except SealBroken:
        await _fail(run, order_id, "secret_lost", "The key that the order's arguments were sealed with is gone")


async def _begin(run: JobRun, session: AsyncSession, order_id: str) -> None:
    order = await store.lock_order(session, order_id)
    if order is None or order.status != "taken":
        run.log("Nothing to do: the order is begun, or has ended")
        return
    assert order.begin_by is not None
    if datetime.now(UTC) >= order.begin_by:
        await store.end_order(session, order_id, "expired", of="taken", error=LATE, error_code="expired")
        record(session, order, outcome="refused", error_code="expired")
        return
    assert order.kind is not None
    assert order.sealed_args is not None
    assert order.user_id is not None
    me = Principal(realm="instance", user_id=order.user_id, client="panel", scopes=_SCOPES)
    session.info["caller"] = caller_of(order.user_id)
    keyring = run.resources[KEYRING]
    apps = AppService(session, me, keyring=keyring, settings=run.resources[SETTINGS])
    args = check_args(order.kind, open_args(keyring, order_id, order.sealed_args))
    await carry_out(Means(apps, run.resources[TELL_STATE]), order.kind, args)
    record(session, order, outcome="done")
    for job_id in enqueued(session):
        await store.begin_order(session, order_id, job_id)
        return
    await store.end_order(session, order_id, "completed", of="taken", progress=100)


async def _fail(run: JobRun, order_id: str, code: str, text: str) -> None:
    async with run.database.begin() as session:
        order = await store.lock_order(session, order_id)
        if order is not None and await store.end_order(
            session, order_id, "failed", of="taken", error=text, error_code=code
        ):
            record(session, order, outcome="failed", error_code=code)
            run.log(text)


LATE: Final = "The order came too late to be begun"


def caller_of(user_id: str | None) -> Caller:
    """Orders are recorded as done by the user of the panel."""
    return Caller(kind="panel", id=user_id)


def record(session: AsyncSession, order: Any, *, outcome: Outcome, **after: str) -> None:
    """What became of an order, in the audit log of this server; `order` has at least what the log shows of it."""
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
