"""What happens to an app when an operation fails, is cancelled, interrupted, or meets an engine that is away."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.jobs import JobRun
from quazzar.instance.apps import jobs, service, store, work
from quazzar.instance.apps.reconciler import Reconciler
from quazzar.instance.apps.runtimes.base import RuntimeFailure, RuntimeUnavailable
from quazzar.instance.apps.runtimes.memory import Behaviour, MemoryEngine, MemoryRuntime
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_one,
    add_template,
    begin_install,
    engine_of,
    install,
    job_of,
    operate,
    show,
    unique,
    until,
    web_file,
)

STEPS = ["pull:nginx:1.27", "pull:postgres:17", "create:db", "create:web", "start:db", "start:web"]


@pytest.fixture
async def engine(app: RunningApp) -> AsyncIterator[MemoryEngine]:
    """The app's engine, mended after the test."""
    found = engine_of(app)
    found.images.clear()
    yield found
    found.come_back()
    found.unknown_images.clear()
    found.foreign_ports.clear()
    found.behaviours.clear()


@pytest.fixture(scope="module")
async def web(admin: httpx.AsyncClient) -> str:
    return str((await add_template(admin, web_file(unique("web"))))["slug"])


async def begin(admin: httpx.AsyncClient, web: str) -> str:
    return str((await begin_install(admin, web, config={"admin_password": SECRET}))["id"])


def left_over(engine: MemoryEngine, app_id: str) -> list[object]:
    found: list[object] = [one for one in engine.containers if one.app_id == app_id]
    return found + [held for held in (engine.volumes, engine.networks) if held.get(app_id)]


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_fails_takes_everything_away_again(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str, step: str
) -> None:
    engine.fail(step, RuntimeFailure("The disk is full"))
    app_id = await begin(admin, web)
    failed = await until(admin, app_id, "failed")
    assert failed["status_reason"] == "The disk is full"
    assert failed["services"] == []
    assert left_over(engine, app_id) == []
    job = await job_of(admin, failed["job_id"])
    assert (job["status"], job["error"]) == ("failed", "The disk is full")
    for verb in ("start", "restart"):
        again = await admin.post(f"/api/apps/{app_id}/{verb}")
        assert (again.status_code, again.json()["status"]) == (200, "installing")
        assert again.json()["status_reason"] is None
        await until(admin, app_id, "running")
        break
    assert (await admin.delete(f"/api/apps/{app_id}?purge=true")).status_code == 204
    assert left_over(engine, app_id) == []


