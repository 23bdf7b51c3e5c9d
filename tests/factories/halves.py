"""Both halves of the product in the test's own process, with the listener that instances dial on a real socket."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from quazzar import process
from quazzar.app import Application, create_app
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.protocol import ServerConfig
from quazzar.instance.enrolment.line import Line
from quazzar.panel.fleet.process import Fleet
from tests.conftest import PASSWORD, RunningApp, living, make_settings
from tests.product.process import free_port


async def until(found: Callable[[], Awaitable[Any]], seconds: float = 40) -> Any:
    end = time.monotonic() + seconds
    while not (value := await found()):
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.05)
    return value


class Halves:
    """`owner` and `admin` are headers: of the owner of the panel's first tenant, and of the server's admin. The server
    joins that tenant once `begin` lets instances in.
    """

    def __init__(self, application: Application, running: RunningApp, http: httpx.AsyncClient) -> None:
        self.application = application
        self.app = running
        self.http = http
        self.owner: dict[str, str] = {}
        self.admin: dict[str, str] = {}
        self._agents: Any = None

    @property
    def fleet(self) -> Fleet:
        assert self.application.fleet is not None
        return self.application.fleet

    @property
    def line(self) -> Line:
        assert self.application.panel_line is not None
        return self.application.panel_line

    async def bind(self) -> int:
        """Take a port for instances, where nobody is served yet."""
        self._agents = await process._agent_listener(self.application, self.app.settings, ServerConfig())
        assert self._agents is not None
        return self.fleet.port

    def begin(self) -> None:
        self._agents.begin()

    async def end(self) -> None:
        await self._agents.end()

    async def set_up(self) -> None:
        body = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada", "organization": "Engines"}
        assert (await self.http.post("/panel/api/auth/register", json=body)).status_code == 201
        self.owner = await self._login("/panel", {"email": body["email"]})
        await self.http.post("/api/auth/setup", json={"username": "admin", "password": PASSWORD})
        self.admin = await self._login("", {"username": "admin"})

    async def _login(self, prefix: str, body: dict[str, str]) -> dict[str, str]:
        answer = await self.http.post(f"{prefix}/api/auth/login", json=body | {"password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    async def online(self) -> dict[str, Any]:
        """The server as its panel shows it, once it is online."""

        async def found() -> Any:
            return (await self.http.get("/panel/api/fleet/instances?status=online", headers=self.owner)).json()

        (instance,) = await until(found)
        return dict(instance)


@contextlib.asynccontextmanager
async def both_halves(tmp_path: Path, keyring: Keyring, database: Database) -> AsyncIterator[Halves]:
    """Everything that the lifespan starts, on a database of the test's own; a heartbeat each second."""
    settings = make_settings(
        tmp_path,
        QUAZZAR_AGENT_PORT=str(free_port()),
        QUAZZAR_AGENT_HOST="127.0.0.1",
        QUAZZAR_AGENT_HEARTBEAT_SECONDS="1",
    )
    application = create_app(settings, keyring=keyring, database=database)
    running = RunningApp(application.asgi, database, settings)
    async with living(application), running.client() as http:
        made = Halves(application, running, http)
        await made.bind()
        try:
            yield made
        finally:
            await made.end()
