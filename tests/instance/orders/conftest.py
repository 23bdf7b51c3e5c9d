"""The app with a line to a panel that says what a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.instance.enrolment import store
from quazzar.instance.enrolment.line import Line
from tests.conftest import RunningApp
from tests.factories.apps import add_one, install
from tests.factories.fake_panel import FakePanel, fake_panel


def line_of(app: RunningApp) -> Line:
    line = app.asgi.app.state.panel_line
    assert isinstance(line, Line)
    return line


async def named(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    """The one app of this name, as it stands in the list."""
    found = [one for one in (await client.get("/api/apps?limit=200")).json() if one["name"] == name]
    assert len(found) == 1, found
    app: dict[str, Any] = found[0]
    return app


async def join(app: RunningApp, panel: FakePanel) -> None:
    """Make the app's server belong to `panel`, and wait for the line."""
    async with app.database.begin() as session:
        await session.execute(text("DELETE FROM panel_link"))
        await store.put_link(session, **panel.link(app.settings.server.data_dir))
    line = line_of(app)
    await line.hang_up()
    await panel.until(lambda: panel.lines and line.connected, seconds=60)


@asynccontextmanager
async def nothing_begins(app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel) -> AsyncIterator[None]:
    """Orders are begun one after the other: within the block the first waits for a lock, and all others for it. For
    less than the five seconds that a statement may take.
    """
    made = await install(admin, await add_one(admin))
    async with app.database.begin() as session:
        await session.execute(text("SELECT FROM apps WHERE id = :id FOR UPDATE"), {"id": made["id"]})
        first = await panel.order("app.stop", {"app": made["id"]})
        await panel.until(lambda: panel.of(first))
        yield


@pytest.fixture
async def panel(app: RunningApp, tmp_path: Path) -> AsyncIterator[FakePanel]:
    async with fake_panel(tmp_path) as made:
        await join(app, made)
        yield made
        async with app.database.begin() as session:
            await session.execute(text("DELETE FROM panel_link"))
            await session.execute(text("DELETE FROM panel_orders"))
        await line_of(app).hang_up()
        await asyncio.sleep(0)
