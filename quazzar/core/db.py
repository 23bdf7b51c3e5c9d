"""The database: one transaction per request, hot reads on the bare driver, and NOTIFY as a wake-up."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import msgspec
import structlog
from sqlalchemy import MetaData, text
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql import ClauseElement

from quazzar.core.errors import AppError, DatabaseUnavailable
from quazzar.core.migrations import SchemaState, schema_state

log = structlog.get_logger(__name__)

APP_ROLE = "quazzar_app"
"""The role that the process works under: it owns nothing, so row-level security and grants bind it."""

REQUEST_STATEMENT_SECONDS = 5
POOL_WAIT_SECONDS = 2

R = TypeVar("R")


class Base(DeclarativeBase):
    """The base of every table; constraint names are fixed so that errors and migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def sqlalchemy_url(url: str) -> str:
    """`postgresql://…` (or `postgres://…`) with the driver that we use."""
    parts = urlsplit(url)
    query = [(key, value) for key, value in parse_qsl(parts.query) if key != "application_name"]
    # asyncpg takes `ssl` where libpq's URLs say `sslmode`.
    query = [("ssl" if key == "sslmode" else key, value) for key, value in query]
    return urlunsplit(("postgresql+asyncpg", parts.netloc, parts.path, urlencode(query), ""))


def _json_codec(encode: Callable[[Any], bytes]) -> dict[str, Any]:
    return {
        "schema": "pg_catalog",
        "encoder": lambda value: encode(value).decode(),
        "decoder": msgspec.json.decode,
    }


async def _raw_json(connection: "asyncpg.Connection[Any]") -> None:
    """Hot reads pass JSON columns through as they are: PostgreSQL has checked them already."""
    for kind in ("json", "jsonb"):
        await connection.set_type_codec(
            kind,
            encoder=lambda value: value,
            decoder=lambda value: msgspec.Raw(value.encode()),
            schema="pg_catalog",
        )


async def _no_reset(_: "asyncpg.Connection[Any]") -> None:
    """Hot reads leave nothing on a connection that would have to be reset."""


class Database:
    """One engine for transactions and one small pool for hot reads, both under the app's own role.

    `session_info` is what every session of this process finds in its `info`, such as the keyring.
    """

    def __init__(self, url: str, *, pool_size: int = 10, role: str | None = None) -> None:
        self.url = url
        settings = {"application_name": "quazzar", "statement_timeout": str(REQUEST_STATEMENT_SECONDS * 1000)}
        if role is not None:
            settings["role"] = role
        self._server_settings = settings
        self.engine: AsyncEngine = create_async_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS,
            pool_pre_ping=True,
            # The text of an error names the statement, not what was written: that may be a secret.
            hide_parameters=True,
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
            connect_args={"timeout": 5, "server_settings": settings},
        )
        self.session_info: dict[str, Any] = {}
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False, info=self.session_info)
        self._reads: asyncpg.Pool[Any] | None = None
        self._reads_lock = asyncio.Lock()
        self._reads_size = max(2, pool_size // 2)

    @contextlib.asynccontextmanager
    async def begin(self, *, tenant: str | None = None, user: str | None = None) -> AsyncIterator[AsyncSession]:
        """A session in one transaction: committed when the block ends, rolled back when it raises.

        `tenant` and `user` are what row-level security sees (`app.tenant`, `app.user`) in this transaction only.
        """
        async with self._sessions.begin() as session:
            if tenant is not None or user is not None:
                await set_scope(session, tenant=tenant, user=user)
            yield session
            for hook in session.info.pop("before_commit", ()):
                await hook(session)
        for callback in session.info.pop("after_commit", ()):
            callback()

    async def reads(self) -> "asyncpg.Pool[Any]":
        """The pool for `Query`; raises `DatabaseUnavailable` while the database can't be reached."""
        pool = self._reads
        if pool is not None:
            return pool
        async with self._reads_lock:
            if self._reads is None:
                self._reads = await asyncpg.create_pool(
                    _plain_url(self.url),
                    min_size=0,
                    max_size=self._reads_size,
                    timeout=5,
                    command_timeout=REQUEST_STATEMENT_SECONDS,
                    init=_raw_json,
                    reset=_no_reset,
                    server_settings=self._server_settings,
                )
        return self._reads

    async def small_pool(self) -> "asyncpg.Pool[Any]":
        """A few connections of their own, for counts that must not wait behind requests; the caller closes it."""
        return await asyncpg.create_pool(
            _plain_url(self.url), min_size=0, max_size=4, timeout=5, server_settings=self._server_settings
        )

    async def connect(self, *, statement_timeout: bool = False) -> "asyncpg.Connection[Any]":
        """A connection of its own (LISTEN, workers), outside both pools; the caller closes it."""
        settings = dict(self._server_settings)
        if not statement_timeout:
            settings["statement_timeout"] = "0"
        return await asyncpg.connect(_plain_url(self.url), timeout=5, server_settings=settings)

    async def schema_state(self) -> SchemaState:
        """Which revision the database is at; raises what the driver raises when it does not answer."""
        async with (await self.reads()).acquire(timeout=POOL_WAIT_SECONDS) as connection:
            return await schema_state(connection)

    async def close(self) -> None:
        if self._reads is not None:
            self._reads.terminate()
        await self.engine.dispose()


async def set_scope(session: AsyncSession, *, tenant: str | None = None, user: str | None = None) -> None:
    """What row-level security sees for the rest of the transaction, where its user is learnt on the way."""
    await session.execute(_SCOPE, {"tenant": tenant or "", "user": user or ""})


_SCOPE = text("SELECT set_config('app.tenant', :tenant, true), set_config('app.user', :user, true)")


@contextlib.asynccontextmanager
async def in_scope(session: AsyncSession, *, tenant: str, user: str) -> AsyncIterator[None]:
    """As `set_scope`, until the block ends; then row-level security sees again what it saw before."""
    before = (await session.execute(_SCOPE_NOW)).one()
    await set_scope(session, tenant=tenant, user=user)
    yield
    # An error in the block ends the transaction, and the scope with it.
    await set_scope(session, tenant=before.tenant, user=before.user)


_SCOPE_NOW = text("SELECT current_setting('app.tenant', true) AS tenant, current_setting('app.user', true) AS user")


async def present(session: AsyncSession, token_hash: bytes) -> None:
    """Let row-level security show the row that a token opens, before anything is known about who holds it."""
    await session.execute(_PRESENT, {"digest": token_hash.hex()})


_PRESENT = text("SELECT set_config('app.presented', :digest, true)")


async def see_all_tenants(session: AsyncSession) -> None:
    """Lift row-level security for the rest of the transaction: for work of the process itself, never for a request."""
    await session.execute(_AS_WORKER)


_AS_WORKER = text("SELECT set_config('app.worker', 'on', true)")


async def wait_alone(session: AsyncSession, what: str) -> None:
    """Wait until no other transaction that has said the same is under way. Two that count before they add something, or
    look for what is free before they take it, would both find the last.
    """
    await session.execute(_ALONE, {"what": what})


_ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended(:what, 0))")


