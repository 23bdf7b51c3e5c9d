"""Orders and reports on lines that hubs hold: nothing lost, nothing run twice, nobody heard on what is not theirs."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import exc

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.link.messages import CLOSE_MALFORMED, CLOSE_REFUSED, CLOSE_REVOKED, MOST_OUTPUT, Report
from quazzar.panel.commands import delivery, upkeep
from quazzar.settings import Settings
from tests.conftest import RunningApp
from tests.panel.commands.instances import (
    COMMANDS,
    FakeInstance,
    PanelProcess,
    ask,
    change,
    give,
    make_instance,
    running_process,
    until,
)
from tests.panel.fleet.conftest import Tenant

TRIED = "UPDATE fleet_command_units SET tried_at = now() - interval '{}' WHERE command_id = :id"


@pytest.fixture
async def instance(ada: Tenant, database: Database) -> FakeInstance:
    return FakeInstance(ada.id, await make_instance(database, ada.id))


async def shown(http: httpx.AsyncClient, made: dict[str, Any]) -> dict[str, Any]:
    answer = await http.get(f"{COMMANDS}/{made['id']}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def ended(http: httpx.AsyncClient, made: dict[str, Any]) -> dict[str, Any]:
    for _ in range(2000):
        body = await shown(http, made)
        if body["finished_at"] is not None:
            return body
        await asyncio.sleep(0.01)
    raise AssertionError(body)


async def test_an_order_goes_out_and_its_reports_come_in(
    ada: Tenant, process: PanelProcess, instance: FakeInstance, database: Database
) -> None:
    await instance.connect(process)
    before = datetime.now(UTC)
    made = await give(ada.http, [instance.id], args={"app": "cloud"})
    order = await instance.order()
    assert (order.command_id, order.kind, order.args) == (made["id"], "app.restart", {"app": "cloud"})
    assert (order.instance_id, order.tenant_id) == (instance.id, ada.id)
    ((name,),) = await ask(database, "SELECT email FROM users WHERE id = :id", id=ada.user_id)
    assert (order.actor.user_id, order.actor.name) == (ada.user_id, name)
    assert before - timedelta(seconds=5) < order.issued_at
    assert order.expires_at - order.issued_at == timedelta(minutes=10)
    await instance.report(order.order_id, 1, "taken")
    assert (await shown(ada.http, made))["instances"][0]["status"] == "pending"
    await instance.report(order.order_id, 2, "running", progress=10, step="stopping")
    unit = (await shown(ada.http, made))["instances"][0]
    assert (unit["status"], unit["progress"], unit["step"]) == ("running", 10, "stopping")
    await instance.report(order.order_id, 3, "completed", output="restarted", progress=100)
    assert [(one.order_id, one.sequence) for one in instance.reported] == [(order.order_id, n) for n in (1, 2, 3)]
    body = await shown(ada.http, made)
    assert (body["status"], body["instances"][0]["output"]) == ("completed", "restarted")
    assert len(instance.orders) == 1
    await instance.cut()


async def test_an_order_dies_with_its_command(ada: Tenant, process: PanelProcess, instance: FakeInstance) -> None:
    await instance.connect(process)
    await give(ada.http, [instance.id], expires_in_seconds=60)
    order = await instance.order()
    assert timedelta(seconds=50) < order.expires_at - order.issued_at <= timedelta(seconds=60)
    await instance.cut()


async def test_what_was_open_is_sent_again_on_the_next_line(
    ada: Tenant, process: PanelProcess, instance: FakeInstance
) -> None:
    await instance.connect(process)
    made = await give(ada.http, [instance.id])
    first = await instance.order()
    await instance.report(first.order_id, 1, "running")
    await instance.cut()
    await instance.connect(process)
    await until(lambda: len(instance.orders) == 2)
    assert instance.orders[1].order_id == first.order_id
    # Its last report is no news, and is acknowledged all the same.
    await instance.report(first.order_id, 1, "running")
    await instance.report(first.order_id, 2, "completed")
    assert (await shown(ada.http, made))["status"] == "completed"
    await instance.cut()
    await instance.connect(process)
    other = await give(ada.http, [instance.id])
    await until(lambda: len(instance.orders) == 3)
    assert instance.orders[2].command_id == other["id"]
    await instance.cut()


async def test_a_command_crosses_from_one_process_to_the_other(
    ada: Tenant, process: PanelProcess, other_process: PanelProcess, database: Database
) -> None:
    """The API's process, and two that hold a socket each; then the socket moves while the order is under way."""
    one, two = [FakeInstance(ada.id, await make_instance(database, ada.id)) for _ in range(2)]
    await one.connect(process)
    await two.connect(other_process)
    made = await give(ada.http, [one.id, two.id], strategy={"batch_size": 1})
    await until(lambda: one.orders or two.orders)
    first, second = (one, two) if one.orders else (two, one)
    order = await first.order()
    await first.report(order.order_id, 1, "completed")
    order = await second.order()
    await second.report(order.order_id, 1, "running")
    there = process if second is two else other_process
    await second.connect(there)
    await until(lambda: len(second.orders) == 2)
    assert second.orders[1].order_id == order.order_id
    await second.report(order.order_id, 2, "completed")
    assert (await shown(ada.http, made))["status"] == "completed"
    await one.cut()
    await two.cut()


