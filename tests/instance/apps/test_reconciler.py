"""The truth of the engine reaches the rows: soon after an event, at start, and after the engine was away."""

import asyncio

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.instance.apps.reconciler import Reconciler
from quazzar.instance.apps.runtimes.base import RuntimeUnavailable
from quazzar.instance.apps.runtimes.memory import MemoryRuntime
from quazzar.instance.apps.spec import AppSpec, ServiceSpec
from quazzar.settings import Settings
from tests.conftest import RunningApp, running_app
from tests.factories.apps import (
    SECRET,
    add_one,
    add_template,
    engine_of,
    install,
    operate,
    show,
    unique,
    until,
    web_file,
)

RUNNING = "UPDATE jobs SET status = 'running', kind = 'tests.held' WHERE id = :id"
"""A job that nobody takes for lost and does again: of a kind that no process knows."""


async def silent(_: float, __: str) -> None:
    return


@pytest.mark.parametrize(
    ("oom", "code", "reason"), [(False, 3, "ended (exit code 3)"), (True, 137, "used more memory than its limit")]
)
async def test_a_crash_shows_long_before_the_next_full_pass(
    app: RunningApp, admin: httpx.AsyncClient, oom: bool, code: int, reason: str
) -> None:
    made = await install(admin, await add_one(admin, restart="no"))
    engine_of(app).crash(made["id"], "web", exit_code=code, oom=oom)
    crashed = await until(admin, made["id"], "crashed")
    assert reason in crashed["status_reason"]
    assert (crashed["services"][0]["exit_code"], crashed["services"][0]["oom_killed"]) == (code, oom)
    assert crashed["status_since"] > made["status_since"]


async def test_a_crash_that_the_engine_repairs(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin, restart="always"))
    engine_of(app).crash(made["id"], "web", exit_code=1)
    async with asyncio.timeout(15):
        while (again := await show(admin, made["id"]))["services"][0]["restarts"] == 0:
            await asyncio.sleep(0.02)
    again = await until(admin, made["id"], "running")
    assert again["services"][0]["restarts"] == 1


async def test_stopped_removed_and_started_behind_our_back(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin))
    engine = engine_of(app)
    engine.stop_behind_our_back(made["id"], "web")
    stopped = await until(admin, made["id"], "stopped")
    assert stopped["status_reason"] == "Stopped outside of this system"
    assert stopped["ports"] == made["ports"], "ports are kept"
    await MemoryRuntime(engine=engine).start(made["id"])
    started = await until(admin, made["id"], "running")
    assert started["status_reason"] is None
    engine.remove_behind_our_back(made["id"], "web")
    gone = await until(admin, made["id"], "crashed")
    assert gone["services"][0]["status"] == "missing"


async def test_a_stop_stays_a_stop_whatever_its_exit_code(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin))
    engine = engine_of(app)
    engine.stopped(engine.container(made["id"], "web"), exit_code=137)
    await until(admin, made["id"], "stopped")
    forgetful = Reconciler(app.database, MemoryRuntime(engine=engine))
    await forgetful.full_pass()
    assert (await show(admin, made["id"]))["status"] == "stopped", "also for a process that has not heard the event"


async def test_health(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, "hello")
    engine_of(app).set_health(made["id"], "web", "unhealthy")
    await until(admin, made["id"], "unhealthy")
    asked = await admin.post(f"/api/apps/{made['id']}/start")
    assert (asked.status_code, asked.json()["status"]) == (200, "unhealthy"), "all of it runs: there is nothing to do"
    engine_of(app).set_health(made["id"], "web", "healthy")
    await until(admin, made["id"], "running")