def _plain_url(url: str) -> str:
    """The form that asyncpg itself reads."""
    parts = urlsplit(url)
    return urlunsplit(("postgresql", parts.netloc, parts.path, parts.query, ""))


def before_commit(session: AsyncSession, hook: Callable[[AsyncSession], Awaitable[None]]) -> None:
    """Run `hook` as the last thing of the transaction; when it raises, the transaction is rolled back."""
    session.info.setdefault("before_commit", []).append(hook)


def after_commit(session: AsyncSession, callback: Callable[[], None]) -> None:
    """Run `callback` once the transaction of `session` is committed; never when it is rolled back."""
    session.info.setdefault("after_commit", []).append(callback)


@contextlib.asynccontextmanager
async def unique_or(error: AppError, *, constraint: str | None = None) -> AsyncGenerator[None, None]:
    """Turn a broken unique constraint (the named one, or any) in the block into `error`."""
    async with _violated_or(asyncpg.UniqueViolationError, error, constraint):
        yield


@contextlib.asynccontextmanager
async def referenced_or(error: AppError, *, constraint: str | None = None) -> AsyncGenerator[None, None]:
    """Turn a broken foreign key (the named one, or any) in the block into `error`."""
    async with _violated_or(asyncpg.ForeignKeyViolationError, error, constraint):
        yield


@contextlib.asynccontextmanager
async def _violated_or(
    kind: type[asyncpg.PostgresError], error: AppError, constraint: str | None
) -> AsyncGenerator[None, None]:
    try:
        yield
    except IntegrityError as failure:
        cause = getattr(failure.orig, "__cause__", None)
        if isinstance(cause, kind) and constraint in (None, getattr(cause, "constraint_name", None)):
            raise error from failure
        raise


# What the driver raises when the server goes away at some point of a statement. The internal error is one of them: a
# reset of the pooled connection meets a statement that was still under way when the line broke.
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InternalClientError,
    ConnectionError,
)