async def test_who_was_offline_is_told_when_it_dials(ada: Tenant, process: PanelProcess, database: Database) -> None:
    instance = FakeInstance(ada.id, await make_instance(database, ada.id, status="offline"))
    made = await give(ada.http, [instance.id])
    assert made["instances"][0]["status"] == "pending"
    await instance.connect(process)
    order = await instance.order()
    await instance.report(order.order_id, 1, "completed")
    assert (await shown(ada.http, made))["status"] == "completed"
    await instance.cut()


async def test_cancel_reaches_the_instance_and_again_on_the_next_line(
    ada: Tenant, process: PanelProcess, instance: FakeInstance
) -> None:
    await instance.connect(process)
    made = await give(ada.http, [instance.id])
    order = await instance.order()
    await instance.report(order.order_id, 1, "running")
    answer = await ada.http.post(f"{COMMANDS}/{made['id']}/cancel")
    assert answer.json()["status"] == "stopping"
    await until(lambda: instance.cancels == [order.order_id])
    await instance.cut()
    await instance.connect(process)
    await until(lambda: len(instance.cancels) == 2)
    assert len(instance.orders) == 1
    await instance.report(order.order_id, 2, "cancelled")
    assert (await shown(ada.http, made))["status"] == "cancelled"
    await instance.cut()


async def test_a_stopped_rollout_takes_back_what_may_not_have_arrived(
    ada: Tenant, process: PanelProcess, database: Database
) -> None:
    good, mute = [FakeInstance(ada.id, await make_instance(database, ada.id)) for _ in range(2)]
    await good.connect(process)
    await mute.connect(process)
    made = await give(ada.http, [good.id, mute.id], strategy={"max_failures": 1})
    unheard = await mute.order()
    await mute.cut()
    order = await good.order()
    await good.report(order.order_id, 1, "failed")
    assert (await shown(ada.http, made))["status"] == "stopping"
    await mute.connect(process)
    await until(lambda: mute.cancels == [unheard.order_id])
    assert len(mute.orders) == 1
    await mute.report(unheard.order_id, 1, "cancelled")
    assert (await shown(ada.http, made))["status"] == "failed"
    await good.cut()
    await mute.cut()


async def test_a_paused_command_starts_nothing_on_a_new_line(
    ada: Tenant, process: PanelProcess, instance: FakeInstance, database: Database
) -> None:
    await instance.connect(process)
    made = await give(ada.http, [instance.id])
    order = await instance.order()
    await instance.cut()
    assert (await ada.http.post(f"{COMMANDS}/{made['id']}/pause")).status_code == 200
    await instance.connect(process)
    await change(database, TRIED.format("31 seconds"), id=made["id"])
    process.delivery.gap()
    await process.delivery.send()
    assert len(instance.orders) == 1
    assert (await ada.http.post(f"{COMMANDS}/{made['id']}/resume")).status_code == 200
    process.delivery.gap()
    await process.delivery.send()
    await until(lambda: len(instance.orders) == 2)
    assert instance.orders[1].order_id == order.order_id
    await instance.cut()


