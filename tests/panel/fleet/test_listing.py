"""The list of instances: filters, pages, who sees what, and that a read leaves nothing of its tenant behind."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select

from quazzar.core.db import Database, Query
from quazzar.panel.fleet.models import FleetGroup, FleetInstance
from quazzar.panel.fleet.schemas import InstanceOut
from quazzar.panel.tenants.models import Membership
from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, make_colleague
from tests.panel.fleet.conftest import Tenant
from tests.panel.fleet.lines import make_instance

LIST = "/api/fleet/instances"
APPS = [{"id": "app_1", "name": "cloud", "status": "running", "template": "nextcloud", "version": None}]


@pytest.fixture(scope="module")
async def four(ada: Tenant, eve: Tenant, database: Database) -> list[str]:
    """Instances of ada's, oldest first; the last is revoked. Eve has one that fits every filter."""
    async with database.begin(tenant=ada.id) as session:
        for group_id, parent in (("grp_" + "a" * 26, None), ("grp_" + "b" * 26, "grp_" + "a" * 26)):
            await session.execute(
                insert(FleetGroup).values(id=group_id, tenant_id=ada.id, name=group_id, parent_id=parent)
            )
    rows: list[dict[str, Any]] = [
        {"name": "Berlin-1", "status": "online", "tags": ["web", "eu"], "group_id": "grp_" + "a" * 26, "apps": APPS},
        {"name": "Berlin-2", "status": "offline", "tags": ["web"], "group_id": "grp_" + "b" * 26, "version": "0.2.0"},
        {"name": "Paris", "status": "degraded", "hostname": "berlin.example.com", "ip": "203.0.113.9"},
        {"name": "Gone", "status": "revoked"},
    ]
    await make_instance(database, eve.id, name="Berlin-1", status="online", tags=["web", "eu"])
    return [(await make_instance(database, ada.id, **row)).identity.instance_id for row in rows]


async def names(http: httpx.AsyncClient, query: str = "") -> list[str]:
    answer = await http.get(f"{LIST}{query}")
    assert answer.status_code == 200, answer.text
    return [one["name"] for one in answer.json()]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["Paris", "Berlin-2", "Berlin-1"]),
        ("?status=online", ["Berlin-1"]),
        ("?status=revoked", ["Gone"]),
        ("?status=online&status=revoked", ["Gone", "Berlin-1"]),
        ("?tag=web", ["Berlin-2", "Berlin-1"]),
        ("?tag=web&tag=eu", ["Berlin-1"]),
        ("?tag=nothing", []),
        ("?group=grp_" + "a" * 26, ["Berlin-2", "Berlin-1"]),
        ("?group=grp_" + "b" * 26, ["Berlin-2"]),
        ("?group=grp_" + "c" * 26, []),
        ("?group=nonsense", []),
        ("?version=0.2.0", ["Berlin-2"]),
        ("?q=BERLIN", ["Paris", "Berlin-2", "Berlin-1"]),
        ("?q=203.0.113", ["Paris"]),
        ("?q=%25", []),
        ("?q=berlin&status=online&tag=eu&version=0.1.0", ["Berlin-1"]),
    ],
)
async def test_filters(query: str, expected: list[str], ada: Tenant, four: list[str]) -> None:
    assert await names(ada.http, query) == expected


async def test_an_entry_is_what_the_instance_itself_answers(ada: Tenant, four: list[str]) -> None:
    for one in (await ada.http.get(LIST)).json():
        assert one == (await ada.http.get(f"{LIST}/{one['id']}")).json()
        assert one.keys() == set(InstanceOut.__struct_fields__)
    (berlin,) = (await ada.http.get(f"{LIST}?status=online")).json()
    assert berlin["apps"] == APPS


async def test_pages(ada: Tenant, four: list[str]) -> None:
    seen: list[str] = []
    url = f"{LIST}?limit=1&q=berlin"
    while url:
        answer = await ada.http.get(url)
        seen += [one["name"] for one in answer.json()]
        link = answer.headers.get("link", "")
        url = link.partition(">")[0][1:].removeprefix("/panel")
    assert seen == ["Paris", "Berlin-2", "Berlin-1"]
    assert (await ada.http.get(f"{LIST}?cursor=xyz")).status_code == 400


async def test_members_see_what_they_are_bound_to(
    ada: Tenant, eve: Tenant, four: list[str], app: RunningApp, database: Database
) -> None:
    bound = {
        ("grp_" + "a" * 26,): ["Berlin-2", "Berlin-1"],
        ("grp_" + "b" * 26, four[2]): ["Paris", "Berlin-2"],
        (four[0],): ["Berlin-1"],
        (): [],
    }
    for resources, expected in bound.items():
        colleague = await make_colleague(database, ada.id, "viewer")
        async with database.begin(tenant=ada.id) as session:
            await session.execute(
                Membership.__table__.update()  # type: ignore[attr-defined]
                .where(Membership.user_id == colleague.id)
                .values(resources=list(resources))
            )
        async with app.client() as http:
            http.headers.update(await headers_of(http, colleague))
            http.base_url = httpx.URL("http://localhost/panel")
            assert await names(http) == expected
            assert await names(http, "?q=berlin-1") == [name for name in expected if name == "Berlin-1"]
    assert await names(eve.http) == ["Berlin-1"]


async def test_a_read_leaves_nothing_of_its_tenant_behind(ada: Tenant, four: list[str], database: Database) -> None:
    query = Query(select(FleetInstance.id), str)
    for _ in range(5):
        found = await asyncio.gather(*(query.all(database, tenant=ada.id) for _ in range(8)))
        assert {len(ids) for ids in found} == {4}
        assert [await query.all(database) for _ in range(8)] == [[]] * 8
    # Neither does one that is broken off, wherever that happens.
    slow = Query(select(FleetInstance.id), str)
    for wait in (0, 0.0005, 0.001, 0.002, 0.005):
        reading = [asyncio.create_task(slow.all(database, tenant=ada.id)) for _ in range(8)]
        await asyncio.sleep(wait)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        assert [await query.all(database) for _ in range(8)] == [[]] * 8
    for odd in ("", "ten_x'; SELECT 1 --", "ten_" + "A" * 26):
        with pytest.raises(ValueError, match="tenant"):
            await query.all(database, tenant=odd)
