"""What newer there is of an app: found in the catalogue and at registries, told once, and asked for with restraint."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.jobs import JobRun
from quazzar.instance.apps import checking
from quazzar.instance.apps.runtimes.base import RegistryUnreachable, RuntimeFailure, RuntimeUnavailable
from quazzar.instance.apps.runtimes.memory import MemoryEngine
from tests.conftest import RunningApp
from tests.factories.apps import add_template, events_of, install, key_client, show, unique, until, web_file
from tests.instance.apps.test_changes import (  # noqa: F401 - the fixture is for all tests here
    _at_once,
    changed,
    old_app,
    two_versions,
)

NEW = "sha256:" + "7" * 64


@pytest.fixture(autouse=True)
async def _no_pauses(app: RunningApp) -> None:
    await sql(app, "DELETE FROM registry_pauses")


async def sql(app: RunningApp, statement: str, **values: Any) -> list[Any]:
    async with app.database.begin() as session:
        result = await session.execute(text(statement), values)
        return list(result) if statement.startswith("SELECT") else []


async def check(app: RunningApp) -> None:
    """What the schedule does now and then."""
    worker = app.asgi.app.state.worker
    run = JobRun(
        job_id="job_test", kind="apps.check_updates", attempt=1, database=app.database, resources=worker.resources
    )
    await checking.check_updates(run)


async def now(client: httpx.AsyncClient, app_id: str) -> dict[str, Any]:
    answer = await client.post(f"/api/apps/{app_id}/check-updates")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def news(app: RunningApp, app_id: str) -> list[dict[str, Any]]:
    return [data for kind, data in await events_of(app, app_id) if kind == "app.update_available"]


def questions(engine: MemoryEngine) -> list[str]:
    return [one.removeprefix("remote:") for one in engine.calls if one.startswith("remote:")]


async def test_a_new_version_is_told_once(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    slug = str((await add_template(admin, web_file(unique("web"))))["slug"])
    made = await old_app(admin, engine, slug)
    app_id = made["id"]
    fresh = await now(admin, app_id)
    assert (fresh["update_available"], fresh["available_update"]) == (False, None)
    assert fresh["update_check"]["checked_at"] is not None
    newer = web_file(slug, version="2.0", image="nginx:1.28")
    assert (await admin.put(f"/api/templates/{slug}", json={"compose": newer})).status_code == 200
    for _ in range(2):  # no waiting for the round through the registries
        await checking.look_at_catalogue(app.database.begin)
    found = await show(admin, app_id)
    await check(app)
    assert await show(admin, app_id) == found
    assert found["update_available"]
    assert (found["available_update"]["version"], found["available_update"]["images"]) == ("2.0", [])
    assert datetime.fromisoformat(found["available_update"]["since"]) <= datetime.now(UTC)
    listed = next(one for one in (await admin.get(f"/api/apps?q={made['name']}")).json() if one["id"] == app_id)
    assert listed["update_available"]
    base = {"app_id": app_id, "name": made["name"], "version": "1.0"}
    assert await news(app, app_id) == [base | {"available_version": "2.0", "images": []}]
    # Gone with the update, there again after the way back, and then it is no news.
    updated = await changed(admin, app_id, "update")
    assert (updated["update_available"], updated["available_update"]) == (False, None)
    await changed(admin, app_id, "rollback")
    assert (await now(admin, app_id))["available_update"]["version"] == "2.0"
    assert len(await news(app, app_id)) == 1


async def test_an_app_that_this_release_can_not_read_stands_in_nobody_s_way(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    """As after the way back to a release before."""
    slug = await two_versions(admin)
    lost = (await old_app(admin, engine, slug))["id"]
    image = f"registry.example.com/team/web:{unique('t')}"
    other = (
        await old_app(admin, engine, str((await add_template(admin, web_file(unique("web"), image=image)))["slug"]))
    )["id"]
    await sql(app, "UPDATE apps SET definition = '{}' WHERE id = :id", id=lost)
    await sql(app, "UPDATE app_update_checks SET due_at = NULL")
    engine.moved_tags[image] = NEW
    await sql(app, "DELETE FROM templates WHERE slug = :slug", slug=slug)
    await check(app)
    assert (await show(admin, other))["update_available"]
    path = f"/api/apps/{lost}"
    for answer in (
        await admin.patch(path, json={"labels": {"a": "b"}}),
        await admin.post(f"{path}/update", json={}),
        await admin.post(f"{path}/clone", json={"name": unique("copy")}),
        await admin.get(f"{path}/export"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "app_unreadable"), answer.text
    await admin.post(f"{path}/restart")
    assert "can't be read by this release" in (await until(admin, lost, "failed"))["status_reason"]
    assert (await admin.delete(f"{path}?purge=true")).status_code == 204


async def test_a_version_that_reads_older_is_no_news(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    slug = await two_versions(admin)
    made = await install(admin, slug, version="2.0", config={"admin_password": "a kettle of stars"})
    again = web_file(slug, version="1.9", image="nginx:1.26")
    assert (await admin.put(f"/api/templates/{slug}", json={"compose": again})).status_code == 200
    assert not (await now(admin, made["id"]))["update_available"]


async def test_a_tag_that_moves_is_told_once(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    app_id = (await old_app(admin, engine, slug))["id"]
    assert not (await now(admin, app_id))["update_available"]
    engine.moved_tags[image] = NEW
    for _ in range(2):
        found = await now(admin, app_id)
    assert found["available_update"]["images"] == [{"image": image, "digest": NEW}]
    assert found["available_update"]["version"] == "1.0"
    assert [one["images"] for one in await news(app, app_id)] == [[image]]
    # Back where it was: no update any more; moved on: news again.
    del engine.moved_tags[image]
    assert (await now(admin, app_id))["available_update"] is None
    engine.moved_tags[image] = "sha256:" + "8" * 64
    await now(admin, app_id)
    assert len(await news(app, app_id)) == 2
    after = await changed(admin, app_id, "update")
    assert (after["update_available"], after["available_update"]) == (False, None)
    assert not (await now(admin, app_id))["update_available"]


async def test_registries_are_asked_once_a_day_and_each_image_once(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    made = [(await old_app(admin, engine, slug))["id"] for _ in range(3)]
    engine.calls.clear()
    await check(app)
    assert questions(engine).count(image) == 1
    for app_id in made:
        [(due,)] = await sql(app, "SELECT due_at - now() FROM app_update_checks WHERE app_id = :id", id=app_id)
        assert timedelta(hours=21) < due < timedelta(hours=27)
    engine.calls.clear()
    await check(app)
    assert image not in questions(engine)
    await sql(app, "UPDATE app_update_checks SET due_at = now() - interval '1 second' WHERE app_id = :id", id=made[0])
    await check(app)
    assert questions(engine).count(image) == 1


async def test_a_few_questions_at_a_time(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    count = checking.MOST_QUESTIONS + 3
    host = f"{unique('r')}.example.com"
    made = []
    for number in range(count):
        slug = str((await add_template(admin, web_file(unique("web"), image=f"{host}/web:{number}")))["slug"])
        made.append((await old_app(admin, engine, slug))["id"])
    engine.calls.clear()
    await check(app)
    assert len([one for one in questions(engine) if one.startswith(host)]) == checking.MOST_QUESTIONS
    await check(app)
    assert sorted(one for one in questions(engine) if one.startswith(host)) == sorted(
        f"{host}/web:{number}" for number in range(count)
    )
    for app_id in made:
        assert (await show(admin, app_id))["update_check"]["checked_at"] is not None


@pytest.mark.parametrize(
    "trouble",
    [
        RuntimeFailure("The registry takes no more pulls from this address right now", code="registry_rate_limited"),
        RegistryUnreachable("The registry is not reachable"),
    ],
)
async def test_a_registry_that_wants_no_questions_is_left_alone(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, trouble: RuntimeFailure
) -> None:
    host = f"{unique('r')}.example.com"
    images = [f"{host}/web:{number}" for number in range(5)]
    for image in images:
        slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
        app_id = (await old_app(admin, engine, slug))["id"]
    for image in images:
        engine.fail(f"remote:{image}", trouble, times=2)
    engine.calls.clear()
    await check(app)
    assert 1 <= len([one for one in questions(engine) if one in images]) <= 2
    found = await show(admin, app_id)
    assert found["update_check"] == {"checked_at": None, "error": trouble.reason}
    engine.calls.clear()
    await check(app)
    told = await now(admin, app_id)
    assert not [one for one in questions(engine) if one in images]
    assert "left alone" in told["update_check"]["error"]
    # Each failure doubles the time; an answer ends it.
    for failures, longest in ((1, 17), (2, 33)):
        [row] = await sql(app, "SELECT failures, until_at - now() FROM registry_pauses WHERE host = :host", host=host)
        assert row[0] == failures
        assert row[1] < timedelta(minutes=longest)
        await sql(app, "UPDATE registry_pauses SET until_at = now() - interval '1 second'")
        await sql(app, "UPDATE app_update_checks SET due_at = NULL")
        if failures == 1:
            await check(app)
    engine._faults.clear()
    await check(app)
    assert await sql(app, "SELECT host FROM registry_pauses WHERE host = :host", host=host) == []
    assert (await show(admin, app_id))["update_check"]["error"] is None


async def test_an_image_that_is_gone_is_said_of_its_app_alone(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    app_id = (await old_app(admin, engine, slug))["id"]
    engine.unknown_images.add(image)
    found = await now(admin, app_id)
    assert image in found["update_check"]["error"]
    assert found["available_update"] is None
    assert await sql(app, "SELECT host FROM registry_pauses") == []


async def test_a_private_registry_is_asked_with_its_login(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    host = f"{unique('r')}.example.com"
    image = f"{host}/team/web:1"
    engine.private_images[image] = ("robot", "a long canary password")
    body = {"host": host, "username": "robot", "password": "a long canary password"}
    made = await admin.post("/api/registries", json=body)
    assert made.status_code == 201, made.text
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    app_id = (await old_app(admin, engine, slug))["id"]
    engine.moved_tags[image] = NEW
    assert (await now(admin, app_id))["available_update"]["images"] == [{"image": image, "digest": NEW}]
    await admin.patch(f"/api/registries/{made.json()['id']}", json={"password": "another canary password"})
    refused = await now(admin, app_id)
    assert host in refused["update_check"]["error"]
    assert refused["update_available"], "what was known is still so"
    assert "canary password" not in refused["update_check"]["error"]


async def test_without_an_engine(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    app_id = (await old_app(admin, engine))["id"]
    slug = str((await add_template(admin, web_file(unique("web"))))["slug"])
    current = (await old_app(admin, engine, slug))["id"]
    engine.go_down()
    answer = await admin.post(f"/api/apps/{current}/check-updates")
    assert (answer.status_code, answer.json()["code"]) == (503, "runtime_unavailable")
    found = await admin.post(f"/api/apps/{app_id}/check-updates")
    assert found.status_code == 200, "the catalogue needs no engine"
    assert found.json()["available_update"]["version"] == "2.0"


async def test_who_may_look(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    made, other = await old_app(admin, engine), await old_app(admin, engine)
    path = f"/api/apps/{made['id']}/check-updates"
    async with app.client() as anonymous:
        assert (await anonymous.post(path)).status_code == 401
    async with key_client(app, admin, ["apps:read", "apps:operate"]) as reader:
        assert (await reader.post(path)).status_code == 403
    async with key_client(app, admin, ["apps:deploy"], resources=[other["id"]]) as bound:
        assert (await bound.post(path)).status_code == 404
    async with key_client(app, admin, ["apps:deploy"]) as deployer:
        assert (await deployer.post(path)).status_code == 200
    assert (await admin.post("/api/apps/app_nope/check-updates")).status_code == 404
    await admin.post(f"/api/apps/{made['id']}/stop")
    busy = await admin.post(path)
    assert busy.status_code in {200, 409}


async def test_a_change_meanwhile_is_not_written_over(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    """What was found out about an app that is another one by now says nothing."""
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    app_id = (await old_app(admin, engine, slug))["id"]
    engine.moved_tags[image] = NEW
    arrived, let_go = engine.hold(f"remote:{image}")
    checking_now = asyncio.create_task(check(app))
    await asyncio.wait_for(arrived.wait(), 10)
    await changed(admin, app_id, "update")
    let_go.set()
    await checking_now
    after = await show(admin, app_id)
    assert (after["update_available"], after["available_update"]) == (False, None)


async def test_a_lost_engine_in_the_middle_loses_nothing(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    app_id = (await old_app(admin, engine, slug))["id"]
    engine.fail(f"remote:{image}", RuntimeUnavailable())
    with pytest.raises(Exception, match="engine"):
        await check(app)
    assert (await show(admin, app_id))["update_check"] == {"checked_at": None, "error": None}
    await check(app)
    assert (await show(admin, app_id))["update_check"]["checked_at"] is not None
