"""Orders that are carried out: each kind by the services of the API, as the user of the panel."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text as sql

from quazzar.instance.apps.room import MIB
from quazzar.instance.apps.runtimes.base import RuntimeFailure
from quazzar.instance.orders.kinds import CARRIED_OUT
from quazzar.link.commands import COMMANDS
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_one,
    add_template,
    audited,
    begin_install,
    engine_of,
    install,
    show,
    unique,
    until,
    web_file,
)
from tests.factories.fake_panel import USER, FakePanel
from tests.instance.apps.test_room import set_machine, small
from tests.instance.orders.conftest import named


def test_every_kind_of_command_is_carried_out() -> None:
    assert set(CARRIED_OUT) == set(COMMANDS)


async def test_an_app_is_installed_and_the_panel_hears_how(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    name = unique("app")
    args = {"template": slug, "name": name, "config": {"admin_password": SECRET}, "resources": {"pids": 50}}
    args["domain"] = "cloud.example.com"
    order_id = await panel.order("app.install", args)
    end = await panel.end_of(order_id)
    assert (end.status, end.progress, end.error) == ("completed", 100, None)
    assert end.output is not None
    assert "Waiting for the services to be ready" in end.output
    made = await named(admin, name)
    assert made["status"] == "running"
    shown = await show(admin, made["id"])
    assert (shown["resources"]["pids"], shown["domain"]) == (50, "cloud.example.com")
    sequences = [report.sequence for report in panel.of(order_id)]
    assert sequences == sorted(set(sequences))
    statuses = [report.status for report in panel.of(order_id)]
    assert statuses[-1] == "completed"
    assert set(statuses) <= {"taken", "running", "completed"}
    # What the panel shows of the server is told with the end, not with the next heartbeat of a minute later.
    await panel.until(
        lambda: any(one.state and name in [app.name for app in one.state.apps] for one in panel.heartbeats)
    )


async def test_it_is_recorded_as_done_by_the_user_of_the_panel(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    order_id, order = panel.signed("app.stop", {"app": made["name"]})
    await panel.send(order)
    assert (await panel.end_of(order_id)).status == "completed"
    records = (await admin.get("/api/audit?limit=50")).json()
    stopped = next(one for one in records if one["subject"] == made["id"] and one["action"] == "app.stop")
    assert (stopped["actor"]["kind"], stopped["actor"]["id"]) == ("panel", USER)
    ((action, kind, after),) = await audited(app, order_id)
    assert (action, kind) == ("panel_order.run", "panel")
    assert after is not None
    assert (after["kind"], after["user"]) == ("app.stop", "Ada")


async def test_start_stop_restart_and_uninstall(admin: httpx.AsyncClient, panel: FakePanel) -> None:
    made = await install(admin, await add_one(admin))
    for kind, by, status in (
        ("app.stop", made["name"], "stopped"),
        ("app.stop", made["id"], "stopped"),
        ("app.start", made["id"], "running"),
        ("app.start", made["name"], "running"),
        ("app.restart", made["name"], "running"),
    ):
        end = await panel.end_of(await panel.order(kind, {"app": by}))
        assert (end.status, end.error) == ("completed", None), kind
        assert (await show(admin, made["id"]))["status"] == status
    end = await panel.end_of(await panel.order("app.uninstall", {"app": made["name"], "keep_data": True}))
    assert end.status == "completed"
    assert (await admin.get(f"/api/apps/{made['id']}")).status_code == 404
    assert made["id"] not in [one["id"] for one in (await admin.get("/api/apps?trashed=true")).json()]


async def test_update_and_rollback(admin: httpx.AsyncClient, panel: FakePanel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quazzar.instance.apps.changing.STEADY_SECONDS", 0.1)
    slug = unique("web")
    template = await add_template(admin, web_file(slug))
    made = await install(admin, slug, config={"admin_password": SECRET})
    newer = web_file(slug, version="2.0")
    assert (await admin.put(f"/api/templates/{template['id']}", json={"compose": newer})).status_code == 200
    end = await panel.end_of(await panel.order("app.update", {"app": made["id"], "version": "2.0"}))
    assert (end.status, end.error) == ("completed", None)
    assert (await show(admin, made["id"]))["version"] == "2.0"
    end = await panel.end_of(await panel.order("app.rollback", {"app": made["name"]}))
    assert (end.status, end.error) == ("completed", None)
    assert (await show(admin, made["id"]))["version"] == "1.0"


async def test_a_refresh_sends_the_state_anew(panel: FakePanel) -> None:
    await panel.until(lambda: panel.heartbeats)
    before = len(panel.heartbeats)
    end = await panel.end_of(await panel.order("instance.refresh", {}))
    assert end.status == "completed"
    beat = await panel.until(lambda: next(iter(panel.heartbeats[before:]), None))
    assert beat.state is not None


@pytest.mark.parametrize(
    ("kind", "args", "code", "text"),
    [
        ("app.start", {"app": "nobody"}, "app_not_found", "no such app"),
        ("app.start", {"app": "app_" + "a" * 26}, "app_not_found", "no such app"),
        ("app.rollback", {"app": "nobody"}, "app_not_found", "no such app"),
        ("app.uninstall", {"app": "nobody"}, "app_not_found", "no such app"),
        ("app.install", {"template": "nothing", "name": "x"}, "validation_failed", "no such template"),
        ("app.install", {"template": "hello", "name": "x", "config": {"no": 1}}, "validation_failed", "config.no"),
        ("app.install", {"template": "hello", "name": "x", "version": "77"}, "validation_failed", "no such version"),
    ],
)
async def test_what_the_service_refuses_has_failed_with_its_code(
    kind: str, args: dict[str, Any], code: str, text: str, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    end = await panel.end_of(await panel.order(kind, args))
    assert (end.status, end.error_code) == ("failed", code)
    assert end.error is not None
    assert text in end.error
    assert "x" not in [one["name"] for one in (await admin.get("/api/apps?limit=200")).json()]


async def test_a_refused_change_leaves_no_trace_but_its_own(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    before = len(await audited(app, made["id"]))
    order_id = await panel.order("app.install", {"template": "hello", "name": made["name"]})
    assert (await panel.end_of(order_id)).error_code == "app_name_taken"
    assert len(await audited(app, made["id"])) == before
    async with app.database.begin() as session:
        query = sql("SELECT outcome, after ->> 'error_code' FROM audit_records WHERE subject = :id")
        assert (await session.execute(query, {"id": order_id})).all() == [("failed", "app_name_taken")]


async def test_an_app_that_another_operation_holds_is_busy(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    slug = await add_one(admin)
    arrived, go_on = engine_of(app).hold("create:web")
    made = await begin_install(admin, slug)
    await arrived.wait()
    end = await panel.end_of(await panel.order("app.stop", {"app": made["id"]}))
    assert (end.status, end.error_code) == ("failed", "app_busy")
    go_on.set()
    await until(admin, made["id"], "running")


async def test_what_the_machine_has_no_room_for_is_refused_to_a_panel_too(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    await set_machine(app, memory_bytes=MIB)
    try:
        name = unique("app")
        order = await panel.order("app.install", {"template": await small(admin), "name": name})
        end = await panel.end_of(order)
    finally:
        await set_machine(app)
    assert (end.status, end.error_code) == ("failed", "does_not_fit")
    assert end.error is not None
    assert "available for apps" in end.error
    assert name not in [one["name"] for one in (await admin.get("/api/apps?limit=200")).json()]


async def test_work_that_fails_is_reported_with_its_reason_and_what_it_said(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    engine_of(app).fail("create:web", RuntimeFailure("The disk is full"))
    end = await panel.end_of(
        await panel.order("app.install", {"template": await add_one(admin), "name": unique("app")})
    )
    assert (end.status, end.error_code, end.error) == ("failed", "operation_failed", "The disk is full")
    assert end.output is not None
    assert end.output.endswith("The disk is full")


async def test_progress_is_told_while_the_work_goes_on(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    slug = await add_one(admin)
    arrived, go_on = engine_of(app).hold("create:web")
    order_id = await panel.order("app.install", {"template": slug, "name": unique("app")})
    await arrived.wait()
    moving = await panel.until(lambda: next((one for one in panel.of(order_id) if one.progress), None))
    assert moving.status == "running"
    assert 0 < moving.progress < 100
    assert moving.step
    go_on.set()
    end = await panel.end_of(order_id)
    assert end.sequence > moving.sequence
