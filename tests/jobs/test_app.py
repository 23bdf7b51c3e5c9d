"""Jobs in the whole app: both APIs show their own, and the worker of the process runs them."""

import httpx
from sqlalchemy import text

from quazzar.core.jobs import enqueue, wait_for
from quazzar.jobs.jobs import prune
from tests.conftest import RunningApp


async def test_the_process_runs_jobs(app: RunningApp, admin: httpx.AsyncClient) -> None:
    async with app.database.begin() as session:
        made = await enqueue(session, prune)
    state = await wait_for(app.database, made, 15)
    assert state is not None
    assert state.status == "completed"
    answer = await admin.get(f"/api/jobs/{made}")
    assert (answer.status_code, answer.json()["kind"]) == (200, "jobs.prune")
    listed = await admin.get("/api/jobs?kind=jobs.prune&status=completed")
    assert made in [each["id"] for each in listed.json()]
    async with app.database.begin() as session:
        assert all((await session.execute(text("SELECT next_run_at > now() FROM job_schedules"))).scalars().all())


async def test_each_api_shows_its_own_jobs(
    app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient, owner: httpx.AsyncClient
) -> None:
    async with app.database.begin() as session:
        made = await enqueue(session, prune)
    assert (await admin.get(f"/api/jobs/{made}")).status_code == 200
    assert (await owner.get(f"/panel/api/jobs/{made}")).status_code == 404
    assert (await owner.get("/panel/api/jobs")).json() == []
    for prefix in ("", "/panel"):
        answer = await app_client.get(f"{prefix}/api/jobs")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_pages_lead_on_under_the_apis_own_path(app: RunningApp, admin: httpx.AsyncClient) -> None:
    async with app.database.begin() as session:
        for _ in range(3):
            await enqueue(session, prune, delay_seconds=600)
    answer = await admin.get("/api/jobs?limit=2")
    assert len(answer.json()) == 2
    assert answer.links["next"]["url"].startswith("/api/jobs?limit=2&cursor=")
