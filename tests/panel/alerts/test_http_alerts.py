"""The calls about alerts: what is seen by whom, what may be done with one, and the fleet's summary of them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.settings import Settings
from tests.conftest import RunningApp
from tests.factories.accounts import MadeUser, headers_of, make_colleague, make_member
from tests.panel.alerts.conftest import Lab, make_lab

ALERTS = "/panel/api/fleet/alerts"
SUMMARY = "/panel/api/fleet/summary"
Headers = dict[str, str]


@pytest.fixture(scope="module")
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture
async def lab(app: RunningApp, settings: Settings, keyring: Keyring) -> Lab:
    return await make_lab(app.database, settings, keyring)


@pytest.fixture
async def owner(client: httpx.AsyncClient, lab: Lab) -> Headers:
    return await member(client, lab, "owner")


async def member(client: httpx.AsyncClient, lab: Lab, role: str) -> Headers:
    return await headers_of(client, await make_colleague(lab.database, lab.tenant_id, role))


async def bind(database: Database, user: MadeUser, *resources: str) -> None:
    async with database.begin(tenant=user.tenant_id) as session:
        sql = text("UPDATE memberships SET resources = :resources WHERE user_id = :id")
        await session.execute(sql, {"id": user.id, "resources": list(resources)})


async def listed(client: httpx.AsyncClient, headers: Headers, query: str = "") -> list[dict[str, Any]]:
    answer = await client.get(f"{ALERTS}?limit=200{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return list(answer.json())


async def do(client: httpx.AsyncClient, headers: Headers, alert_id: str, action: str, **body: Any) -> httpx.Response:
    return await client.post(f"{ALERTS}/{alert_id}/{action}", json=body or None, headers=headers)


async def one_alert(lab: Lab) -> str:
    await lab.rule(name="Disk", severity="critical")
    await lab.instance(disk_percent=95)
    await lab.look()
    return str((await lab.alerts())[-1]["id"])


async def test_what_an_alert_shows(client: httpx.AsyncClient, lab: Lab, owner: Headers) -> None:
    alert_id = await one_alert(lab)
    (alert,) = await listed(client, owner)
    assert alert == {
        "id": alert_id,
        "rule_id": alert["rule_id"],
        "name": "Disk",
        "severity": "critical",
        "status": "firing",
        "instance_id": alert["instance_id"],
        "instance_name": "berlin-1",
        "metric": "disk_percent",
        "value": 95,
        "limit": 90,
        "reason": "Disk use is 95 %: 90 % or more",
        "count": 1,
        "fired_at": "2030-01-01T00:00:15Z",
        "muted_until": None,
        "acknowledged_at": None,
        "acknowledged_by": None,
        "resolved_at": None,
        "resolved_by": None,
        "resolved_reason": None,
    }
    assert (await client.get(f"{ALERTS}/{alert_id}", headers=owner)).json() == alert


async def test_acknowledge_mute_and_resolve(client: httpx.AsyncClient, lab: Lab, owner: Headers) -> None:
    alert_id = await one_alert(lab)
    known = await do(client, owner, alert_id, "acknowledge")
    assert (known.status_code, known.json()["status"]) == (200, "acknowledged")
    assert known.json()["acknowledged_by"].startswith("usr_")
    assert (await do(client, owner, alert_id, "acknowledge")).json() == known.json()
    muted = await do(client, owner, alert_id, "mute")
    assert (muted.status_code, muted.json()["muted_until"] is not None) == (200, True)
    hour = datetime.fromisoformat(muted.json()["muted_until"]) - datetime.now(UTC)
    assert timedelta(minutes=59) < hour <= timedelta(hours=1)
    heard = await do(client, owner, alert_id, "mute", duration_seconds=0)
    assert heard.json()["muted_until"] is None
    over = await do(client, owner, alert_id, "resolve")
    assert (over.status_code, over.json()["status"]) == (200, "resolved")
    assert over.json()["resolved_by"] == known.json()["acknowledged_by"]
    assert (await do(client, owner, alert_id, "resolve")).json() == over.json()
    for action, body in (("acknowledge", {}), ("mute", {"duration_seconds": 60})):
        refused = await do(client, owner, alert_id, action, **body)
        assert (refused.status_code, refused.json()["code"]) == (409, "alert_resolved")
    assert await lab.happened() == ["alert.fired", "alert.resolved"]
    actions = await lab.rows("SELECT action FROM audit_records WHERE subject = :id ORDER BY number", id=alert_id)
    assert [row["action"] for row in actions] == ["alert.acknowledge", "alert.mute", "alert.mute", "alert.resolve"]


async def test_bodies_are_strict(client: httpx.AsyncClient, lab: Lab, owner: Headers) -> None:
    alert_id = await one_alert(lab)
    for body, fields in (
        ({"duration_seconds": -1}, {"duration_seconds"}),
        ({"duration_seconds": 10**9, "until": 1}, {"duration_seconds", "until"}),
    ):
        answer = await client.post(f"{ALERTS}/{alert_id}/mute", json=body, headers=owner)
        assert (answer.status_code, set(answer.json()["details"])) == (422, fields)
    for query in ("status=over", "severity=bad", "limit=0", "cursor=x"):
        assert (await client.get(f"{ALERTS}?{query}", headers=owner)).status_code == 400


async def test_filters_and_pages(client: httpx.AsyncClient, lab: Lab, owner: Headers) -> None:
    first = await lab.rule(name="first", severity="critical")
    await lab.rule(name="second", value=80)
    one, other = await lab.instance(disk_percent=95), await lab.instance("paris-1", disk_percent=85)
    await lab.look()
    lab.set(other, disk_percent=1)
    await lab.look()
    names = [(alert["name"], alert["instance_id"]) for alert in await listed(client, owner)]
    assert sorted(names) == sorted([("first", one), ("second", one), ("second", other)])
    assert [alert["instance_id"] for alert in await listed(client, owner, "&status=resolved")] == [other]
    assert len(await listed(client, owner, "&status=resolved&status=firing")) == 3
    assert [alert["name"] for alert in await listed(client, owner, "&severity=critical")] == ["first"]
    assert {alert["instance_id"] for alert in await listed(client, owner, f"&instance_id={one}")} == {one}
    assert [alert["name"] for alert in await listed(client, owner, f"&rule_id={first}")] == ["first"]
    assert await listed(client, owner, "&instance_id=nothing") == []
    page = await client.get(f"{ALERTS}?limit=2", headers=owner)
    rest = await client.get(page.links["next"]["url"], headers=owner)
    ids = [alert["id"] for alert in page.json() + rest.json()]
    assert (ids, len(ids)) == (sorted(ids, reverse=True), 3)


async def test_foreign_alerts_do_not_exist(client: httpx.AsyncClient, lab: Lab, owner: Headers) -> None:
    alert_id = await one_alert(lab)
    eve = await headers_of(client, await make_member(lab.database))
    assert await listed(client, eve) == []
    for method, action, body in (
        ("GET", "", None),
        ("POST", "/acknowledge", None),
        ("POST", "/resolve", None),
        ("POST", "/mute", {"duration_seconds": 60}),
    ):
        foreign = await client.request(method, f"{ALERTS}/{alert_id}{action}", json=body, headers=eve)
        unknown = await client.request(method, f"{ALERTS}/alr_{'a' * 26}{action}", json=body, headers=eve)
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    assert (await client.get(f"{ALERTS}/{alert_id}", headers=owner)).json()["status"] == "firing"
    # The wall in the database holds where the argument is wrong.
    async with lab.database.begin(tenant=new_id("ten")) as session:
        for table in ("alerts", "alert_rules", "alert_states", "alert_turns", "alert_notices", "alert_rule_channels"):
            assert (await session.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0


async def test_who_may(client: httpx.AsyncClient, lab: Lab) -> None:
    alert_id = await one_alert(lab)
    viewer, operator, biller = [await member(client, lab, role) for role in ("viewer", "operator", "billing")]
    for action in ("", "/acknowledge", "/mute", "/resolve"):
        method = "POST" if action else "GET"
        body = {"duration_seconds": 60} if action == "/mute" else None
        url = f"{ALERTS}/{alert_id}{action}"
        assert (await client.request(method, url, json=body)).status_code == 401
        assert (await client.request(method, url, json=body, headers=biller)).json()["code"] == "scope_missing"
        answer = await client.request(method, url, json=body, headers=viewer)
        assert answer.status_code == (403 if action else 200)
        assert (await client.request(method, url, json=body, headers=operator)).status_code == 200
    assert (await client.get(ALERTS, headers=biller)).status_code == 403


async def test_who_is_bound_to_some_instances_sees_their_alerts(
    client: httpx.AsyncClient, lab: Lab, owner: Headers
) -> None:
    group = (await client.post("/panel/api/fleet/groups", json={"name": "g"}, headers=owner)).json()["id"]
    below = (
        await client.post("/panel/api/fleet/groups", json={"name": "h", "parent_id": group}, headers=owner)
    ).json()["id"]
    named = await lab.instance("named", disk_percent=95)
    grouped = await lab.instance("grouped", values={"group_id": below}, disk_percent=95)
    other = await lab.instance("other", disk_percent=95)
    await lab.rule(severity="critical")
    await lab.look()
    ids = {alert["instance_id"]: alert["id"] for alert in await listed(client, owner)}
    user = await make_colleague(lab.database, lab.tenant_id, "operator")
    await bind(lab.database, user, named, group)
    bound = await headers_of(client, user)
    assert {alert["instance_id"] for alert in await listed(client, bound)} == {named, grouped}
    assert (await client.get(SUMMARY, headers=bound)).json()["alerts"]["critical"] == 2
    assert (await client.get(SUMMARY, headers=owner)).json()["alerts"]["critical"] == 3
    for action in ("acknowledge", "resolve"):
        assert (await do(client, bound, ids[grouped], action)).status_code == 200
        assert (await do(client, bound, ids[other], action)).json()["code"] == "alert_not_found"
    assert (await client.get(f"{ALERTS}/{ids[other]}", headers=bound)).status_code == 404


async def test_the_summary_counts_what_is_not_over(client: httpx.AsyncClient, lab: Lab, owner: Headers) -> None:
    for severity in ("critical", "warning", "info"):
        await lab.rule(name=severity, severity=severity)
    one, other = await lab.instance(disk_percent=95), await lab.instance(disk_percent=95)
    assert (await client.get(SUMMARY, headers=owner)).json()["alerts"] == {"critical": 0, "warning": 0, "info": 0}
    await lab.look()
    assert (await client.get(SUMMARY, headers=owner)).json()["alerts"] == {"critical": 2, "warning": 2, "info": 2}
    (critical, _) = await listed(client, owner, "&severity=critical")
    await do(client, owner, critical["id"], "acknowledge")
    (warning, _) = await listed(client, owner, "&severity=warning")
    await do(client, owner, warning["id"], "resolve")
    assert (await client.get(SUMMARY, headers=owner)).json()["alerts"] == {"critical": 2, "warning": 1, "info": 2}
    # An instance that leaves takes its alerts along, at once; forgotten, it leaves them as history.
    for each in (one, other):
        assert (await client.delete(f"/panel/api/fleet/instances/{each}", headers=owner)).status_code == 204
    assert (await client.get(SUMMARY, headers=owner)).json()["alerts"] == {"critical": 0, "warning": 0, "info": 0}
    left = await listed(client, owner, "&severity=critical")
    assert {alert["resolved_reason"] for alert in left} == {"The instance left the fleet, or joined anew"}
    assert (await client.delete(f"/panel/api/fleet/instances/{one}", headers=owner)).status_code == 204
    ended = await listed(client, owner, "&severity=critical")
    assert {alert["instance_id"] for alert in ended} == {None, other}
    assert [alert["instance_name"] for alert in ended] == ["berlin-1", "berlin-1"]
    assert (await lab.happened()).count("alert.resolved") == 6


async def test_a_tenant_takes_its_alerts_along(client: httpx.AsyncClient, lab: Lab, owner: Headers) -> None:
    await one_alert(lab)
    channel = await lab.channel()
    await lab.rule(channels=[channel])
    assert (await client.delete(f"/panel/api/tenants/{lab.tenant_id}", headers=owner)).status_code == 204
    for table in ("alerts", "alert_rules", "alert_turns", "notification_channels"):
        assert await lab.rows(f"SELECT * FROM {table} WHERE tenant_id = :id", id=lab.tenant_id) == []
