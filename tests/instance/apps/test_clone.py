"""A clone has its own ports and a copy of the data; its source runs again whatever becomes of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from quazzar.core.secret import MASK
from quazzar.instance.apps.runtimes.base import RuntimeFailure
from quazzar.instance.apps.runtimes.memory import Behaviour, MemoryEngine
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_one,
    add_template,
    audited,
    engine_of,
    events_of,
    install,
    job_of,
    key_client,
    operate,
    show,
    unique,
    until,
    web_file,
)


@pytest.fixture
async def engine(app: RunningApp) -> AsyncIterator[MemoryEngine]:
    found = engine_of(app)
    yield found
    found.come_back()


@pytest.fixture(scope="module")
async def web(admin: httpx.AsyncClient) -> str:
    return str((await add_template(admin, web_file(unique("web"))))["slug"])


async def source_of(admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> dict[str, Any]:
    made = await install(admin, web, config={"admin_password": SECRET, "motto": "mine"})
    engine.contents[made["id"], "data"] = b"what people wrote"
    return made


async def clone(client: httpx.AsyncClient, app_id: str, name: str | None = None) -> httpx.Response:
    return await client.post(f"/api/apps/{app_id}/clone", json={"name": name or unique("copy")})


async def test_a_clone(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    source = await source_of(admin, engine, web)
    calls = len(engine.calls)
    answer = await clone(admin, source["id"])
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/api/apps/{made['id']}"
    assert (made["status"], made["template"], made["version"]) == ("installing", web, "1.0")
    copy = await until(admin, made["id"], "running")
    after = await until(admin, source["id"], "running")
    assert copy["config"] == source["config"] | {"http_port": copy["config"]["http_port"]}
    assert copy["config"]["http_port"] != source["config"]["http_port"]
    assert copy["config"]["admin_password"] == MASK
    there, here = engine.container(copy["id"], "web").service, engine.container(source["id"], "web").service
    assert there.environment == here.environment, "generated secrets too"
    assert engine.contents[copy["id"], "data"] == b"what people wrote"
    assert (after["config"], after["ports"]) == (source["config"], source["ports"])
    steps = engine.calls[calls:]
    assert steps.index("stop:web") < steps.index("copy:data") < steps.index("start:web")
    assert (await job_of(admin, made["job_id"]))["status"] == "completed"
    assert [kind for kind, _ in await events_of(app, source["id"])] == [
        "app.installed", "app.restarted", "app.cloned"
    ]  # fmt: skip
    assert (await audited(app, copy["id"]))[0][0] == "app.clone"
    engine.contents[copy["id"], "data"] = b"another"
    assert engine.contents[source["id"], "data"] == b"what people wrote"
    assert (await admin.delete(f"/api/apps/{copy['id']}?purge=true")).status_code == 204
    assert engine.volumes[source["id"]] == {"data", "db"}


async def test_what_still_runs_of_a_crashed_app_stands_still_while_it_is_copied(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    source = await source_of(admin, engine, web)
    engine.crash(source["id"], "web", exit_code=3)
    await until(admin, source["id"], "crashed")
    assert engine.container(source["id"], "db").status == "running"
    calls = len(engine.calls)
    copy = (await clone(admin, source["id"])).json()
    await until(admin, copy["id"], "running")
    steps = engine.calls[calls:]
    assert steps.index("stop:db") < steps.index("copy:data") < steps.index("start:db")
    after = await until(admin, source["id"], "running")
    assert {one["status"] for one in after["services"]} == {"running"}


async def test_what_stands_still_is_not_started(admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    source = await source_of(admin, engine, web)
    await operate(admin, source["id"], "stop", "stopped")
    copy = (await clone(admin, source["id"])).json()
    await until(admin, copy["id"], "running")
    assert (await until(admin, source["id"]))["status"] == "stopped"
    assert engine.container(source["id"], "web").status == "exited"
    assert engine.contents[copy["id"], "data"] == b"what people wrote"


async def test_without_data_nothing_is_stopped(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    source = await install(admin, await add_one(admin))
    calls = len(engine.calls)
    copy = (await clone(admin, source["id"])).json()
    assert (await show(admin, source["id"]))["status"] == "running"
    await until(admin, copy["id"], "running")
    assert not any(step.startswith("stop") for step in engine.calls[calls:])


async def test_ports_that_the_file_itself_says_are_exchanged(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    body = {
        "name": unique("im"),
        "compose": "services: {a: {image: 'x:1', ports: ['18733:80'], volumes: ['d:/d']}}\nvolumes: {d: {}}",
    }
    made = (await admin.post("/api/apps/import", json=body)).json()
    source = await until(admin, made["id"], "running")
    assert source["ports"][0]["host_port"] == 18733
    copy = await until(admin, (await clone(admin, made["id"])).json()["id"], "running")
    assert copy["template"] is None
    assert 20_000 <= copy["ports"][0]["host_port"] <= 29_999


@pytest.mark.parametrize("step", ["copy:data", "copy:db", "create:web", "start:db"])
async def test_a_failure_leaves_the_source_as_it_was(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str, step: str
) -> None:
    source = await source_of(admin, engine, web)
    # The source is started again with the same step names; only what the clone does is to fail.
    hold = engine.hold("copy:data")
    answer = (await clone(admin, source["id"])).json()
    await asyncio.wait_for(hold[0].wait(), 10)
    if step.startswith("copy"):
        engine.fail(step, RuntimeFailure("The disk is full"))
    else:
        engine.fail(step, RuntimeFailure("The disk is full"), times=2 if step.startswith("start") else 1)
    hold[1].set()
    failed = await until(admin, answer["id"], "failed")
    assert "disk is full" in failed["status_reason"]
    after = await until(admin, source["id"])
    assert after["status"] == ("failed" if step == "start:db" else "running"), after
    assert answer["id"] not in engine.volumes
    assert [one for one in engine.containers if one.app_id == answer["id"]] == []
    engine._faults.clear()
    if step.startswith("copy"):
        refused = await admin.post(f"/api/apps/{answer['id']}/start")
        assert (refused.status_code, refused.json()["code"]) == (409, "app_not_installed")
        job = failed["job_id"]
        await job_of(admin, job)
        assert (await admin.post(f"/api/jobs/{job}/retry")).status_code == 200
        await until(admin, answer["id"], "running")
        assert engine.contents[answer["id"], "data"] == b"what people wrote"
        await until(admin, source["id"], "running")
    assert (await admin.delete(f"/api/apps/{answer['id']}?purge=true")).status_code == 204


@pytest.mark.parametrize("step", ["copy:db", "start:db"])
async def test_cancelled(admin: httpx.AsyncClient, engine: MemoryEngine, web: str, step: str) -> None:
    """While the data is copied, and when the source is about to run again."""
    source = await source_of(admin, engine, web)
    arrived, _ = engine.hold(step)
    copy = (await clone(admin, source["id"])).json()
    await asyncio.wait_for(arrived.wait(), 10)
    assert (await show(admin, source["id"]))["status"] == "restarting"
    assert (await admin.post(f"/api/jobs/{copy['job_id']}/cancel")).status_code == 200
    await until(admin, copy["id"], "failed")
    await until(admin, source["id"], "running")
    assert copy["id"] not in engine.volumes


async def test_cancelled_while_the_source_is_stopped(admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    """The engine carries the stop out all the same; the source runs after it."""
    source = await source_of(admin, engine, web)
    engine.container(source["id"], "web").behaviour = Behaviour(stop_seconds=0.5)
    copy = (await clone(admin, source["id"])).json()
    while not (ending := list(engine.stops.values())):
        await asyncio.sleep(0.01)
    assert (await admin.post(f"/api/jobs/{copy['job_id']}/cancel")).status_code == 200
    await until(admin, copy["id"], "failed")
    await asyncio.gather(*ending)
    after = await until(admin, source["id"], "running")
    assert {one["status"] for one in after["services"]} == {"running"}
    assert engine.container(source["id"], "web").status == "running"


async def test_refusals(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    source = await source_of(admin, engine, web)
    taken = await clone(admin, source["id"], source["name"])
    assert (taken.status_code, taken.json()["code"]) == (409, "app_name_taken")
    wrong = await admin.post(f"/api/apps/{source['id']}/clone", json={"name": "-v", "status": "running"})
    assert (wrong.status_code, set(wrong.json()["details"])) == (422, {"name", "status"})
    async with key_client(app, admin, ["apps:write"], resources=[source["id"]]) as client:
        assert (await clone(client, source["id"])).status_code == 403
        for app_id in ("app_" + "2" * 26, "x"):
            assert (await clone(client, app_id)).json()["code"] == "app_not_found"
    async with key_client(app, admin, ["apps:read", "apps:operate", "apps:deploy"]) as client:
        assert (await clone(client, source["id"])).json()["code"] == "scope_missing"
    arrived, go_on = engine.hold("copy:db")
    asked = [asyncio.create_task(clone(admin, source["id"])) for _ in range(3)]
    await asyncio.wait_for(arrived.wait(), 10)
    answers = await asyncio.gather(*asked)
    assert sorted(one.status_code for one in answers) == [201, 409, 409], [one.text for one in answers]
    assert {one.json()["code"] for one in answers if one.status_code == 409} == {"app_busy"}
    for verb in ("stop", "restart", "start"):
        busy = await admin.post(f"/api/apps/{source['id']}/{verb}")
        assert (busy.status_code, busy.json()["code"]) == (409, "app_busy"), verb
    go_on.set()
    made = next(one.json() for one in answers if one.status_code == 201)
    await until(admin, made["id"], "running")
    await until(admin, source["id"], "running")
