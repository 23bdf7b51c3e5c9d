"""What our own form of COPY writes is what the driver's writes, bit for bit."""

import math
from datetime import UTC, datetime, timedelta

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quazzar.core.postgres import DatabaseUrls
from quazzar.panel.fleet.copying import COLUMNS, Row, encode

TABLE = (
    "CREATE TEMPORARY TABLE {} (place serial, tenant_id text, instance_id text, app_id text, at timestamptz, "
    "measured float8[])"
)
READ = "SELECT array_agg(record_send(({0}.*)) ORDER BY place) FROM {0}"
NOW = datetime(2026, 11, 28, 3, 7, 59, 123456, UTC)
texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - a bound
values = st.lists(st.none() | st.floats() | st.integers(-(2**53), 2**53), max_size=50)


async def compare(url: str, rows: list[Row]) -> None:
    connection = await asyncpg.connect(url)
    try:
        for table in ("ours", "theirs"):
            await connection.execute(TABLE.format(table))
        await connection.copy_to_table("ours", source=encode(rows), columns=COLUMNS, format="binary")
        await connection.copy_records_to_table("theirs", records=rows, columns=COLUMNS)
        ours, theirs = [await connection.fetchval(READ.format(table)) for table in ("ours", "theirs")]
        assert ours == theirs
        assert (0 if ours is None else len(ours)) == len(rows)
    finally:
        await connection.close()


async def test_one_of_each_kind(database_urls: DatabaseUrls) -> None:
    other = NOW.astimezone() - timedelta(days=12000)
    rows: list[Row] = [
        ("ten_1", "ins_1", "", NOW, [1.0, 2.5, -0.0]),
        ("ten_1", "ins_1", "app_1", NOW, [None, math.inf, -math.inf, math.nan]),
        ("ten_1", "ins_1", "app_1", other, []),
        # Another tenant's instance of the same moment, and what is next to nothing.
        ("ten_2", "ins_2", "ü", other, [5e-324]),
        ("ten_2", "ins_2", "ü", NOW, [None]),
        ("ten_1", "ins_1", "", NOW, [3]),
        # The very same text for the instance, and yet not the same tenant's.
        ("ten_2", "ins_1", "", NOW, [4]),
    ]
    await compare(database_urls.owner, rows)


async def test_more_than_a_piece_and_nothing_at_all(database_urls: DatabaseUrls) -> None:
    await compare(database_urls.owner, [("t", f"ins_{n}", "", NOW, [float(n)] * 40) for n in range(3000)])
    await compare(database_urls.owner, [])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(texts, texts, texts, moments, values), max_size=8))
async def test_whatever_is_measured(database_urls: DatabaseUrls, rows: list[Row]) -> None:
    await compare(database_urls.owner, rows)
