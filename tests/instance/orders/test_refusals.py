"""Orders that are not begun: each is answered once and for all, and the line goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from quazzar.core.ids import new_id
from quazzar.link.messages import Cancel, Order, Report, Reported, pack
from quazzar.link.orders import OrderActor, sign_order
from tests.conftest import RunningApp
from tests.factories.apps import add_one, audited, engine_of, install, show, unique
from tests.factories.fake_panel import FakePanel
from tests.instance.orders.conftest import join, named, nothing_begins


async def rows(app: RunningApp) -> dict[str, Any]:
    async with app.database.begin() as session:
        found = await session.execute(text("SELECT order_id, status, error_code, job_id FROM panel_orders"))
        return {row.order_id: row for row in found}


@asynccontextmanager
async def unharmed(panel: FakePanel) -> AsyncIterator[None]:
    """The line is the same after the block, and an order on it is carried out."""
    lines = panel.lines
    yield
    assert (await panel.end_of(await panel.order("instance.refresh", {}))).status == "completed"
    assert panel.lines == lines


async def refused(app: RunningApp, panel: FakePanel, order_id: str, order: Order, status: str, code: str) -> Report:
    """The answer to an order, which is the same however often it comes."""
    await panel.send(order)
    end = await panel.end_of(order_id)
    assert (end.status, end.error_code, end.sequence) == (status, code, 1)
    assert end.error
    for _ in range(3):
        before = len(panel.of(order_id))
        await panel.send(order)
        await panel.until(lambda: len(panel.of(order_id)) > before)  # noqa: B023 - waited for at once
    assert {(one.status, one.sequence, one.at) for one in panel.of(order_id)} == {(status, 1, end.at)}
    return end


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"instance_id": new_id("inst")}, "refused", "not_addressed"),
        ({"tenant_id": new_id("ten")}, "refused", "not_addressed"),
        ({"kind": "backup.run"}, "refused", "kind_unsupported"),
        ({"kind": "system.reboot"}, "refused", "kind_unsupported"),
        ({"kind": "sh"}, "refused", "kind_unsupported"),
        ({"kind": "\0\n\x1b[31m"}, "refused", "kind_unsupported"),
        ({"kind": ""}, "refused", "kind_unsupported"),
        ({"args": {"app": "a;id"}}, "refused", "validation_failed"),
        ({"args": {"app": "0f3b2c1d4e5f"}}, "refused", "validation_failed"),
        ({"args": {"app": "0f3b" * 16}}, "refused", "validation_failed"),
        ({"args": {"app": float("nan")}}, "refused", "validation_failed"),
        ({"args": {"app": "x", "force": True}}, "refused", "validation_failed"),
        ({"args": {}}, "refused", "validation_failed"),
        ({"actor": OrderActor(user_id="", name="x")}, "refused", "order_malformed"),
        ({"actor": OrderActor(user_id="a\0", name="x")}, "refused", "order_malformed"),
        ({"command_id": "a b"}, "refused", "order_malformed"),
    ],
)
async def test_an_order_that_is_not_one(
    changed: dict[str, Any], status: str, code: str, app: RunningApp, panel: FakePanel
) -> None:
    values = {"kind": "app.stop", "args": {"app": "x"}} | changed
    order_id, order = panel.signed(**values)
    async with unharmed(panel):
        await refused(app, panel, order_id, order, status, code)
    known = await rows(app)
    assert (known[order_id].status, known[order_id].job_id) == (status, None)
    assert [(action, kind) for action, kind, _ in await audited(app, order_id)] == [("panel_order.run", "panel")]


async def test_another_server_s_order_is_answered_when_it_comes_and_not_on_every_line(panel: FakePanel) -> None:
    panel.acknowledges = False
    order_id = await panel.order("instance.refresh", {}, instance_id=new_id("inst"))
    own = await panel.order("backup.run", {})
    assert (await panel.end_of(order_id)).error_code == "not_addressed"
    await panel.end_of(own)
    panel.reports.clear()
    await panel.cut()
    await panel.end_of(own)
    assert panel.of(order_id) == []


@pytest.mark.parametrize(
    ("own", "issued", "expires", "fits"),
    [
        # By how much the panel's clock is ahead of ours, and the order's times by the panel's clock.
        (timedelta(), timedelta(minutes=-20), timedelta(minutes=-10), False),
        (timedelta(), timedelta(), timedelta(minutes=10), True),
        (timedelta(), timedelta(days=-400), timedelta(seconds=-10), False),
        (timedelta(days=1), timedelta(seconds=-5), timedelta(minutes=10), True),
        (timedelta(days=-1), timedelta(seconds=-5), timedelta(minutes=10), True),
        (timedelta(days=1), timedelta(minutes=-20), timedelta(minutes=-10), False),
        (timedelta(days=-1), timedelta(minutes=-20), timedelta(minutes=-10), False),
        # A panel's clock that is turned back by more than two days is not believed: an order of the past stays past.
        (timedelta(days=-8), timedelta(), timedelta(minutes=10), False),
        (timedelta(), timedelta(), timedelta(days=300_000), True),
    ],
)
async def test_the_panel_s_clock_says_what_is_late(
    own: timedelta, issued: timedelta, expires: timedelta, fits: bool, app: RunningApp, panel: FakePanel
) -> None:
    panel.says = lambda: datetime.now(UTC) + own
    await panel.cut()
    await panel.until(lambda: panel.lines == 2)
    there = datetime.now(UTC) + own
    times = {"issued_at": there + issued, "expires_at": there + expires}
    order_id, order = panel.signed("instance.refresh", {}, **times)
    if not fits:
        await refused(app, panel, order_id, order, "expired", "expired")
        return
    await panel.send(order)
    assert (await panel.end_of(order_id)).status == "completed"


async def test_without_a_date_the_own_clock_counts_but_not_before_the_order_was_issued(panel: FakePanel) -> None:
    panel.says = lambda: None
    await panel.cut()
    await panel.until(lambda: panel.lines == 2)
    ahead = datetime.now(UTC) + timedelta(days=30)
    order_id = await panel.order("instance.refresh", {}, issued_at=ahead, expires_at=ahead + timedelta(minutes=1))
    assert (await panel.end_of(order_id)).status == "completed"
    order_id = await panel.order("instance.refresh", {}, issued_at=ahead, expires_at=ahead - timedelta(minutes=1))
    assert (await panel.end_of(order_id)).status == "expired"


async def test_what_waits_too_long_is_not_begun(app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel) -> None:
    made = await install(admin, await add_one(admin))
    async with nothing_begins(app, admin, panel):
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        order_id = await panel.order("app.stop", {"app": made["id"]}, expires_at=soon)
        await panel.until(lambda: panel.of(order_id))
        await asyncio.sleep(0.4)
    end = await panel.end_of(order_id)
    assert (end.status, end.error_code) == ("expired", "expired")
    assert (await show(admin, made["id"]))["status"] == "running"


async def test_a_forged_order_is_refused_and_does_not_spoil_the_real_one(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    body = panel.body("app.stop", {"app": made["id"]})
    forged = sign_order(body, Ed25519PrivateKey.generate())
    lines = panel.lines
    for _ in range(50):
        await panel.send(forged)
    end = await panel.end_of(body.order_id)
    assert (end.status, end.error_code) == ("refused", "signature_invalid")
    assert body.order_id not in await rows(app)
    assert (await show(admin, made["id"]))["status"] == "running"
    await panel.send(sign_order(body, panel.signer))
    await panel.until(lambda: "completed" in [one.status for one in panel.of(body.order_id)])
    # A forgery of one that is known is answered with what became of that one.
    panel.reports.clear()
    await panel.send(forged)
    assert (await panel.end_of(body.order_id)).status == "completed"
    assert panel.lines == lines


async def test_a_signature_is_for_these_bytes_alone(app: RunningApp, panel: FakePanel) -> None:
    async with unharmed(panel):
        order_id, order = panel.signed("instance.refresh", {})
        _, other = panel.signed("app.uninstall", {"app": "x"}, order_id=order_id)
        await panel.send(Order(body=other.body, signature=order.signature))
        assert (await panel.end_of(order_id)).error_code == "signature_invalid"


def nested(depth: int) -> bytes:
    """msgpack of a map in a map and so on."""
    return b"\x81\xa1a" * depth + b"\xc0"


def malformed(panel: FakePanel) -> list[bytes]:
    body = msgspec.to_builtins(panel.body("app.stop", {"app": "x"}))
    pack_any = msgspec.msgpack.encode
    whole = pack_any(body)
    return [
        b"",
        b"\xc1",
        whole[:-1],
        whole + b"\0",
        pack_any([1, 2]),
        pack_any({"order_id": 1}),
        pack_any(body | {"order_id": "a\0b"}),
        pack_any(body | {"order_id": ""}),
        pack_any(body | {"order_id": "x" * 65}),
        b"\x91" * 100_000,
        nested(60_000),
    ]


def readable_but_wrong(panel: FakePanel) -> list[dict[str, Any]]:
    return [
        {"args": None},
        {"args": [1]},
        {"args": {1: 1}},
        {"issued_at": float("nan")},
        {"expires_at": "0001-01-01T00:00:00+23:59"},
        {"issued_at": "9999-12-31T23:59:59-23:59"},
        {"expires_at": "tomorrow"},
        {"actor": "root"},
        {"kind": 2**63},
        {"tenant_id": None},
    ]


async def test_what_can_not_be_read_is_passed_over(app: RunningApp, panel: FakePanel) -> None:
    from quazzar.link.orders import _CONTEXT  # noqa: PLC0415 - to sign what no panel would

    def signed(body: bytes) -> Order:
        return Order(body=body, signature=panel.signer.sign(_CONTEXT + body))

    async with unharmed(panel):
        for body in malformed(panel):
            await panel.send(signed(body))
        builtin = msgspec.to_builtins(panel.body("app.stop", {"app": "x"}))
        expected = set()
        for changed in readable_but_wrong(panel):
            order_id = new_id("ord")
            expected.add(order_id)
            await panel.send(signed(msgspec.msgpack.encode(builtin | changed | {"order_id": order_id})))
        for order_id in expected:
            assert (await panel.end_of(order_id)).error_code == "order_malformed"
        order_id = new_id("ord")
        deep = builtin | {"order_id": order_id, "args": {"app": msgspec.Raw(nested(900))}}
        await panel.send(signed(msgspec.msgpack.encode(deep)))
        assert (await panel.end_of(order_id)).status == "refused"
    assert set(await rows(app)) >= expected


async def test_odd_frames_are_passed_over(panel: FakePanel) -> None:
    frames: list[Any] = [
        "text",
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        msgspec.msgpack.encode({"type": "order", "body": b"x", "signature": b"x"}),
        msgspec.msgpack.encode({"type": "order", "body": "x"}),
        msgspec.msgpack.encode({"type": "cancel", "order_id": "x" * 65}),
        msgspec.msgpack.encode({"type": "reported", "order_id": "x", "sequence": 2**63}),
        msgspec.msgpack.encode({"type": "reported", "order_id": "x", "sequence": float("nan")}),
        msgspec.msgpack.encode({"type": "of_a_later_release"}),
        pack(Cancel(order_id="a\0")),
        pack(Reported(order_id="a\0", sequence=1)),
        pack(Reported(order_id="unknown", sequence=-5)),
        pack(Reported(order_id="unknown", sequence=2**40)),
    ]
    async with unharmed(panel):
        for frame in frames:
            await panel.send_frame(frame)


async def test_fifty_times_the_same_order_is_one(app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel) -> None:
    name = unique("app")
    slug = await add_one(admin)
    _, go_on = engine_of(app).hold("create:web")
    order_id, order = panel.signed("app.install", {"template": slug, "name": name})
    for _ in range(25):
        await panel.send(order)
    go_on.set()
    for _ in range(25):
        await panel.send(order)
    assert (await panel.end_of(order_id)).status == "completed"
    await panel.cut()
    await panel.until(lambda: panel.lines == 2)
    panel.reports.clear()
    await panel.send(order)
    assert (await panel.end_of(order_id)).status == "completed"
    assert (await named(admin, name))["status"] == "running"
    assert len(await audited(app, order_id)) == 1
    async with app.database.begin() as session:
        query = text("SELECT count(*) FROM jobs WHERE subject = :id")
        assert (await session.execute(query, {"id": order_id})).scalar_one() == 1


async def test_an_order_for_a_server_that_was_left_is_not_taken(app: RunningApp, panel: FakePanel) -> None:
    order_id, order = panel.signed("instance.refresh", {})
    async with app.database.begin() as session:
        # Left by another process, say: this one's line does not know it yet.
        await session.execute(text("UPDATE panel_link SET left_at = now()"))
    await panel.send(order)
    await asyncio.sleep(0.3)
    assert order_id not in await rows(app)
    await join(app, panel)


async def test_secrets_of_an_order_are_sealed_while_it_waits_and_gone_afterwards(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    canary = "a kettle of canaries"
    order_id = await panel.order("app.install", {"template": "nothing", "name": "x", "config": {"p": canary}})
    await panel.end_of(order_id)
    async with app.database.begin() as session:
        for table in ("panel_orders", "jobs", "job_logs", "audit_records", "events", "pgqueuer"):
            found = (await session.execute(text(f"SELECT t::text FROM {table} AS t"))).scalars().all()
            assert not [row for row in found if canary in row], table
        sealed = text("SELECT sealed_args FROM panel_orders WHERE order_id = :id")
        assert (await session.execute(sealed, {"id": order_id})).scalar_one() is None
    assert canary not in msgspec.json.encode(panel.reports).decode()
