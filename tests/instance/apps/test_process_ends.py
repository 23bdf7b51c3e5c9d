"""A process of ours that ends in the middle of an operation: the next one carries it through, over the same engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.instance.apps.runtimes.memory import MemoryEngine, MemoryRuntime
from quazzar.settings import Settings
from tests.conftest import PASSWORD, running_app
from tests.factories.apps import SECRET, add_template, begin_install, install, job_of, show, unique, until, web_file

INSTALL_STEPS = ["pull:nginx:1.27", "pull:postgres:17", "create:db", "create:web", "start:db", "start:web"]


class Host:
    """A machine: its engine and its data outlive our processes."""

    def __init__(self, settings: Settings, keyring: Keyring, database: Database) -> None:
        self.engine = MemoryEngine()
        self._made = (settings, keyring, database)

    @asynccontextmanager
    async def process(self) -> AsyncIterator[httpx.AsyncClient]:
        """A process of ours and its logged-in admin; at the end it dies without waiting for its jobs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("quazzar.app.make_runtime", lambda _: MemoryRuntime(engine=self.engine))
            async with running_app(*self._made) as running, running.client(timeout=30) as client:
                body = {"username": "admin", "password": PASSWORD}
                await client.post("/api/auth/setup", json=body)
                tokens = (await client.post("/api/auth/login", json=body)).json()
                client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
                yield client
                await running.asgi.app.state.worker.stop(grace_seconds=0)

    def containers(self, app_id: str) -> int:
        return len([one for one in self.engine.containers if one.app_id == app_id])


@pytest.fixture(scope="module")
def host(settings: Settings, keyring: Keyring, database: Database) -> Host:
    return Host(settings, keyring, database)


async def web_template(client: httpx.AsyncClient) -> str:
    return str((await add_template(client, web_file(unique("web"))))["slug"])


@pytest.mark.parametrize("step", INSTALL_STEPS)
async def test_in_the_middle_of_an_install(host: Host, step: str) -> None:
    host.engine.images.clear()
    async with host.process() as client:
        arrived, _ = host.engine.hold(step)
        app_id = (await begin_install(client, await web_template(client), config={"admin_password": SECRET}))["id"]
        await asyncio.wait_for(arrived.wait(), 10)
    async with host.process() as client:
        running = await until(client, app_id, "running")
        assert host.containers(app_id) == 2
        assert host.engine.container(app_id, "web").service.environment["ADMIN"] == SECRET
        assert (await job_of(client, running["job_id"]))["status"] == "completed"
        assert (await client.delete(f"/api/apps/{app_id}?purge=true")).status_code == 204
        assert host.containers(app_id) == 0
        assert app_id not in host.engine.volumes


@pytest.mark.parametrize(
    ("verb", "step", "status"),
    [("stop", "stop:web", "stopped"), ("restart", "stop:web", "running"), ("restart", "start:web", "running")],
)
async def test_in_the_middle_of_an_operation(host: Host, verb: str, step: str, status: str) -> None:
    async with host.process() as client:
        app = await install(client, await web_template(client), config={"admin_password": SECRET})
        arrived, _ = host.engine.hold(step)
        assert (await client.post(f"/api/apps/{app['id']}/{verb}")).status_code == 200
        await asyncio.wait_for(arrived.wait(), 10)
    async with host.process() as client:
        after = await until(client, app["id"], status)
        assert after["config"] == app["config"]
        assert host.containers(app["id"]) == 2
        assert host.engine.volumes[app["id"]] == {"data", "db"}


@pytest.mark.parametrize("step", ["delete:web", "delete:db"])
async def test_in_the_middle_of_an_uninstall(host: Host, step: str) -> None:
    async with host.process() as client:
        app = await install(client, await web_template(client), config={"admin_password": SECRET})
        arrived, _ = host.engine.hold(step)
        deleting = asyncio.create_task(client.delete(f"/api/apps/{app['id']}?purge=true"))
        await asyncio.wait_for(arrived.wait(), 10)
        job = (await show(client, app["id"]))["job_id"]
        deleting.cancel()
        await asyncio.gather(deleting, return_exceptions=True)
    async with host.process() as client:
        await job_of(client, job)
        assert (await client.get(f"/api/apps/{app['id']}")).status_code == 404
        assert host.containers(app["id"]) == 0
        assert app["id"] not in host.engine.volumes


@pytest.mark.parametrize("step", ["stop:web", "copy:data", "copy:db", "create:web", "start:web"])
async def test_in_the_middle_of_a_clone(host: Host, step: str) -> None:
    async with host.process() as client:
        app = await install(client, await web_template(client), config={"admin_password": SECRET})
        host.engine.contents[app["id"], "data"] = b"what people wrote"
        arrived, _ = host.engine.hold(step)
        answer = await client.post(f"/api/apps/{app['id']}/clone", json={"name": unique("copy")})
        assert answer.status_code == 201, answer.text
        copy = answer.json()
        await asyncio.wait_for(arrived.wait(), 10)
    async with host.process() as client:
        made = await until(client, copy["id"], "running")
        source = await until(client, app["id"], "running")
        assert source["config"] == app["config"]
        assert host.engine.contents[made["id"], "data"] == b"what people wrote"
        assert host.containers(app["id"]) == host.containers(made["id"]) == 2


async def test_what_an_app_of_a_former_release_reserves_is_worked_out_at_the_start(
    host: Host, database: Database
) -> None:
    async def claims() -> dict[str, Any]:
        async with database.begin() as session:
            return {row.id: row.claim for row in await session.execute(text("SELECT id, claim FROM apps"))}

    async with host.process() as client:
        slug = await web_template(client)
        config = {"admin_password": SECRET}
        limited = await install(client, slug, config=config, resources={"memory_bytes": 64 * 1024**2, "cpus": 0.5})
        trashed = await install(client, slug, config=config)
        unreadable = await install(client, slug, config=config)
        assert (await client.delete(f"/api/apps/{trashed['id']}")).status_code == 204
        before = await claims()
    async with database.begin() as session:
        await session.execute(text("UPDATE apps SET claim = '{}'"))
        broken = text("UPDATE apps SET secrets = decode('00', 'hex') WHERE id = :id")
        await session.execute(broken, {"id": unreadable["id"]})
    async with host.process():
        after = await claims()
        assert after[unreadable["id"]] == {}, "and we have started all the same"
        assert before[limited["id"]]["memory_limit_bytes"] > 0
        for one in (limited, trashed):
            assert after[one["id"]] | {"disk_bytes": 0} == before[one["id"]] | {"disk_bytes": 0}
