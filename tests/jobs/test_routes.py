"""The calls about jobs: who sees which, paging, following, cancelling and trying again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from sqlalchemy import text

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.envelope import exception_handlers
from quazzar.core.gate import roll_back
from quazzar.core.http import JsonRequest, provide_session
from quazzar.core.jobs import JobKind, JobRun, Resource, Resources, Worker, enqueue, job
from quazzar.core.sse import streams_of
from quazzar.jobs.jobs import RETENTION_DAYS, prune
from quazzar.jobs.routes import handlers

LOOSE = "job_" + "a" * 26


SENT: Resource[list[bytes]] = Resource("what was sent of answers")


@job("example.talk")
async def talk(run: JobRun, *, lines: int, followed: bool = False) -> None:
    for number in range(1, lines + 1):
        run.log(f"line {number}")
        run.progress(number / lines, f"Step {number}")
        sent = run.resources[SENT]
        while followed and f'"Step {number}"'.encode() not in b"".join(sent):
            await asyncio.sleep(0.01)


KINDS: dict[str, JobKind[Any]] = {"example.talk": talk}
ADMIN = Principal(realm="instance", user_id="usr_1", client="usr_1", scopes=frozenset("*"), session_id="ses_1")
READER = msgspec.structs.replace(ADMIN, scopes=frozenset({"jobs:read"}))
STRANGER = msgspec.structs.replace(ADMIN, scopes=frozenset({"apps:read"}))
BOUND = msgspec.structs.replace(ADMIN, session_id=None, key_id="key_1", resources=frozenset({"app_1"}))
TENANT = msgspec.structs.replace(ADMIN, realm="panel", tenant_id="ten_1")
OTHER = msgspec.structs.replace(ADMIN, realm="panel", tenant_id="ten_2")


@pytest.fixture
async def asgi(database: Database, keyring: Keyring) -> Litestar:
    async with database.begin() as session:
        await session.execute(text("SELECT set_config('app.worker', 'on', true)"))
        await session.execute(text("DELETE FROM jobs"))
        await session.execute(text("DELETE FROM pgqueuer"))
    return Litestar(
        [Router("/api", route_handlers=[*handlers])],
        request_class=JsonRequest,
        dependencies={"session": Provide(provide_session)},
        exception_handlers=exception_handlers,
        openapi_config=None,
        logging_config=None,
        state=State({"database": database, "keyring": keyring}),
    )


def caller(app: Litestar, principal: Principal | None, sent: list[bytes] | None = None) -> httpx.AsyncClient:
    """A client whose requests come as the gate hands them on; `sent` gets what is answered as it sets out."""

    async def gated(scope: Any, receive: Any, send: Any) -> None:
        async def noted(message: Any) -> None:
            if sent is not None:
                sent.append(message.get("body", b""))
            await send(message)

        scope["state"] = {"principal": principal, "realm": principal.realm if principal else "instance"}
        try:
            await app(scope, receive, noted)
        finally:
            await roll_back(scope)

    return httpx.AsyncClient(transport=httpx.ASGITransport(gated), base_url="http://quazzar")


@pytest.fixture
def sent() -> list[bytes]:
    return []


@pytest.fixture
async def admin(asgi: Litestar, sent: list[bytes]) -> AsyncIterator[httpx.AsyncClient]:
    async with caller(asgi, ADMIN, sent) as client:
        yield client


@pytest.fixture
async def worker(database: Database, sent: list[bytes]) -> AsyncIterator[Worker]:
    resources = Resources()
    resources[SENT] = sent
    worker = Worker(database, resources, kinds=KINDS, schedules={}, retry_seconds=0.02)
    await worker.start()
    yield worker
    await worker.stop(0.2)


async def make(database: Database, tenant: str | None = None, **options: Any) -> str:
    async with database.begin(tenant=tenant) as session:
        return await enqueue(session, talk, tenant_id=tenant, **({"lines": 3} | options))


async def end(database: Database, status: str, *job_ids: str) -> None:
    async with database.begin() as session:
        for job_id in job_ids:
            await session.execute(
                text("UPDATE jobs SET status = :status, finished_at = now() WHERE id = :id"),
                {"status": status, "id": job_id},
            )
        await session.execute(text("DELETE FROM pgqueuer"))


async def test_a_job_is_shown(database: Database, admin: httpx.AsyncClient) -> None:
    made = await make(database, subject="app_1", actor="usr_1")
    answer = await admin.get(f"/api/jobs/{made}")
    assert answer.status_code == 200
    shown = answer.json()
    assert shown.pop("created_at").endswith("Z")
    assert shown == {
        "id": made,
        "kind": "example.talk",
        "subject": "app_1",
        "status": "queued",
        "progress": 0.0,
        "step": None,
        "error": None,
        "attempts": 0,
        "started_at": None,
        "finished_at": None,
    }


async def test_lists_are_newest_first_filtered_and_paged(database: Database, admin: httpx.AsyncClient) -> None:
    made = [await make(database, subject=f"app_{number % 2}") for number in range(5)]
    made.sort(reverse=True)
    await end(database, "failed", made[0])
    assert [each["id"] for each in (await admin.get("/api/jobs")).json()] == made
    assert [each["id"] for each in (await admin.get("/api/jobs?status=failed")).json()] == made[:1]
    assert (await admin.get("/api/jobs?kind=other.kind")).json() == []
    seen: list[str] = []
    address: str | None = "/api/jobs?limit=2&kind=example.talk"
    while address is not None:
        answer = await admin.get(address)
        seen += [each["id"] for each in answer.json()]
        address = answer.links["next"]["url"] if "next" in answer.links else None
        assert address is None or "kind=example.talk" in address
    assert seen == made
    odd = (await admin.get("/api/jobs?subject=app_1")).json()
    assert {each["subject"] for each in odd} == {"app_1"}
    assert len(odd) == 2


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "status=done",
        "cursor=%00",
        "cursor=!!!",
        "cursor=YWJj",
        "kind=%00",
        "kind=A",
        "subject=a%00b",
    ],
)
async def test_wrong_parameters_are_refused(admin: httpx.AsyncClient, query: str) -> None:
    answer = await admin.get(f"/api/jobs?{query}")
    assert answer.status_code == 400
    assert answer.json()["details"]


@pytest.mark.parametrize("path", ["", f"/{LOOSE}", f"/{LOOSE}/logs", f"/{LOOSE}/logs?follow=true"])
async def test_reading_needs_its_scope(asgi: Litestar, path: str) -> None:
    for principal, status in ((None, 401), (STRANGER, 403), (READER, 200 if path == "" else 404)):
        async with caller(asgi, principal) as client:
            assert (await client.get(f"/api/jobs{path}")).status_code == status


@pytest.mark.parametrize("verb", ["cancel", "retry"])
async def test_changing_needs_its_scope(asgi: Litestar, database: Database, verb: str) -> None:
    made = await make(database)
    for principal, status in ((None, 401), (STRANGER, 403), (READER, 403)):
        async with caller(asgi, principal) as client:
            assert (await client.post(f"/api/jobs/{made}/{verb}")).status_code == status


@pytest.mark.parametrize("job_id", [LOOSE, "job_1", "x", "job_%00", "a'b"])
async def test_unknown_jobs_are_not_found(admin: httpx.AsyncClient, job_id: str) -> None:
    answers = [
        await admin.get(f"/api/jobs/{job_id}"),
        await admin.get(f"/api/jobs/{job_id}/logs"),
        await admin.get(f"/api/jobs/{job_id}/logs?follow=true"),
        await admin.post(f"/api/jobs/{job_id}/cancel"),
        await admin.post(f"/api/jobs/{job_id}/retry"),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(404, "job_not_found")] * 5


async def test_each_scope_sees_its_own_jobs_only(asgi: Litestar, database: Database) -> None:
    of_app = await make(database, subject="app_1")
    of_other_app = await make(database, subject="app_2")
    of_tenant = await make(database, tenant="ten_1", realm="panel")
    of_panel = await make(database, realm="panel")
    visible = {
        "admin": (ADMIN, {of_app, of_other_app}),
        "bound key": (BOUND, {of_app}),
        "tenant": (TENANT, {of_tenant}),
        "other tenant": (OTHER, set()),
    }
    for name, (principal, expected) in visible.items():
        async with caller(asgi, principal) as client:
            assert {each["id"] for each in (await client.get("/api/jobs")).json()} == expected, name
            for job_id in (of_app, of_other_app, of_tenant, of_panel):
                found = job_id in expected
                assert (await client.get(f"/api/jobs/{job_id}")).status_code == (200 if found else 404)
                assert (await client.get(f"/api/jobs/{job_id}/logs")).status_code == (200 if found else 404)
                if not found:
                    assert (await client.post(f"/api/jobs/{job_id}/cancel")).status_code == 404
                    assert (await client.post(f"/api/jobs/{job_id}/retry")).status_code == 404


async def test_the_database_itself_hides_other_tenants_jobs(database: Database) -> None:
    made = await make(database, tenant="ten_1", realm="panel")
    count = text("SELECT count(*) FROM jobs WHERE id = :id")
    for tenant, expected in (("ten_1", 1), ("ten_2", 0), (None, 0)):
        async with database.begin(tenant=tenant) as session:
            assert (await session.execute(count, {"id": made})).scalar_one() == expected
    with pytest.raises(Exception, match="row-level security"):
        async with database.begin(tenant="ten_2") as session:
            await enqueue(session, talk, tenant_id="ten_1", realm="panel", lines=1)


async def test_a_tenants_job_runs(database: Database, asgi: Litestar, worker: Worker) -> None:
    made = await make(database, tenant="ten_1", realm="panel")
    async with caller(asgi, TENANT) as client:
        answer = await client.get(f"/api/jobs/{made}/logs?follow=true")
    assert "event: end" in answer.text


async def test_cancelling_and_trying_again(database: Database, admin: httpx.AsyncClient) -> None:
    made = await make(database)
    assert (await admin.post(f"/api/jobs/{made}/retry")).json()["code"] == "job_not_retryable"
    answer = await admin.post(f"/api/jobs/{made}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    again = await admin.post(f"/api/jobs/{made}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "job_not_cancellable")
    answer = await admin.post(f"/api/jobs/{made}/retry")
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    await end(database, "completed", made)
    assert (await admin.post(f"/api/jobs/{made}/retry")).status_code == 409
    async with database.begin() as session:
        sql = "SELECT action, actor_id FROM audit_records WHERE subject = :id ORDER BY number"
        records = (await session.execute(text(sql), {"id": made})).all()
    assert records == [("job.cancel", "usr_1"), ("job.retry", "usr_1")]


async def test_logs_are_paged_oldest_first(database: Database, admin: httpx.AsyncClient, worker: Worker) -> None:
    made = await make(database, lines=5)
    await admin.get(f"/api/jobs/{made}/logs?follow=true")
    first = await admin.get(f"/api/jobs/{made}/logs?limit=3")
    assert [(each["number"], each["line"]) for each in first.json()] == [(n, f"line {n}") for n in (1, 2, 3)]
    rest = await admin.get(first.links["next"]["url"])
    assert [each["number"] for each in rest.json()] == [4, 5]
    assert "next" not in rest.links
    assert (await admin.get(f"/api/jobs/{made}/logs?cursor=YWJj")).status_code == 400


def events_of(body: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], msgspec.json.decode(fields["data"])))
    return found


async def test_a_job_is_followed_to_its_end(database: Database, admin: httpx.AsyncClient, worker: Worker) -> None:
    made = await make(database, lines=3, followed=True)
    answer = await admin.get(f"/api/jobs/{made}/logs?follow=true")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(answer.text)
    assert [data["line"] for event, data in events if event == "line"] == ["line 1", "line 2", "line 3"]
    steps = [data["step"] for event, data in events if event == "job"]
    assert {"Step 1", "Step 2", "Step 3"} <= set(steps)
    last, ended = events[-1]
    assert (last, ended["status"], ended["progress"]) == ("end", "completed", 1.0)
    again = await admin.get(f"/api/jobs/{made}/logs?follow=true", headers={"Last-Event-ID": "2"})
    assert [data["number"] for event, data in events_of(again.text) if event == "line"] == [3]


async def test_following_ends_when_the_process_drains(
    database: Database, asgi: Litestar, admin: httpx.AsyncClient, sent: list[bytes]
) -> None:
    made = await make(database)
    following = asyncio.create_task(admin.get(f"/api/jobs/{made}/logs?follow=true"))
    streams = streams_of(asgi.state)
    async with asyncio.timeout(20):
        while b"event: job" not in b"".join(sent):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert not following.done()
    streams.close()
    async with asyncio.timeout(20):
        answer = await following
    assert answer.status_code == 200
    assert [event for event, _ in events_of(answer.text)] == ["job"]
    assert streams.open == 0


async def test_old_jobs_are_forgotten(database: Database, asgi: Litestar) -> None:
    old, young, open_one = await make(database), await make(database), await make(database)
    of_tenant = await make(database, tenant="ten_1", realm="panel")
    async with database.begin() as session:
        await session.execute(text("SELECT set_config('app.worker', 'on', true)"))
        for job_id, days in ((old, 8), (of_tenant, 8), (young, 6)):
            await session.execute(
                text(
                    "UPDATE jobs SET status = 'completed', finished_at = now() - make_interval(days => :days)"
                    " WHERE id = :id"
                ),
                {"id": job_id, "days": days},
            )
        await session.execute(
            text("INSERT INTO job_logs (job_id, number, attempt, line) VALUES (:id, 1, 1, 'x')"), {"id": old}
        )
        await session.execute(text("UPDATE pgqueuer_log SET created = now() - interval '2 days'"))
    resources = Resources()
    resources[RETENTION_DAYS] = 7
    await prune(JobRun(job_id=LOOSE, kind="jobs.prune", attempt=1, database=database, resources=resources))
    async with database.begin() as session:
        await session.execute(text("SELECT set_config('app.worker', 'on', true)"))
        left = set((await session.execute(text("SELECT id FROM jobs"))).scalars())
        assert left == {young, open_one}
        for table in ("job_logs", "pgqueuer_log"):
            assert (await session.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0
