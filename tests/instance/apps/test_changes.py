"""PATCH, update and rollback: what is changed, and that whatever goes wrong the app is whole in its old state."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.apps import changes_store, changing
from quazzar.instance.apps.disks import DiskMeter
from quazzar.instance.apps.reconciler import Reconciler
from quazzar.instance.apps.runtimes.base import RuntimeFailure
from quazzar.instance.apps.runtimes.memory import Behaviour, MemoryEngine
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_template,
    audited,
    events_of,
    install,
    job_of,
    key_client,
    runtime_of,
    show,
    unique,
    until,
    web_file,
)

OLD, NEW = b"old data", b"new data"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "STEADY_SECONDS", 0.0)


async def two_versions(client: httpx.AsyncClient) -> str:
    """A template with 1.0 and 2.0, whose images differ; 2.0 is the newest."""
    slug = str((await add_template(client, web_file(unique("web"))))["slug"])
    newer = web_file(slug, version="2.0", image="nginx:1.28")
    answer = await client.put(f"/api/templates/{slug}", json={"compose": newer})
    assert answer.status_code == 200, answer.text
    return slug


async def old_app(client: httpx.AsyncClient, engine: MemoryEngine, slug: str | None = None) -> dict[str, Any]:
    """An app of version 1.0 with data."""
    slug = slug or await two_versions(client)
    app = await install(client, slug, version="1.0", config={"admin_password": SECRET})
    engine.contents[app["id"], "data"] = OLD
    return app


async def ask(client: httpx.AsyncClient, app_id: str, verb: str, **body: Any) -> dict[str, Any]:
    path = f"/api/apps/{app_id}"
    answer = await (
        client.patch(path, json=body)
        if verb == "patch"
        else client.post(f"{path}/{verb}", json=body)
        if verb == "update"
        else client.post(f"{path}/{verb}")
    )
    assert answer.status_code == 200, answer.text
    app: dict[str, Any] = answer.json()
    return app


async def changed(client: httpx.AsyncClient, app_id: str, verb: str, **body: Any) -> dict[str, Any]:
    asked = await ask(client, app_id, verb, **body)
    job = await job_of(client, asked["job_id"])
    assert job["status"] == "completed", job
    return await show(client, app_id)


def assert_old(engine: MemoryEngine, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Old version, config and data, running, and nothing besides."""
    app_id = before["id"]
    assert after["status"] == "running"
    for name in ("version", "config", "resources", "ports", "urls"):
        assert after[name] == before[name], name
    assert engine.container(app_id, "web").service.image == "nginx:1.27"
    assert engine.container(app_id, "web").status == "running"
    assert len([one for one in engine.containers if one.app_id == app_id]) == 2
    assert engine.contents[app_id, "data"] == OLD
    assert engine.volumes[app_id] == {"data", "db"}
    assert [name for owner, name in engine.snapshots if owner == app_id] == []


