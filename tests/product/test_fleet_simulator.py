"""A small simulated fleet on a real panel: its database dies, then the panel, and nothing that was measured is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.simulator import Fleet, Habits, enrol
from tests.product.process import Product, product
from tests.product.test_database_restart import kill_database

INSTANCES = 12

pytestmark = [pytest.mark.torture, pytest.mark.timeout(240)]


@asynccontextmanager
async def simulated(one: Product, folder: Path, headers: dict[str, str]) -> AsyncIterator[Fleet]:
    body = {"name": "Simulation", "max_uses": INSTANCES}
    token = one.http.post("/api/fleet/tokens", json=body, headers=headers).json()["token"]
    members = await asyncio.to_thread(enrol, folder, [token], INSTANCES)
    fleet = Fleet(members, folder, Habits(apps=1))
    await fleet.start(over_seconds=1)
    try:
        await fleet.until_connected(60)
        yield fleet
    finally:
        await fleet.stop()


async def until(what: Any, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await what():
            await asyncio.sleep(0.2)


async def test_the_database_and_the_panel_die_under_a_fleet(tmp_path: Path) -> None:
    with product(
        tmp_path / "data",
        mode="panel",
        # The whole fleet is in the test's own process, and must not seem silent when that is kept waiting.
        QUAZZAR_AGENT_HEARTBEAT_SECONDS="2",
        QUAZZAR_AGENT_PUBLIC_HOST="127.0.0.1",
    ) as one:
        one.start()
        headers = one.register()
        async with (
            simulated(one, tmp_path / "fleet", headers) as fleet,
            httpx.AsyncClient(base_url=one.url, timeout=30, headers=headers) as http,
        ):

            async def all_online() -> bool:
                try:
                    answer = await http.get("/api/fleet/summary")
                except httpx.TransportError:
                    return False
                return answer.status_code == 200 and answer.json()["status"]["online"] == INSTANCES

            async def none_waits() -> bool:
                return fleet.waiting(datetime.now(UTC)) == 0

            await until(all_online)
            connects = fleet.tally.count["connects"]
            await asyncio.to_thread(kill_database, one)
            await asyncio.sleep(2)
            await until(all_online)
            assert fleet.tally.count["connects"] == connects, "a line outlives the database behind it"
            events = (await http.get("/api/events?type=instance.offline")).json()
            assert events == [], "nobody is taken for lost because the database was away"
            await asyncio.to_thread(one.kill)
            await asyncio.sleep(1.5)
            await asyncio.to_thread(one.start)
            await fleet.until_connected(90)
            await until(all_online)
            await until(none_waits)
            assert fleet.tally.count["kept later"] > 0
            await asyncio.sleep(1)
            last = datetime.now(UTC) - timedelta(seconds=12)
            for instance in fleet.instances:
                path = f"/api/fleet/instances/{instance.member.instance_id}/metrics/history?range=1h&step=10"
                points = [datetime.fromisoformat(point["at"]) for point in (await http.get(path)).json()["points"]]
                # Each ten seconds from the first to the last had a heartbeat, also those in which nobody listened.
                steps = {later - earlier for earlier, later in pairwise(points)}
                assert steps == {timedelta(seconds=10)}, (instance.member.instance_id, points)
                assert points[-1] >= last - timedelta(seconds=10)