async def test_a_failed_install_can_be_deleted_and_its_job_tried_again(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    engine.unknown_images.add("nginx:1.27")
    first, second = await begin(admin, web), await begin(admin, web)
    for app_id in (first, second):
        failed = await until(admin, app_id, "failed")
        assert "has no image" in failed["status_reason"]
        stopped = await admin.post(f"/api/apps/{app_id}/stop")
        assert (stopped.status_code, stopped.json()["code"]) == (409, "app_not_installed")
    assert (await admin.delete(f"/api/apps/{first}")).status_code == 204
    engine.unknown_images.clear()
    job = (await show(admin, second))["job_id"]
    await job_of(admin, job)
    retried = await admin.post(f"/api/jobs/{job}/retry")
    assert retried.status_code == 200, retried.text
    running = await until(admin, second, "running")
    assert running["status_reason"] is None
    assert (await job_of(admin, job))["status"] == "completed"


@pytest.mark.parametrize("step", STEPS)
async def test_an_engine_that_goes_and_comes_back_in_the_middle(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str, step: str
) -> None:
    arrived, go_on = engine.hold(step)
    app_id = await begin(admin, web)
    await asyncio.wait_for(arrived.wait(), 10)
    engine.go_down()
    go_on.set()
    waiting = await until(admin, app_id, "installing", reason="container engine")
    job = (await admin.get(f"/api/jobs/{waiting['job_id']}")).json()
    assert job["status"] == "running"
    engine.come_back()
    running = await until(admin, app_id, "running")
    assert running["status_reason"] is None
    assert {one["status"] for one in running["services"]} == {"running"}
    assert len([one for one in engine.containers if one.app_id == app_id]) == 2


async def test_without_an_engine(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await install(admin, await add_one(admin))
    doomed = await install(admin, await add_one(admin))
    engine.go_down()
    monkeypatch.setattr(service, "DELETE_WAIT_SECONDS", 0.3)
    assert (await show(admin, running["id"]))["status"] == "running", "the database answers"
    assert (await admin.get("/api/apps")).status_code == 200
    for path in ("logs", "logs?follow=true", "stats", "stats?follow=true"):
        answer = await admin.get(f"/api/apps/{running['id']}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (503, "runtime_unavailable"), path
        assert int(answer.headers["retry-after"]) > 0
    app_id = await begin(admin, web)
    await until(admin, app_id, "installing", reason="container engine")
    stopping = await admin.post(f"/api/apps/{running['id']}/stop")
    assert (stopping.status_code, stopping.json()["status"]) == (200, "stopping")
    deleted = await admin.delete(f"/api/apps/{doomed['id']}")
    assert (deleted.status_code, deleted.json()["status"]) == (200, "uninstalling")
    assert deleted.json()["job_id"]
    await until(admin, doomed["id"], "uninstalling", reason="container engine")
    engine.come_back()
    await until(admin, app_id, "running")
    await until(admin, running["id"], "stopped")
    await job_of(admin, deleted.json()["job_id"])
    assert (await admin.get(f"/api/apps/{doomed['id']}")).status_code == 404


async def test_an_engine_that_stays_away_ends_the_operation_at_its_deadline(
    app: RunningApp,
    admin: httpx.AsyncClient,
    engine: MemoryEngine,
    web: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeout, limits = asyncio.timeout, []

    def noted(seconds: float | None) -> asyncio.Timeout:
        made = timeout(seconds)
        if seconds == jobs.INSTALL_SECONDS:
            limits.append(made)
        return made

    monkeypatch.setattr(asyncio, "timeout", noted)
    arrived, go_on = engine.hold("start:web")
    app_id = await begin(admin, web)
    await asyncio.wait_for(arrived.wait(), 10)
    monkeypatch.setattr(work, "_CLEAN_UP_SECONDS", 0.2)
    engine.go_down()
    go_on.set()
    await until(admin, app_id, "installing", reason="container engine")
    # Its deadline is now, however long it has taken to come here.
    [limit] = limits
    limit.reschedule(asyncio.get_running_loop().time())
    failed = await until(admin, app_id, "failed")
    assert "container engine" in failed["status_reason"]
    assert left_over(engine, app_id), "nobody could take it away"
    engine.come_back()
    await Reconciler(app.database, MemoryRuntime(engine=engine)).full_pass()
    assert left_over(engine, app_id) == []
    assert (await admin.delete(f"/api/apps/{app_id}")).status_code == 204


@pytest.mark.parametrize("step", ["pull:nginx:1.27", "create:web", "start:web"])
async def test_cancel(admin: httpx.AsyncClient, engine: MemoryEngine, web: str, step: str) -> None:
    arrived, _ = engine.hold(step)
    app_id = await begin(admin, web)
    await asyncio.wait_for(arrived.wait(), 10)
    job = (await show(admin, app_id))["job_id"]
    assert (await admin.post(f"/api/jobs/{job}/cancel")).status_code == 200
    failed = await until(admin, app_id, "failed")
    assert failed["status_reason"] == "The operation was cancelled"
    assert (await job_of(admin, job))["status"] == "cancelled"
    assert left_over(engine, app_id) == []
    await operate(admin, app_id, "start", "running")


async def test_a_restart_that_is_cancelled_in_its_stop_leaves_the_app_running(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    app_id = (await install(admin, web, config={"admin_password": SECRET}))["id"]
    engine.container(app_id, "web").behaviour = Behaviour(stop_seconds=0.5)
    job = (await admin.post(f"/api/apps/{app_id}/restart")).json()["job_id"]
    while not (ending := list(engine.stops.values())):
        await asyncio.sleep(0.01)
    assert (await admin.post(f"/api/jobs/{job}/cancel")).status_code == 200
    assert (await job_of(admin, job))["status"] == "cancelled"
    await asyncio.gather(*ending)
    after = await until(admin, app_id, "running")
    assert {one["status"] for one in after["services"]} == {"running"}
    assert engine.container(app_id, "web").status == "running"


async def test_an_uninstall_can_not_be_cancelled(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    made = await install(admin, await add_one(admin))
    arrived, go_on = engine.hold("delete:web")
    deleting = asyncio.create_task(admin.delete(f"/api/apps/{made['id']}"))
    await asyncio.wait_for(arrived.wait(), 10)
    job = (await show(admin, made["id"]))["job_id"]
    assert (await admin.post(f"/api/jobs/{job}/cancel")).status_code == 409
    go_on.set()
    assert (await deleting).status_code == 204


async def test_an_uninstall_that_fails_can_be_repeated(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    made = await install(admin, await add_one(admin))
    engine.fail("delete:web", RuntimeFailure("The device is busy"))
    answer = await admin.delete(f"/api/apps/{made['id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "uninstall_failed")
    assert "The device is busy" in answer.json()["error"]
    assert (await admin.delete(f"/api/apps/{made['id']}")).status_code == 204


async def test_a_start_that_fails_keeps_the_data_and_can_be_repeated(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    app_id = await begin(admin, web)
    await until(admin, app_id, "running")
    await operate(admin, app_id, "stop", "stopped")
    port = (await show(admin, app_id))["config"]["http_port"]
    engine.foreign_ports.add(port)
    failed = await operate(admin, app_id, "start", "failed")
    assert "already in use" in failed["status_reason"]
    assert engine.volumes[app_id] == {"data", "db"}
    assert all(one.status != "running" for one in engine.containers if one.app_id == app_id)
    engine.foreign_ports.clear()
    running = await operate(admin, app_id, "start", "running")
    assert running["config"]["http_port"] == port


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_a_start_that_does_not_get_through_leaves_what_ran_running(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str, how: str
) -> None:
    app_id = await begin(admin, web)
    await until(admin, app_id, "running")
    engine.stop_behind_our_back(app_id, "db")
    await until(admin, app_id, "unhealthy")
    if how == "failed":
        engine.fail("start:db", RuntimeFailure("no such device"))
        await operate(admin, app_id, "start", "failed")
    else:
        arrived, _ = engine.hold("start:db")
        asked = (await admin.post(f"/api/apps/{app_id}/start")).json()
        await asyncio.wait_for(arrived.wait(), 10)
        assert (await admin.post(f"/api/jobs/{asked['job_id']}/cancel")).status_code == 200
        assert (await job_of(admin, asked["job_id"]))["status"] == "cancelled"
    assert engine.container(app_id, "web").status == "running"
    await operate(admin, app_id, "start", "running")
    assert engine.container(app_id, "db").status == "running"


async def test_a_start_makes_anew_what_was_removed(admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    app_id = await begin(admin, web)
    await until(admin, app_id, "running")
    engine.remove_behind_our_back(app_id, "web")
    engine.volumes[app_id].remove("data")
    crashed = await until(admin, app_id, "crashed")
    assert '"web" was removed' in crashed["status_reason"]
    running = await operate(admin, app_id, "start", "running")
    lines = [one["line"] for one in (await admin.get(f"/api/jobs/{running['job_id']}/logs")).json()]
    assert [one for one in lines if "volume" in one] == [
        "The volume data is not there any more, and with it its data; an empty one is made"
    ]
    assert [one["status"] for one in running["services"]] == ["running", "running"]
    assert engine.volumes[app_id] == {"data", "db"}


async def test_an_auto_port_that_somebody_took_is_exchanged(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    arrived, go_on = engine.hold("create:web")
    app_id = await begin(admin, web)
    await asyncio.wait_for(arrived.wait(), 10)
    first = (await show(admin, app_id))["config"]["http_port"]
    engine.foreign_ports.add(first)
    go_on.set()
    running = await until(admin, app_id, "running")
    port = running["config"]["http_port"]
    assert port != first
    assert [one["host_port"] for one in running["ports"]] == [port]
    assert running["urls"] == [f"http://localhost:{port}"]
    assert engine.container(app_id, "web").service.environment["ADMIN"] == SECRET, "secrets survive the exchange"
    restarted = await operate(admin, app_id, "restart", "running")
    assert restarted["config"]["http_port"] == port


async def test_a_chosen_port_is_not_exchanged(admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    engine.foreign_ports.add(18_765)
    made = await begin_install(admin, web, config={"admin_password": SECRET, "http_port": 18_765})
    failed = await until(admin, made["id"], "failed")
    assert "18765" in failed["status_reason"]
    assert left_over(engine, made["id"]) == []


async def test_an_app_is_installing_until_it_is_healthy(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    engine.behaviours["web"] = Behaviour(healthy_after_seconds=3600)
    made = await begin_install(admin, "hello")
    async with asyncio.timeout(15):
        while not [one for one in engine.containers if one.app_id == made["id"] and one.status == "running"]:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert (await show(admin, made["id"]))["status"] == "installing"
    engine.set_health(made["id"], "web", "healthy")
    running = await until(admin, made["id"], "running")
    assert running["services"][0]["health"] == "healthy"


async def test_an_app_whose_check_fails_is_unhealthy(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    engine.behaviours["web"] = Behaviour(healthy_after_seconds=None)
    made = await begin_install(admin, "hello")
    unhealthy = await until(admin, made["id"], "unhealthy")
    assert 'health check of service "web"' in unhealthy["status_reason"]
    assert (await job_of(admin, made["job_id"]))["status"] == "completed"
    engine.set_health(made["id"], "web", "healthy")
    await until(admin, made["id"], "running")


async def test_an_app_that_dies_at_once_has_crashed_and_can_be_asked_why(
    admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    slug = await add_one(admin, restart="no")
    engine.behaviours["web"] = Behaviour(exit_code=7, lines=(("stderr", "no configuration"),))
    made = await begin_install(admin, slug)
    crashed = await until(admin, made["id"], "crashed")
    assert crashed["status_reason"] == 'Service "web" ended (exit code 7)'
    assert crashed["services"][0]["exit_code"] == 7
    logs = (await admin.get(f"/api/apps/{made['id']}/logs")).json()
    assert [one["line"] for one in logs] == ["no configuration"]
    engine.behaviours.clear()
    assert (await admin.delete(f"/api/apps/{made['id']}")).status_code == 204


async def test_a_job_that_comes_late_changes_nothing(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made = await install(admin, await add_one(admin))
    before = await show(admin, made["id"])
    calls = len(engine.calls)
    for kind in (jobs.install, jobs.start, jobs.stop, jobs.restart, jobs.uninstall):
        for job_id in ("job_of_long_ago", made["job_id"]):
            run = JobRun(
                job_id=job_id,
                kind=kind.kind,
                attempt=2,
                database=app.database,
                resources=app.asgi.app.state.worker.resources,
            )
            await kind(run, app_id=made["id"])
    assert await show(admin, made["id"]) == before
    done = ("pull", "create", "start", "stop", "delete")
    assert not [call for call in engine.calls[calls:] if call.startswith(done)], "only the reconciler looked"


async def test_the_reaper_ends_what_has_no_live_owner(app: RunningApp, admin: httpx.AsyncClient) -> None:
    reconciler: Reconciler = app.asgi.app.state.reconciler
    made = [await install(admin, await add_one(admin)) for _ in range(4)]
    lost, ended, late, busy = (one["id"] for one in made)
    async with app.database.begin() as session:
        for app_id in (lost, ended, late, busy):
            assert await store.move_app(session, app_id, of=("running",), to="restarting", seconds=60)
        await session.execute(text("UPDATE apps SET job_id = 'job_gone' WHERE id = :id"), {"id": lost})
        await session.execute(
            text("UPDATE apps SET deadline_at = now() - interval '1 hour', job_id = :job WHERE id = :id"),
            {"id": late, "job": made[3]["job_id"]},
        )
        # Of a kind that no process knows, so that none takes it for lost and does it again.
        held = text("UPDATE jobs SET status = 'running', kind = 'tests.held' WHERE id = :id")
        await session.execute(held, {"id": made[3]["job_id"]})
    await reconciler.reap()
    shown = {app_id: await show(admin, app_id) for app_id in (lost, ended, late, busy)}
    assert shown[busy]["status"] == "restarting", "its job runs"
    for app_id, words in ((lost, "lost"), (ended, "without a result"), (late, "in time")):
        assert words in shown[app_id]["status_reason"] or shown[app_id]["status"] == "running"
    await reconciler.full_pass()
    for app_id in (lost, ended, late):
        assert (await show(admin, app_id))["status"] == "running", "the engine has it running"
    async with app.database.begin() as session:
        await session.execute(text("UPDATE jobs SET status = 'completed' WHERE id = :id"), {"id": made[3]["job_id"]})
    await reconciler.reap()
    await reconciler.full_pass()
    assert (await show(admin, busy))["status"] == "running"


async def test_unavailable_is_not_taken_for_a_failure(admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    engine.fail("create:web", RuntimeUnavailable("The container engine does not answer"), times=1000)
    app_id = await begin(admin, web)
    await until(admin, app_id, "installing", reason="does not answer")
    engine._faults.clear()
    await until(admin, app_id, "running")
