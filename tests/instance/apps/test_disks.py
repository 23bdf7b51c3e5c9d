"""What apps have on the disk: measured beside requests, shown per volume and in all, gone with its app."""

import asyncio

import httpx
from sqlalchemy import text

from quazzar.instance.apps.disks import DiskMeter
from tests.conftest import RunningApp
from tests.factories.apps import add_template, engine_of, install, runtime_of, show, unique, web_file

CONFIG = {"admin_password": "correct horse battery"}


async def test_sizes_are_shown_once_they_are_measured(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, (await add_template(admin, web_file(unique("web"))))["slug"], config=CONFIG)
    assert made["disk"] is None
    assert made["volumes"] == [{"name": "data", "size_bytes": None}, {"name": "db", "size_bytes": None}]
    assert await DiskMeter(app.database, runtime_of(app)).is_one_unknown()
    engine = engine_of(app)
    engine.volume_bytes[made["id"], "data"] = 5 * 2**40
    for size in (1000, 2000):
        engine.volume_bytes[made["id"], "db"] = size
        await DiskMeter(app.database, runtime_of(app)).measure()
        measured = await show(admin, made["id"])
        assert measured["volumes"] == [
            {"name": "data", "size_bytes": 5 * 2**40},
            {"name": "db", "size_bytes": size},
        ]
        assert measured["disk"]["size_bytes"] == measured["disk"]["volumes_bytes"] == 5 * 2**40 + size
        assert measured["disk"]["containers_bytes"] == 0
        assert measured["disk"]["measured_at"].endswith("Z")
        assert not await DiskMeter(app.database, runtime_of(app)).is_one_unknown()
    stopped = (await admin.post(f"/api/apps/{made['id']}/stop")).json()
    assert stopped["volumes"] == measured["volumes"], "answers to writes show the same"


async def test_an_app_that_goes_meanwhile(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, (await add_template(admin, web_file(unique("web"))))["slug"], config=CONFIG)
    arrived, let_go = engine_of(app).hold("measure_disks")
    measuring = asyncio.create_task(DiskMeter(app.database, runtime_of(app)).measure())
    await arrived.wait()
    async with app.database.begin() as session:
        await session.execute(text("DELETE FROM apps WHERE id = :id"), {"id": made["id"]})
    let_go.set()
    await measuring
    async with app.database.begin() as session:
        query = text("SELECT count(*) FROM app_disks WHERE app_id = :id")
        assert (await session.execute(query, {"id": made["id"]})).scalar_one() == 0
