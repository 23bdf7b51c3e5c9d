"""Fixtures: one real PostgreSQL per test worker, a migrated database per module, and the real app over it."""

import asyncio
import base64
import contextlib
import os
import secrets
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
import structlog
from argon2 import PasswordHasher

from quazzar.app import Application, create_app
from quazzar.core import db, passwords
from quazzar.core.crypto import Keyring, parse_keys
from quazzar.core.db import Database
from quazzar.core.migrations import upgrade
from quazzar.core.postgres import DatabaseUrls, EmbeddedPostgres
from quazzar.settings import Settings, load_settings
from tests.components import require
from tests.documents import Documents

PASSWORD = "correct horse battery staple"
LONG_MARKS = ("fuzz", "slow", "torture")

# Who waits for a connection is turned away after two seconds: on a busy machine that met crowds of requests at random.
db.POOL_WAIT_SECONDS = 20

# Some plugin brings rich, and with it tracebacks that show every local variable and hold the event loop for seconds.
structlog.configure(
    processors=[
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=True),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long runs in CI, by `make test-all`, and where it is asked for by its mark or its file."""
    if os.environ.get("CI") or os.environ.get("QUAZZAR_TORTURE") or config.option.markexpr:
        return
    asked = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    short: list[pytest.Item] = []
    long: list[pytest.Item] = []
    for item in items:
        is_long = any(item.get_closest_marker(mark) for mark in LONG_MARKS) and item.path not in asked
        (long if is_long else short).append(item)
    items[:] = short
    config.hook.pytest_deselected(items=long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test needs by its marks is looked for before its fixtures start anything."""
    for mark in item.iter_markers("component"):
        require(*mark.args)


@pytest.fixture(scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DatabaseUrls]:
    """A PostgreSQL of this test worker under the project's own supervisor, with the newest schema."""
    embedded = EmbeddedPostgres(tmp_path_factory.mktemp("cluster"))
    urls = await embedded.start()
    await upgrade(urls.owner)
    yield urls
    await embedded.stop()


def with_database(url: str, name: str, *, user: str | None = None) -> str:
    """`url` with another database, and another role where given."""
    parts = urlsplit(url)
    netloc = parts.netloc if user is None else f"{user}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(path=f"/{name}", netloc=netloc))


@contextlib.asynccontextmanager
async def fresh_database(cluster: DatabaseUrls) -> AsyncIterator[DatabaseUrls]:
    """URLs (owner and app role) of a migrated database that nobody else uses."""
    name = f"t_{uuid.uuid4().hex[:16]}"
    admin = await asyncpg.connect(with_database(cluster.owner, "postgres", user="postgres"))
    template = urlsplit(cluster.owner).path.strip("/")
    await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER quazzar_owner')
    yield DatabaseUrls(owner=with_database(cluster.owner, name), app=with_database(cluster.app, name))
    await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    await admin.close()


@pytest.fixture(scope="module")
async def database_urls(cluster: DatabaseUrls) -> AsyncIterator[DatabaseUrls]:
    """Of a fresh, migrated database of this test module."""
    async with fresh_database(cluster) as urls:
        yield urls


@pytest.fixture(scope="module")
async def database(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    database = Database(database_urls.app, pool_size=10)
    yield database
    await database.close()


@pytest.fixture(scope="module", autouse=True)
def cheap_passwords(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hashes cost next to nothing but where they are what is tested: thousands of tests log somebody in."""
    name = request.module.__name__
    with pytest.MonkeyPatch.context() as patch:
        if not name.startswith(("tests.accounts.", "tests.core.")):
            patch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        yield


@pytest.fixture(scope="session")
def keyring() -> Keyring:
    return parse_keys(f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a test's process: no engine, and limits that no test meets by accident."""
    return make_settings(tmp_path_factory.mktemp("data"))


def make_settings(data_dir: Path, **environment: str) -> Settings:
    variables = {
        "QUAZZAR_RUNTIME_DRIVER": "memory",
        "QUAZZAR_RATE_LIMIT_INSTANCE": "1000000/minute",
        "QUAZZAR_RATE_LIMIT_PANEL": "1000000/minute",
        "QUAZZAR_RATE_LIMIT_AUTH": "1000000/minute",
    }
    return load_settings({"server.data_dir": str(data_dir)}, variables | environment)


@dataclass
class RunningApp:
    """The app with its lifespan running; clients speak to it in process, from loopback unless told otherwise, and hold
    every answer against the documents.
    """

    asgi: Any
    database: Database
    settings: Settings

    def client(self, address: str = "127.0.0.1", **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.asgi, client=(address, 50000), raise_app_exceptions=False)
        hooks: dict[str, list[Any]] = {"response": [Documents(self.settings.server.mode).check]}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", event_hooks=hooks, **options)


@contextlib.asynccontextmanager
async def running_app(settings: Settings, keyring: Keyring, database: Database) -> AsyncIterator[RunningApp]:
    """The app of `settings` on `database` with everything that its lifespan starts."""
    app = create_app(settings, keyring=keyring, database=database)
    async with living(app):
        yield RunningApp(app.asgi, database, settings)


@contextlib.asynccontextmanager
async def living(app: Application) -> AsyncIterator[None]:
    """The app with everything that its lifespan starts."""
    started, ending = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        # A lifespan has to end in the task that it began in; fixtures are set up and torn down in different ones.
        async with app.lifespan():
            started.set()
            await ending.wait()

    life = asyncio.create_task(live())
    await asyncio.wait({life, asyncio.create_task(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if life.done():
            await life
        yield
    finally:
        ending.set()
        await life


@pytest.fixture(scope="module")
async def app(settings: Settings, keyring: Keyring, database: Database) -> AsyncIterator[RunningApp]:
    async with running_app(settings, keyring, database) as running:
        yield running


@pytest.fixture(scope="module")
async def app_client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    """An anonymous client of the Cloud OS API."""
    async with app.client() as client:
        yield client


@pytest.fixture(scope="module")
async def panel_client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    """An anonymous client of the Control Panel API: its paths begin with `/panel/api` in mode `all`."""
    async with app.client() as client:
        yield client


@pytest.fixture(scope="module")
async def admin(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client logged in as the instance's admin `admin` with `PASSWORD`, set up when that was not done yet."""
    async with app.client() as client:
        await client.post("/api/auth/setup", json={"username": "admin", "password": PASSWORD})
        answer = await client.post("/api/auth/login", json={"username": "admin", "password": PASSWORD})
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client


@pytest.fixture(scope="module")
async def owner(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client logged in as the owner of a fresh tenant of the panel."""
    email = f"owner-{uuid.uuid4().hex[:8]}@example.com"
    async with app.client() as client:
        body = {"email": email, "password": PASSWORD, "name": "Owner", "organization": "Example"}
        await client.post("/panel/api/auth/register", json=body)
        answer = await client.post("/panel/api/auth/login", json={"email": email, "password": PASSWORD})
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client
