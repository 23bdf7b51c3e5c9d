"""Secrets of apps: made up, changed, made anew with a way back, and in no answer, event, record, log or column."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.core.db import Base
from quazzar.core.secret import MASK
from quazzar.instance.apps.runtimes.base import RuntimeFailure
from quazzar.instance.apps.runtimes.memory import MemoryEngine
from quazzar.instance.apps.service import reseal
from tests.conftest import RunningApp
from tests.factories.apps import (
    install,
    job_of,
    key_client,
    show,
    unique,
    until,
)
from tests.instance.apps.test_changes import (  # noqa: F401 - the fixture is for all tests here
    _at_once,
    ask,
    changed,
    two_versions,
)

CANARY = "canary-of-a-secret"


def given(engine: MemoryEngine, app_id: str) -> tuple[str, str]:
    """The chosen and the generated secret, as the container has them."""
    environment = engine.container(app_id, "web").service.environment
    return environment["ADMIN"], environment["DB"]


async def secret_app(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    slug = await two_versions(client)
    return await install(client, slug, version="1.0", config={"admin_password": f"{CANARY}-1"}, **body)


async def test_a_secret_made_anew_goes_back_when_the_change_fails(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made = await secret_app(admin)
    app_id, before = made["id"], given(engine, made["id"])
    assert len(before[1]) == 24
    engine.fail("start:web", RuntimeFailure("The device is busy"))
    asked = await ask(admin, app_id, "patch", config={"db_password": None, "admin_password": f"{CANARY}-2"})
    assert (await job_of(admin, asked["job_id"]))["status"] == "failed"
    assert given(engine, app_id) == before
    # What is stored is that too: new containers get it.
    await admin.post(f"/api/apps/{app_id}/stop")
    await until(admin, app_id, "stopped")
    engine.remove_behind_our_back(app_id, "web")
    await admin.post(f"/api/apps/{app_id}/start")
    await until(admin, app_id, "running")
    assert given(engine, app_id) == before
    shown = await changed(admin, app_id, "patch", config={"db_password": None, "admin_password": f"{CANARY}-2"})
    after = given(engine, app_id)
    assert after[0] == f"{CANARY}-2"
    assert after[1] not in {before[1], ""}
    assert shown["config"]["admin_password"] == shown["config"]["db_password"] == MASK
    # A mask that is sent back changes nothing, and what is left out stays.
    await ask(admin, app_id, "patch", config=shown["config"])
    await changed(admin, app_id, "patch", config={"motto": "other"})
    assert given(engine, app_id) == after


async def test_an_update_and_its_way_back_take_their_secrets_along(
    admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made = await secret_app(admin)
    app_id, first = made["id"], given(engine, made["id"])
    await changed(admin, app_id, "update")
    assert given(engine, app_id) == first
    await changed(admin, app_id, "patch", config={"db_password": None})
    second = given(engine, app_id)
    await changed(admin, app_id, "rollback")
    assert given(engine, app_id) == first
    await changed(admin, app_id, "rollback")
    assert given(engine, app_id) == second


async def test_an_imported_secret_is_changed_under_its_name(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    compose = 'services: {web: {image: "nginx:1.27", environment: {TOKEN: "${TOKEN}", DB_PASSWORD: "canary-inline"}}}'
    body = {"name": unique("im"), "compose": compose, "env": {"TOKEN": f"{CANARY}-env"}}
    made = (await admin.post("/api/apps/import", json=body)).json()
    shown = await until(admin, made["id"], "running")
    assert shown["config"] == {"TOKEN": MASK, "DB_PASSWORD": MASK}
    await changed(admin, made["id"], "patch", config={"TOKEN": f"{CANARY}-env-2"})
    environment = engine.container(made["id"], "web").service.environment
    assert (environment["TOKEN"], environment["DB_PASSWORD"]) == (f"{CANARY}-env-2", "canary-inline")


def paths(document: dict[str, Any]) -> Iterator[str]:
    """Every reading operation of the API that has no parameter but an app's id."""
    for path, operations in document["paths"].items():
        if "get" in operations and (path.count("{") == 0 or ("{app_id}" in path and path.count("{") == 1)):
            yield path


async def everything(client: httpx.AsyncClient, ids: list[str], **export: str) -> dict[str, str]:
    """All that the API tells, by path; `export` says what of an app is asked for to take it elsewhere."""
    document = (await client.get("/api/openapi.json")).json()
    found = {}
    for path in paths(document):
        for app_id in ids if "{app_id}" in path else [""]:
            if path.endswith("/exec"):
                continue
            full = path.replace("{app_id}", app_id)
            params = export if path.endswith("/export") else {"limit": "200"} if path.count("{") == 0 else {}
            answer = await client.get(full, params=params)
            if answer.status_code == 400:
                answer = await client.get(full)
            found[full] = answer.text
    for job in json.loads(found["/api/jobs"]):
        found[f"job {job['id']}"] = (await client.get(f"/api/jobs/{job['id']}/logs")).text
    return found


async def columns(app: RunningApp) -> str:
    """All that is stored, as text."""
    rows = []
    async with app.database.begin() as session:
        for table in Base.metadata.tables:
            rows += [str(row[0]) for row in await session.execute(text(f'SELECT row_to_json(t) FROM "{table}" AS t'))]
    return "\n".join(rows)


