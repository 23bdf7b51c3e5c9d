"""Rate limits: fixed windows aligned to the clock, counted in memory or in a store that several processes share.

A window of 60 seconds starts with the minute, for every client and process alike. Two windows can meet: a client may
spend one allowance at the end of a minute and the next one right after.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import limits
import limits.aio.storage
import limits.storage
import msgspec
import structlog
from limits.errors import ConfigurationError

from quazzar.core.errors import Unavailable

log = structlog.get_logger(__name__)

# A count that the store does not give within this time is not worth waiting for: the caller gets a 503.
STORE_SECONDS = 2.0


class Bucket(msgspec.Struct, frozen=True, gc=False):
    """One limit: `amount` hits in each `seconds`. `name` keeps its counts apart from those of other limits."""

    name: str
    amount: int
    seconds: int
    prefix: str


def parse_bucket(name: str, notation: str) -> Bucket:
    """The bucket for `100/minute`, `10 per 5 minutes`, … (the notation of the `limits` library).

    Raises `ValueError` for what can't be read, several limits in one, and amounts below 1.
    """
    several = limits.parse_many(notation)
    if len(several) != 1:
        raise ValueError("exactly one limit is needed, such as 100/minute")
    item = several[0]
    if item.amount < 1 or item.get_expiry() < 1:
        raise ValueError("the limit must allow at least 1 request")
    return Bucket(name, item.amount, item.get_expiry(), f"{name}/{item.amount}/{item.get_expiry()}/")


class Hit(msgspec.Struct, frozen=True, gc=False):
    """What a hit found: `reset` is the end of the window in Unix seconds."""

    allowed: bool
    limit: int
    remaining: int
    reset: int

    def retry_after(self) -> int:
        """Seconds until the window ends, at least 1."""
        return max(1, math.ceil(self.reset - time.time()))


class _Window:
    __slots__ = ("counts", "index", "overflow")

    def __init__(self, index: int) -> None:
        self.index = index
        self.counts: dict[str, int] = {}
        self.overflow: dict[int, int] = {}


class WindowStorage(limits.storage.Storage):
    """Counts in the memory of one process and event loop: one dict per window length, dropped whole when it ends.

    Nothing ever walks the keys. Beyond `max_keys` in one window, new keys share slots by their hash, so a flood of
    addresses costs bounded memory and can only make strangers share a limit, never shed a count.
    """

    STORAGE_SCHEME = None
    OVERFLOW_SLOTS = 65_536

    def __init__(self, max_keys: int = 100_000) -> None:
        super().__init__()
        self._max_keys = max_keys
        self._windows: dict[int, _Window] = {}

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def add(self, key: str, seconds: int, amount: int, now: float) -> int:
        """Add `amount` to the count of `key` in the window of `seconds` that `now` lies in, and return the count."""
        index = int(now // seconds)
        window = self._windows.get(seconds)
        if window is None or window.index != index:
            window = self._windows[seconds] = _Window(index)
        counts = window.counts
        count = counts.get(key)
        if count is None and len(counts) >= self._max_keys:
            slot = hash(key) % self.OVERFLOW_SLOTS
            shared = window.overflow[slot] = window.overflow.get(slot, 0) + amount
            return shared
        count = amount if count is None else count + amount
        counts[key] = count
        return count

    def read(self, key: str, seconds: int, now: float) -> int:
        """The count of `key` in the window of `seconds` that `now` lies in."""
        window = self._windows.get(seconds)
        if window is None or window.index != int(now // seconds):
            return 0
        count = window.counts.get(key)
        if count is None and len(window.counts) >= self._max_keys:
            return window.overflow.get(hash(key) % self.OVERFLOW_SLOTS, 0)
        return count or 0

    # The library's interface.

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        return self.add(key, expiry, amount, time.time())

    def get(self, key: str) -> int:
        now = time.time()
        return max((self.read(key, seconds, now) for seconds in self._windows), default=0)

    def get_expiry(self, key: str) -> float:
        now = time.time()
        ends = [(w.index + 1) * seconds for seconds, w in self._windows.items() if self.read(key, seconds, now)]
        return float(max(ends, default=now))

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        known = sum(len(window.counts) for window in self._windows.values())
        self._windows.clear()
        return known

    def clear(self, key: str) -> None:
        for window in self._windows.values():
            window.counts.pop(key, None)
            window.overflow.pop(hash(key) % self.OVERFLOW_SLOTS, None)


class Pool(Protocol):
    """What the PostgreSQL store needs; an `asyncpg.Pool` is one."""

    async def fetchval(self, query: str, *args: Any) -> Any: ...

    async def execute(self, query: str, *args: Any) -> Any: ...

    async def close(self) -> None: ...


POSTGRES_DDL = """
CREATE UNLOGGED TABLE rate_limits (
    key text COLLATE "C" NOT NULL,
    window_start bigint NOT NULL,
    count integer NOT NULL,
    PRIMARY KEY (key, window_start)
)
"""
"""What the migrations create. Unlogged: a crash of the server forgets the counts of one window, and no hit waits for
the disk. `window_start` is in Unix seconds."""

_HIT = """
INSERT INTO rate_limits AS r (key, window_start, count) VALUES ($1, $2, $3)
ON CONFLICT (key, window_start) DO UPDATE SET count = r.count + excluded.count RETURNING r.count
"""
_READ = "SELECT count FROM rate_limits WHERE key = $1 AND window_start = $2"
_LAST = "SELECT count FROM rate_limits WHERE key = $1 ORDER BY window_start DESC LIMIT 1"
_PURGE = """
DELETE FROM rate_limits WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM rate_limits WHERE window_start < $1 LIMIT 10000 FOR UPDATE SKIP LOCKED))
"""


class PostgresStorage(limits.aio.storage.Storage):
    """Counts that all processes share in one unlogged table: one statement per hit, exact under any concurrency.

    `connect` makes the pool at the first hit; a few connections of its own, so that counting does not wait for those
    that requests hold. Once a minute whoever comes by purges rows of windows that began over an hour ago, or over twice
    the longest window that was asked for.
    """

    STORAGE_SCHEME = None
    PURGE_SECONDS = 60
    KEPT_SECONDS = 3600

    def __init__(self, connect: Callable[[], Awaitable[Pool]]) -> None:
        super().__init__()
        self._connect = connect
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()
        self._longest = 60
        self._purged_at = time.time()
        self._purging: asyncio.Task[None] | None = None

    @property
    def base_exceptions(self) -> type[Exception]:
        return Exception

    async def _open(self) -> Pool:
        async with self._opening:
            if self._pool is None:
                self._pool = await self._connect()
        return self._pool

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        pool = self._pool or await self._open()
        now = time.time()
        self._longest = max(self._longest, expiry)
        count: int = await pool.fetchval(_HIT, key, int(now // expiry) * expiry, amount)
        if now - self._purged_at > self.PURGE_SECONDS:
            self._purged_at = now
            self._purging = asyncio.create_task(self._purge())
        return count

    async def _purge(self) -> None:
        try:
            await self.purge()
        except Exception as error:  # noqa: BLE001 - left-over rows do no harm; the next minute tries again
            log.warning("Old rate limit rows could not be purged", cause=type(error).__name__)

    async def purge(self) -> None:
        """Delete rows of windows that are long over, 10,000 at a time."""
        pool = self._pool or await self._open()
        await pool.execute(_PURGE, int(time.time()) - max(self.KEPT_SECONDS, 2 * self._longest))

    async def read(self, key: str, seconds: int) -> int:
        """The count of `key` in the current window of `seconds`."""
        pool = self._pool or await self._open()
        return await pool.fetchval(_READ, key, int(time.time() // seconds) * seconds) or 0

    async def get(self, key: str) -> int:
        pool = self._pool or await self._open()
        return await pool.fetchval(_LAST, key) or 0

    async def get_expiry(self, key: str) -> float:
        pool = self._pool or await self._open()
        started = await pool.fetchval("SELECT max(window_start) FROM rate_limits WHERE key = $1", key)
        return time.time() if started is None else float(started + self._longest)

    async def check(self) -> bool:
        pool = self._pool or await self._open()
        return bool(await pool.fetchval("SELECT true"))

    async def reset(self) -> int | None:
        pool = self._pool or await self._open()
        await pool.execute("DELETE FROM rate_limits")
        return None

    async def clear(self, key: str) -> None:
        pool = self._pool or await self._open()
        await pool.execute("DELETE FROM rate_limits WHERE key = $1", key)

    async def close(self) -> None:
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.gather(self._purging, return_exceptions=True)
        if self._pool is not None:
            await self._pool.close()
            self._pool = None


class RateLimiter:
    """Counts hits of keys in buckets. With `memory` the synchronous `hit_now` may be used, else only `hit`."""

    def __init__(
        self,
        storage: WindowStorage | limits.aio.storage.Storage | None = None,
        *,
        close: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        if storage is None:
            storage = WindowStorage()
        self.memory = isinstance(storage, WindowStorage)
        self._windows = storage if isinstance(storage, WindowStorage) else WindowStorage()
        self._shared = storage if isinstance(storage, limits.aio.storage.Storage) else None
        self._close = close
        self._failing = False

    def hit_now(self, bucket: Bucket, key: str) -> Hit:
        """Count one hit of `key`; only for a limiter in `memory`."""
        now = time.time()
        seconds = bucket.seconds
        count = self._windows.add(bucket.prefix + key, seconds, 1, now)
        left = bucket.amount - count
        return Hit(left >= 0, bucket.amount, max(0, left), int(now // seconds + 1) * seconds)

    async def hit(self, bucket: Bucket, key: str) -> Hit:
        """Count one hit of `key`, wherever counts are kept.

        Raises `Unavailable` when the shared store does not answer: without a count nobody is let through.
        """
        if self._shared is None:
            return self.hit_now(bucket, key)
        now = time.time()
        try:
            async with asyncio.timeout(STORE_SECONDS):
                count = await self._shared.incr(self._key(bucket, key, now), bucket.seconds)
        except Exception as error:
            raise self._unavailable(error) from error
        self._failing = False
        return _outcome(bucket, count, now)

    async def peek(self, bucket: Bucket, key: str) -> Hit:
        """What one more hit would find, without counting it: `allowed` says whether there is one left."""
        now = time.time()
        if self._shared is None:
            count = self._windows.read(bucket.prefix + key, bucket.seconds, now)
        else:
            full_key = self._key(bucket, key, now)
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    if isinstance(self._shared, PostgresStorage):
                        count = await self._shared.read(full_key, bucket.seconds)
                    else:
                        count = await self._shared.get(full_key)
            except Exception as error:
                raise self._unavailable(error) from error
        outcome = _outcome(bucket, count, now)
        return outcome if count < bucket.amount else Hit(False, outcome.limit, 0, outcome.reset)

    def untouched(self, bucket: Bucket) -> Hit:
        """What a client that has not been counted yet would read; no store is asked."""
        return _outcome(bucket, 0, time.time())

    def _key(self, bucket: Bucket, key: str, now: float) -> str:
        if isinstance(self._shared, PostgresStorage):
            return bucket.prefix + key
        # The other stores know expiry, not windows: the window is a part of the key.
        return f"{bucket.prefix}{int(now // bucket.seconds)}/{key}"

    def _unavailable(self, error: Exception) -> Unavailable:
        if not self._failing:
            self._failing = True
            log.error("The store of the rate limits does not answer", cause=type(error).__name__)
        return Unavailable("Requests can't be counted right now", code="rate_limit_unavailable")

    async def close(self) -> None:
        """Close connections to a shared store."""
        if self._close is not None:
            await self._close()


def _outcome(bucket: Bucket, count: int, now: float) -> Hit:
    reset = int(now // bucket.seconds + 1) * bucket.seconds
    return Hit(count <= bucket.amount, bucket.amount, max(0, bucket.amount - count), reset)


def limiter_for(storage: str, *, postgres: Callable[[], Awaitable[Pool]] | None = None) -> RateLimiter:
    """The limiter for the setting `rate_limit.storage`: `memory`, `postgres`, `redis://…` or `valkey://…`.

    `postgres` makes a pool of a few connections for the second kind, as a role that may read and write the table of
    `POSTGRES_DDL`. No connection is made before the first hit. Raises `ValueError` for any other setting, without
    repeating it: the address may hold a password.
    """
    if storage == "memory":
        return RateLimiter()
    if storage == "postgres":
        if postgres is None:
            raise ValueError("rate_limit.storage=postgres needs a database")
        shared = PostgresStorage(postgres)
        return RateLimiter(shared, close=shared.close)
    scheme, separator, rest = storage.partition("://")
    protocol = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}.get(scheme)
    if protocol is None or not separator:
        raise ValueError("rate_limit.storage must be memory, postgres, redis://… or valkey://…")
    # Its client takes 20 MB, which a process that counts in memory need not have.
    import redis.asyncio  # noqa: PLC0415

    try:
        # Valkey speaks the protocol of Redis; one client for both.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            f"{protocol}://{rest}",
            max_connections=16,
            timeout=STORE_SECONDS,
            socket_timeout=STORE_SECONDS,
            socket_connect_timeout=STORE_SECONDS,
        )
        counts = limits.aio.storage.RedisStorage(
            f"async+{protocol}://{rest}",
            implementation="redispy",
            key_prefix="quazzar",
            connection_pool=pool,  # type: ignore[arg-type]  # taken as its documentation says
        )
    except (ValueError, ConfigurationError):
        raise ValueError("the address in rate_limit.storage can't be read") from None
    return RateLimiter(counts, close=pool.disconnect)
