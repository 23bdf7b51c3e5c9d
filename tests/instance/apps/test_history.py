"""What apps used over time: samples into minutes, minutes into hours and days, gaps as gaps, old points forgotten."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.instance.apps import history
from quazzar.instance.apps.history import Collector
from quazzar.instance.apps.points import DAY, HOUR, MINUTE
from quazzar.instance.apps.runtimes.base import RuntimeUnavailable, ServiceStats
from quazzar.instance.apps.runtimes.memory import MemoryEngine, MemoryRuntime
from tests.conftest import RunningApp
from tests.factories.apps import (
    add_one,
    add_template,
    engine_of,
    install,
    key_client,
    operate,
    runtime_of,
    unique,
    web_file,
)


async def points_of(client: httpx.AsyncClient, app_id: str, span: str = "1h") -> list[dict[str, Any]]:
    answer = await client.get(f"/api/apps/{app_id}/stats?range={span}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["range"] == span
    points: list[dict[str, Any]] = answer.json()["points"]
    return points


async def write_points(app: RunningApp, app_id: str, step: int, times: Sequence[datetime], **values: int) -> None:
    """Points as a collector would have left them at these times."""
    row = {"samples": 6, "cpu": 10, "peak": 20, "memory": 1000, "rx": 5, "restarts": 0} | values
    statement = text(
        "INSERT INTO app_points VALUES (:app_id, :step, :at, :samples, :cpu, :peak, :memory, :memory, 2000, :rx, 0, 0,"
        " 0, 3, :restarts)"
    )
    async with app.database.begin() as session:
        for at in times:
            await session.execute(statement, row | {"app_id": app_id, "step": step, "at": at})


async def stored(app: RunningApp, app_id: str, step: int) -> int:
    async with app.database.begin() as session:
        query = text("SELECT count(*) FROM app_points WHERE app_id = :app_id AND step_seconds = :step")
        return int((await session.execute(query, {"app_id": app_id, "step": step})).scalar_one())


def use(engine: MemoryEngine, app_id: str, service: str, *, cpu: float, rx: int) -> None:
    """Let a service use so many seconds of CPU more, and have received so many bytes since its start."""
    container = engine.container(app_id, service)
    container.cpu_seconds += cpu
    container.stats = ServiceStats(
        name=service,
        cpu_percent=0,
        memory_bytes=1_000_000,
        memory_limit_bytes=4_000_000,
        network_rx_bytes=rx,
        network_tx_bytes=2 * rx,
        disk_read_bytes=0,
        disk_write_bytes=rx,
        pids=4,
    )


async def test_samples_become_points(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, (await add_template(admin, web_file(unique("web"))))["slug"], config=CONFIG)
    engine, collector = engine_of(app), Collector(app.database, runtime_of(app))
    use(engine, made["id"], "web", cpu=100, rx=1_000_000)
    await collector.collect()
    assert await points_of(admin, made["id"]) == [], "one reading says nothing about a stretch of time"
    use(engine, made["id"], "web", cpu=0, rx=1_000_300)
    await collector.collect()
    use(engine, made["id"], "web", cpu=0, rx=1_000_700)
    await collector.collect()
    points = await points_of(admin, made["id"])
    assert 1 <= len(points) <= 2, "a minute may have ended meanwhile"
    assert sum(one["network_rx_bytes"] for one in points) == 700
    assert sum(one["network_tx_bytes"] for one in points) == 1400
    assert sum(one["disk_write_bytes"] for one in points) == 700
    assert points[-1]["memory_bytes"] == points[-1]["memory_bytes_max"] == 1_000_000 + 16 * 1024 * 1024
    assert points[-1]["pids"] == 5
    assert points[-1]["cpu_percent"] == 0, "what was used before is not of now"


CONFIG = {"admin_password": "correct horse battery"}


async def test_a_container_that_starts_anew_counts_from_nothing(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin))
    engine, collector = engine_of(app), Collector(app.database, runtime_of(app))
    use(engine, made["id"], "web", cpu=50, rx=10_000)
    await collector.collect()
    await operate(admin, made["id"], "stop", "stopped")
    engine.remove_behind_our_back(made["id"], "web")
    await operate(admin, made["id"], "start", "running")
    use(engine, made["id"], "web", cpu=0, rx=70)
    await collector.collect()
    assert sum(one["network_rx_bytes"] for one in await points_of(admin, made["id"])) == 70


async def test_restarts_are_counted(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, (await add_template(admin, web_file(unique("web"))))["slug"], config=CONFIG)
    engine, collector = engine_of(app), Collector(app.database, runtime_of(app))
    await collector.collect()
    for name, restarts in (("web", 2), ("db", 1)):
        engine.container(made["id"], name).restarts = restarts
    await app.asgi.app.state.reconciler.full_pass()
    await collector.collect()
    await collector.collect()
    assert sum(one["restarts"] for one in await points_of(admin, made["id"])) == 3
    engine.container(made["id"], "web").restarts = 4
    now = (await admin.get(f"/api/apps/{made['id']}/stats")).json()
    assert (now["restarts"], sorted(one["restarts"] for one in now["services"])) == (5, [1, 4])


async def test_minutes_become_hours_and_days(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin))
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    await write_points(app, made["id"], MINUTE, [hour + timedelta(minutes=one) for one in range(3)], cpu=10, restarts=1)
    await write_points(app, made["id"], MINUTE, [hour + timedelta(minutes=9)], cpu=50, peak=90, samples=3, memory=8000)
    for _ in range(2):
        await Collector(app.database, runtime_of(app)).keep()
        [point] = await points_of(admin, made["id"], "7d")
        assert point["at"] == hour.isoformat().replace("+00:00", "Z")
        assert point["cpu_percent"] == pytest.approx((3 * 6 * 10 + 3 * 50) / 21)
        assert (point["cpu_percent_max"], point["memory_bytes_max"]) == (90, 8000)
        assert point["memory_bytes"] == (3 * 6 * 1000 + 3 * 8000) // 21
        assert (point["network_rx_bytes"], point["restarts"]) == (20, 3)
        [day] = await points_of(admin, made["id"], "1y")
        assert day == point | {"at": hour.replace(hour=0).isoformat().replace("+00:00", "Z")}
    await write_points(app, made["id"], MINUTE, [hour + timedelta(minutes=10)], peak=95)
    await Collector(app.database, runtime_of(app)).keep()
    [point] = await points_of(admin, made["id"], "30d")
    assert point["cpu_percent_max"] == 95, "what came later is counted in"


async def test_gaps_stay_gaps(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin))
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    times = [now - timedelta(minutes=one) for one in (50, 49, 20, 3)]
    await write_points(app, made["id"], MINUTE, times)
    points = await points_of(admin, made["id"], "1h")
    assert [one["at"] for one in points[:4]] == [one.isoformat().replace("+00:00", "Z") for one in times]
    await write_points(app, made["id"], MINUTE, [now - timedelta(minutes=61), now - timedelta(hours=7)])
    assert len(await points_of(admin, made["id"], "1h")) == len(points)
    assert len(await points_of(admin, made["id"], "6h")) == len(points) + 1
    assert len(await points_of(admin, made["id"], "24h")) == len(points) + 2


async def test_old_points_are_forgotten_and_gone_apps_have_none(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin, await add_one(admin))
    now = datetime.now(UTC)
    await write_points(app, made["id"], MINUTE, [now - timedelta(hours=27), now - timedelta(hours=5)])
    await write_points(app, made["id"], HOUR, [now - timedelta(days=33), now - timedelta(days=20)])
    await write_points(app, made["id"], DAY, [now - timedelta(days=368), now - timedelta(days=200)])
    await Collector(app.database, runtime_of(app)).keep()
    # The minute of five hours ago is summed up as well; the one of yesterday was, before it was forgotten.
    assert await stored(app, made["id"], MINUTE) == 1
    assert await stored(app, made["id"], HOUR) == 3
    assert len(await points_of(admin, made["id"], "30d")) == 3
    assert await stored(app, made["id"], DAY) >= 2
    assert (await admin.delete(f"/api/apps/{made['id']}?purge=true")).status_code == 204
    assert [await stored(app, made["id"], step) for step in (MINUTE, HOUR, DAY)] == [0, 0, 0]


async def test_an_app_that_goes_while_it_is_measured(app: RunningApp, admin: httpx.AsyncClient) -> None:
    stays, goes = await install(admin, await add_one(admin)), await install(admin, await add_one(admin))
    collector = Collector(app.database, runtime_of(app))
    await collector.collect()
    arrived, let_go = engine_of(app).hold("measure")

    round_ = asyncio.create_task(collector.collect())
    await arrived.wait()
    async with app.database.begin() as session:
        await session.execute(text("DELETE FROM apps WHERE id = :id"), {"id": goes["id"]})
    let_go.set()
    await round_
    assert len(await points_of(admin, stays["id"])) >= 1
    assert await stored(app, goes["id"], MINUTE) == 0


async def test_the_engine_is_away(app: RunningApp, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await install(admin, await add_one(admin))
    engine = MemoryEngine()
    engine.containers = list(engine_of(app).containers)
    collector = Collector(app.database, MemoryRuntime(engine=engine))
    await collector.collect()
    engine.go_down()
    with pytest.raises(RuntimeUnavailable):
        await collector.collect()
    engine.come_back()
    use(engine, made["id"], "web", cpu=0, rx=40)
    await collector.collect()
    assert sum(one["network_rx_bytes"] for one in await points_of(admin, made["id"])) == 40
    before = await stored(app, made["id"], MINUTE)
    use(engine, made["id"], "web", cpu=0, rx=90_000)
    monkeypatch.setattr(history, "STALE_SECONDS", 0.0)
    await collector.collect()
    points = await points_of(admin, made["id"])
    assert len(points) == before
    assert sum(one["network_rx_bytes"] for one in points) == 40, "after a long silence it begins anew"


@pytest.mark.parametrize("query", ["range=2h", "range=", "range=1h&follow=true", "range=24H", "range=7d&range=x"])
async def test_ranges_that_there_are_not(admin: httpx.AsyncClient, query: str) -> None:
    made = await install(admin, await add_one(admin))
    answer = await admin.get(f"/api/apps/{made['id']}/stats?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), answer.text
    assert answer.json()["details"].keys() <= {"range", "follow"}
    assert answer.json()["details"]


async def test_who_may_see_them(app: RunningApp, admin: httpx.AsyncClient) -> None:
    mine, other = await install(admin, await add_one(admin)), await install(admin, await add_one(admin))
    async with key_client(app, admin, ["apps:read"], resources=[mine["id"]]) as bound:
        assert (await bound.get(f"/api/apps/{mine['id']}/stats?range=1h")).status_code == 200
        for app_id in (other["id"], "app_" + "a" * 26, "x"):
            assert (await bound.get(f"/api/apps/{app_id}/stats?range=1h")).json()["code"] == "app_not_found"
    async with key_client(app, admin, ["templates:read"]) as blind:
        assert (await blind.get(f"/api/apps/{mine['id']}/stats?range=1h")).json()["code"] == "scope_missing"