async def test_s29_s33_no_secret_is_told_or_stored_in_the_clear(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    made = await secret_app(admin)
    app_id = made["id"]
    known = {*given(engine, app_id)}
    await changed(admin, app_id, "patch", config={"admin_password": f"{CANARY}-2", "db_password": None})
    known |= {*given(engine, app_id)}
    await changed(admin, app_id, "update")
    await changed(admin, app_id, "rollback")
    for step in ("create:web", "start:web"):
        engine.fail(step, RuntimeFailure("The device is busy"))
        asked = await ask(admin, app_id, "patch", config={"admin_password": f"{CANARY}-3", "db_password": None})
        await job_of(admin, asked["job_id"])
    engine.unknown_images.add("nginx:1.28")
    for name in [name for name in engine.images if name.startswith("nginx:1.28")]:
        del engine.images[name]
    asked = await ask(admin, app_id, "update")
    assert (await job_of(admin, asked["job_id"]))["status"] == "failed"
    copy = (await admin.post(f"/api/apps/{app_id}/clone", json={"name": unique("copy")})).json()
    await until(admin, copy["id"], "running")
    compose = 'services: {web: {image: "nginx:1.27", environment: {TOKEN: "${TOKEN}", DB_PASSWORD: "canary-inline"}}}'
    body = {"name": unique("im"), "compose": compose, "env": {"TOKEN": f"{CANARY}-env"}}
    imported = (await admin.post("/api/apps/import", json=body)).json()
    await until(admin, imported["id"], "running")
    await changed(admin, imported["id"], "patch", config={"TOKEN": f"{CANARY}-env-2"})
    trashed = await secret_app(admin)
    known |= {*given(engine, trashed["id"])}
    assert (await admin.delete(f"/api/apps/{trashed['id']}")).status_code == 204
    ids = [app_id, copy["id"], imported["id"]]
    # Who may see secrets has them in an export, unless told otherwise; nobody else ever.
    told = await everything(admin, ids, secrets="false")
    assert f"{CANARY}-2" in (await admin.get(f"/api/apps/{app_id}/export")).text
    async with key_client(app, admin, ["apps:read", "jobs:read", "audit:read"]) as reader:
        assert (await reader.get(f"/api/apps/{app_id}/export?secrets=true")).status_code == 403
        told |= {f"as a reader: {path}": body for path, body in (await everything(reader, ids)).items()}
    told["/api/apps?trashed=true"] = (await admin.get("/api/apps?trashed=true")).text
    for dry in (f"/api/apps/{app_id}/update?dry_run=true",):
        told[dry] = (await admin.post(dry, json={})).text
    told["stored"] = await columns(app)
    told["our own log"] = "".join(capfd.readouterr())
    known |= {CANARY, "canary-inline"}
    assert len(known) >= 7
    for place, shown in told.items():
        for secret in known:
            assert secret not in shown, f"{secret} is in {place}"
    assert len([path for path in told if path.startswith("/api/apps/")]) > 10


ODD = """\
x-quazzar:
  slug: SLUG
  version: "1"
  title: Odd
  fields: [{name: odd, type: password, required: true PATTERN}]
services: {web: {image: "nginx:1.27", PLACE}}
"""


@pytest.mark.parametrize(
    "place",
    [
        'environment: {X: "${odd}"}',
        'mem_limit: "${odd}"',
        'user: "${odd}"',
        'hostname: "${odd}"',
        'command: ["sh", "-c", "echo ${odd}"]',
        'ports: ["${odd}:80"]',
        'labels: {x: "${odd}"}',
        'healthcheck: {test: ["CMD", "true", "${odd}"]}',
    ],
)
async def test_what_is_wrong_with_a_secret_does_not_show_it(admin: httpx.AsyncClient, place: str) -> None:
    """Wherever a template puts it, also where no secret can be."""
    for pattern in ("", ", pattern: '^[a-z]+$'"):
        slug = unique("odd")
        file = ODD.replace("SLUG", slug).replace("PATTERN", pattern).replace("PLACE", place)
        made = await admin.post("/api/templates", json={"compose": file})
        if made.status_code == 422:
            return
        for wrong in (CANARY, f"{CANARY}\0", CANARY * 2000, [CANARY], {"x": CANARY}, f"{CANARY}\n", f"{CANARY};id"):
            body = {"template": slug, "name": unique("x"), "config": {"odd": wrong}}
            for query in ("?dry_run=true", ""):
                answer = await admin.post(f"/api/apps{query}", json=body)
                assert CANARY not in answer.text
            if answer.status_code == 201:
                await until(admin, answer.json()["id"])
                path = f"/api/apps/{answer.json()['id']}"
                for other in ([CANARY], f"{CANARY}\0"):
                    for method, suffix in (("PATCH", ""), ("POST", "/update"), ("POST", "/update?dry_run=true")):
                        refused = await admin.request(method, path + suffix, json={"config": {"odd": other}})
                        assert CANARY not in refused.text
                assert CANARY not in str(await show(admin, answer.json()["id"]))


async def test_secrets_are_sealed_anew_in_all_their_places(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, keyring: Keyring
) -> None:
    """Apps, what they were before, and what they are to become: all of them move to another master key."""
    made = await secret_app(admin)
    await changed(admin, made["id"], "update")
    async with app.database.begin() as session:
        assert await reseal(session, keyring) >= 2
    before = given(engine, made["id"])
    await changed(admin, made["id"], "rollback")
    assert given(engine, made["id"])[0] == before[0]
