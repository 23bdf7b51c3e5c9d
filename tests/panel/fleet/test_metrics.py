"""What instances measure, over HTTP: the newest values, ranges with gaps, and nobody else's."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.db import Database, see_all_tenants
from quazzar.link.metrics import APP_METRICS, HOST_METRICS
from quazzar.panel.fleet import metrics_store, store
from quazzar.panel.fleet.ingest import Ingest
from quazzar.panel.fleet.metrics import MOST_POINTS, RANGES, steps_of
from quazzar.panel.fleet.metrics_schemas import Metric, Range
from quazzar.panel.fleet.metrics_store import FIVE_MINUTES, HOURS, SAMPLES
from quazzar.panel.fleet.rollups import began, roll_up
from quazzar.panel.tenants.models import Membership
from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, make_colleague
from tests.panel.fleet.conftest import Tenant
from tests.panel.fleet.lines import Told, app_facts, ask, beat, make_instance, past, state_of, tell

NOBODY = "inst_" + "a" * 26


@pytest.fixture
def ingest(database: Database) -> Ingest:
    return Ingest(database, 30)


def latest_path(line: Told | str) -> str:
    return f"/api/fleet/metrics/{line if isinstance(line, str) else line.identity.instance_id}"


def history_path(line: Told | str, query: str = "") -> str:
    instance_id = line if isinstance(line, str) else line.identity.instance_id
    return f"/api/fleet/instances/{instance_id}/metrics/history{query}"


async def history(tenant: Tenant, line: Told, **query: Any) -> dict[str, Any]:
    answer = await tenant.http.get(history_path(line), params=query)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def write_sums(database: Database, line: Told, table: str, **at: float) -> None:
    """Sums of a step that began at a moment, each value once, as the roll-up leaves them."""
    async with database.begin() as session:
        await see_all_tenants(session)
        for moment, value in at.items():
            begin = datetime.fromisoformat(moment)
            await session.execute(
                text(f"INSERT INTO {table} VALUES (:tenant, :id, '', :at, :low, :mean, :high, '{{4,4}}')"),
                {
                    "tenant": line.identity.tenant_id,
                    "id": line.identity.instance_id,
                    "at": begin,
                    "low": [value - 1, 1.0],
                    "mean": [value, 1.0],
                    "high": [value + 1, 1.0],
                },
            )


async def days_back(database: Database, days: int) -> None:
    """Partitions for days that have passed, which otherwise are made as they come."""
    today = datetime.now(UTC).date()
    async with database.begin() as session:
        for table in ("fleet_five_minutes", "fleet_hours"):
            values = {"part": table, "first": today - timedelta(days=days), "last": today}
            await session.execute(text("SELECT fleet_keep_partitions(:part, 'epoch', :first, :last)"), values)


async def test_the_newest_values(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    answer = await ada.http.get(latest_path(line))
    empty = answer.json()
    assert (answer.status_code, empty["measured_at"], empty["apps"]) == (200, None, [])
    assert empty["cpu"] == {"percent": None, "cores": 4}
    values = [float(number) + 0.25 for number in range(len(HOST_METRICS))]
    app = [float(number) for number in range(len(APP_METRICS))]
    state = state_of(*app_facts("app_one", "app_two"))
    await tell(ingest, line, beat(*values, state=state, app_one=app, app_two=[None, 5.0]))
    body = (await ada.http.get(latest_path(line))).json()
    assert body["instance_id"] == line.identity.instance_id
    assert datetime.now(UTC) - datetime.fromisoformat(body["measured_at"]) < timedelta(seconds=30)
    assert body["cpu"] == {"percent": 0.25, "cores": 4}
    assert body["memory"] == {
        "used_bytes": 1, "total_bytes": 8_000_000_000, "percent": 2.25, "swap_used_bytes": 3
    }  # fmt: skip
    assert (body["disk"]["used_bytes"], body["disk"]["percent"], body["disk"]["write_bytes_per_second"]) == (4, 5.25, 7)
    assert body["network"] == {"rx_bytes_per_second": 8, "tx_bytes_per_second": 9}
    assert body["load"] == {"load_1": 10.25, "load_5": 11.25, "load_15": 12.25}
    assert (body["processes"], body["uptime_seconds"], body["temperature_celsius"]) == (13, 14, 15.25)
    one, two = body["apps"]
    assert one == {"id": "app_one", "name": "app_one"} | dict(zip(APP_METRICS, app, strict=True))
    assert (two["cpu_percent"], two["memory_bytes"], two["pids"]) == (None, 5, None)
    # What a later heartbeat does not tell of is not now; what the past tells of is neither.
    await tell(ingest, line, past(datetime.now(UTC) - timedelta(hours=1), app_two=[9.0]))
    await tell(ingest, line, beat(50.0, app_one=app))
    body = (await ada.http.get(latest_path(line))).json()
    assert (body["cpu"]["percent"], [one["id"] for one in body["apps"]]) == (50.0, ["app_one"])


async def test_samples_of_the_last_hour_are_points(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    begin = began(datetime.now(UTC) - timedelta(minutes=30), 60)
    await tell(ingest, line, past(begin, begin + timedelta(seconds=30), value=10.0))
    await tell(ingest, line, past(begin + timedelta(seconds=40), value=40.0))
    await tell(ingest, line, past(begin + timedelta(minutes=5), value=7.0))
    body = await history(ada, line, range="1h", metric="cpu_percent")
    assert (body["range"], body["metric"], body["step_seconds"], body["app_id"]) == ("1h", "cpu_percent", 60, None)
    assert body["points"] == [
        {"at": stamp(begin), "min": 10.0, "avg": 20.0, "max": 40.0},
        {"at": stamp(begin + timedelta(minutes=5)), "min": 7.0, "avg": 7.0, "max": 7.0},
    ], "minutes in which nothing was measured have no point"
    fine = await history(ada, line, range="1h", step=10)
    assert [point["max"] for point in fine["points"]] == [10.0, 10.0, 40.0, 7.0]
    assert (await history(ada, line, range="1h", metric="memory_percent"))["points"] == []


def stamp(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


async def test_apps_have_a_history_of_their_own(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    state = state_of(*app_facts("app_one"))
    await tell(ingest, line, beat(1.0, state=state, app_one=[30.0, 2.0**40]))
    body = await history(ada, line, range="6h", metric="memory_bytes", app="app_one")
    assert (body["app_id"], [point["max"] for point in body["points"]]) == ("app_one", [2.0**40])
    assert (await history(ada, line, range="24h", metric="cpu_percent", app="app_one"))["points"][0]["avg"] == 30.0
    assert (await history(ada, line, range="24h", metric="cpu_percent", app="app_two"))["points"] == []


async def test_long_ranges_are_sums_and_the_newest_samples(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    await days_back(database, 95)
    hour = began(datetime.now(UTC), 3600)
    days = {age: hour - timedelta(days=age) for age in (80, 20, 5)}
    await write_sums(database, line, "fleet_hours", **{at.isoformat(): float(age) for age, at in days.items()})
    await tell(ingest, line, past(datetime.now(UTC) - timedelta(hours=3), value=1.0))
    await roll_up(database, datetime.now(UTC))
    await tell(ingest, line, past(datetime.now(UTC), value=2.0))
    body = await history(ada, line, range="90d")
    assert body["step_seconds"] == 10_800
    found = [(point["min"], point["avg"], point["max"]) for point in body["points"]]
    assert found[:3] == [(79, 80, 81), (19, 20, 21), (4, 5, 6)]
    assert {value for _, _, value in found[3:]} == {1.0, 2.0}
    body = await history(ada, line, range="30d")
    assert (body["step_seconds"], len(body["points"])) == (3600, 4)
    assert body["points"][0]["at"] == stamp(days[20])
    # The week is read from five minutes: the hours of five days ago are not in them.
    assert [point["avg"] for point in (await history(ada, line, range="7d"))["points"]] == [1.0, 2.0]
    body = await history(ada, line, range="7d", step=86_400)
    assert (body["step_seconds"], body["points"][0]["avg"]) == (86_400, 5.0)


async def test_means_are_weighed(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    begin = began(datetime.now(UTC), 3600) - timedelta(hours=3)
    await tell(ingest, line, past(*(begin + timedelta(seconds=second) for second in range(9)), value=10.0))
    await tell(ingest, line, past(begin + timedelta(minutes=20), value=110.0))
    await roll_up(database, datetime.now(UTC))
    (point,) = (await history(ada, line, range="24h", step=3600))["points"]
    assert (point["at"], point["min"], point["avg"], point["max"]) == (stamp(begin), 10.0, 20.0, 110.0)
    assert [one["avg"] for one in (await history(ada, line, range="24h"))["points"]] == [10.0, 110.0]


@pytest.mark.parametrize("span", list(RANGES))
@pytest.mark.parametrize("wanted", [None, 1, 7, 60, 299, 301, 3601, 86_400])
@pytest.mark.parametrize("heartbeat", [1.0, 30.0, 600.0])
def test_steps_are_bounded_and_never_finer_than_asked(span: Range, wanted: int | None, heartbeat: float) -> None:
    source, step = steps_of(span, wanted, heartbeat_seconds=heartbeat)
    length = RANGES[span][0].total_seconds()
    assert length / step <= MOST_POINTS
    assert step >= (wanted or max(60, 2 * heartbeat))
    assert step % (source.step_seconds or 10) == 0
    assert source in {"1h": [SAMPLES, FIVE_MINUTES, HOURS], "30d": [HOURS]}.get(span, [SAMPLES, FIVE_MINUTES, HOURS])


async def test_every_metric_has_a_name_that_can_be_asked_for(ada: Tenant, database: Database) -> None:
    line = await make_instance(database, ada.id)
    assert set(Metric.__args__) == {*HOST_METRICS, *APP_METRICS}  # type: ignore[attr-defined]
    for metric in HOST_METRICS:
        assert (await history(ada, line, metric=metric))["points"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?range=2h", "range"),
        ("?metric=secrets", "metric"),
        ("?metric=pids", "metric"),
        ("?metric=load_1&app=app_one", "metric"),
        ("?step=0", "step"),
        ("?step=86401", "step"),
        ("?step=soon", "step"),
        ("?app=" + "a" * 65, "app"),
    ],
)
async def test_odd_questions_are_refused(query: str, field: str, ada: Tenant, database: Database) -> None:
    line = await make_instance(database, ada.id)
    answer = await ada.http.get(history_path(line, query))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
    assert field in answer.json()["details"]


async def test_what_is_not_ones_own_does_not_exist(
    ada: Tenant, eve: Tenant, database: Database, ingest: Ingest
) -> None:
    line = await make_instance(database, ada.id)
    await tell(ingest, line, beat(1.0))
    for path in (latest_path, history_path):
        foreign = await eve.http.get(path(line))
        for other in (NOBODY, "x", "inst_%27--"):
            unknown = await eve.http.get(path(other))
            assert foreign.status_code == unknown.status_code == 404
            assert foreign.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}


async def test_either_wall_alone_holds(ada: Tenant, eve: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    await tell(ingest, line, beat(1.0, state=state_of(*app_facts("app_one")), app_one=[1.0]))
    now = datetime.now(UTC)

    async def read(session: Any, tenant_id: str) -> list[Any]:
        found: list[Any] = []
        for source in (SAMPLES, FIVE_MINUTES, HOURS):
            found += await metrics_store.find_points(
                session,
                tenant_id,
                line.identity.instance_id,
                "",
                source,
                place=0,
                since=now - timedelta(hours=1),
                until=now + timedelta(minutes=5),
                step_seconds=3600,
            )
        return [*found, *await metrics_store.find_latest_of_apps(session, tenant_id, line.identity.instance_id)]

    async with database.begin(tenant=ada.id) as session:
        assert len(await read(session, ada.id)) == 4
    async with database.begin(tenant=eve.id) as session:
        assert await read(session, ada.id) == [], "the argument is wrong"
    async with database.begin() as session:
        await see_all_tenants(session)
        assert await read(session, eve.id) == [], "row-level security is off"


async def test_members_see_what_they_are_bound_to(
    ada: Tenant, app: RunningApp, database: Database, ingest: Ingest
) -> None:
    mine, other = await make_instance(database, ada.id), await make_instance(database, ada.id)
    colleague = await make_colleague(database, ada.id, "viewer")
    async with database.begin(tenant=ada.id) as session:
        await session.execute(
            Membership.__table__.update()  # type: ignore[attr-defined]
            .where(Membership.user_id == colleague.id)
            .values(resources=[mine.identity.instance_id])
        )
    async with app.client() as http:
        http.headers.update(await headers_of(http, colleague))
        http.base_url = httpx.URL("http://localhost/panel")
        for path in (latest_path, history_path):
            assert (await http.get(path(mine))).status_code == 200
            assert (await http.get(path(other))).status_code == 404
    billing = await make_colleague(database, ada.id, "billing")
    async with app.client() as http:
        http.headers.update(await headers_of(http, billing))
        http.base_url = httpx.URL("http://localhost/panel")
        for path in (latest_path, history_path):
            assert (await http.get(path(mine))).json()["code"] == "scope_missing"


async def test_a_forgotten_instance_leaves_no_history(
    ada: Tenant, app: RunningApp, database: Database, ingest: Ingest
) -> None:
    line, other = await make_instance(database, ada.id), await make_instance(database, ada.id)
    moment = datetime.now(UTC) - timedelta(hours=14)
    for one in (line, other):
        await tell(ingest, one, past(moment))
    await roll_up(database, datetime.now(UTC))
    path = f"/api/fleet/instances/{line.identity.instance_id}"
    for _ in range(2):
        assert (await ada.http.delete(path)).status_code == 204
    query = "SELECT status FROM jobs WHERE kind = 'fleet.forget_metrics' AND subject = :id"
    for _ in range(300):
        (job,) = await ask(database, query, id=line.identity.instance_id)
        if job.status == "completed":
            break
        await asyncio.sleep(0.1)
    assert job.status == "completed"
    for table in ("fleet_samples", "fleet_five_minutes", "fleet_hours"):
        left = await ask(database, f"SELECT instance_id FROM {table} WHERE at > :at", at=moment - timedelta(hours=1))
        assert line.identity.instance_id not in {row.instance_id for row in left}
        assert other.identity.instance_id in {row.instance_id for row in left}
    async with database.begin(tenant=ada.id) as session:
        assert await store.get_credential(session, ada.id, line.identity.instance_id) is None