async def test_a_patch_recreates_what_must_be_and_keeps_the_data(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made = await old_app(admin, engine)
    app_id, db = made["id"], engine.container(made["id"], "db").id
    password = engine.container(app_id, "web").service.environment["DB"]
    after = await changed(
        admin,
        app_id,
        "patch",
        config={"motto": "changed", "db_password": None},
        resources={"memory_bytes": 64 * 1024 * 1024},
        restart_policy="on-failure:3",
        labels={"team": "blue"},
    )
    assert (after["status"], after["config"]["motto"], after["labels"]) == ("running", "changed", {"team": "blue"})
    assert (after["restart_policy"], after["resources"]["memory_bytes"]) == ("on-failure:3", 64 * 1024 * 1024)
    web = engine.container(app_id, "web").service
    assert (web.environment["MOTTO"], web.environment["ADMIN"]) == ("changed", SECRET)
    assert web.environment["DB"] not in {password, ""}, "a generated secret is made anew"
    assert (web.restart.policy, web.restart.max_retries) == ("on-failure", 3)
    assert engine.contents[app_id, "data"] == OLD
    assert engine.container(app_id, "db").id != db, "its limit changed"
    # Nothing that the containers know: done at once, with the same containers.
    db = engine.container(app_id, "db").id
    shown = await ask(admin, app_id, "patch", labels={"team": None, "tier": "1"}, config={"motto": "changed"})
    assert (shown["status"], shown["labels"]) == ("running", {"tier": "1"})
    assert engine.container(app_id, "db").id == db
    text = str(await audited(app, app_id)) + str(await events_of(app, app_id))
    assert SECRET not in text
    assert web.environment["DB"] not in text


async def test_a_stopped_app_takes_its_change_at_its_start(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    made = await old_app(admin, engine)
    await admin.post(f"/api/apps/{made['id']}/stop")
    await until(admin, made["id"], "stopped")
    after = await ask(admin, made["id"], "patch", config={"motto": "later", "http_port": "auto"})
    assert (after["status"], after["config"]["motto"]) == ("stopped", "later")
    assert after["config"]["http_port"] != made["config"]["http_port"]
    await admin.post(f"/api/apps/{made['id']}/start")
    running = await until(admin, made["id"], "running")
    assert running["ports"][0]["host_port"] == after["config"]["http_port"]
    assert engine.container(made["id"], "web").service.environment["MOTTO"] == "later"


async def test_bad_changes_are_told_whole_and_change_nothing(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made, other = await old_app(admin, engine), await old_app(admin, engine)
    path = f"/api/apps/{made['id']}"
    before = await show(admin, made["id"])
    answer = await admin.patch(
        path, json={"config": {"motto": "x" * 41, "admin_password": "short", "nope": 1}, "labels": {"A b": "x"}}
    )
    assert answer.status_code == 422, answer.text
    assert set(answer.json()["details"]) == {"config.motto", "config.admin_password", "config.nope", "labels.A b"}
    for body in (
        {"restart_policy": "sometimes"},
        {"resources": {"memory_bytes": 1}},
        {"version": "2.0"},
        {"config": {"http_port": 99999}},
        {"labels": {"a": 1}},
    ):
        assert (await admin.patch(path, json=body)).status_code == 422, body
    taken = await admin.patch(path, json={"config": {"http_port": other["config"]["http_port"]}})
    assert (taken.status_code, taken.json()["code"]) == (409, "port_taken")
    assert (await admin.post(f"{path}/update", json={"version": "9.9"})).json()["details"].keys() == {"version"}
    nothing = await admin.post(f"{path}/rollback")
    assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_to_roll_back")
    assert await show(admin, made["id"]) == before
    async with key_client(app, admin, ["apps:read"]) as reader:
        for method, suffix in (("PATCH", ""), ("POST", "/update"), ("POST", "/rollback")):
            assert (await reader.request(method, path + suffix, json={})).status_code == 403
    async with key_client(app, admin, ["apps:write"], resources=[other["id"]]) as bound:
        for method, suffix in (("PATCH", ""), ("POST", "/update"), ("POST", "/rollback")):
            assert (await bound.request(method, path + suffix, json={})).status_code == 404


async def test_an_update_and_the_way_back_and_forth(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made = await old_app(admin, engine)
    app_id = made["id"]
    after = await changed(admin, app_id, "update")
    assert (after["status"], after["version"], after["config"]) == ("running", "2.0", made["config"])
    assert engine.container(app_id, "web").service.image == "nginx:1.28"
    assert engine.contents[app_id, "data"] == OLD
    engine.contents[app_id, "data"] = NEW
    await changed(admin, app_id, "patch", config={"motto": "new"})

    back = await changed(admin, app_id, "rollback")
    assert (back["version"], back["config"]) == ("1.0", made["config"])
    assert engine.container(app_id, "web").service.image == "nginx:1.27"
    assert engine.contents[app_id, "data"] == OLD
    forth = await changed(admin, app_id, "rollback")
    assert (forth["version"], forth["config"]["motto"]) == ("2.0", "new")
    assert engine.contents[app_id, "data"] == NEW
    for _ in range(4):
        await changed(admin, app_id, "rollback")
    assert len([1 for owner, _ in engine.snapshots if owner == app_id]) <= changing.KEPT_REVISIONS
    news = [kind for kind, _ in await events_of(app, app_id)]
    assert news[:4] == ["app.installed", "app.updated", "app.updated", "app.updated"]
    assert (await admin.delete(f"/api/apps/{app_id}?purge=true")).status_code == 204
    assert [name for owner, name in engine.snapshots if owner == app_id] == []


async def dry_run(client: httpx.AsyncClient, app_id: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(f"/api/apps/{app_id}/update?dry_run=true", json=body)
    assert answer.status_code == 200, answer.text
    plan: dict[str, Any] = answer.json()
    return plan


async def test_a_dry_run_says_what_an_update_would_do_and_does_nothing(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made = await old_app(admin, engine)
    app_id = made["id"]
    engine.volume_bytes[app_id, "data"] = 5_000
    engine.volume_bytes[app_id, "db"] = 700
    await DiskMeter(app.database, runtime_of(app)).measure()
    before, records = await show(admin, app_id), len(await audited(app, app_id))
    plan = await dry_run(admin, app_id)
    digests = {one["name"]: one["image_digest"] for one in made["services"]}
    assert (plan["former_version"], plan["version"], plan["refusals"]) == ("1.0", "2.0", {})
    assert (plan["recreated"], plan["removed"], plan["snapshot_bytes"]) == (["web"], [], 5_700)
    assert plan["services"] == ["db", "web"]
    assert plan["ports"] == made["ports"]
    changes = {one["image"]: one for one in plan["image_changes"]}
    assert changes.keys() == {"nginx:1.28", "postgres:17"}
    assert changes["postgres:17"]["former_digest"] == changes["postgres:17"]["digest"] == digests["db"]
    assert changes["nginx:1.28"]["former_digest"] is None
    assert changes["nginx:1.28"]["digest"].startswith("sha256:")
    same = await dry_run(admin, app_id, version="1.0")
    assert (same["recreated"], same["removed"]) == ([], [])
    engine.moved_tags["nginx:1.27"] = "sha256:" + "7" * 64
    moved = await dry_run(admin, app_id, version="1.0")
    assert moved["recreated"] == ["web"]
    change = next(one for one in moved["image_changes"] if one["image"] == "nginx:1.27")
    assert (change["former_digest"], change["digest"]) == (digests["web"], "sha256:" + "7" * 64)
    engine.moved_tags.clear()
    engine.unknown_images.add("nginx:1.28")
    assert (await dry_run(admin, app_id))["refusals"].keys() == {"images.nginx:1.28"}
    engine.go_down()
    away = await dry_run(admin, app_id)
    assert any("container engine" in one for one in away["notes"])
    assert [one["digest"] for one in away["image_changes"]] == [None, None]
    engine.come_back()
    answer = await admin.post(f"/api/apps/{app_id}/update?dry_run=true", json={"version": "9.9"})
    assert (answer.status_code, answer.json()["details"].keys()) == (422, {"version"})
    # Without a body as with an empty one: to the newest.
    bare = await admin.post(f"/api/apps/{app_id}/update?dry_run=true")
    assert (bare.status_code, bare.json()["recreated"]) == (200, ["web"])
    assert await show(admin, app_id) == before
    assert len(await audited(app, app_id)) == records
    async with key_client(app, admin, ["apps:read"]) as reader:
        assert (await reader.post(f"/api/apps/{app_id}/update?dry_run=true", json={})).status_code == 403


async def test_a_moving_tag_changes_nothing_until_an_update_and_not_the_way_back(
    admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    made = await old_app(admin, engine, slug)
    app_id = made["id"]
    first = made["services"][0]["image_digest"] if made["services"][0]["name"] == "web" else None
    first = first or next(one["image_digest"] for one in made["services"] if one["name"] == "web")
    before = await changed(admin, app_id, "update")
    assert [one["started_at"] for one in before["services"]] == [one["started_at"] for one in made["services"]]
    engine.moved_tags[image] = "sha256:" + "7" * 64
    engine.images.pop(image)
    await admin.post(f"/api/apps/{app_id}/restart")
    await until(admin, app_id, "running")
    assert engine.container(app_id, "web").image_digest == first
    await changed(admin, app_id, "update")
    assert engine.container(app_id, "web").image_digest == "sha256:" + "7" * 64
    await changed(admin, app_id, "rollback")
    assert engine.container(app_id, "web").image_digest == first


STEPS = {
    "update": ["pull:nginx:1.28", "stop:web", "snapshot", "copy:data", "delete:web", "create:web", "start:web"],
    "rollback": ["stop:web", "snapshot", "restore", "copy:data", "delete:web", "create:web", "start:web"],
    "patch": ["stop:web", "delete:web", "create:web", "start:web"],
}
ALL = [(verb, step) for verb, steps in STEPS.items() for step in steps]


async def prepared(client: httpx.AsyncClient, engine: MemoryEngine, verb: str) -> dict[str, Any]:
    """An app on which `verb` leads away from `assert_old`: for a rollback one that was updated to 1.0 from 2.0."""
    if verb != "rollback":
        return await old_app(client, engine)
    slug = await two_versions(client)
    app = await install(client, slug, version="2.0", config={"admin_password": SECRET})
    app = await changed(client, app["id"], "update", version="1.0")
    engine.contents[app["id"], "data"] = OLD
    return app


def forget_images(engine: MemoryEngine) -> None:
    for name in [name for name in engine.images if name.startswith("nginx:1.28")]:
        del engine.images[name]


def body_of(verb: str) -> dict[str, Any]:
    return {"config": {"motto": "other"}} if verb == "patch" else {}


@pytest.mark.parametrize(("verb", "step"), ALL)
async def test_a_step_that_fails_leads_back(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, verb: str, step: str
) -> None:
    before = await prepared(admin, engine, verb)
    if step.startswith("pull:"):
        forget_images(engine)
    kept = {one for one in engine.snapshots if one[0] == before["id"]}
    engine.fail(step, RuntimeFailure("The disk is full"))
    asked = await ask(admin, before["id"], verb, **body_of(verb))
    assert asked["status"] == "updating"
    job = await job_of(admin, asked["job_id"])
    assert (job["status"], job["error"]) == ("failed", "The disk is full")
    after = await show(admin, before["id"])
    if verb == "rollback":
        assert {one for one in engine.snapshots if one[0] == before["id"]} == kept
        for one in kept:
            engine.snapshots.pop(one)
    assert_old(engine, before, after)
    kind, data = (await events_of(app, before["id"]))[-1]
    assert (kind, data["reason"]) == ("app.update_failed", "The disk is full")


@pytest.mark.parametrize("behaviour", [Behaviour(exit_code=3), Behaviour(healthy_after_seconds=None)])
async def test_what_does_not_get_well_goes_back(
    admin: httpx.AsyncClient, engine: MemoryEngine, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "STEADY_SECONDS", 1.0)
    before = await old_app(admin, engine)
    if behaviour.exit_code is None:
        slug = before["template"]
        sick = web_file(slug, version="3.0", image="nginx:1.28").replace(
            'restart: "no"', 'restart: "no"\n    healthcheck: {test: ["CMD", "true"]}'
        )
        assert (await admin.put(f"/api/templates/{slug}", json={"compose": sick})).status_code == 200
    engine.behaviours["nginx:1.28"] = behaviour
    asked = await ask(admin, before["id"], "update")
    job = await job_of(admin, asked["job_id"])
    assert job["status"] == "failed"
    assert '"web"' in job["error"]
    assert_old(engine, before, await show(admin, before["id"]))


async def test_what_keeps_restarting_is_not_well(
    admin: httpx.AsyncClient, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "STEADY_SECONDS", 1.0)
    monkeypatch.setattr(changing, "RESTARTS_SECONDS", 1.0)
    before = await old_app(admin, engine)
    slug = before["template"]
    looping = web_file(slug, version="3.0", image="nginx:1.28").replace('restart: "no"', "restart: always")
    assert (await admin.put(f"/api/templates/{slug}", json={"compose": looping})).status_code == 200
    engine.behaviours["nginx:1.28"] = Behaviour(exit_code=3, exit_after_seconds=0.3)
    asked = await ask(admin, before["id"], "update")
    job = await job_of(admin, asked["job_id"])
    assert job["status"] == "failed"
    assert "keeps restarting" in job["error"]
    assert_old(engine, before, await show(admin, before["id"]))


async def test_one_change_at_a_time_and_cancel_goes_back(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    before = await old_app(admin, engine)
    arrived, _ = engine.hold("create:web")
    asked = await ask(admin, before["id"], "update")
    await asyncio.wait_for(arrived.wait(), 10)
    path = f"/api/apps/{before['id']}"
    for answer in (
        await admin.patch(path, json={"labels": {}}),
        await admin.post(f"{path}/update", json={}),
        await admin.post(f"{path}/rollback"),
        await admin.post(f"{path}/stop"),
        await admin.post(f"{path}/clone", json={"name": unique()}),
        await admin.delete(path),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "app_busy")
        assert answer.json()["error"] == "The app is updating; wait until that is done"
    assert (await admin.post(f"/api/jobs/{asked['job_id']}/cancel")).status_code == 200
    assert (await job_of(admin, asked["job_id"]))["status"] == "cancelled"
    assert_old(engine, before, await until(admin, before["id"], "running"))


async def test_a_cancel_before_the_change_has_begun_leaves_nothing_to_take_back(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slug = await two_versions(admin)
    waiting, early, *others = [await old_app(admin, engine, slug) for _ in range(4)]
    for one in others:  # as many updates as are done at once
        arrived, _ = engine.hold("create:web")
        one["job_id"] = (await ask(admin, one["id"], "update"))["job_id"]
        await asyncio.wait_for(arrived.wait(), 10)
    asked = await ask(admin, waiting["id"], "update")
    for job_id in (asked["job_id"], *(one["job_id"] for one in others)):
        assert (await admin.post(f"/api/jobs/{job_id}/cancel")).status_code == 200
    reconciler = Reconciler(app.database, runtime_of(app))
    await reconciler.reap()
    await reconciler.full_pass()
    assert_old(engine, waiting, await until(admin, waiting["id"], "running"))
    for one in others:
        await until(admin, one["id"], "running")

    # Neither does one that comes while the job reads what it is to do.
    reading = asyncio.Event()

    async def read(session: AsyncSession, app_id: str) -> changes_store.Change | None:
        if app_id == early["id"] and not reading.is_set():
            reading.set()
            await asyncio.sleep(60)
        return await get_change(session, app_id)

    get_change = changes_store.get_change
    monkeypatch.setattr(changes_store, "get_change", read)
    asked = await ask(admin, early["id"], "update")
    await asyncio.wait_for(reading.wait(), 10)
    assert (await admin.post(f"/api/jobs/{asked['job_id']}/cancel")).status_code == 200
    assert (await job_of(admin, asked["job_id"]))["status"] == "cancelled"
    assert_old(engine, early, await show(admin, early["id"]))
    assert "app.failed" not in {kind for kind, _ in await events_of(app, early["id"])}

    for one in (waiting, early):
        assert (await changed(admin, one["id"], "update"))["version"] == "2.0"


async def test_a_stop_that_was_cancelled_does_not_end_later_what_runs_again(
    admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    before = await old_app(admin, engine)
    web = engine.container(before["id"], "web")
    web.behaviour = Behaviour(stop_seconds=0.5)
    asked = await ask(admin, before["id"], "update")
    while not (ending := list(engine.stops.values())):
        await asyncio.sleep(0.01)
    assert (await admin.post(f"/api/jobs/{asked['job_id']}/cancel")).status_code == 200
    assert (await job_of(admin, asked["job_id"]))["status"] == "cancelled"
    await asyncio.gather(*ending)
    assert_old(engine, before, await show(admin, before["id"]))


async def test_what_can_not_be_stopped_runs_on(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    before = await old_app(admin, engine)
    engine.fail("stop:web", RuntimeFailure("The device is busy"), times=2)
    asked = await ask(admin, before["id"], "update")
    assert (await job_of(admin, asked["job_id"]))["error"] == "The device is busy"
    assert_old(engine, before, await show(admin, before["id"]))


@pytest.mark.parametrize("step", ["restore", "start:web"])
async def test_a_cancel_on_the_way_back_does_not_stop_it(
    admin: httpx.AsyncClient, engine: MemoryEngine, step: str
) -> None:
    before = await old_app(admin, engine)
    engine.fail("create:web", RuntimeFailure("The disk is full"))
    arrived, _ = engine.hold(step)
    asked = await ask(admin, before["id"], "update")
    await asyncio.wait_for(arrived.wait(), 10)
    assert (await admin.post(f"/api/jobs/{asked['job_id']}/cancel")).status_code == 200
    assert (await job_of(admin, asked["job_id"]))["status"] == "cancelled"
    assert_old(engine, before, await show(admin, before["id"]))


async def test_what_could_not_be_taken_back_is_at_the_next_restart(
    admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    before = await old_app(admin, engine)
    engine.fail("start:web", RuntimeFailure("The device is busy"), times=2)
    asked = await ask(admin, before["id"], "update")
    assert (await job_of(admin, asked["job_id"]))["status"] == "failed"
    assert (await show(admin, before["id"]))["status"] == "failed"
    path = f"/api/apps/{before['id']}"
    for busy in (
        await admin.post(f"{path}/update", json={}),
        # Of which data may be half of the one state and half of the other.
        await admin.post(f"{path}/clone", json={"name": unique("copy")}),
        await admin.get(f"{path}/export?data=true"),
    ):
        assert (busy.status_code, busy.json()["code"]) == (409, "app_busy")
    await admin.post(f"{path}/start")
    after = await until(admin, before["id"], "running")
    assert engine.contents[before["id"], "data"] == OLD
    assert (after["version"], after["config"]) == ("1.0", before["config"])
    assert (await changed(admin, before["id"], "update"))["version"] == "2.0"


async def test_why_a_change_failed_is_told_though_the_database_goes_right_after_it(
    admin: httpx.AsyncClient, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ConnectionResetError

    before = await old_app(admin, engine)
    monkeypatch.setattr(changing, "sweep", broken)
    engine.fail("create:web", RuntimeFailure("The disk is full"))
    job = await job_of(admin, (await ask(admin, before["id"], "update"))["job_id"])
    assert (job["status"], job["error"], job["attempts"]) == ("failed", "The disk is full", 1)


async def test_a_copy_that_could_not_be_discarded_goes_later(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made, other = await old_app(admin, engine), await old_app(admin, engine)
    app_id = made["id"]
    await changed(admin, app_id, "update")
    [kept] = [name for owner, name in engine.snapshots if owner == app_id]
    for owner in (app_id, other["id"], "app_of_another_system"):
        engine.snapshots[owner, "left"] = {}
    await app.asgi.app.state.reconciler.full_pass()
    assert [name for owner, name in engine.snapshots if owner == app_id] == [kept]
    assert (other["id"], "left") not in engine.snapshots
    assert engine.snapshots.pop(("app_of_another_system", "left")) == {}
    # One that is being made belongs to whoever makes it, and those in the trash come back with it.
    arrived, let_go = engine.hold("snapshot")
    asked = await ask(admin, other["id"], "update")
    await asyncio.wait_for(arrived.wait(), 10)
    engine.snapshots[other["id"], "half"] = {}
    await app.asgi.app.state.reconciler.full_pass()
    assert (other["id"], "half") in engine.snapshots
    let_go.set()
    assert (await job_of(admin, asked["job_id"]))["status"] == "completed"
    assert (await admin.delete(f"/api/apps/{app_id}")).status_code == 204
    await app.asgi.app.state.reconciler.full_pass()
    assert [name for owner, name in engine.snapshots if owner == app_id] == [kept]
