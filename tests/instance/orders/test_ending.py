"""Orders that are to end: cancelled, left behind with their panel, or forgotten when they are long over."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.core.ids import new_id
from quazzar.core.jobs import JobRun, Resources
from quazzar.instance.enrolment import line as lines
from quazzar.instance.enrolment.service import Joined, PanelLinkService
from quazzar.instance.orders.jobs import prune
from quazzar.instance.orders.service import cancel_pending, forget_panel, reseal
from quazzar.link.messages import CLOSE_REVOKED, Cancel, Enrolled
from quazzar.link.tokens import RegistrationToken
from tests.conftest import RunningApp
from tests.factories.apps import add_one, audited, engine_of, install, show, unique, until
from tests.factories.fake_panel import FakePanel
from tests.instance.orders.conftest import join, line_of, named, nothing_begins


async def status_of(app: RunningApp, order_id: str) -> Any:
    async with app.database.begin() as session:
        query = "SELECT status, error, acknowledged < sequence AS pending FROM panel_orders WHERE order_id = :id"
        return (await session.execute(text(query), {"id": order_id})).one_or_none()


async def test_what_is_not_begun_never_begins(app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel) -> None:
    made = await install(admin, await add_one(admin))
    async with nothing_begins(app, admin, panel):
        order_id, order = panel.signed("app.stop", {"app": made["id"]})
        await panel.send(order)
        await panel.send(Cancel(order_id=order_id))
        assert (await panel.end_of(order_id)).status == "cancelled"
    await panel.send(order)
    await asyncio.sleep(0.7)
    assert {report.status for report in panel.of(order_id)} <= {"taken", "cancelled"}
    assert (await show(admin, made["id"]))["status"] == "running"
    assert [action for action, _, _ in await audited(app, order_id)] == ["panel_order.cancel"]


async def test_a_cancellation_in_the_middle_of_beginning_undoes_it(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    async with app.database.begin() as session:
        await session.execute(text("SELECT FROM apps WHERE id = :id FOR UPDATE"), {"id": made["id"]})
        order_id = await panel.order("app.stop", {"app": made["id"]})
        waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        while not (await session.execute(waits)).scalar_one():
            await asyncio.sleep(0.02)
        await panel.send(Cancel(order_id=order_id))
        assert (await panel.end_of(order_id)).status == "cancelled"
    await asyncio.sleep(0.5)
    assert (await show(admin, made["id"]))["status"] == "running"
    assert "panel_order.run" not in [action for action, _, _ in await audited(app, order_id)]
    assert (await panel.end_of(await panel.order("app.stop", {"app": made["id"]}))).status == "completed"


async def test_work_that_runs_is_stopped_and_reported_when_it_has(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    arrived, _ = engine_of(app).hold("create:web")
    name = unique("app")
    order_id = await panel.order("app.install", {"template": await add_one(admin), "name": name})
    await arrived.wait()
    await panel.send(Cancel(order_id=order_id))
    assert (await panel.end_of(order_id)).status == "cancelled"
    made = await named(admin, name)
    assert made["status"] == "failed"
    assert not [one for one in engine_of(app).containers if one.app_id == made["id"]]


async def test_what_has_ended_stays_as_it_was(admin: httpx.AsyncClient, panel: FakePanel) -> None:
    order_id = await panel.order("instance.refresh", {})
    end = await panel.end_of(order_id)
    panel.reports.clear()
    await panel.send(Cancel(order_id=order_id))
    again = await panel.end_of(order_id)
    assert again == end


async def test_what_must_not_be_interrupted_goes_on_to_its_end(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    arrived, go_on = engine_of(app).hold("delete:web")
    order_id = await panel.order("app.uninstall", {"app": made["id"]})
    await arrived.wait()
    await panel.send(Cancel(order_id=order_id))
    await asyncio.sleep(0.3)
    go_on.set()
    assert (await panel.end_of(order_id)).status == "completed"


async def test_one_that_has_not_come_yet_does_not_begin_when_it_comes(
    admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    order_id, order = panel.signed("app.stop", {"app": made["id"]})
    await panel.send(Cancel(order_id=order_id))
    end = await panel.end_of(order_id)
    assert (end.status, end.error_code) == ("cancelled", "order_unknown")
    await panel.send(order)
    await asyncio.sleep(0.5)
    assert {report.status for report in panel.of(order_id)} == {"cancelled"}
    assert (await show(admin, made["id"]))["status"] == "running"


async def test_a_job_that_is_cancelled_here_ends_its_order(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    arrived, _ = engine_of(app).hold("create:web")
    order_id = await panel.order("app.install", {"template": await add_one(admin), "name": unique("app")})
    await arrived.wait()
    async with app.database.begin() as session:
        query = text("SELECT job_id FROM panel_orders WHERE order_id = :id")
        job_id = (await session.execute(query, {"id": order_id})).scalar_one()
    assert (await admin.post(f"/api/jobs/{job_id}/cancel")).status_code == 200
    assert (await panel.end_of(order_id)).status == "cancelled"


async def test_leaving_empties_the_queue_and_what_runs_goes_on(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    arrived, go_on = engine_of(app).hold("create:web")
    name = unique("app")
    running = await panel.order("app.install", {"template": await add_one(admin), "name": name})
    await arrived.wait()
    panel.acknowledges = False
    async with nothing_begins(app, admin, panel):
        waiting = await panel.order("app.stop", {"app": made["id"]})
        await panel.until(lambda: panel.of(waiting))
        answer = await admin.delete("/api/panel-link")
        assert answer.status_code == 204, answer.text
    go_on.set()
    installed = await named(admin, name)
    await until(admin, installed["id"], "running")
    assert (await show(admin, made["id"]))["status"] == "running"
    for order_id in (running, waiting):
        row = await status_of(app, order_id)
        assert (row.status, row.pending) == ("cancelled", False)
        assert "left the panel" in row.error


async def test_an_order_of_the_panel_before_is_known_when_it_is_joined_again(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    order_id, order = panel.signed("app.stop", {"app": made["id"]})
    await panel.send(order)
    assert (await panel.end_of(order_id)).status == "completed"
    assert (await admin.delete("/api/panel-link")).status_code == 204
    assert (await admin.post(f"/api/apps/{made['id']}/start")).status_code == 200
    await until(admin, made["id"], "running")
    panel.reports.clear()
    await join(app, panel)
    await asyncio.sleep(0.3)
    assert panel.reports == [], "nobody is told what the former time has left"
    await panel.send(order)
    assert (await panel.end_of(order_id)).status == "completed"
    await asyncio.sleep(0.3)
    assert (await show(admin, made["id"]))["status"] == "running"


async def test_joining_anew_empties_the_queue(app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel) -> None:
    order_id = new_id("ord")
    async with app.database.begin() as session:
        await session.execute(text("UPDATE panel_link SET left_at = now()"))
        query = "INSERT INTO panel_orders (order_id, status) VALUES (:id, 'taken')"
        await session.execute(text(query), {"id": order_id})
    link = panel.link(app.settings.server.data_dir)
    token = RegistrationToken("127.0.0.1", panel.port, bytes(32), panel.tenant_id, b"x" * 32)
    enrolled = Enrolled(
        instance_id=panel.instance_id,
        certificate=link["certificate"],
        panel_url=link["panel_url"],
        heartbeat_seconds=30,
        signing_key=link["signing_key"],
    )
    async with app.database.begin() as session:
        await PanelLinkService(session, line_of(app), app.asgi.app.state.authenticator).create(
            Joined(token, panel.authority.pem, enrolled)
        )
    row = await status_of(app, order_id)
    assert (row.status, row.pending) == ("cancelled", False)


@pytest.mark.parametrize("how", ["closed", "refused"])
async def test_being_revoked_cancels_what_is_not_begun_and_keeps_what_is_to_be_told(
    how: str, app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It dials anew, and hears so, well before the lock is given up that others wait for.
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(lines, name, 0.05)
    made = await install(admin, await add_one(admin))
    panel.acknowledges = False
    told = await panel.order("instance.refresh", {})
    await panel.end_of(told)
    async with nothing_begins(app, admin, panel):
        waiting = await panel.order("app.stop", {"app": made["id"]})
        await panel.until(lambda: panel.of(waiting))
        panel.refuses = 401
        await (panel.close(CLOSE_REVOKED) if how == "closed" else panel.cut())
        for _ in range(200):
            if (await status_of(app, waiting)).status == "cancelled":
                break
            await asyncio.sleep(0.02)
    assert "revoked" in (await status_of(app, waiting)).error
    assert (await status_of(app, told)).pending
    await asyncio.sleep(0.3)
    assert (await show(admin, made["id"]))["status"] == "running"


async def test_old_orders_are_forgotten_once_they_can_do_no_harm(app: RunningApp, keyring: Keyring) -> None:
    rows = [
        # Ended, expired (days ago), acknowledged; whether it is forgotten.
        (8, 8, True, True),
        (8, None, True, True),
        (6, 8, True, False),
        (8, 6, True, False),
        (8, -300, True, False),
        (8, 8, False, False),
        (None, 8, False, False),
    ]
    ids = [new_id("ord") for _ in rows]
    async with app.database.begin() as session:
        for order_id, (ended, expired, acknowledged, _) in zip(ids, rows, strict=True):
            query = text(
                "INSERT INTO panel_orders (order_id, status, finished_at, expires_at, acknowledged) VALUES (:id, "
                ":status, now() - make_interval(days => :ended), now() - make_interval(days => :expired), :told)"
            )
            values = {"id": order_id, "status": "taken" if ended is None else "failed", "told": int(acknowledged)}
            await session.execute(query, values | {"ended": ended, "expired": expired})
    run = JobRun(job_id="job_x", kind="orders.prune", attempt=1, database=app.database, resources=Resources())
    await prune(run)
    left = [await status_of(app, order_id) is not None for order_id in ids]
    assert left == [not forgotten for *_, forgotten in rows]
    async with app.database.begin() as session:
        await session.execute(text("DELETE FROM panel_orders"))


async def test_a_new_master_key_opens_waiting_orders(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel, keyring: Keyring
) -> None:
    made = await install(admin, await add_one(admin))
    async with nothing_begins(app, admin, panel):
        waiting = await panel.order("app.stop", {"app": made["id"]})
        await panel.until(lambda: panel.of(waiting))
        async with app.database.begin() as session:
            query = text("SELECT sealed_args FROM panel_orders WHERE order_id = :id")
            before = (await session.execute(query, {"id": waiting})).scalar_one()
            assert await reseal(session, keyring) >= 1
            assert (await session.execute(query, {"id": waiting})).scalar_one() != before
    assert (await panel.end_of(waiting)).status == "completed"


async def test_a_link_that_was_ended_ends_its_line_whatever_the_panel_does(app: RunningApp, panel: FakePanel) -> None:
    async with app.database.begin() as session:
        await session.execute(text("UPDATE panel_link SET left_at = now()"))
    line = line_of(app)
    line.changed()
    await panel.until(lambda: not line.connected)


async def test_a_database_that_is_away_when_the_panel_revokes_ends_nothing(
    app: RunningApp, panel: FakePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> None:
        raise OSError

    monkeypatch.setattr("quazzar.instance.enrolment.line.cancel_pending", away)
    panel.refuses = 401
    await panel.cut()
    line = line_of(app)
    await panel.until(lambda: line.error == "The panel does not know this server any more")
    panel.refuses = None
    line.changed()
    await panel.until(lambda: line.connected)


@pytest.mark.parametrize("cancellable", [True, False])
async def test_a_job_that_waits_and_can_not_be_taken_back_keeps_its_order(cancellable: bool, app: RunningApp) -> None:
    order_id, job_id = new_id("ord"), new_id("job")
    values = {"order": order_id, "job": job_id, "cancellable": cancellable}
    async with app.database.begin() as session:
        job = "INSERT INTO jobs (id, realm, kind, status, max_attempts, cancellable, created_at) VALUES "
        await session.execute(text(job + "(:job, 'instance', 'x.y', 'queued', 1, :cancellable, now())"), values)
        order = "INSERT INTO panel_orders (order_id, status, job_id) VALUES (:order, 'running', :job)"
        await session.execute(text(order), values)
        await cancel_pending(session)
    assert (await status_of(app, order_id)).status == ("cancelled" if cancellable else "running")
    async with app.database.begin() as session:
        await forget_panel(session)
    row = await status_of(app, order_id)
    assert (row.status, row.pending) == ("cancelled", False)
    async with app.database.begin() as session:
        await session.execute(text("DELETE FROM jobs WHERE id = :job"), values)
        await session.execute(text("DELETE FROM panel_orders"))
