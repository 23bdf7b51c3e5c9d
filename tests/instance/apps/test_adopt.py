"""A Compose project becomes an app as it stands, or nothing happens and everything that stands against it is told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.secret import MASK
from quazzar.instance.apps.adopting import Adoptions
from quazzar.instance.apps.runtimes.base import Project, RuntimeFailure
from quazzar.instance.apps.runtimes.memory import MemoryEngine
from tests.conftest import RunningApp
from tests.factories.apps import (
    audited,
    begin_install,
    engine_of,
    events_of,
    install,
    key_client,
    operate,
    runtime_of,
    show,
    unique,
    until,
)

SHOP: dict[str, Any] = {
    "services": {
        "web": {
            "image": "nginx:1.27",
            "environment": {"DB_PASSWORD": "canary-of-the-shop$$", "MOTTO": "mine"},
            "volumes": ["data:/data"],
            "depends_on": {"db": {}},
            "restart": "unless-stopped",
        },
        "db": {"image": "postgres:17", "restart": "no"},
    },
    "volumes": {"data": {}},
}


@pytest.fixture
async def engine(app: RunningApp) -> AsyncIterator[MemoryEngine]:
    found = engine_of(app)
    yield found
    found.come_back()


def shop(engine: MemoryEngine, **fields: Any) -> Project:
    return engine.compose_up(unique("shop"), SHOP, **fields)


async def adopt(client: httpx.AsyncClient, project: Project | str, **more: Any) -> httpx.Response:
    name = project if isinstance(project, str) else project.name
    return await client.post("/api/apps/adopt", json={"project": name} | more)


def owners(engine: MemoryEngine, project: Project) -> set[str]:
    ids = {container_id for container_id, _ in project.containers.values()}
    return {one.app_id for one in engine.containers if one.id in ids}


async def test_who_may(app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    assert (await adopt(app_client, "x")).json()["code"] == "unauthorized"
    project = shop(engine_of(app))
    # What others run here is not theirs who work on apps: they would get a terminal in it.
    async with key_client(app, admin, ["apps:write", "apps:exec", "apps:secrets"]) as client:
        assert (await adopt(client, project)).json()["code"] == "scope_missing"
        assert (await adopt(client, "x")).json()["code"] == "scope_missing", "nor are they told what there is"
    other = await install(admin)
    async with key_client(app, admin, ["*"], resources=[other["id"]]) as client:
        assert (await adopt(client, project)).json()["code"] == "forbidden"
    async with key_client(app, admin, ["*"]) as client:
        assert (await adopt(client, project)).status_code == 201


async def test_a_project_becomes_an_app(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    project = shop(engine)
    calls = len(engine.calls)
    answer = await adopt(admin, project)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/api/apps/{made['id']}"
    assert (made["name"], made["status"], made["template"], made["version"]) == (project.name, "running", None, None)
    assert made["config"] == {"DB_PASSWORD": MASK}
    assert made["volumes"] == [{"name": "data", "size_bytes": None}]
    assert [(one["name"], one["status"]) for one in made["services"]] == [("db", "running"), ("web", "running")]
    assert not any(one.startswith(("create", "start", "stop", "pull")) for one in engine.calls[calls:])
    assert owners(engine, project) == {made["id"]}
    assert await events_of(app, made["id"]) == [
        ("app.adopted", {"app_id": made["id"], "name": project.name, "project": project.name})
    ]
    assert await audited(app, made["id"]) == [
        ("app.adopt", "user", {"name": project.name, "project": project.name, "services": ["db", "web"]})
    ]
    async with app.database.begin() as session:
        query = text("SELECT row_to_json(apps)::text FROM apps WHERE id = :id")
        assert "canary-of-the-shop" not in (await session.execute(query, {"id": made["id"]})).scalar_one()
    # From then on it is an app.
    await operate(admin, made["id"], "stop", "stopped")
    await operate(admin, made["id"], "start", "running")
    engine.remove_behind_our_back(made["id"], "web")
    await until(admin, made["id"], "crashed", reason="removed")
    await operate(admin, made["id"], "start", "running")
    assert engine.container(made["id"], "web").service.environment["DB_PASSWORD"] == "canary-of-the-shop$"
    changed = await admin.patch(f"/api/apps/{made['id']}", json={"config": {"DB_PASSWORD": "other"}})
    assert changed.status_code == 200
    await until(admin, made["id"], "running")
    assert engine.container(made["id"], "web").service.environment["DB_PASSWORD"] == "other"
    assert (await admin.delete(f"/api/apps/{made['id']}?purge=true")).status_code == 204
    async with app.database.begin() as session:
        query = text("SELECT count(*) FROM app_adoptions WHERE app_id = :id")
        assert (await session.execute(query, {"id": made["id"]})).scalar_one() == 0


async def test_names(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    odd = engine.compose_up(f"my_{unique('odd')}_-", SHOP)
    made = (await adopt(admin, odd)).json()
    assert made["name"] == odd.name.replace("_", "-").rstrip("-")
    taken = await adopt(admin, shop(engine), name=made["name"])
    assert (taken.status_code, taken.json()["code"]) == (409, "app_name_taken")
    project = shop(engine)
    named = await adopt(admin, project, name=unique("named"))
    assert named.status_code == 201
    again = await adopt(admin, project, name=unique("named"))
    assert (again.status_code, again.json()["code"]) == (409, "project_adopted")
    for body in ({"project": "-v"}, {"project": "a;id"}, {"project": ""}, {}, {"project": "x", "status": "running"}):
        wrong = await admin.post("/api/apps/adopt", json=body)
        assert wrong.status_code == 422, body
        assert wrong.json()["code"] == "validation_failed"


async def test_what_there_is_not(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    unknown = await adopt(admin, "no-such-project")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "project_not_found")
    engine.go_down()
    away = await adopt(admin, "x")
    assert (away.status_code, away.json()["code"]) == (503, "runtime_unavailable")
    engine.come_back()
    engine.fail("survey", RuntimeFailure("A swarm runs services", code="unsupported"))
    swarm = await adopt(admin, "x")
    assert (swarm.status_code, swarm.json()["code"]) == (409, "unsupported")
    ours = await adopt(admin, shop(engine, taken=True))
    assert (ours.status_code, ours.json()["code"]) == (409, "project_adopted")


async def test_what_stands_against_it_is_told_whole(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    file: dict[str, Any] = {
        "services": {
            "web": {"image": "x", "privileged": True, "volumes": [{"type": "bind", "source": "/srv", "target": "/x"}]},
            "db": {"image": "y", "pid": "host"},
        },
        "volumes": {"d": {"external": True}},
    }
    project = engine.compose_up(unique("bad"), file, problems={"containers.z": "It was made by hand"})
    answer = await adopt(admin, project)
    assert (answer.status_code, answer.json()["code"]) == (422, "project_invalid")
    details = answer.json()["details"]
    assert details.keys() == {
        f"containers.{project.name}-web-1.privileged",
        f"containers.{project.name}-web-1.volumes.0.type",
        f"containers.{project.name}-db-1.pid",
        "volumes.d.external",
        "containers.z",
    }
    assert not any("line" in said for said in details.values())
    assert (await admin.get(f"/api/apps?q={project.name}")).json() == []
    assert {one.app_id for one in engine.containers if one.id in {id_ for id_, _ in project.containers.values()}} == {
        ""
    }
    trusted = {"services": {"web": file["services"]["web"]}}
    opened = await adopt(admin, engine.compose_up(unique("good"), trusted), trusted=True)
    assert opened.status_code == 201, opened.text
    records = {action: after for action, _, after in await audited(app, opened.json()["id"])}
    assert (records["app.adopt"] or {})["trusted"] is True


async def test_its_ports_are_held(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    other = await begin_install(admin)
    port = other["config"]["http_port"]
    file: dict[str, Any] = {"services": {"web": {"image": "x", "ports": [{"target": 80, "published": str(port)}]}}}
    taken = await adopt(admin, engine.compose_up(unique("ports"), file))
    assert (taken.status_code, taken.json()["code"]) == (409, "port_taken")
    file["services"]["web"]["ports"] = [{"target": 80, "published": "18744"}]
    assert (await adopt(admin, engine.compose_up(unique("ports"), file))).status_code == 201
    body = {"name": unique(), "compose": "services: {a: {image: x, ports: ['18744:80']}}"}
    assert (await admin.post("/api/apps/import", json=body)).json()["code"] == "port_taken"


async def test_two_at_once(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    project = shop(engine)
    answers = await asyncio.gather(*(adopt(admin, project, name=unique("two")) for _ in range(5)))
    assert sorted(one.status_code for one in answers) == [201, 409, 409, 409, 409]
    assert {one.json().get("code") for one in answers} == {None, "project_adopted"}


async def test_the_next_process_knows_it(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    project = shop(engine)
    made = (await adopt(admin, project)).json()
    runtime = runtime_of(app)
    runtime.disown(made["id"])
    before = await runtime.get(made["id"])
    assert before is None or before.services == ()
    await Adoptions(app.database, runtime).start()
    state = await runtime.get(made["id"])
    assert state is not None
    assert [one.name for one in state.services] == ["db", "web"]
    assert (await show(admin, made["id"]))["id"] == made["id"]
