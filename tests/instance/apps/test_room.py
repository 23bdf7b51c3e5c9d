"""An app that the machine has no room for is refused with the sums, however it is asked for, and nothing is made."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.instance.apps.auto_updating import AutoUpdater
from quazzar.instance.apps.disks import DiskMeter
from quazzar.instance.apps.room import DISK_RESERVE_BYTES, GIB, IMAGE_BYTES, MIB, Claim, claim_of, refusals, rooms
from quazzar.instance.apps.runtimes.base import Machine, RuntimeFailure
from quazzar.instance.apps.runtimes.memory import MemoryEngine
from quazzar.instance.apps.spec import AppSpec, ResourceSpec, ServiceSpec
from quazzar.instance.templates.template import Needs
from quazzar.settings import Apps
from tests.conftest import RunningApp
from tests.factories.apps import (
    add_template,
    begin_install,
    engine_of,
    install,
    job_of,
    runtime_of,
    show,
    unique,
    until,
)
from tests.instance.apps.test_changes import old_app

SMALL = """\
x-quazzar: {slug: SLUG, version: "1", title: Small, needs: {memory: 10m, disk: 300m}}
services:
  web: {image: "nginx:1.27", mem_limit: LIMIT, cpus: 1, volumes: ["data:/data"]}
volumes: {data: {}}
"""


def spec(*limits: ResourceSpec) -> AppSpec:
    services = tuple(ServiceSpec(name=f"s{at}", image=f"i:{at}", resources=one) for at, one in enumerate(limits))
    return AppSpec(app_id="app_x", project="x", services=services)


def test_what_an_app_reserves() -> None:
    two = spec(ResourceSpec(memory_bytes=GIB, cpus=0.5), ResourceSpec(memory_reservation_bytes=MIB, pids=10))
    assert claim_of(two, Needs(), known_images={"i:0"}) == Claim(
        memory_bytes=MIB, memory_limit_bytes=GIB + MIB, cpus=0.5, pids=522, disk_bytes=IMAGE_BYTES
    )
    hinted = claim_of(spec(ResourceSpec()), Needs(memory_bytes=3 * GIB, disk_bytes=5 * GIB))
    assert (hinted.memory_bytes, hinted.memory_limit_bytes, hinted.disk_bytes) == (3 * GIB, 3 * GIB, 5 * GIB)


def test_a_limit_above_the_machine_counts_as_all_that_there_is() -> None:
    found = claim_of(spec(ResourceSpec(memory_bytes=2**50, cpus=1024, pids=4_194_304)), Needs())
    assert found.memory_limit_bytes == psutil.virtual_memory().total
    assert (found.cpus, found.pids) == (psutil.cpu_count(), 32_768)


def test_the_sums() -> None:
    machine = Machine(memory_bytes=10 * GIB, cpus=2, pids=1000, disk_free_bytes=3 * GIB)
    found = {one.resource: one for one in rooms(Claim(), Claim(cpus=3), machine, Apps())}
    assert {name: one.available for name, one in found.items()} == {
        "memory_bytes": 9 * GIB,
        "memory_limit_bytes": 18 * GIB,
        "cpus": 20,
        "pids": 16_000,
        "disk_bytes": 3 * GIB - DISK_RESERVE_BYTES,
    }
    assert found["cpus"].reserved == 3
    assert rooms(Claim(), Claim(), Machine(), Apps()) == [], "what is not known refuses nothing"
    unchecked = rooms(Claim(), Claim(), machine, Apps(memory_overcommit=0, cpu_overcommit=0))
    assert [one.resource for one in unchecked] == ["pids", "disk_bytes"]
    full = rooms(Claim(disk_bytes=1), Claim(), Machine(disk_free_bytes=MIB), Apps())
    assert refusals(Claim(disk_bytes=1), full).keys() == {"disk_bytes"}


def test_what_an_app_has_already_is_not_refused_to_it() -> None:
    machine, now, wanted = Machine(memory_bytes=GIB, cpus=1), Claim(memory_limit_bytes=9 * GIB), Claim(cpus=11)
    reserved = Claim(cpus=1)
    sums = rooms(wanted, reserved, machine, Apps())
    assert refusals(wanted, sums, former=now) == {"cpus": "11 needed, 1 reserved by other apps, 10 available for apps"}
    assert refusals(wanted, sums, former=wanted) == {}
    assert refusals(now, rooms(now, reserved, machine, Apps()), former=now) == {}


@pytest.fixture
async def engine(app: RunningApp) -> AsyncIterator[MemoryEngine]:
    found = engine_of(app)
    yield found
    await set_machine(app)


async def set_machine(app: RunningApp, **fields: Any) -> None:
    engine_of(app).machine = Machine(**fields)
    await app.asgi.app.state.machine.look()


async def reserved(app: RunningApp, name: str) -> int:
    query = text(f"SELECT COALESCE(sum(CAST(claim->>'{name}' AS bigint)), 0) FROM apps WHERE trashed_at IS NULL")
    async with app.database.begin() as session:
        return int((await session.execute(query)).scalar_one())


async def room_for(app: RunningApp, limit_bytes: int) -> None:
    """From now on there is room for limits of so many bytes more."""
    held = await reserved(app, "memory_limit_bytes")
    usable = (held + limit_bytes) / Apps().memory_overcommit
    # What is left to the system comes on top: a tenth, or a gibibyte.
    total = usable / 0.9 if usable / 0.9 < 10 * GIB else usable + GIB
    await set_machine(app, memory_bytes=int(total) + MIB)


async def small(admin: httpx.AsyncClient, limit: str = "256m") -> str:
    file = SMALL.replace("SLUG", slug := unique("small")).replace("LIMIT", limit)
    await add_template(admin, file)
    return slug


def no_room(answer: httpx.Response, *resources: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (409, "does_not_fit"), answer.text
    assert set(answer.json()["details"]) == set(resources)
    for sentence in answer.json()["details"].values():
        assert "needed" in sentence
        assert "reserved by other apps" in sentence
        assert "available" in sentence


@pytest.mark.slow
async def test_every_way_to_an_app_is_refused(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    slug = await small(admin)
    made = await install(admin, slug)
    trashed = await install(admin, slug)
    assert (await admin.delete(f"/api/apps/{trashed['id']}")).status_code == 204
    await room_for(app, 128 * MIB)
    calls, before = len(engine.calls), await reserved(app, "memory_limit_bytes")
    body = {"template": slug, "name": unique()}
    no_room(await admin.post("/api/apps", json=body), "memory_limit_bytes")
    compose = "services: {a: {image: 'nginx:1.27', mem_limit: 256m}}"
    no_room(await admin.post("/api/apps/import", json={"name": unique(), "compose": compose}), "memory_limit_bytes")
    no_room(await admin.post(f"/api/apps/{made['id']}/clone", json={"name": unique()}), "memory_limit_bytes")
    more = {"resources": {"memory_bytes": 512 * MIB}}
    no_room(await admin.patch(f"/api/apps/{made['id']}", json=more), "memory_limit_bytes")
    no_room(await admin.post(f"/api/apps/{trashed['id']}/undelete"), "memory_limit_bytes")
    await asyncio.sleep(0)
    assert not any(one.startswith(("create", "pull")) for one in engine.calls[calls:])
    assert await reserved(app, "memory_limit_bytes") == before
    assert (await show(admin, made["id"]))["status"] == "running"
    # What fits is done: less, and as much as before.
    assert (await admin.patch(f"/api/apps/{made['id']}", json={"config": {}})).status_code == 200
    less = {"resources": {"memory_bytes": 64 * MIB}}
    assert (await admin.patch(f"/api/apps/{made['id']}", json=less)).json()["status"] == "updating"
    await until(admin, made["id"], "running")
    assert await reserved(app, "memory_limit_bytes") == before - 192 * MIB
    assert (await admin.post(f"/api/apps/{trashed['id']}/undelete")).status_code == 200
    await until(admin, trashed["id"], "running")


async def test_who_asks_for_more_than_the_machine_has_is_refused(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = await small(admin)
    await room_for(app, 4 * psutil.virtual_memory().total)
    held = await admin.post("/api/apps", json={"template": await small(admin, "100000g"), "name": unique()})
    assert held.status_code == 201, "what a file says is cut to the machine"
    await until(admin, held.json()["id"], "running")
    body = {"template": slug, "name": unique(), "resources": {"memory_bytes": 2**50}}
    no_room(await admin.post("/api/apps", json=body), "memory_limit_bytes")
    plan = (await admin.post("/api/apps?dry_run=true", json=body)).json()
    assert plan["refusals"]["memory_limit_bytes"].startswith("1048576.00 GiB needed")


async def test_two_at_once_do_not_take_the_last_room(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    slug = await small(admin)
    await room_for(app, 300 * MIB)
    asked = [admin.post("/api/apps", json={"template": slug, "name": unique()}) for _ in range(6)]
    answers = await asyncio.gather(*asked)
    assert sorted(one.status_code for one in answers) == [201, 409, 409, 409, 409, 409]
    for one in answers:
        if one.status_code == 409:
            no_room(one, "memory_limit_bytes")
    made = next(one.json() for one in answers if one.status_code == 201)
    await until(admin, made["id"], "running")
    assert (await admin.delete(f"/api/apps/{made['id']}?purge=true")).status_code == 204
    await install(admin, slug)


async def test_a_change_that_fails_gives_back_what_it_reserved(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made = await install(admin, await small(admin))
    before = await reserved(app, "memory_limit_bytes")
    arrived, go_on = engine.hold("create:web")
    engine.fail("start:web", RuntimeFailure("It can't be started"))
    more = {"resources": {"memory_bytes": 512 * MIB}}
    changing = (await admin.patch(f"/api/apps/{made['id']}", json=more)).json()
    await asyncio.wait_for(arrived.wait(), 10)
    assert await reserved(app, "memory_limit_bytes") == before + 256 * MIB
    go_on.set()
    await until(admin, made["id"], "running")
    assert (await job_of(admin, changing["job_id"]))["status"] == "failed"
    assert await reserved(app, "memory_limit_bytes") == before


async def test_the_disk_counts_until_an_app_is_installed(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    slug = await small(admin)
    await set_machine(app, disk_free_bytes=DISK_RESERVE_BYTES + 500 * MIB)
    arrived, go_on = engine.hold("create:web")
    first = await begin_install(admin, slug)
    await asyncio.wait_for(arrived.wait(), 10)
    no_room(await admin.post("/api/apps", json={"template": slug, "name": unique()}), "disk_bytes")
    go_on.set()
    await until(admin, first["id"], "running")
    await install(admin, slug)
    await set_machine(app, disk_free_bytes=MIB)
    no_room(await admin.post("/api/apps", json={"template": slug, "name": unique()}), "disk_bytes")


async def test_an_install_that_failed_reserves_nothing(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    slug = await small(admin)
    engine.fail("create:web", RuntimeFailure("It can't be made"))
    failed = await begin_install(admin, slug)
    await until(admin, failed["id"], "failed")
    await room_for(app, 0)
    made = await install(admin, slug)
    no_room(await admin.post(f"/api/apps/{failed['id']}/start"), "memory_limit_bytes")
    assert (await admin.delete(f"/api/apps/{made['id']}?purge=true")).status_code == 204
    assert (await admin.post(f"/api/apps/{failed['id']}/start")).status_code == 200
    await until(admin, failed["id"], "running")


TABLES = ("apps", "app_ports", "jobs", "audit_records", "events", "idempotent_answers", "app_adoptions")


async def rows(app: RunningApp) -> dict[str, int]:
    async with app.database.begin() as session:
        return {one: (await session.execute(text(f"SELECT count(*) FROM {one}"))).scalar_one() for one in TABLES}


async def test_a_dry_run_tells_the_sums(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    slug = await small(admin)
    made = await install(admin, slug)
    await room_for(app, 128 * MIB)
    held, calls, before = await reserved(app, "memory_limit_bytes"), len(engine.calls), await rows(app)
    fits = {
        "POST /api/apps": {"template": slug, "name": unique()},
        "POST /api/apps/import": {"name": unique(), "compose": "services: {a: {image: 'new:1', mem_limit: 256m}}"},
        f"POST /api/apps/{made['id']}/clone": {"name": unique()},
    }
    for call, body in fits.items():
        answer = await admin.post(f"{call.removeprefix('POST ')}?dry_run=true", json=body)
        assert answer.status_code == 200, answer.text
        plan = answer.json()
        sums = {one["resource"]: one for one in plan["room"]}
        assert sums["memory_limit_bytes"]["needed"] == 256 * MIB
        assert sums["memory_limit_bytes"]["reserved"] == held
        assert plan["refusals"].keys() == {"memory_limit_bytes"}
        [pull] = plan["pulls"]
        assert pull["present"] is (pull["image"] == "nginx:1.27")
        assert (pull["digest"] or "sha256:").startswith("sha256:")
    engine.go_down()
    answer = await admin.post(
        "/api/apps?dry_run=true", json={"template": slug, "name": unique()}, headers={"Idempotency-Key": unique()}
    )
    engine.come_back()
    assert answer.json()["pulls"] == [{"image": "nginx:1.27", "present": None, "digest": None}]
    assert set(engine.calls[calls:]) <= {"present", "list", "events", "measure", "machine"}
    assert await rows(app) == before
    assert await reserved(app, "memory_limit_bytes") == held


async def test_an_update_needs_room_for_new_images_and_a_copy_of_the_data(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, keyring: Keyring
) -> None:
    made = await old_app(admin, engine)
    path = f"/api/apps/{made['id']}"
    engine.volume_bytes[made["id"], "data"] = 40 * MIB
    await DiskMeter(app.database, runtime_of(app)).measure()
    needed = IMAGE_BYTES + 40 * MIB
    await admin.patch(path, json={"auto_update": {"enabled": True}})
    await admin.post(f"{path}/check-updates")
    updater = AutoUpdater(app.database, keyring, app.settings, app.asgi.app.state.machine)
    await set_machine(app, disk_free_bytes=DISK_RESERVE_BYTES + needed - 1)
    plan = (await admin.post(f"{path}/update?dry_run=true", json={})).json()
    assert plan["refusals"].keys() == {"disk_bytes"}
    [disk] = [one for one in plan["room"] if one["resource"] == "disk_bytes"]
    assert (disk["needed"], disk["available"]) == (needed, needed - 1)
    no_room(await admin.post(f"{path}/update", json={}), "disk_bytes")
    assert await updater.look(datetime.now(UTC)) is None
    waits_for = (await show(admin, made["id"]))["auto_update_state"]["waits_for"]
    assert waits_for.startswith("The machine has no room for this: ")
    assert "needed" in waits_for
    # Images that it has already, and no more than its data.
    await set_machine(app, disk_free_bytes=DISK_RESERVE_BYTES + 40 * MIB)
    assert (await admin.post(f"{path}/update?dry_run=true", json={"version": "1.0"})).json()["refusals"] == {}
    await set_machine(app, disk_free_bytes=DISK_RESERVE_BYTES + needed)
    assert await updater.look(datetime.now(UTC)) == made["id"]
    assert (await until(admin, made["id"], "running", seconds=30))["version"] == "2.0"


@pytest.mark.slow
async def test_the_way_back_is_never_refused(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    """It ran like that before, and what runs now may not be well."""
    slug = await small(admin, "512m")
    newer = SMALL.replace("SLUG", slug).replace("LIMIT", "64m").replace('"1"', '"2"')
    assert (await admin.put(f"/api/templates/{slug}", json={"compose": newer})).status_code == 200
    made = await install(admin, slug, version="1")
    path = f"/api/apps/{made['id']}"
    assert (await admin.post(f"{path}/update", json={})).status_code == 200
    assert (await until(admin, made["id"], "running"))["version"] == "2"
    await room_for(app, 0)
    before = await reserved(app, "memory_limit_bytes")
    no_room(await admin.post(f"{path}/clone", json={"name": unique()}), "memory_limit_bytes")
    assert (await admin.post(f"{path}/rollback")).status_code == 200
    assert (await until(admin, made["id"], "running"))["version"] == "1"
    assert await reserved(app, "memory_limit_bytes") == before + 448 * MIB, "others are told that it has it"