async def test_an_unanswered_order_is_sent_again(
    ada: Tenant, process: PanelProcess, instance: FakeInstance, database: Database
) -> None:
    await instance.connect(process)
    made = await give(ada.http, [instance.id])
    order = await instance.order()
    process.delivery.gap()
    await process.delivery.send()
    assert len(instance.orders) == 1
    await change(database, TRIED.format("31 seconds"), id=made["id"])
    process.delivery.gap()
    await process.delivery.send()
    await until(lambda: len(instance.orders) == 2)
    await instance.report(order.order_id, 1, "running")
    await change(database, TRIED.format("31 seconds"), id=made["id"])
    process.delivery.gap()
    await process.delivery.send()
    assert len(instance.orders) == 2
    await instance.cut()


async def test_a_report_about_the_order_of_another_ends_the_line_and_changes_nothing(
    ada: Tenant, eve: Tenant, process: PanelProcess, instance: FakeInstance, database: Database
) -> None:
    await instance.connect(process)
    made = await give(ada.http, [instance.id])
    order = await instance.order()
    for tenant in (ada, eve):
        thief = FakeInstance(tenant.id, await make_instance(database, tenant.id))
        await thief.connect(process)
        await thief.report(order.order_id, 7, "completed", output="mine")
        assert (thief.closed, thief.reported) == (CLOSE_REFUSED, [])
    unit = (await shown(ada.http, made))["instances"][0]
    assert (unit["status"], unit["output"]) == ("pending", None)
    # The line of the one that it is about is untouched.
    await instance.report(order.order_id, 1, "completed")
    assert (await shown(ada.http, made))["status"] == "completed"
    await instance.cut()


async def test_an_unknown_order_is_acknowledged_so_that_its_instance_can_rest(
    process: PanelProcess, instance: FakeInstance
) -> None:
    await instance.connect(process)
    for order_id in ("ord_" + "a" * 26, "", "'; --", "\x00", "é" * 64):
        await instance.report(order_id, 1, "completed")
    assert len(instance.reported) == 5
    assert instance.closed is None
    await instance.cut()


async def test_an_oversized_report_ends_its_own_line_only(
    ada: Tenant, process: PanelProcess, instance: FakeInstance, database: Database
) -> None:
    other = FakeInstance(ada.id, await make_instance(database, ada.id))
    await instance.connect(process)
    await other.connect(process)
    await give(ada.http, [instance.id, other.id])
    order, good = await instance.order(), await other.order()
    await instance.report(order.order_id, 1, "running", output="x" * MOST_OUTPUT)
    await instance.report(order.order_id, 2, "running", output="x" * (MOST_OUTPUT + 1))
    assert instance.closed == CLOSE_MALFORMED
    await other.report(good.order_id, 2**31, "completed", output="💾" * MOST_OUTPUT, step="\x00" * 200)
    assert other.closed is None
    await other.cut()