async def test_one_of_two_services(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web")).replace('    restart: "no"\n', "")))["slug"]
    made = await install(admin, slug, config={"admin_password": SECRET})
    engine_of(app).stop_behind_our_back(made["id"], "db")
    unhealthy = await until(admin, made["id"], "unhealthy")
    assert unhealthy["status_reason"] == 'Service "db" is stopped'
    assert {one["name"]: one["status"] for one in unhealthy["services"]} == {"web": "running", "db": "exited"}
    started = await operate(admin, made["id"], "start", "running")
    assert {one["name"]: one["status"] for one in started["services"]} == {"web": "running", "db": "running"}


async def test_what_happened_while_the_engine_was_away_is_seen_when_it_is_back(
    app: RunningApp, admin: httpx.AsyncClient
) -> None:
    made = await install(admin, await add_one(admin, restart="no"))
    engine = engine_of(app)
    engine.go_down()
    with pytest.raises(RuntimeUnavailable):
        await app.asgi.app.state.reconciler.full_pass()
    engine.crash(made["id"], "web", exit_code=9)
    await asyncio.sleep(0.3)
    assert (await show(admin, made["id"]))["status"] == "running", "nobody knows better"
    engine.come_back()
    await until(admin, made["id"], "crashed")


async def test_foreign_apps_are_left_alone(app: RunningApp, admin: httpx.AsyncClient) -> None:
    engine = engine_of(app)
    runtime = MemoryRuntime(engine=engine)
    spec = AppSpec(app_id="app_foreign", project="foreign", services=(ServiceSpec(name="web", image="nginx:1.27"),))
    await runtime.pull(spec, silent)
    await runtime.up(spec, silent)
    await app.asgi.app.state.reconciler.full_pass()
    await app.asgi.app.state.reconciler.look_at(["app_foreign"])
    assert engine.container("app_foreign", "web").status == "running"
    assert "app_foreign" not in (await admin.get("/api/apps?limit=200")).text
    await runtime.remove("app_foreign", keep_volumes=False)


async def test_a_new_process_takes_running_apps_back_untouched(
    app: RunningApp,
    admin: httpx.AsyncClient,
    settings: Settings,
    keyring: Keyring,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await install(admin, await add_one(admin))
    engine = engine_of(app)
    before = {one.id: (one.started_at, one.restarts) for one in engine.containers}
    monkeypatch.setattr("quazzar.app.make_runtime", lambda _: MemoryRuntime(engine=engine))
    async with running_app(settings, keyring, database) as other, other.client(headers=admin.headers) as client:
        await other.asgi.app.state.reconciler.full_pass()
        shown = await show(client, made["id"])
        assert (shown["status"], shown["status_since"]) == ("running", made["status_since"])
        engine.stop_behind_our_back(made["id"], "web")
        await until(client, made["id"], "stopped")
    assert {one.id: (one.started_at, one.restarts) for one in engine.containers} == before


async def test_nothing_new_writes_nothing(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin))
    reconciler: Reconciler = app.asgi.app.state.reconciler
    await reconciler.full_pass()
    async with app.database.begin() as session:
        query = text("SELECT xmin::text, updated_at FROM apps WHERE id = :id")
        before = (await session.execute(query, {"id": made["id"]})).one()
    await reconciler.full_pass()
    await reconciler.look_at([made["id"]])
    async with app.database.begin() as session:
        assert (await session.execute(query, {"id": made["id"]})).one() == before


async def test_a_row_that_changed_meanwhile_is_not_written_over(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin))
    engine = engine_of(app)
    reconciler = Reconciler(app.database, MemoryRuntime(engine=engine))
    arrived, go_on = engine.hold("list")
    passing = asyncio.create_task(reconciler.full_pass())
    await asyncio.wait_for(arrived.wait(), 5)
    async with app.database.begin() as session:
        await session.execute(
            text("UPDATE apps SET status = 'restarting', updated_at = clock_timestamp() WHERE id = :id"),
            {"id": made["id"]},
        )
        await session.execute(text(RUNNING), {"id": made["job_id"]})
    engine.stop_behind_our_back(made["id"], "web")
    go_on.set()
    await passing
    assert (await show(admin, made["id"]))["status"] == "restarting"


async def test_what_happens_behind_a_jobs_back_is_seen_when_the_job_is_done(
    app: RunningApp, admin: httpx.AsyncClient
) -> None:
    made = await install(admin, await add_one(admin, restart="no"))
    engine = engine_of(app)
    async with app.database.begin() as session:
        # A job that has looked at the engine for the last time, and is about to write "running".
        await session.execute(text("UPDATE apps SET status = 'restarting' WHERE id = :id"), {"id": made["id"]})
        await session.execute(text(RUNNING), {"id": made["job_id"]})
    engine.crash(made["id"], "web", exit_code=5)
    await asyncio.sleep(0.4)
    async with app.database.begin() as session:
        await session.execute(text("UPDATE jobs SET status = 'completed' WHERE id = :id"), {"id": made["job_id"]})
        await session.execute(text("UPDATE apps SET status = 'running' WHERE id = :id"), {"id": made["id"]})
    crashed = await until(admin, made["id"], "crashed")
    assert "exit code 5" in crashed["status_reason"]


async def test_a_row_that_can_not_be_read_hides_no_other(app: RunningApp, admin: httpx.AsyncClient) -> None:
    odd, other = await install(admin, await add_one(admin)), await install(admin, await add_one(admin, restart="no"))
    async with app.database.begin() as session:
        await session.execute(text("""UPDATE apps SET expected = '[{"no": 1}]' WHERE id = :id"""), {"id": odd["id"]})
    engine = engine_of(app)
    engine.go_down()
    engine.crash(other["id"], "web", exit_code=5)
    engine.come_back()
    await app.asgi.app.state.reconciler.full_pass()
    assert (await show(admin, other["id"]))["status"] == "crashed"
    async with app.database.begin() as session:
        await session.execute(text("UPDATE apps SET expected = '[]' WHERE id = :id"), {"id": odd["id"]})
