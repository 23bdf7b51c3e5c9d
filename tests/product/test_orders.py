"""Both halves in one process: the panel's own key signs an order, its own hub sends it, and the server obeys."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from quazzar import process
from quazzar.app import Application, create_app
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.core.protocol import ServerConfig
from quazzar.link.orders import OrderActor, OrderBody, sign_order
from tests.conftest import PASSWORD, make_settings
from tests.factories.apps import unique
from tests.product.process import free_port


async def until(found: Callable[[], Awaitable[Any]], seconds: float = 40) -> Any:
    end = time.monotonic() + seconds
    while not (value := await found()):
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.05)
    return value


def client(app: Application) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app.asgi, client=("127.0.0.1", 50000))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def login(http: httpx.AsyncClient, prefix: str, body: dict[str, str]) -> dict[str, str]:
    answer = await http.post(f"{prefix}/api/auth/login", json=body | {"password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def test_an_order_of_the_own_panel(tmp_path: Path, keyring: Keyring, database: Database) -> None:
    settings = make_settings(
        tmp_path,
        QUAZZAR_AGENT_PORT=str(free_port()),
        QUAZZAR_AGENT_HOST="127.0.0.1",
        QUAZZAR_AGENT_HEARTBEAT_SECONDS="1",
    )
    app = create_app(settings, keyring=keyring, database=database)
    assert app.fleet is not None
    hub = app.fleet.hub
    async with app.lifespan(), client(app) as http:
        agents = await process._agent_listener(app, settings, ServerConfig())
        assert agents is not None
        agents.begin()
        body = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada", "organization": "Engines"}
        assert (await http.post("/panel/api/auth/register", json=body)).status_code == 201
        owner = await login(http, "/panel", {"email": body["email"]})
        await http.post("/api/auth/setup", json={"username": "admin", "password": PASSWORD})
        admin = await login(http, "", {"username": "admin"})

        async def online() -> Any:
            return (await http.get("/panel/api/fleet/instances?status=online", headers=owner)).json()

        (instance,) = await until(online)
        (socket,) = hub._sockets.values()
        assert app.panel_line is not None
        assert app.panel_line._socket is not None
        assert app.panel_line._socket.response is not None
        assert "Date" in app.panel_line._socket.response.headers, "the panel tells what time it is there"
        authority = await app.fleet.authority()
        name, now = unique("app"), datetime.now(UTC)
        order = OrderBody(
            order_id=new_id("ord"),
            command_id=new_id("cmd"),
            tenant_id=socket.identity.tenant_id,
            instance_id=instance["id"],
            kind="app.install",
            args={"template": "hello", "name": name},
            actor=OrderActor(user_id="usr_ada", name="Ada"),
            issued_at=now,
            expires_at=now + timedelta(minutes=10),
        )
        await socket.send(sign_order(order, authority._signer))

        async def done() -> bool:
            async with database.begin() as session:
                query = text("SELECT status FROM panel_orders WHERE order_id = :id")
                return (await session.execute(query, {"id": order.order_id})).scalar_one_or_none() == "completed"

        await until(done)
        (made,) = [one for one in (await http.get("/api/apps", headers=admin)).json() if one["name"] == name]
        assert made["status"] == "running"

        async def shown() -> bool:
            answer = await http.get(f"/panel/api/fleet/instances/{instance['id']}", headers=owner)
            return name in [one["name"] for one in answer.json()["apps"]]

        await until(shown)
        await agents.end()
