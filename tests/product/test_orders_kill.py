"""`kill -9` between an order and its result: each is carried out at most once, and its end is told."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from quazzar.core.postgres import DatabaseUrls
from quazzar.link.messages import Order
from tests.factories.apps import unique
from tests.factories.fake_panel import FakePanel, fake_panel
from tests.product.process import Product, product
from tests.product.test_kill import ROUNDS

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

SECONDS = 60


@pytest.fixture
async def panel(tmp_path: Path) -> AsyncIterator[FakePanel]:
    async with fake_panel(tmp_path) as made:
        yield made


@pytest.fixture
async def connection(database_urls: DatabaseUrls) -> "AsyncIterator[asyncpg.Connection[Any]]":
    opened = await asyncpg.connect(database_urls.owner)
    yield opened
    await opened.close()


async def belong(connection: "asyncpg.Connection[Any]", panel: FakePanel, data_dir: Path) -> None:
    data_dir.mkdir()
    link = panel.link(data_dir) | {"id": 1}
    places = ", ".join(f"${number}" for number in range(1, len(link) + 1))
    await connection.execute(f"INSERT INTO panel_link ({', '.join(link)}) VALUES ({places})", *link.values())


async def ended(panel: FakePanel, orders: dict[str, Order]) -> dict[str, str]:
    """How each has ended. As a panel does it, what was not reported at all is sent again on a new line."""
    for order_id, order in orders.items():
        if not panel.of(order_id):
            await panel.send(order)
    return {order_id: (await panel.end_of(order_id, seconds=SECONDS)).status for order_id in orders}


async def killed_within(one: Product, seconds: float) -> None:
    await asyncio.sleep(random.uniform(0, seconds))
    await asyncio.to_thread(one.kill)


async def test_killed_between_orders_and_results(
    panel: FakePanel, connection: "asyncpg.Connection[Any]", database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    await belong(connection, panel, data_dir)
    with product(data_dir, mode="instance", QUAZZAR_DATABASE_URL=database_urls.owner) as one:
        await asyncio.to_thread(one.start)
        await panel.until(lambda: panel.lines == 1, seconds=SECONDS)
        apps = [unique("app") for _ in range(4)]
        for name in apps:
            order_id = await panel.order("app.install", {"template": "hello", "name": name})
            assert (await panel.end_of(order_id, seconds=SECONDS)).status == "completed"
        restarts: dict[str, Order] = {}
        installs: dict[str, Order] = {}
        for number in range(ROUNDS):
            fresh = [panel.signed("app.restart", {"app": name}) for name in apps]
            restarts |= fresh
            name = f"{unique('new')}-{number}"
            made = panel.signed("app.install", {"template": "hello", "name": name})
            installs |= [made]
            for _, order in (*fresh, made):
                await panel.send(order)
            lines = panel.lines
            await killed_within(one, random.choice([0.05, 0.3, 1.0]))
            await asyncio.to_thread(one.start)
            await panel.until(lambda: panel.lines > lines, seconds=SECONDS)  # noqa: B023 - waited for at once
            statuses = await ended(panel, dict([*fresh, made]))
            assert set(statuses.values()) == {"completed"}, statuses
        jobs = await connection.fetch("SELECT kind, count(*) FROM jobs WHERE kind LIKE 'apps.%' GROUP BY kind")
        counted = {row["kind"]: row["count"] for row in jobs}
        assert counted["apps.restart"] == len(restarts), "each was begun once"
        assert counted["apps.install"] == len(installs) + len(apps)
        begun = await connection.fetch(
            "SELECT subject, count(*) FROM audit_records WHERE action = 'panel_order.run' GROUP BY subject"
        )
        assert {row["count"] for row in begun} == {1}
        assert {row["subject"] for row in begun} >= set(restarts) | set(installs)
        finals = [(report.order_id, report.sequence, report.status) for report in panel.reports]
        for order_id in (*restarts, *installs):
            said = {entry for entry in finals if entry[0] == order_id and entry[2] not in {"taken", "running"}}
            assert len(said) == 1, "there is one end"
        print(f"orders: {ROUNDS} kills, {len(restarts) + len(installs)} orders, each carried out once")
