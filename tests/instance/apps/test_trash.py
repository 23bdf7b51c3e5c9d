"""The trash: a deleted app is gone for everybody, and comes back as it was for as long as the setting says."""

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.secret import MASK
from quazzar.instance.apps.reconciler import Reconciler
from quazzar.instance.apps.runtimes.base import RuntimeFailure
from quazzar.instance.apps.runtimes.memory import MemoryEngine, MemoryRuntime
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_template,
    audited,
    begin_install,
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


async def trashed_app(admin: httpx.AsyncClient, web: str, *, stop: bool = False, **config: Any) -> dict[str, Any]:
    made = await install(admin, web, config={"admin_password": SECRET, "motto": "mine"} | config)
    if stop:
        made = await operate(admin, made["id"], "stop", "stopped")
    assert (await admin.delete(f"/api/apps/{made['id']}")).status_code == 204
    return made


async def in_trash(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    answer = await client.get("/api/apps?trashed=true&limit=200")
    assert answer.status_code == 200, answer.text
    return {one["id"]: one for one in answer.json()}


async def age(app: RunningApp, app_id: str, days: float) -> None:
    async with app.database.begin() as session:
        statement = text("UPDATE apps SET trashed_at = trashed_at - make_interval(secs => :secs) WHERE id = :id")
        await session.execute(statement, {"id": app_id, "secs": days * 86_400})


async def empty_trash(app: RunningApp) -> None:
    async with app.database.begin() as session:
        await session.execute(text("UPDATE job_schedules SET next_run_at = now() WHERE name = 'apps.empty_trash'"))


async def until_forgotten(admin: httpx.AsyncClient, app_id: str) -> None:
    async with asyncio.timeout(15):
        while app_id in await in_trash(admin):
            await asyncio.sleep(0.05)


async def test_there_and_back_again(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    made = await trashed_app(admin, web)
    app_id, path = made["id"], f"/api/apps/{made['id']}"
    assert [one for one in engine.containers if one.app_id == app_id] == []
    assert app_id not in engine.networks
    assert engine.volumes[app_id] == {"data", "db"}, "the data waits"
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/stop"), ("POST", "/restart"),
                         ("GET", "/logs"), ("GET", "/stats"), ("GET", "/events")):  # fmt: skip
        answer = await admin.request(method, path + rest)
        assert (answer.status_code, answer.json()["code"]) == (404, "app_not_found"), rest
    assert app_id not in {one["id"] for one in (await admin.get("/api/apps?limit=200")).json()}
    assert (await admin.get(f"/api/apps?q={made['name']}")).json() == []
    listed = (await in_trash(admin))[app_id]
    assert (listed["name"], listed["template"]) == (made["name"], web)
    life = datetime.fromisoformat(listed["purge_at"]) - datetime.fromisoformat(listed["trashed_at"])
    assert life == timedelta(days=7)
    await Reconciler(app.database, MemoryRuntime(engine=engine)).full_pass()
    assert engine.volumes[app_id] == {"data", "db"}, "what waits are no remains"

    answer = await admin.post(f"{path}/undelete")
    assert (answer.status_code, answer.json()["status"]) == (200, "starting"), answer.text
    back = await until(admin, app_id, "running")
    assert (back["config"], back["ports"], back["urls"]) == (made["config"], made["ports"], made["urls"])
    assert back["config"]["admin_password"] == MASK
    assert back["created_at"] == made["created_at"]
    assert engine.container(app_id, "web").service.environment["ADMIN"] == SECRET
    assert app_id not in await in_trash(admin)
    again = await admin.post(f"{path}/undelete")
    assert (again.status_code, again.json()["code"]) == (409, "app_not_trashed")
    base = {"app_id": app_id, "name": made["name"]}
    events = [event for event in await events_of(app, app_id) if event[0] != "app.installed"]
    purge_at = events[0][1].pop("purge_at")
    assert abs(datetime.fromisoformat(purge_at) - datetime.fromisoformat(listed["purge_at"])) < timedelta(seconds=1)
    assert events == [
        ("app.uninstalled", base | {"data_kept": True}), ("app.undeleted", base), ("app.started", base)
    ]  # fmt: skip
    records = [(action, after) for action, _, after in await audited(app, app_id)][1:]
    assert records == [
        ("app.uninstall", {"keep_data": False, "trash": True}),
        ("app.undelete", {"name": made["name"], "status": "starting"}),
    ]


async def test_what_stood_still_comes_back_standing_still(admin: httpx.AsyncClient, web: str) -> None:
    made = await trashed_app(admin, web, stop=True)
    back = await admin.post(f"/api/apps/{made['id']}/undelete")
    assert (back.status_code, back.json()["status"]) == (200, "stopped"), back.text
    running = await operate(admin, made["id"], "start", "running")
    assert running["config"] == made["config"]


async def test_names_and_ports_are_free_meanwhile(app: RunningApp, admin: httpx.AsyncClient, web: str) -> None:
    made = await trashed_app(admin, web, http_port=18_431)
    path = f"/api/apps/{made['id']}"
    heir = await install(admin, web, name=made["name"], config={"admin_password": SECRET, "http_port": 18_431})
    answer = await admin.post(f"{path}/undelete")
    assert (answer.status_code, answer.json()["code"]) == (409, "app_name_taken")
    assert set(answer.json()["details"]) == {"name", "config.http_port"}
    await admin.delete(f"/api/apps/{heir['id']}?purge=true")
    other = await install(admin, web, config={"admin_password": SECRET, "http_port": 18_431})
    answer = await admin.post(f"{path}/undelete")
    assert (answer.status_code, answer.json()["code"]) == (409, "port_taken")
    assert set(answer.json()["details"]) == {"config.http_port"}
    assert made["id"] in await in_trash(admin), "a refusal changes nothing"
    assert (await admin.delete(f"/api/apps/{other['id']}?purge=true")).status_code == 204
    assert (await admin.post(f"{path}/undelete")).status_code == 200
    back = await until(admin, made["id"], "running")
    assert back["config"]["http_port"] == 18_431


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")])
async def test_a_found_port_that_is_taken_by_now_is_exchanged(
    admin: httpx.AsyncClient, web: str, family: socket.AddressFamily, address: str
) -> None:
    made = await trashed_app(admin, web)
    port = made["config"]["http_port"]
    with socket.socket(family) as taker:
        taker.bind((address, port))
        taker.listen()
        assert (await admin.post(f"/api/apps/{made['id']}/undelete")).status_code == 200
        back = await until(admin, made["id"], "running")
    assert back["config"]["http_port"] != port
    assert [one["host_port"] for one in back["ports"]] == [back["config"]["http_port"]]
    assert back["urls"] == [f"http://localhost:{back['config']['http_port']}"]


async def test_purge(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    now = await install(admin, web, config={"admin_password": SECRET})
    assert (await admin.delete(f"/api/apps/{now['id']}?purge=true")).status_code == 204
    assert now["id"] not in engine.volumes
    assert now["id"] not in await in_trash(admin)
    assert (await admin.post(f"/api/apps/{now['id']}/undelete")).status_code == 404
    later = await trashed_app(admin, web)
    assert (await admin.delete(f"/api/apps/{later['id']}?purge=true")).status_code == 204
    assert later["id"] not in engine.volumes
    assert later["id"] not in await in_trash(admin)
    assert (await events_of(app, later["id"]))[-1] == ("app.purged", {"app_id": later["id"], "name": later["name"]})
    assert [(action, kind) for action, kind, _ in await audited(app, later["id"])][2:] == [
        ("app.uninstall", "user"), ("app.purge", "job")
    ]  # fmt: skip
    both = await admin.delete(f"/api/apps/{later['id']}?purge=true&keep_data=true")
    assert (both.status_code, both.json()["code"]) == (400, "invalid_parameter")


async def test_what_was_never_installed_needs_no_trash(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    engine.fail("create:web", RuntimeFailure("The disk is full"))
    made = await begin_install(admin, web, config={"admin_password": SECRET})
    await until(admin, made["id"], "failed")
    assert (await admin.delete(f"/api/apps/{made['id']}")).status_code == 204
    assert made["id"] not in await in_trash(admin)


async def test_the_clock_empties_the_trash(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    old, young = await trashed_app(admin, web), await trashed_app(admin, web)
    await age(app, old["id"], 7.01)
    await age(app, young["id"], 6.9)
    await empty_trash(app)
    await until_forgotten(admin, old["id"])
    assert old["id"] not in engine.volumes
    assert young["id"] in await in_trash(admin)
    assert engine.volumes[young["id"]] == {"data", "db"}


async def test_a_purge_that_fails_is_begun_again(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    made = await trashed_app(admin, web)
    engine.fail("remove", RuntimeFailure("The device is busy"))
    runtime = app.asgi.app.state.runtime
    whole = runtime.remove

    async def remove(app_id: str, *, keep_volumes: bool) -> None:
        await engine.reach("remove")
        await whole(app_id, keep_volumes=keep_volumes)

    runtime.remove = remove
    try:
        await admin.delete(f"/api/apps/{made['id']}?purge=true")
        left = (await in_trash(admin))[made["id"]]
        assert left["status"] == "uninstalling"
        assert (await job_of(admin, left["job_id"]))["error"] == "The device is busy"
        refused = await admin.post(f"/api/apps/{made['id']}/undelete")
        assert (refused.status_code, refused.json()["code"]) == (409, "app_busy")
        await empty_trash(app)
        await until_forgotten(admin, made["id"])
    finally:
        del runtime.remove
    assert made["id"] not in engine.volumes


async def test_bound_keys_see_their_own_in_the_trash(app: RunningApp, admin: httpx.AsyncClient, web: str) -> None:
    mine, other = await trashed_app(admin, web), await trashed_app(admin, web)
    async with key_client(app, admin, ["apps:read", "apps:write"], resources=[mine["id"]]) as client:
        assert set(await in_trash(client)) == {mine["id"]}
        for method, path in (
            ("POST", f"/api/apps/{other['id']}/undelete"),
            ("DELETE", f"/api/apps/{other['id']}?purge=true"),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "app_not_found")
        assert (await client.post(f"/api/apps/{mine['id']}/undelete")).status_code == 200
    await until(admin, mine["id"], "running")
    assert other["id"] in await in_trash(admin)


async def test_the_trash_in_pages(admin: httpx.AsyncClient, web: str) -> None:
    for _ in range(3):
        await trashed_app(admin, web)
    every = [one["id"] for one in (await admin.get("/api/apps?trashed=true&limit=200")).json()]
    assert every == sorted(every, reverse=True)
    pages: list[str] = []
    path = "/api/apps?trashed=true&limit=2"
    while path:
        answer = await admin.get(path)
        pages += [one["id"] for one in answer.json()]
        link = answer.headers.get("link")
        path = link[1 : link.index(">")] if link else ""
    assert pages == every
    for query in ("status=running", "q=x", "template=x"):
        answer = await admin.get(f"/api/apps?trashed=true&{query}")
        assert (answer.status_code, set(answer.json()["details"])) == (400, {query.partition("=")[0]})


async def test_two_at_once(admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    made = await trashed_app(admin, web)
    path = f"/api/apps/{made['id']}/undelete"
    answers = await asyncio.gather(*(admin.post(path) for _ in range(4)))
    assert sorted(one.status_code for one in answers) == [200, 409, 409, 409]
    await until(admin, made["id"], "running")
    path = f"/api/apps/{made['id']}"
    twice = await asyncio.gather(admin.delete(path), admin.delete(path))
    assert sorted(one.status_code for one in twice) in ([204, 404], [204, 409])
    # An app that comes back does not run before both have been answered: then it could be deleted.
    _, let_go = engine.hold("create:web")
    back, gone = await asyncio.gather(admin.post(f"{path}/undelete"), admin.delete(f"{path}?purge=true"))
    assert (back.status_code, gone.status_code) in {(404, 204), (409, 204), (200, 409)}, (back.text, gone.text)
    let_go.set()
    if back.status_code == 200:
        await until(admin, made["id"], "running")


async def test_an_engine_that_is_away_holds_the_way_into_the_trash(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    made = await install(admin, web, config={"admin_password": SECRET})
    engine.go_down()
    deleting = asyncio.create_task(admin.delete(f"/api/apps/{made['id']}"))
    await until(admin, made["id"], "uninstalling", reason="container engine")
    engine.come_back()
    assert (await deleting).status_code == 204
    assert made["id"] in await in_trash(admin)


async def test_a_trash_that_fails_leaves_an_app_that_can_be_deleted_again(
    admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    made = await install(admin, web, config={"admin_password": SECRET})
    engine.fail("delete:db", RuntimeFailure("The device is busy"))
    answer = await admin.delete(f"/api/apps/{made['id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "uninstall_failed")
    assert (await show(admin, made["id"]))["status"] == "failed"
    assert (await admin.delete(f"/api/apps/{made['id']}")).status_code == 204
    assert (await admin.post(f"/api/apps/{made['id']}/undelete")).status_code == 200
    await until(admin, made["id"], "running")
