"""Rate limits: aligned windows, counts that are exact in several processes, bounded memory, stores that are away."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import time_machine

from quazzar.core.errors import Unavailable
from quazzar.core.postgres import DatabaseUrls
from quazzar.core.ratelimit import (
    POSTGRES_DDL,
    Hit,
    PostgresStorage,
    RateLimiter,
    WindowStorage,
    limiter_for,
    parse_bucket,
)
from tests.core.servers import redis_server

MINUTE = parse_bucket("test", "3/minute")
# 12:00:12 UTC: a window of a minute began 12 seconds ago.
START = 1_767_268_812.0


@pytest.fixture
def one_minute() -> Iterator[None]:
    """No minute ends within the test: its counts would begin anew."""
    with time_machine.travel(START, tick=False):
        yield


def test_notation() -> None:
    assert (MINUTE.amount, MINUTE.seconds) == (3, 60)
    assert parse_bucket("x", "10 per 5 minutes").seconds == 300
    for bad in ("", "many", "0/minute", "5/minute;1/second", "-1/minute", "5/fortnight"):
        with pytest.raises(ValueError, match=r"limit|parse|matched"):
            parse_bucket("x", bad)


def test_a_window_is_aligned_to_the_minute() -> None:
    limiter = RateLimiter()
    with time_machine.travel(START, tick=False) as clock:
        hits = [limiter.hit_now(MINUTE, "a") for _ in range(5)]
        assert hits[0] == Hit(True, 3, 2, 1_767_268_860)
        assert [hit.remaining for hit in hits] == [2, 1, 0, 0, 0]
        assert [hit.allowed for hit in hits] == [True, True, True, False, False]
        assert hits[4].retry_after() == 48
        clock.shift(47.5)
        assert limiter.hit_now(MINUTE, "a").retry_after() == 1
        clock.shift(0.5)
        assert limiter.hit_now(MINUTE, "a") == Hit(True, 3, 2, 1_767_268_920)


@pytest.mark.usefixtures("one_minute")
def test_keys_and_buckets_are_counted_apart() -> None:
    limiter = RateLimiter()
    other = parse_bucket("other", "3/minute")
    for _ in range(3):
        limiter.hit_now(MINUTE, "a")
    assert not limiter.hit_now(MINUTE, "a").allowed
    assert limiter.hit_now(MINUTE, "b").allowed
    assert limiter.hit_now(other, "a").allowed


@pytest.mark.usefixtures("one_minute")
async def test_peek_counts_nothing() -> None:
    limiter = RateLimiter()
    for expected in (3, 3, 3):
        assert (await limiter.peek(MINUTE, "a")).remaining == expected
    for _ in range(3):
        await limiter.hit(MINUTE, "a")
    peeked = await limiter.peek(MINUTE, "a")
    assert (peeked.allowed, peeked.remaining) == (False, 0)
    assert limiter.untouched(MINUTE).remaining == 3


@pytest.mark.usefixtures("one_minute")
def test_memory_is_bounded_and_a_flood_sheds_no_count() -> None:
    storage = WindowStorage(max_keys=1000)
    limiter = RateLimiter(storage)
    for _ in range(4):
        limiter.hit_now(MINUTE, "before")
    for number in range(100_000):
        limiter.hit_now(MINUTE, f"flood-{number}")
    window = storage._windows[60]
    assert len(window.counts) == 1000
    assert len(window.overflow) <= WindowStorage.OVERFLOW_SLOTS
    assert not limiter.hit_now(MINUTE, "before").allowed
    for _ in range(3):
        limiter.hit_now(MINUTE, "after")
    assert not limiter.hit_now(MINUTE, "after").allowed


def test_old_windows_are_dropped_whole() -> None:
    storage = WindowStorage()
    limiter = RateLimiter(storage)
    with time_machine.travel(START, tick=False) as clock:
        for number in range(20_000):
            limiter.hit_now(MINUTE, str(number))
        clock.shift(60)
        limiter.hit_now(MINUTE, "next")
        assert len(storage._windows[60].counts) == 1


def test_many_keys_cost_as_little_as_one() -> None:
    limiter = RateLimiter()
    big = parse_bucket("big", "1000000/minute")
    keys = [f"10.0.{n >> 8}.{n & 255}" for n in range(20_000)]
    started = time.process_time()
    for key in keys * 5:
        limiter.hit_now(big, key)
    assert (time.process_time() - started) / 100_000 < 20e-6


def test_the_library_interface_of_the_memory_store() -> None:
    storage = WindowStorage()
    with time_machine.travel(START, tick=False):
        assert [storage.incr("k", 60) for _ in range(3)] == [1, 2, 3]
        assert storage.incr("k", 60, amount=5) == 8
        assert storage.get("k") == 8
        assert storage.get("unknown") == 0
        assert storage.get_expiry("k") == 1_767_268_860
        assert storage.check()
        storage.clear("k")
        assert storage.get("k") == 0
        storage.incr("k", 60)
        assert storage.reset() == 1
        assert storage.get("k") == 0


@pytest.mark.parametrize("setting", ["", "mysql://x", "redis", "redis://:hunter2@host:notaport", "memcached://h:1"])
def test_a_bad_storage_setting_is_refused_without_its_value(setting: str) -> None:
    with pytest.raises(ValueError, match=r"rate_limit\.storage") as caught:
        limiter_for(setting)
    assert "hunter2" not in str(caught.value)


def test_postgres_needs_a_pool() -> None:
    with pytest.raises(ValueError, match="database"):
        limiter_for("postgres")


# --- several processes ---------------------------------------------------------------------------------------------

# Waits for the next minute when this one is nearly over, so that all hits fall into one window.
WORKER = """
import asyncio, sys, time
import asyncpg
from quazzar.core.ratelimit import limiter_for, parse_bucket

