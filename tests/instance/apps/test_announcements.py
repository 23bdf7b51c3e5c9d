"""What is announced and what is recorded of apps and templates: all of it, and none else."""

import httpx
from sqlalchemy import text

from quazzar.core.secret import MASK
from quazzar.instance.apps.runtimes.base import RuntimeFailure
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_one,
    add_template,
    audited,
    begin_install,
    engine_of,
    events_of,
    install,
    key_client,
    operate,
    unique,
    until,
    web_file,
)


async def test_the_life_of_an_app(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    made = await install(admin, slug, config={"admin_password": SECRET})
    name, app_id = made["name"], made["id"]
    for verb, status in (("stop", "stopped"), ("stop", "stopped"), ("start", "running"), ("restart", "running")):
        await operate(admin, app_id, verb, status)
    await admin.delete(f"/api/apps/{app_id}?keep_data=true")
    base = {"app_id": app_id, "name": name}
    assert await events_of(app, app_id) == [
        ("app.installed", base | {"template": slug, "version": "1.0"}),
        ("app.stopped", base | {"reason": None}),
        ("app.started", base),
        ("app.restarted", base),
        ("app.uninstalled", base | {"data_kept": True, "purge_at": None}),
    ]
    records = await audited(app, app_id)
    assert [(action, kind) for action, kind, _ in records] == [
        ("app.install", "user"),
        ("app.stop", "user"),
        ("app.start", "user"),
        ("app.restart", "user"),
        ("app.uninstall", "user"),
    ]
    installed = records[0][2]
    assert installed is not None
    assert installed["config"]["admin_password"] == installed["config"]["db_password"] == MASK


async def test_what_happens_behind_our_back(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin, restart="no"))
    engine, app_id = engine_of(app), made["id"]
    base = {"app_id": app_id, "name": made["name"]}
    engine.crash(app_id, "web", exit_code=137, oom=True)
    crashed = await until(admin, app_id, "crashed")
    await operate(admin, app_id, "start", "running")
    engine.stop_behind_our_back(app_id, "web")
    stopped = await until(admin, app_id, "stopped")
    assert (await events_of(app, app_id))[1:] == [
        (
            "app.crashed",
            base | {"reason": crashed["status_reason"], "service": "web", "exit_code": 137, "oom_killed": True},
        ),
        ("app.started", base),
        ("app.stopped", base | {"reason": stopped["status_reason"]}),
    ]
    assert [action for action, _, _ in await audited(app, app_id)] == ["app.install", "app.start"]


async def test_health_comes_and_goes(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, "hello")
    engine_of(app).set_health(made["id"], "web", "unhealthy")
    await until(admin, made["id"], "unhealthy")
    engine_of(app).set_health(made["id"], "web", "healthy")
    await until(admin, made["id"], "running")
    assert [kind for kind, _ in await events_of(app, made["id"])] == ["app.installed", "app.unhealthy"]


async def test_a_failure_is_announced_and_a_refusal_is_not(app: RunningApp, admin: httpx.AsyncClient) -> None:
    engine_of(app).fail("create:web", RuntimeFailure("The disk is full"))
    made = await begin_install(admin, await add_one(admin))
    await until(admin, made["id"], "failed")
    assert (await admin.post(f"/api/apps/{made['id']}/stop")).status_code == 409
    assert await events_of(app, made["id"]) == [
        (
            "app.failed",
            {"app_id": made["id"], "name": made["name"], "operation": "installing", "reason": "The disk is full"},
        )
    ]


async def test_a_dry_run_leaves_no_record(app: RunningApp, admin: httpx.AsyncClient) -> None:
    async def count() -> int:
        async with app.database.begin() as session:
            found = await session.execute(text("SELECT count(*) FROM audit_records WHERE action = 'app.install'"))
            return int(found.scalar_one())

    before = await count()
    answer = await admin.post("/api/apps?dry_run=true", json={"template": "hello", "name": unique()})
    assert answer.status_code == 200
    assert await count() == before


async def test_templates_and_keys(app: RunningApp, admin: httpx.AsyncClient) -> None:
    async with key_client(app, admin, ["templates:write"]) as client:
        slug = unique("web")
        made = await add_template(client, web_file(slug))
        await client.put(f"/api/templates/{slug}", json={"compose": web_file(slug, version="2.0")})
        await client.delete(f"/api/templates/{slug}")
    records = await audited(app, made["id"])
    assert [(action, kind) for action, kind, _ in records] == [
        ("template.create", "key"),
        ("template.replace", "key"),
        ("template.delete", "key"),
    ]
