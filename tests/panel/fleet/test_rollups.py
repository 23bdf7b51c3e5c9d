"""Five minutes and hours are what a naive sum over all samples gives, however and whenever those came."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from quazzar.core.db import Database
from quazzar.link.messages import Sample, Samples
from quazzar.panel.fleet import ingest as ingestion
from quazzar.panel.fleet import retention, rollups
from quazzar.panel.fleet.ingest import Ingest
from quazzar.panel.fleet.retention import keep_partitions
from quazzar.panel.fleet.rollups import FIVE_MINUTES, HOUR, began, roll_up
from tests.factories.accounts import make_member
from tests.panel.fleet.conftest import Tenant
from tests.panel.fleet.lines import Told, app_facts, ask, beat, make_instance, past, state_of, tell

TABLES = {FIVE_MINUTES: "fleet_five_minutes", HOUR: "fleet_hours"}


class Clock:
    """The panel's clock in this module: it begins now and is moved on by tests."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def pass_(self, **passed: float) -> datetime:
        self.now += timedelta(**passed)
        return self.now


async def tenant_of(database: Database) -> Tenant:
    """Without the app, whose own schedules would sum up meanwhile."""
    member = await make_member(database)
    assert member.tenant_id is not None
    return Tenant(member.tenant_id, httpx.AsyncClient(), member.id)


@pytest.fixture(scope="module")
async def ada(database: Database) -> Tenant:
    return await tenant_of(database)


@pytest.fixture(scope="module")
async def eve(database: Database) -> Tenant:
    return await tenant_of(database)


@pytest.fixture(scope="module")
async def clock() -> AsyncIterator[Clock]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingestion, "_now", lambda: clock.now)
        yield clock


@pytest.fixture
def ingest(database: Database, clock: Clock) -> Ingest:
    return Ingest(database, 30)


async def sums_of(database: Database, line: Told, step: int, app_id: str = "") -> dict[datetime, Any]:
    query = f"SELECT * FROM {TABLES[step]} WHERE instance_id = :id AND app_id = :app_id ORDER BY at"
    return {row.at: row for row in await ask(database, query, id=line.identity.instance_id, app_id=app_id)}


def naive(samples: Iterable[Sample], step: int, until: datetime) -> dict[datetime, list[float]]:
    found: dict[datetime, list[float]] = {}
    for sample in samples:
        begin = began(sample.at, step)
        if begin + timedelta(seconds=step) <= until and sample.measured[0] is not None:
            found.setdefault(begin, []).append(sample.measured[0])
    return found


async def done_until(database: Database, step: int) -> datetime:
    (row,) = await ask(database, "SELECT done_until FROM fleet_rollups WHERE step_seconds = :step", step=step)
    return row.done_until  # type: ignore[no-any-return]


VALUE = st.floats(-1e12, 1e12) | st.integers(-5, 5).map(float)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_sums_are_those_of_all_samples(
    data: st.DataObject, ada: Tenant, database: Database, clock: Clock
) -> None:
    ingest = Ingest(database, 30)
    line = await make_instance(database, ada.id)
    told: dict[datetime, Sample] = {}
    for _ in range(data.draw(st.integers(1, 4))):
        # Samples of the last hours in any order, some of them told again with other values, which count for nothing.
        ages = data.draw(st.lists(st.integers(0, 3 * 3600), max_size=12))
        points = [Sample(clock.now - timedelta(seconds=age), [data.draw(VALUE)]) for age in ages]
        await tell(ingest, line, Samples(batch=1, points=points))
        for point in points:
            told.setdefault(point.at, point)
        await roll_up(database, clock.pass_(seconds=data.draw(st.integers(0, 20_000))))
    for step in (FIVE_MINUTES, HOUR):
        expected = naive(told.values(), step, await done_until(database, step))
        found = await sums_of(database, line, step)
        assert found.keys() == expected.keys()
        for begin, values in expected.items():
            row = found[begin]
            assert (row.minimum[0], row.maximum[0], row.counts[0]) == (min(values), max(values), len(values))
            assert row.average[0] == pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-3)


async def test_all_values_of_host_and_apps_are_summed_up(
    ada: Tenant, database: Database, ingest: Ingest, clock: Clock
) -> None:
    line = await make_instance(database, ada.id)
    clock.now = began(clock.now, HOUR) + timedelta(hours=1)
    begin = clock.now
    await tell(ingest, line, beat(0.0, sent_at=clock.now, state=state_of(*app_facts("app_one"))))
    for number in range(3):
        at = clock.pass_(seconds=30)
        point = Sample(at, [float(number), None, 5.0], {"app_one": [10.0 * number, 1.0]})
        await tell(ingest, line, Samples(batch=1, points=[point]))
    await roll_up(database, clock.pass_(hours=8))
    for step in (FIVE_MINUTES, HOUR):
        row = (await sums_of(database, line, step))[begin]
        assert row.tenant_id == ada.id
        assert row.minimum[:4] == [0.0, None, 5.0, None]
        assert row.average[:4] == [0.75, None, 5.0, None]
        assert row.maximum[:3] == [2.0, None, 5.0]
        assert row.counts[1:4] == [0, 3, 0]
        app = (await sums_of(database, line, step, "app_one"))[begin]
        assert (app.minimum[:2], app.average[:2], app.maximum[:2]) == ([0.0, 1.0], [10.0, 1.0], [20.0, 1.0])
        assert app.counts[:3] == [3, 3, 0]