async def test_one_report_that_can_not_be_written_keeps_no_other_from_it(
    ada: Tenant, process: PanelProcess, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = [FakeInstance(ada.id, await make_instance(database, ada.id)) for _ in range(2)]
    for one in (bad, good):
        await one.connect(process)
    await give(ada.http, [bad.id, good.id])
    orders = {one.id: (await one.order()).order_id for one in (bad, good)}
    real = upkeep.apply_words

    async def apply_words(session: Any, words: Any) -> Any:
        if any(word.order_id == orders[bad.id] for word in words):
            raise ValueError("no")
        return await real(session, words)

    monkeypatch.setattr(upkeep, "apply_words", apply_words)
    for one in (bad, good):
        one.tell(orders[one.id], 1, "completed")
    await until(lambda: bad.closed is not None and good.reported)
    assert (bad.closed, good.closed) == (CLOSE_MALFORMED, None)
    await good.cut()


@pytest.mark.parametrize("newest", [0, 1, 2])
async def test_of_several_words_about_one_order_the_newest_counts(
    newest: int, ada: Tenant, process: PanelProcess, instance: FakeInstance
) -> None:
    """What a line that has broken has brought may still wait for the database when the next one says more: all of them
    are acknowledged, so none comes again.
    """
    await instance.connect(process)
    made = await give(ada.http, [instance.id])
    order = await instance.order()
    socket = process.hub.sockets[instance.id]
    at = datetime.now(UTC)
    reports = [Report(order_id=order.order_id, sequence=1 + number, status="running", at=at) for number in range(2)]
    reports.insert(newest, Report(order_id=order.order_id, sequence=9, status="completed", at=at, output="done"))
    assert await process.delivery.apply([(socket, report) for report in reports]) == [True] * 3
    body = await shown(ada.http, made)
    assert (body["status"], body["instances"][0]["output"]) == ("completed", "done")
    await instance.cut()


async def test_while_the_database_is_away_reports_wait(
    ada: Tenant, process: PanelProcess, instance: FakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    await instance.connect(process)
    made = await give(ada.http, [instance.id])
    order = await instance.order()
    real, tries = upkeep.find_orders, []

    async def find_orders(session: Any, order_ids: Any) -> Any:
        tries.append(order_ids)
        if len(tries) == 1:
            raise exc.DBAPIError("x", {}, OSError(), connection_invalidated=True)
        return await real(session, order_ids)

    monkeypatch.setattr(upkeep, "find_orders", find_orders)
    await instance.report(order.order_id, 1, "completed")
    assert len(tries) == 2
    assert (await shown(ada.http, made))["status"] == "completed"
    await instance.cut()


async def test_an_order_that_was_marked_and_did_not_leave_is_sent_all_the_same(
    ada: Tenant, process: PanelProcess, instance: FakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the answer to the commit was lost: nobody waits for the time of unanswered orders."""
    await instance.connect(process)
    real, tries = process.delivery._send_orders, []

    async def send_orders(orders: Any, contents: Any) -> None:
        if orders:
            tries.append(orders)
            if len(tries) == 1:
                raise exc.DBAPIError("x", {}, OSError(), connection_invalidated=True)
        await real(orders, contents)

    monkeypatch.setattr(process.delivery, "_send_orders", send_orders)
    await give(ada.http, [instance.id])
    await instance.order()
    assert len(tries) == 2
    await instance.cut()


async def test_a_revoked_instance_is_cut_and_told_nothing_more(
    ada: Tenant, process: PanelProcess, instance: FakeInstance
) -> None:
    await instance.connect(process)
    made = await give(ada.http, [instance.id])
    await instance.order()
    assert (await ada.http.delete(f"/api/fleet/instances/{instance.id}")).status_code == 204
    await until(lambda: instance.closed == CLOSE_REVOKED)
    body = await shown(ada.http, made)
    assert (body["status"], body["instances"][0]["status"]) == ("cancelled", "cancelled")
    assert instance.cancels == []


async def test_a_line_that_takes_nothing_holds_up_no_other(
    ada: Tenant, process: PanelProcess, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quazzar.panel.commands.delivery._SEND_SECONDS", 0.2)
    stuck, good = [FakeInstance(ada.id, await make_instance(database, ada.id)) for _ in range(2)]
    for one in (stuck, good):
        await one.connect(process)
    never = asyncio.Event()
    process.hub.sockets[stuck.id]._send = lambda _: never.wait()  # type: ignore[assignment,return-value]
    await give(ada.http, [stuck.id, good.id])
    await good.order()
    await until(lambda: stuck.id not in process.hub.sockets)
    await good.cut()


async def test_orders_of_later_don_t_wait_for_a_line_that_takes_nothing(
    ada: Tenant, eve: Tenant, process: PanelProcess, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = FakeInstance(ada.id, await make_instance(database, ada.id))
    good = FakeInstance(eve.id, await make_instance(database, eve.id))
    for one in (stuck, good):
        await one.connect(process)
    monkeypatch.setattr(delivery, "_SEND_SECONDS", 3600.0)
    sent, never = asyncio.Event(), asyncio.Event()

    async def takes_nothing(_: Any) -> None:
        sent.set()
        await never.wait()

    process.hub.sockets[stuck.id]._send = takes_nothing
    await give(ada.http, [stuck.id])
    await asyncio.wait_for(sent.wait(), 30)
    await give(eve.http, [good.id])
    await good.order()
    assert stuck.id in process.hub.sockets
    never.set()
    await good.cut()
    await stuck.cut()


async def test_the_clock_of_an_instance_does_not_matter(
    ada: Tenant, process: PanelProcess, instance: FakeInstance
) -> None:
    day = timedelta(days=1)
    await instance.connect(process, skew=day)
    made = await give(ada.http, [instance.id])
    order = await instance.order()
    await instance.report(order.order_id, 1, "completed", at=datetime.now(UTC) + day)
    unit = (await shown(ada.http, made))["instances"][0]
    assert abs(datetime.fromisoformat(unit["finished_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    await instance.cut()


async def test_a_process_that_is_gone_leaves_all_to_the_next_one(
    ada: Tenant,
    instance: FakeInstance,
    settings: Settings,
    keyring: Keyring,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the mark that an order was sent and its sending: the instance hears it on its next line."""
    async with running_process(settings, keyring, database) as first:
        await instance.connect(first)
        monkeypatch.setattr(first.delivery, "_send_orders", _lost)
        made = await give(ada.http, [instance.id])
        query = "SELECT sent_at FROM fleet_command_units WHERE command_id = :id"
        while (await ask(database, query, id=made["id"]))[0][0] is None:
            await asyncio.sleep(0.01)
        assert instance.orders == []
    async with running_process(settings, keyring, database) as second:
        await instance.connect(second)
        order = await instance.order()
        await instance.report(order.order_id, 1, "completed")
        assert (await shown(ada.http, made))["status"] == "completed"
        await instance.cut()


async def _lost(*_: Any) -> None:
    return None


async def test_a_command_is_followed_to_its_end(
    ada: Tenant, process: PanelProcess, database: Database, app: RunningApp
) -> None:
    one, two = [FakeInstance(ada.id, await make_instance(database, ada.id)) for _ in range(2)]
    for each in (one, two):
        await each.connect(process)
    made = await give(ada.http, [one.id, two.id])
    first, second = await one.order(), await two.order()
    following = asyncio.create_task(ada.http.get(f"{COMMANDS}/{made['id']}?follow=true", timeout=30))
    await asyncio.sleep(0.1)
    await one.report(first.order_id, 1, "running")
    await one.report(first.order_id, 2, "completed")
    await two.report(second.order_id, 1, "completed", output="x")
    answer = await following
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [block for block in answer.text.split("\n\n") if block.startswith("id: ")]
    assert events[-1].splitlines()[1] == "event: end"
    assert all(block.splitlines()[1] == "event: command" for block in events[:-1])
    ids = [int(block.splitlines()[0].removeprefix("id: ")) for block in events]
    assert ids == sorted(set(ids))
    last = httpx.Response(200, text=events[-1].splitlines()[2].removeprefix("data: ")).json()
    assert last["status"] == "completed"
    # Where a reader comes again only what it has not seen is told.
    resumed = await ada.http.get(f"{COMMANDS}/{made['id']}?follow=true", headers={"Last-Event-ID": str(ids[-1])})
    assert resumed.text.count("id: ") == 1
    assert '"instances":[]' in resumed.text
    # What works beside the requests has a connection for a moment, now and then.
    await until(lambda: not app.database.engine.pool.checkedout())  # type: ignore[attr-defined]
    await one.cut()
    await two.cut()
