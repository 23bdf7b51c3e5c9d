"""A worker's line to the database: one connection that mends itself, so that an outage is only a pause."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, Self

import asyncpg

from quazzar.core.db import Database
from quazzar.core.jobs.queue import QUEUE_CHANNEL
from quazzar.core.logs import get_logger

log = get_logger(__name__)

NotifyCallback = Callable[[str | bytes | bytearray], None]

LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    # A statement between the server's word that it shuts down and the end of the line.
    asyncpg.InternalClientError,
)
"""What a lost connection looks like."""

_ENDED = (
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
)

_TRY_AGAIN = (
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.TransactionRollbackError,
)

OWNER_LOCK = "hashtextextended('quazzar worker ' || %s::text, 0)"
"""SQL for the advisory lock that the worker with the uuid `%s` holds as long as its connection lives."""


class LineClosed(ConnectionError):
    """The worker is shutting down and waits for the database no longer."""


class _Tasks(Protocol):
    tasks: set[asyncio.Task[object]]


class WorkerLine:
    """The driver that PgQueuer works through, and the worker's own statements.

    Every statement is repeated on a new connection when the old one was lost, so each must be safe to run twice. The
    connection holds the worker's advisory lock: when the process is gone, PostgreSQL frees it, and others know.
    """

    STATEMENT_SECONDS = 10.0
    FIRST_WAIT_SECONDS = 0.05
    LONGEST_WAIT_SECONDS = 0.5

    def __init__(self, database: Database, owner: uuid.UUID) -> None:
        self._database = database
        self._owner = owner
        self._connection: asyncpg.Connection[Any] | None = None
        self._lock = asyncio.Lock()
        self._listeners: list[tuple[str, NotifyCallback]] = []
        self._closing = asyncio.Event()
        self._shutdown = asyncio.Event()
        self._mending: asyncio.Task[None] | None = None
        self._was_connected = False
        self.holds_lock = False
        self.on_connected: Callable[[], Awaitable[None]] | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        return [dict(row) for row in await self.run(lambda connection: connection.fetch(query, *args))]

    async def execute(self, query: str, *args: object) -> str:
        status: str = await self.run(lambda connection: connection.execute(query, *args))
        return status

    async def fetch_surely(self, query: str, *args: object) -> list[dict[str, object]]:
        """`fetch` of what must not be lost: tried for as long as the database is full, busy or locked."""
        while True:
            try:
                return await self.fetch(query, *args)
            except _TRY_AGAIN as error:
                log.error("The state of a job can't be written yet", reason=type(error).__name__)
                await asyncio.sleep(1)

    async def notify(self, channel: str, payload: str) -> None:
        await self.execute("SELECT pg_notify($1, $2)", channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        relay = _Relay(callback)
        await self.run(lambda connection: connection.add_listener(channel, relay))
        self._listeners.append((channel, callback))

    async def remove_listener(self, channel: str, callback: NotifyCallback) -> None:
        with contextlib.suppress(ValueError):
            self._listeners.remove((channel, callback))
        if self._connection is not None and not self._connection.is_closed():
            await self.run(lambda connection: connection.remove_listener(channel, _Relay(callback)))

    @property
    def shutdown(self) -> asyncio.Event:
        return self._shutdown

    @property
    def tm(self) -> _Tasks:
        from pgqueuer.core.tm import TaskManager  # noqa: PLC0415 - asked for by the library only

        return TaskManager()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """The library leaves its driver when it stops; the worker still needs the line and closes it itself."""

    def stop_waiting(self) -> None:
        """From now on a lost connection is an error (`LineClosed`) and not waited for."""
        self._closing.set()

    async def close(self) -> None:
        self._closing.set()
        if self._mending is not None:
            self._mending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._mending
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*LOST):
                await connection.close(timeout=1)

    def wake(self) -> None:
        """Make the library look for work, as if a notification had come."""
        event = (
            f'{{"channel": "{QUEUE_CHANNEL}", "operation": "update", "table": "pgqueuer", '
            '"sent_at": "2000-01-01T00:00:00Z", "type": "table_changed_event"}'
        )
        for channel, callback in self._listeners:
            if channel == QUEUE_CHANNEL:
                callback(event)

    async def run(self, statement: Callable[["asyncpg.Connection[Any]"], Awaitable[Any]]) -> Any:
        """Give `statement` the connection, again on a new one when that was lost; it must be safe to run twice."""
        while True:
            async with self._lock:
                connection = await self._connect()
                try:
                    async with asyncio.timeout(self.STATEMENT_SECONDS):
                        return await statement(connection)
                except (*LOST, *_ENDED) as error:
                    if self._closing.is_set():
                        raise LineClosed from error
                    self._drop(connection)

    def _drop(self, connection: "asyncpg.Connection[Any]") -> None:
        connection.terminate()
        if self._connection is connection:
            self._connection = None

    async def _connect(self) -> "asyncpg.Connection[Any]":
        """The connection, made anew with its lock and listeners when the last was lost; waits while there is none."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        wait = self.FIRST_WAIT_SECONDS
        told = False
        while True:
            if self._closing.is_set():
                raise LineClosed
            connection: asyncpg.Connection[Any] | None = None
            try:
                connection = await self._database.connect()
                async with asyncio.timeout(self.STATEMENT_SECONDS):
                    await self._prepare(connection)
            except (*LOST, asyncpg.PostgresError) as error:
                if connection is not None:
                    connection.terminate()
                if not told:
                    log.warning("The worker has lost the database and tries again", reason=type(error).__name__)
                    told = True
            else:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads reconnects
                    await self._closing.wait()
            wait = min(wait * 2, self.LONGEST_WAIT_SECONDS)
        self._connection = connection
        connection.add_termination_listener(self._terminated)
        if self._was_connected:
            log.info("The worker has the database again")
        self._was_connected = True
        # Whatever was said while nobody listened is found by looking.
        self.wake()
        if self.on_connected is not None:
            self._later(self.on_connected())
        return connection

    async def _prepare(self, connection: "asyncpg.Connection[Any]") -> None:
        await connection.execute("SET app.worker = 'on'; SET lock_timeout = '3s'")
        self.holds_lock = await self._try_lock(connection)
        for channel, callback in self._listeners:
            await connection.add_listener(channel, _Relay(callback))

    async def _try_lock(self, connection: "asyncpg.Connection[Any]") -> bool:
        sql = f"SELECT pg_try_advisory_lock({OWNER_LOCK % '$1'})"
        return bool(await connection.fetchval(sql, str(self._owner)))

    async def ensure_lock(self) -> None:
        """Take the owner's lock where an earlier connection, still ending on the server, had kept it from us."""
        if not self.holds_lock:
            self.holds_lock = await self.run(self._try_lock)

    def _later(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            with contextlib.suppress(LineClosed):
                await work

        self._background = asyncio.ensure_future(run())

    def _terminated(self, _: object) -> None:
        """The server closed the line: mend it now, so that notifications are heard again without a statement."""
        if not self._closing.is_set() and (self._mending is None or self._mending.done()):
            self._mending = asyncio.get_running_loop().create_task(self._mend(), name="worker-line")

    async def _mend(self) -> None:
        with contextlib.suppress(LineClosed):
            async with self._lock:
                await self._connect()


class _Relay:
    """Hands on the payload alone; equal for equal callbacks, which is how the driver finds a listener again."""

    def __init__(self, callback: NotifyCallback) -> None:
        self._callback = callback

    def __call__(self, _connection: object, _pid: object, _channel: object, payload: object) -> None:
        if isinstance(payload, str | bytes | bytearray):
            self._callback(payload)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Relay) and other._callback == self._callback

    def __hash__(self) -> int:
        return hash(self._callback)
