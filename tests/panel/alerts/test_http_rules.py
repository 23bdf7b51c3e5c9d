"""The calls about alert rules: who may, what is refused and how, and what is on record."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.channels import service as channels
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.panel.alerts import rules
from quazzar.panel.alerts.defaults import DEFAULTS
from tests.conftest import RunningApp
from tests.factories.accounts import MadeUser, headers_of, make_colleague, make_member
from tests.factories.panel import make_instance

RULES = "/panel/api/fleet/alert-rules"
CHANNELS = "/panel/api/notification-channels"
DISK = {"kind": "threshold", "name": "Disk", "metric": "disk_percent", "value": 90}
Headers = dict[str, str]


@pytest.fixture(scope="module")
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture(scope="module")
async def ada(database: Database) -> MadeUser:
    return await make_member(database)


@pytest.fixture(scope="module")
async def owner(client: httpx.AsyncClient, ada: MadeUser) -> Headers:
    return await headers_of(client, ada)


@pytest.fixture(scope="module")
async def eve(client: httpx.AsyncClient, database: Database) -> Headers:
    return await headers_of(client, await make_member(database))


async def create(client: httpx.AsyncClient, headers: Headers, **body: Any) -> dict[str, Any]:
    answer = await client.post(RULES, json=DISK | body, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{RULES}/{made['id']}"
    return made


async def recorded(database: Database, tenant_id: str | None, subject: str) -> list[Any]:
    async with database.begin(tenant=tenant_id) as session:
        query = text("SELECT action, before, after FROM audit_records WHERE subject = :subject ORDER BY number")
        return list((await session.execute(query, {"subject": subject})).all())


async def test_a_new_tenant_has_rules_that_are_its_own(client: httpx.AsyncClient, database: Database) -> None:
    headers = await headers_of(client, await make_member(database))
    listed = (await client.get(RULES, headers=headers)).json()
    assert sorted(rule["name"] for rule in listed) == sorted(rule.name for rule in DEFAULTS)
    assert {"heartbeat", "disk_percent", "memory_percent"} <= {rule["metric"] for rule in listed}
    assert all(rule["enabled"] and rule["targets"]["all"] and rule["channels"] is None for rule in listed)
    path = f"{RULES}/{listed[0]['id']}"
    changed = await client.patch(path, json={"enabled": False, "severity": "info"}, headers=headers)
    assert (changed.status_code, changed.json()["enabled"], changed.json()["severity"]) == (200, False, "info")
    assert (await client.delete(path, headers=headers)).status_code == 204
    assert len((await client.get(RULES, headers=headers)).json()) == len(DEFAULTS) - 1


async def test_create_show_change_delete(
    client: httpx.AsyncClient, database: Database, ada: MadeUser, owner: Headers
) -> None:
    assert ada.tenant_id is not None
    instance = await make_instance(database, ada.tenant_id)
    channel = (
        await client.post(CHANNELS, json={"kind": "email", "name": "ops", "to": ["ops@example.com"]}, headers=owner)
    ).json()["id"]
    quiet = {"start": "22:00", "end": "07:00", "time_zone": "Europe/Berlin", "critical_passes": True}
    made = await create(
        client,
        owner,
        targets={"instances": [instance, instance], "tags": ["b", "a"]},
        channels=[channel],
        quiet_hours=quiet,
        repeat_seconds=3_600,
        for_seconds=300,
        severity="critical",
        operator=">",
    )
    assert made == {
        "id": made["id"],
        "name": "Disk",
        "kind": "threshold",
        "metric": "disk_percent",
        "operator": ">",
        "value": 90,
        "for_seconds": 300,
        "window_seconds": None,
        "horizon_seconds": None,
        "severity": "critical",
        "targets": {"instances": [instance], "tags": ["a", "b"], "groups": [], "all": False},
        "channels": [channel],
        "quiet_hours": quiet,
        "repeat_seconds": 3_600,
        "enabled": True,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }
    path = f"{RULES}/{made['id']}"
    assert (await client.get(path, headers=owner)).json() == made
    assert made in (await client.get(RULES, headers=owner)).json()
    changed = await client.patch(path, json={"value": 95, "channels": None, "quiet_hours": None}, headers=owner)
    assert changed.status_code == 200, changed.text
    assert changed.json() == made | {
        "value": 95,
        "channels": None,
        "quiet_hours": None,
        "updated_at": changed.json()["updated_at"],
    }
    again = await client.patch(path, json={"value": 95}, headers=owner)
    assert again.json() == changed.json()
    assert (await client.delete(path, headers=owner)).status_code == 204
    assert (await client.get(path, headers=owner)).json()["code"] == "alert_rule_not_found"
    assert (await client.delete(path, headers=owner)).status_code == 404
    actions = await recorded(database, ada.tenant_id, made["id"])
    assert [row[0] for row in actions] == ["alert_rule.create", "alert_rule.update", "alert_rule.delete"]
    assert actions[1][1:] == (
        {"limit_value": 90, "channels": [channel], "every_channel": False, "quiet_hours": quiet},
        {"limit_value": 95, "channels": [], "every_channel": True, "quiet_hours": None},
    )


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "absence", "for_seconds": 600},
        {"kind": "absence", "metric": "backup", "for_seconds": 86_400},
        {"kind": "rate", "metric": "cpu_percent", "operator": ">=", "value": 50, "window_seconds": 300},
        {"kind": "forecast", "metric": "disk_percent", "value": 100, "horizon_seconds": 172_800},
        {"kind": "threshold", "metric": "apps_down", "operator": ">", "value": 0},
    ],
    ids=lambda body: f"{body['kind']} {body.get('metric')}",
)
async def test_every_kind_can_be_made_and_changed(
    client: httpx.AsyncClient, owner: Headers, body: dict[str, Any]
) -> None:
    answer = await client.post(RULES, json={"name": "x"} | body, headers=owner)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert {name: made[name] for name in body} == body
    changed = await client.patch(f"{RULES}/{made['id']}", json={"for_seconds": 120, "name": "y"}, headers=owner)
    assert changed.json() == made | {"for_seconds": 120, "name": "y", "updated_at": changed.json()["updated_at"]}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"kind", "name"}),
        ({"kind": "sorcery"}, {"kind", "name"}),
        ({"kind": "threshold"}, {"name", "metric", "value"}),
        (
            DISK | {"metric": "disk", "operator": "=", "value": "9", "severity": "bad", "for_seconds": -1, "id": "x"},
            {"metric", "operator", "value", "severity", "for_seconds", "id"},
        ),
        (DISK | {"window_seconds": 300}, {"window_seconds"}),
        (DISK | {"metric": "heartbeat"}, {"metric"}),
        ({"kind": "absence", "name": "x", "for_seconds": 59, "metric": "apps_down"}, {"for_seconds", "metric"}),
        (
            {"kind": "rate", "name": "x", "metric": "health_score", "value": 1, "window_seconds": 1},
            {"metric", "window_seconds"},
        ),
        (
            {"kind": "forecast", "name": "x", "metric": "load_1", "value": 1e16, "horizon_seconds": 0},
            {"value", "horizon_seconds"},
        ),
        (DISK | {"targets": {}}, {"targets"}),
        (DISK | {"targets": {"all": True, "tags": ["a"]}}, {"targets.all"}),
        (
            DISK | {"targets": {"instances": ["x"], "tags": ["Ä"], "groups": [1]}},
            {"targets.instances.0", "targets.tags.0", "targets.groups.0"},
        ),
        (
            DISK
            | {
                "targets": {"instances": ["inst_" + "a" * 26], "groups": ["grp_" + "a" * 26]},
                "channels": ["chn_" + "a" * 26],
                "quiet_hours": {"start": "08:00", "end": "08:00", "time_zone": "Moon/Base"},
            },
            {"targets.instances.0", "targets.groups.0", "channels.0", "quiet_hours.end", "quiet_hours.time_zone"},
        ),
        (
            DISK | {"quiet_hours": {"start": "24:00", "end": "8", "days": []}},
            {"quiet_hours.start", "quiet_hours.end", "quiet_hours.time_zone", "quiet_hours.days"},
        ),
        (DISK | {"repeat_seconds": 1, "enabled": "yes", "channels": "all"}, {"repeat_seconds", "enabled", "channels"}),
        (DISK | {"name": "two\nlines", "tenant_id": "ten_x"}, {"name", "tenant_id"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else str(len(str(value))),
)
async def test_all_that_is_wrong_is_said_at_once(
    client: httpx.AsyncClient, owner: Headers, body: dict[str, Any], fields: set[str]
) -> None:
    answer = await client.post(RULES, json=body, headers=owner)
    assert answer.status_code == 422, answer.text
    assert set(answer.json()["details"]) == fields


async def test_a_body_that_is_no_object_can_not_be_read(client: httpx.AsyncClient, owner: Headers) -> None:
    bodies: list[Any] = [[], "threshold", 1, None]
    for body in bodies:
        answer = await client.post(RULES, json=body, headers=owner)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json"), body


async def test_a_change_is_checked_as_a_whole(client: httpx.AsyncClient, owner: Headers) -> None:
    path = f"{RULES}/{(await create(client, owner))['id']}"
    changes: list[tuple[dict[str, Any], set[str]]] = [
        ({"kind": "rate"}, {"kind"}),
        ({"window_seconds": 300, "horizon_seconds": 7_200}, {"window_seconds", "horizon_seconds"}),
        ({"metric": "heartbeat"}, {"metric"}),
        ({"for_seconds": 10**6}, {"for_seconds"}),
        ({"name": None, "value": None}, {"name", "value"}),
        ({"targets": {"instances": ["inst_" + "a" * 26]}, "name": "new"}, {"targets.instances.0"}),
    ]
    for body, fields in changes:
        answer = await client.patch(path, json=body, headers=owner)
        assert (answer.status_code, set(answer.json()["details"])) == (422, fields), answer.text
    assert (await client.get(path, headers=owner)).json()["name"] == "Disk"


async def test_foreign_rules_instances_groups_and_channels_do_not_exist(
    client: httpx.AsyncClient, database: Database, ada: MadeUser, owner: Headers, eve: Headers
) -> None:
    made = await create(client, owner)
    path, nowhere = f"{RULES}/{made['id']}", f"{RULES}/rul_{'a' * 26}"
    for method, change in (("GET", None), ("PATCH", {"name": "x"}), ("DELETE", None)):
        foreign = await client.request(method, path, json=change, headers=eve)
        unknown = await client.request(method, nowhere, json=change, headers=eve)
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    assert made["id"] not in {rule["id"] for rule in (await client.get(RULES, headers=eve)).json()}
    assert ada.tenant_id is not None
    instance = await make_instance(database, ada.tenant_id)
    group = (await client.post("/panel/api/fleet/groups", json={"name": new_id("x")}, headers=owner)).json()["id"]
    hook = {"kind": "webhook", "name": new_id("x"), "url": "https://hooks.example.com/x"}
    channel = (await client.post(CHANNELS, json=hook, headers=owner)).json()["id"]
    body = DISK | {"targets": {"instances": [instance], "groups": [group]}, "channels": [channel]}
    assert (await client.post(RULES, json=body, headers=owner)).status_code == 201
    count = len((await client.get(RULES, headers=eve)).json())
    refused = await client.post(RULES, json=body, headers=eve)
    assert set(refused.json()["details"]) == {"targets.instances.0", "targets.groups.0", "channels.0"}
    assert len((await client.get(RULES, headers=eve)).json()) == count


async def test_who_may(client: httpx.AsyncClient, database: Database, ada: MadeUser, owner: Headers) -> None:
    assert ada.tenant_id is not None
    path = f"{RULES}/{(await create(client, owner))['id']}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", RULES, None),
        ("GET", path, None),
        ("POST", RULES, DISK),
        ("PATCH", path, {"name": "y"}),
        ("DELETE", path, None),
    ]
    viewer, biller = [
        await headers_of(client, await make_colleague(database, ada.tenant_id, role)) for role in ("viewer", "billing")
    ]
    bound = await make_colleague(database, ada.tenant_id, "operator")
    async with database.begin(tenant=ada.tenant_id) as session:
        bind = text("UPDATE memberships SET resources = ARRAY['inst_x'] WHERE user_id = :id")
        await session.execute(bind, {"id": bound.id})
    bound_headers = await headers_of(client, bound)
    for method, url, body in calls:
        reads = method == "GET"
        assert (await client.request(method, url, json=body)).status_code == 401
        assert (await client.request(method, url, json=body, headers=biller)).json()["code"] == "scope_missing"
        answer = await client.request(method, url, json=body, headers=viewer)
        assert answer.status_code == (200 if reads else 403), f"{method} {answer.text}"
        answer = await client.request(method, url, json=body, headers=bound_headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), method
    operator = await headers_of(client, await make_colleague(database, ada.tenant_id, "operator"))
    for method, url, body in calls:
        assert (await client.request(method, url, json=body, headers=operator)).status_code < 300


async def test_lists_are_paged_and_bounded(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = await headers_of(client, await make_member(database))
    made = [(await create(client, headers))["id"] for _ in range(3)]
    first = await client.get(f"{RULES}?limit=2", headers=headers)
    assert [rule["id"] for rule in first.json()] == made[:0:-1]
    second = await client.get(first.links["next"]["url"], headers=headers)
    assert second.json()[0]["id"] == made[0]
    monkeypatch.setattr(rules, "MOST_RULES", len(DEFAULTS) + 5)
    answers = await asyncio.gather(*(client.post(RULES, json=DISK, headers=headers) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 409, 409, 409, 409]
    assert {answer.json().get("code") for answer in answers} == {None, "alert_rule_limit_reached"}


async def test_a_channel_is_not_deleted_between_a_look_and_the_rule_that_names_it(
    client: httpx.AsyncClient, owner: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = {"kind": "webhook", "name": "About to go", "url": "https://example.com/hook"}
    channel = (await client.post(CHANNELS, json=hook, headers=owner)).json()["id"]
    deleting = []

    async def known_channels(*args: Any) -> set[str]:
        known = await channels.known_channels(*args)
        deleting.append(asyncio.create_task(client.delete(f"{CHANNELS}/{channel}", headers=owner)))
        await asyncio.wait(deleting, timeout=0.5)
        return known

    monkeypatch.setattr(rules, "known_channels", known_channels)
    made = await client.post(RULES, json=DISK | {"channels": [channel]}, headers=owner)
    deleted = await deleting[0]
    assert (made.status_code, deleted.status_code, deleted.json()["code"]) == (201, 409, "channel_in_use")
    assert (await client.delete(f"{RULES}/{made.json()['id']}", headers=owner)).status_code == 204
    assert (await client.delete(f"{CHANNELS}/{channel}", headers=owner)).status_code == 204


async def test_the_same_key_makes_one_rule(client: httpx.AsyncClient, owner: Headers) -> None:
    headers = owner | {"Idempotency-Key": new_id("x")}
    first, second = [await client.post(RULES, json=DISK, headers=headers) for _ in range(2)]
    assert (first.json(), second.headers["idempotent-replayed"]) == (second.json(), "true")
