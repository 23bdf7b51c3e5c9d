"""What happened to one app, for whoever may see it."""

import httpx

from tests.conftest import RunningApp
from tests.factories.apps import add_one, engine_of, install, key_client, operate, until


async def test_the_events_of_an_app_newest_first_and_in_pages(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made, other = await install(admin, await add_one(admin, restart="no")), await install(admin)
    engine_of(app).crash(made["id"], "web", exit_code=3)
    await until(admin, made["id"], "crashed")
    await operate(admin, made["id"], "start", "running")
    path = f"/api/apps/{made['id']}/events"
    events = (await admin.get(path)).json()
    assert [one["type"] for one in events] == ["app.started", "app.crashed", "app.installed"]
    assert {one["subject"] for one in events} == {made["id"]}
    assert events[1]["data"]["exit_code"] == 3
    assert set(events[0]) == {"id", "type", "created_at", "subject", "data"}
    found, page = [], f"{path}?limit=2"
    while page:
        answer = await admin.get(page)
        found += answer.json()
        link = answer.headers.get("link")
        page = link[1 : link.index(">")] if link else ""
    assert found == events
    async with key_client(app, admin, ["apps:read"], resources=[made["id"]]) as client:
        assert (await client.get(path)).json() == events
        assert (await client.get(f"/api/apps/{other['id']}/events")).json()["code"] == "app_not_found"
    for query in ("limit=0", "limit=201", "limit=x", "cursor=!", "cursor=YQ"):
        answer = await admin.get(f"{path}?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), query