async def test_summing_up_again_changes_nothing_and_many_may_do_it_at_once(
    ada: Tenant, database: Database, ingest: Ingest, clock: Clock
) -> None:
    line = await make_instance(database, ada.id)
    await tell(ingest, line, past(*(clock.now - timedelta(minutes=minutes) for minutes in range(0, 200, 7))))
    clock.pass_(hours=8)
    await asyncio.gather(*(roll_up(database, clock.now) for _ in range(4)))
    before = [await sums_of(database, line, step) for step in TABLES]
    assert sum(row.counts[0] for row in before[0].values()) == 29
    assert sum(row.counts[0] for row in before[1].values()) == 29
    await roll_up(database, clock.now)
    assert [await sums_of(database, line, step) for step in TABLES] == before
    assert await ask(database, "SELECT * FROM fleet_late") == []


async def test_a_job_that_is_cut_off_leaves_its_marks(
    ada: Tenant, database: Database, ingest: Ingest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = await make_instance(database, ada.id)
    await roll_up(database, clock.pass_(hours=2))
    late = clock.now - timedelta(hours=1, minutes=30)
    await tell(ingest, line, past(late))
    with monkeypatch.context() as patch:
        patch.setitem(rollups._SUMS_ANEW, HOUR, text("SELECT 1 / 0"))
        with pytest.raises(DBAPIError):
            await roll_up(database, clock.now)
    assert await sums_of(database, line, FIVE_MINUTES) == {}
    await roll_up(database, clock.now)
    assert list(await sums_of(database, line, FIVE_MINUTES)) == [began(late, FIVE_MINUTES)]


async def partitions(database: Database, table: str) -> list[str]:
    query = "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = to_regclass(:table) ORDER BY 1"
    return [row.name for row in await ask(database, query, table=table)]


async def test_partitions_are_made_ahead_and_dropped(
    ada: Tenant, database: Database, ingest: Ingest, clock: Clock
) -> None:
    line = await make_instance(database, ada.id)
    await tell(ingest, line, beat(1.0, sent_at=clock.now))
    await roll_up(database, clock.pass_(days=3))
    for _ in range(2):
        async with database.begin() as session:
            await keep_partitions(session, clock.now)
    today = clock.now.date()
    for table, days in retention.KEPT_DAYS.items():
        found = await partitions(database, table)
        assert found[-1] == f"{table}_{today + timedelta(days=7):%Y%m%d}"
        assert found[0] >= f"{table}_{today - timedelta(days=days):%Y%m%d}"
    assert await ask(database, "SELECT * FROM fleet_samples WHERE at < :at", at=clock.now - timedelta(days=3)) == []
    assert await sums_of(database, line, HOUR) != {}, "hours stay"
    # What was never summed up is not dropped, however old.
    async with database.begin() as session:
        await session.execute(text("UPDATE fleet_rollups SET done_until = done_until - interval '2 days'"))
    before = await partitions(database, "fleet_samples")
    async with database.begin() as session:
        await keep_partitions(session, clock.now + timedelta(days=1))
    assert set(before) <= set(await partitions(database, "fleet_samples"))
    # After more than a year hours go as well.
    async with database.begin() as session:
        await session.execute(text("UPDATE fleet_rollups SET done_until = done_until + interval '500 days'"))
        await keep_partitions(session, clock.now + timedelta(days=500))
    assert await sums_of(database, line, HOUR) == {}


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM {part}",
        "DELETE FROM {part}",
        "UPDATE {part} SET tenant_id = 'ten_x'",
        "INSERT INTO {hours} VALUES ('ten_x', 'inst_x', '', now(), '{{1}}', '{{1}}', '{{1}}', '{{1}}')",
        "DROP TABLE fleet_samples",
        "SELECT fleet_keep_partitions('users', 'epoch', 'today', 'today')",
        "SELECT fleet_keep_partitions('users; DROP TABLE users', 'epoch', 'today', 'today')",
    ],
)
async def test_the_process_has_no_way_around_the_tables(statement: str, database: Database) -> None:
    (part, *_), (hours, *_) = [await partitions(database, table) for table in ("fleet_samples", "fleet_hours")]
    with pytest.raises(DBAPIError) as refused:
        async with database.begin() as session:
            await session.execute(text(statement.format(part=part, hours=hours)))
    cause = refused.value.orig.__cause__ if refused.value.orig is not None else None
    assert isinstance(cause, asyncpg.InsufficientPrivilegeError | asyncpg.RaiseError)


async def test_other_tenants_see_neither_samples_nor_sums(
    ada: Tenant, eve: Tenant, database: Database, ingest: Ingest, clock: Clock
) -> None:
    clock.now = datetime.now(UTC)
    async with database.begin() as session:
        await session.execute(text("DELETE FROM fleet_rollups"))
        await keep_partitions(session, clock.now)
    line = await make_instance(database, ada.id)
    await tell(ingest, line, past(clock.now - timedelta(hours=14)))
    await roll_up(database, clock.now)
    await tell(ingest, line, past(clock.now - timedelta(hours=15)))
    for table in ("fleet_samples", "fleet_five_minutes", "fleet_hours", "fleet_late"):
        for tenant_id, expected in ((ada.id, True), (eve.id, False), (None, False)):
            async with database.begin(tenant=tenant_id) as session:
                rows = (await session.execute(text(f"SELECT * FROM {table}"))).all()
            assert bool(rows) is expected, (table, tenant_id)
    with pytest.raises(DBAPIError):
        async with database.begin(tenant=eve.id) as session:
            await session.execute(
                text("INSERT INTO fleet_samples VALUES (:tenant, :id, '', now(), '{1}')"),
                {"tenant": ada.id, "id": line.identity.instance_id},
            )