async def main(storage, url):
    limiter = limiter_for(storage, postgres=lambda: asyncpg.create_pool(url, min_size=1, max_size=4))
    bucket = parse_bucket("shared", "100/minute")
    await limiter.peek(bucket, "all")
    print("ready", flush=True)
    sys.stdin.readline()
    hits = await asyncio.gather(*(limiter.hit(bucket, "all") for _ in range(125)))
    print(sum(hit.allowed for hit in hits), flush=True)
    await limiter.close()

asyncio.run(main(*sys.argv[1:]))
"""


def allowed_in_four_processes(storage: str, url: str = "") -> int:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, storage, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(4)
    ]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        if time.time() % 60 > 50:
            time.sleep(60 - time.time() % 60)
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        return sum(int(worker.communicate(timeout=30)[0]) for worker in workers)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as port:
        yield f"redis://127.0.0.1:{port}"


@pytest.mark.component("redis")
def test_500_hits_in_4_processes_over_redis_let_exactly_the_limit_pass(redis_url: str) -> None:
    assert allowed_in_four_processes(f"{redis_url}/1") == 100


@pytest.mark.component("redis")
@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_redis_counts_aligned_windows(redis_url: str, scheme: str) -> None:
    limiter = limiter_for(redis_url.replace("redis://", f"{scheme}://"))
    assert not limiter.memory
    bucket = parse_bucket(scheme, "3/minute")
    with time_machine.travel(START, tick=False) as clock:
        hits = [await limiter.hit(bucket, "a") for _ in range(4)]
        assert [(hit.allowed, hit.remaining) for hit in hits] == [(True, 2), (True, 1), (True, 0), (False, 0)]
        assert hits[0].reset == START + 48
        assert not (await limiter.peek(bucket, "a")).allowed
        clock.shift(48)
        assert (await limiter.peek(bucket, "a")).remaining == 3
        assert (await limiter.hit(bucket, "a")).remaining == 2
    await limiter.close()


async def test_a_store_that_is_away_means_503() -> None:
    limiter = limiter_for("redis://127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await limiter.hit(MINUTE, "a")
    assert caught.value.headers["Retry-After"] == "1"
    with pytest.raises(Unavailable):
        await limiter.peek(MINUTE, "a")
    assert time.monotonic() - started < 6
    await limiter.close()


async def test_a_store_that_does_not_answer_means_503_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quazzar.core.ratelimit.STORE_SECONDS", 0.3)

    class Silent:
        async def fetchval(self, query: str, *args: object) -> int:
            await asyncio.sleep(60)
            return 0

        async def execute(self, query: str, *args: object) -> None:
            await asyncio.sleep(60)

        async def close(self) -> None:
            """Nothing is open."""

    async def connect() -> Silent:
        return Silent()

    limiter = limiter_for("postgres", postgres=connect)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await limiter.hit(MINUTE, "a")
    assert time.monotonic() - started < 20


@pytest.fixture
async def pool(cluster: DatabaseUrls) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(cluster.app, min_size=1, max_size=4) as pool:
        await pool.execute("DELETE FROM rate_limits")
        yield pool


def test_500_hits_in_4_processes_over_postgres_let_exactly_the_limit_pass(cluster: DatabaseUrls, pool: object) -> None:
    assert allowed_in_four_processes("postgres", cluster.app) == 100


async def test_postgres_counts_aligned_windows_and_purges_old_ones(pool: asyncpg.Pool) -> None:
    async def connect() -> asyncpg.Pool:
        return pool

    with time_machine.travel(START, tick=True) as clock:
        storage = PostgresStorage(connect)
        limiter = RateLimiter(storage)
        hits = [await limiter.hit(MINUTE, "a") for _ in range(4)]
        assert [(hit.allowed, hit.remaining) for hit in hits] == [(True, 2), (True, 1), (True, 0), (False, 0)]
        assert not (await limiter.peek(MINUTE, "a")).allowed
        assert await storage.get(MINUTE.prefix + "a") == 4
        clock.shift(60)
        assert (await limiter.peek(MINUTE, "a")).remaining == 3
        assert (await limiter.hit(MINUTE, "a")).remaining == 2
        assert await pool.fetchval("SELECT count(*) FROM rate_limits") == 2
        clock.shift(3600)
        await limiter.hit(MINUTE, "b")
        assert storage._purging is not None
        await storage._purging
        assert await pool.fetch("SELECT count FROM rate_limits") == [(1,)]


async def test_the_table_of_the_migrations_is_the_one_that_the_storage_describes(cluster: DatabaseUrls) -> None:
    columns = """SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
        WHERE attrelid = to_regclass($1) AND attnum > 0 ORDER BY attnum"""
    connection = await asyncpg.connect(cluster.owner)
    try:
        real = await connection.fetch(columns, "rate_limits")
        async with connection.transaction():
            await connection.execute("CREATE SCHEMA described; SET LOCAL search_path = described")
            await connection.execute(POSTGRES_DDL)
            described = await connection.fetch(columns, "described.rate_limits")
            await connection.execute("DROP SCHEMA described CASCADE")
    finally:
        await connection.close()
    assert real
    assert real == described