class Query(Generic[R]):
    """A hot read: a statement compiled once, run in autocommit on the bare driver, rows straight into structs.

    The statement's columns must stand in the order of the struct's fields; JSON columns arrive as `msgspec.Raw`.
    Measured at twice the throughput of the same statement through SQLAlchemy's execution (`make bench`).
    """

    def __init__(self, statement: ClauseElement, row: type[R], **defaults: Any) -> None:
        self._statement = statement
        self._row: Callable[..., R] = row
        self._given = defaults

    @cached_property
    def _compiled(self) -> tuple[str, Sequence[str], dict[str, Any]]:
        """SQL, its parameters in order, their defaults; made at the first use, since starting has to be quick."""
        compiled = self._statement.compile(dialect=asyncpg_dialect.dialect())  # type: ignore[no-untyped-call]
        defaults = {name: value for name, value in compiled.params.items() if value is not None} | self._given
        return str(compiled), getattr(compiled, "positiontup", None) or (), defaults

    @property
    def sql(self) -> str:
        return self._compiled[0]

    def _arguments(self, values: dict[str, Any]) -> list[Any]:
        _, names, defaults = self._compiled
        return [values[name] if name in values else defaults.get(name) for name in names]

    async def all(self, database: Database, *, tenant: str | None = None, **values: Any) -> list[R]:
        """With `tenant` row-level security sees that one: the read is then a transaction of its own."""
        rows = await self._fetch(database, values, tenant)
        row = self._row
        return [row(*record) for record in rows]

    async def one_or_none(self, database: Database, **values: Any) -> R | None:
        rows = await self._fetch(database, values)
        return self._row(*rows[0]) if rows else None

    async def _fetch(self, database: Database, values: dict[str, Any], tenant: str | None = None) -> list[Any]:
        pool = await database.reads()
        for attempt in (1, 2):
            async with pool.acquire(timeout=POOL_WAIT_SECONDS) as connection:
                try:
                    if tenant is not None:
                        return await self._fetch_within(connection, values, tenant)
                    return await connection.fetch(self.sql, *self._arguments(values))  # type: ignore[no-any-return]
                except (*_LOST, asyncpg.InterfaceError) as error:
                    # A pooled connection that the server has closed meanwhile; a read may simply be asked again.
                    with contextlib.suppress(asyncpg.InterfaceError):
                        connection.terminate()
                    if attempt == 2:
                        raise DatabaseUnavailable from error
        raise DatabaseUnavailable

    async def _fetch_within(
        self, connection: "asyncpg.pool.PoolConnectionProxy[Any]", values: dict[str, Any], tenant: str
    ) -> list[Any]:
        """The scope is set with the beginning of the transaction, in one message, and ends with it."""
        if _ID.fullmatch(tenant) is None:
            raise ValueError("This is not the id of a tenant")
        try:
            await connection.execute(f"BEGIN READ ONLY; SELECT set_config('app.tenant', '{tenant}', true)")
            rows: list[Any] = await connection.fetch(self.sql, *self._arguments(values))
            await connection.execute("COMMIT")
        except BaseException:
            # Wherever it was broken off: nobody may find this scope on a connection of the pool.
            connection.terminate()
            raise
        return rows


_ID = re.compile(r"[a-z]+_[a-z2-7]+")


class Listener:
    """LISTEN on one connection, kept alive: `on_message(channel, payload)` for each NOTIFY, `on_gap` after each loss.

    `connected` is true only while a round trip within the last few seconds has proved the line, so whoever caches on
    the promise of being told must look at it. Notifications are a wake-up; polling remains the truth.
    """

    CHECK_SECONDS = 2.0

    def __init__(
        self,
        database: Database,
        channels: Sequence[str],
        on_message: Callable[[str, str], None],
        on_gap: Callable[[], None],
    ) -> None:
        self._database = database
        self._channels = channels
        self._on_message = on_message
        self._on_gap = on_gap
        self.connected = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="database-listener")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            connection = None
            try:
                connection = await self._database.connect()
                for channel in self._channels:
                    await connection.add_listener(channel, self._received)
                self._on_gap()
                self.connected = True
                while True:
                    await asyncio.sleep(self.CHECK_SECONDS)
                    await connection.execute("SELECT 1", timeout=self.CHECK_SECONDS)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
                if self.connected:
                    log.warning(
                        "Notifications are interrupted", channels=list(self._channels), cause=type(error).__name__
                    )
                self.connected = False
                self._on_gap()
            finally:
                self.connected = False
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(0.25)

    def _received(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        self._on_message(channel, str(payload))


async def notify(session: AsyncSession, channel: str, payload: str) -> None:
    """NOTIFY when (and only if) the transaction commits; the payload is at most 8,000 bytes."""
    await session.execute(_NOTIFY, {"channel": channel, "payload": payload})


_NOTIFY = text("SELECT pg_notify(:channel, :payload)")
