"""Templates, apps and callers for tests of the Cloud OS API."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from sqlalchemy import text

from quazzar.instance.apps.runtimes.memory import MemoryEngine, MemoryRuntime
from tests.conftest import RunningApp

TRANSITIONAL = {"installing", "starting", "stopping", "restarting", "updating", "uninstalling"}

WEB = """\
x-quazzar:
  slug: {slug}
  version: "{version}"
  title: {title}
  description: A web server for tests
  category: tests
  fields:
    - {{name: http_port, label: Port, type: port, default: auto}}
    - {{name: admin_password, label: Admin password, type: password, required: true, min_length: 12}}
    - {{name: db_password, type: password, generated: 24}}
    - {{name: motto, type: string, default: hello, max_length: 40}}
  web: {{service: web, port: 80}}
services:
  web:
    image: {image}
    environment: {{ADMIN: "${{admin_password}}", DB: "${{db_password}}", MOTTO: "${{motto}}"}}
    ports: ["${{http_port}}:80"]
    volumes: ["data:/data"]
    restart: "no"
    depends_on: {{db: {{condition: service_started}}}}
  db: {{image: "postgres:17", volumes: ["db:/var/lib/postgresql/data"]}}
volumes: {{data: {{}}, db: {{}}}}
"""

ONE = """\
x-quazzar:
  slug: {slug}
  version: "1"
  title: One service
  fields:
    - {{name: http_port, label: Port, type: port, default: auto}}
  web: {{service: web, port: 80}}
services:
  web:
    image: "nginx:1.27"
    ports: ["${{http_port}}:80"]
    restart: "{restart}"
"""

SECRET = "a kettle of stars"


def unique(prefix: str = "x") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


def web_file(slug: str, *, version: str = "1.0", title: str = "Web", image: str = "nginx:1.27") -> str:
    """Two services, two volumes, an auto port, a required and a generated secret."""
    return WEB.format(slug=slug, version=version, title=title, image=image)


def one_file(slug: str, *, restart: str = "unless-stopped") -> str:
    """One service with an auto port and nothing that must be given."""
    return ONE.format(slug=slug, restart=restart)


async def add_template(client: httpx.AsyncClient, text: str) -> dict[str, Any]:
    answer = await client.post("/api/templates", json={"compose": text})
    assert answer.status_code == 201, answer.text
    template: dict[str, Any] = answer.json()
    return template


async def add_one(client: httpx.AsyncClient, *, restart: str = "unless-stopped") -> str:
    """The slug of a fresh template of one service."""
    return str((await add_template(client, one_file(unique("one"), restart=restart)))["slug"])


async def begin_install(client: httpx.AsyncClient, template: str = "hello", **body: Any) -> dict[str, Any]:
    answer = await client.post("/api/apps", json={"template": template, "name": unique("app")} | body)
    assert answer.status_code == 201, answer.text
    app: dict[str, Any] = answer.json()
    return app


async def install(client: httpx.AsyncClient, template: str = "hello", **body: Any) -> dict[str, Any]:
    """A fresh app that runs."""
    app = await begin_install(client, template, **body)
    return await until(client, app["id"], "running")


async def show(client: httpx.AsyncClient, app_id: str) -> dict[str, Any]:
    answer = await client.get(f"/api/apps/{app_id}")
    assert answer.status_code == 200, answer.text
    app: dict[str, Any] = answer.json()
    return app


async def until(
    client: httpx.AsyncClient, app_id: str, *statuses: str, seconds: float = 15, reason: str | None = None
) -> dict[str, Any]:
    """The app once it has one of the statuses (and `reason` within its reason), else once it has settled."""
    end = time.monotonic() + seconds
    while True:
        app = await show(client, app_id)
        fits = app["status"] in statuses if statuses else app["status"] not in TRANSITIONAL
        if fits and (reason is None or reason in (app["status_reason"] or "")):
            return app
        assert time.monotonic() < end, f"still {app['status']}: {app['status_reason']}"
        await asyncio.sleep(0.02)


async def operate(client: httpx.AsyncClient, app_id: str, verb: str, *statuses: str) -> dict[str, Any]:
    """Ask for start, stop or restart and wait for the end of it."""
    answer = await client.post(f"/api/apps/{app_id}/{verb}")
    assert answer.status_code == 200, answer.text
    return await until(client, app_id, *statuses)


async def job_of(client: httpx.AsyncClient, job_id: str, *, seconds: float = 15) -> dict[str, Any]:
    """A job once it has ended."""
    end = time.monotonic() + seconds
    while True:
        answer = await client.get(f"/api/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        if job["status"] not in {"queued", "running"}:
            return job
        assert time.monotonic() < end, job
        await asyncio.sleep(0.02)


@asynccontextmanager
async def key_client(
    app: RunningApp, admin: httpx.AsyncClient, scopes: Sequence[str], **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an API key of these scopes."""
    answer = await admin.post("/api/auth/api-keys", json={"name": unique("key"), "scopes": list(scopes)} | options)
    assert answer.status_code == 201, answer.text
    try:
        async with app.client(headers={"Authorization": f"Bearer {answer.json()['key']}"}) as client:
            yield client
    finally:
        await admin.delete(f"/api/auth/api-keys/{answer.json()['id']}")


def runtime_of(app: RunningApp) -> MemoryRuntime:
    runtime = app.asgi.app.state.runtime
    assert isinstance(runtime, MemoryRuntime)
    return runtime


def engine_of(app: RunningApp) -> MemoryEngine:
    """The engine in memory behind the app."""
    return runtime_of(app).engine


async def events_of(app: RunningApp, subject: str) -> list[tuple[str, dict[str, Any]]]:
    """Type and data of every event about `subject`, oldest first."""
    async with app.database.begin() as session:
        query = text("SELECT type, data FROM events WHERE subject = :subject ORDER BY position")
        return [(row.type, row.data) for row in await session.execute(query, {"subject": subject})]


async def audited(app: RunningApp, subject: str) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Action, actor's kind and what came after, of every audit record about `subject`, oldest first."""
    async with app.database.begin() as session:
        query = text("SELECT action, actor_kind, after FROM audit_records WHERE subject = :subject ORDER BY number")
        return [tuple(row) for row in await session.execute(query, {"subject": subject})]
