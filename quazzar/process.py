"""The process from start to end: its folder, its database, its schema, its server."""

import asyncio
import contextlib
import gc
import importlib
import os
import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from quazzar.core.crypto import KeyProblem, Keyring, SealBroken, load_keyring
from quazzar.core.db import APP_ROLE, Database
from quazzar.core.logs import get_logger
from quazzar.core.migrations import MigrationProblem, schema_state, upgrade
from quazzar.settings import Settings

if TYPE_CHECKING:
    import ssl

    from quazzar.app import Application
    from quazzar.core.postgres import EmbeddedPostgres
    from quazzar.core.server import Server, ServerConfig

log = get_logger(__name__)

OLDEST_POSTGRES = 16
_LOW_DISK_BYTES = 64 * 1024 * 1024


class StartProblem(Exception):
    """Why the process can't start or a command can't run: one sentence that says what to do."""


class OpenDatabase(msgspec.Struct, frozen=True):
    """A reachable database: `owner_url` may change the schema, `database` works under the app's role."""

    database: Database
    owner_url: str
    embedded: bool


def prepare_data_dir(settings: Settings) -> None:
    """Make the data folder and prove that it can be written. Raises `StartProblem`."""
    folder = settings.server.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise StartProblem(f"The data folder {folder} can't be written: {error.strerror or error}") from error
    if shutil.disk_usage(folder).free < _LOW_DISK_BYTES:
        raise StartProblem(f"The disk of the data folder {folder} is full; free some space")


def open_keyring(settings: Settings) -> Keyring:
    """The master keyring of this data folder. Raises `StartProblem` for a weak or exposed key."""
    key = settings.auth.secret_key
    try:
        return load_keyring(key.reveal() if key is not None else None, settings.server.data_dir)
    except KeyProblem as error:
        raise StartProblem(str(error)) from error
    except OSError as error:
        raise StartProblem(f"The key file secret.key can't be used: {error.strerror or error}") from error


@contextlib.asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[OpenDatabase]:
    """The database of `settings`: the external one, or the embedded one, which runs while the block does."""
    embedded: EmbeddedPostgres | None = None
    if settings.database.url is not None:
        owner_url = app_url = settings.database.url.reveal()
        await _check_external(owner_url)
        role = await _usable_role(owner_url)
    else:
        from quazzar.core import postgres  # noqa: PLC0415 - unused with an external one

        prepare_data_dir(settings)
        embedded = postgres.EmbeddedPostgres(settings.server.data_dir)
        try:
            urls = await embedded.start()
        except postgres.PostgresError as error:
            raise StartProblem(str(error)) from error
        owner_url, app_url, role = urls.owner, urls.app, None
    database = Database(app_url, pool_size=settings.database.pool_size, role=role)
    try:
        yield OpenDatabase(database, owner_url, embedded is not None)
    finally:
        await database.close()
        if embedded is not None:
            await embedded.stop()


async def _check_external(url: str) -> None:
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, ValueError) as error:
        raise StartProblem(f"The database of database.url can't be reached: {_reason(error)}") from error
    try:
        major = connection.get_server_version().major
    finally:
        await connection.close()
    if major < OLDEST_POSTGRES:
        raise StartProblem(f"The database is PostgreSQL {major}; {OLDEST_POSTGRES} or newer is needed")


def _reason(error: BaseException) -> str:
    """The driver's reason without anything of the address or the credentials."""
    if isinstance(error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
        return "the user name or password was refused"
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return "there is no such database"
    if isinstance(error, TimeoutError):
        return "no answer within 5 seconds"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    return type(error).__name__


async def _usable_role(url: str) -> str | None:
    """The app's role where this user may take it; without it the process works as the user itself."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        usable = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1 AND pg_has_role(current_user, oid, 'MEMBER'))",
            APP_ROLE,
        )
    finally:
        await connection.close()
    return APP_ROLE if usable else None


async def migrate(settings: Settings) -> str:
    """Bring the schema to the newest revision and give its name. Raises `StartProblem`."""
    async with open_database(settings) as opened:
        return await _migrate(opened.owner_url)


async def _migrate(owner_url: str) -> str:
    try:
        await upgrade(owner_url)
        connection = await asyncpg.connect(owner_url, timeout=5)
    except MigrationProblem as error:
        raise StartProblem(str(error)) from error
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StartProblem(f"The database can't be reached for the migration: {_reason(error)}") from error
    try:
        return (await schema_state(connection)).head
    finally:
        await connection.close()


async def _require_current_schema(owner_url: str) -> None:
    connection = await asyncpg.connect(owner_url, timeout=5)
    try:
        state = await schema_state(connection)
    finally:
        await connection.close()
    if not state.is_known:
        raise StartProblem(
            f"The database is at schema {state.current}, which this release does not know; install a newer release"
        )
    if not state.is_current:
        raise StartProblem(
            f"The database is at schema {state.current or 'none'}, this release needs {state.head}; "
            "run `quazzar migrate`"
        )


async def serve(settings: Settings) -> int:
    """Serve until a signal ends it; gives the exit code. Raises `StartProblem` when it can't start."""
    prepare_data_dir(settings)
    keyring = open_keyring(settings)
    # What is loaded now stays, so looking for garbage in it only takes time; the server turns the collector on again.
    gc.disable()
    loading = asyncio.create_task(asyncio.to_thread(_load))
    try:
        return await _serve(settings, keyring, loading)
    finally:
        gc.enable()
        await asyncio.wait({loading})


def _load() -> None:
    """Import what serving needs, meanwhile the database starts; the queue's library is what the worker asks for."""
    for module in ("quazzar.app", "quazzar.core.server", "quazzar.core.jobs.claims"):
        importlib.import_module(module)


async def _serve(settings: Settings, keyring: Keyring, loading: "asyncio.Task[None]") -> int:
    if settings.database.url is not None and settings.server.mode != "panel":
        # The app's role is made by the first migration, which must have run before roles are looked at.
        await _check_external(settings.database.url.reveal())
        await _migrate(settings.database.url.reveal())
    async with open_database(settings) as opened:
        if settings.server.mode == "panel" and not opened.embedded:
            await _require_current_schema(opened.owner_url)
        else:
            await _migrate(opened.owner_url)

        await loading
        from quazzar.app import create_app  # noqa: PLC0415 - loaded by now, without holding up the checks
        from quazzar.core.server import CannotListen, Server, ServerConfig  # noqa: PLC0415

        app = create_app(settings, keyring=keyring, database=opened.database)
        limit = app.limit_per_minute
        edge = ServerConfig(max_connections=settings.server.max_connections, rate_limit=limit)
        agents = await _agent_listener(app, settings, edge) if app.fleet is not None else None

        def started(addresses: list[tuple[str, int]]) -> None:
            _announce(settings, addresses)
            if agents is not None:
                agents.begin()

        def draining() -> None:
            app.drain()
            if agents is not None:
                agents.server.stop()

        async with contextlib.AsyncExitStack() as stack:
            if agents is not None:
                stack.push_async_callback(agents.end)
            try:
                server = Server(
                    app.asgi,
                    settings.server.host,
                    settings.server.port,
                    config=edge,
                    on_started=started,
                    on_draining=draining,
                )
            except CannotListen as error:
                raise StartProblem(str(error)) from error
            if app.metrics is not None and (port := settings.metrics.port) is not None:
                try:
                    await stack.enter_async_context(app.metrics.serving(port, opened.database))
                except OSError as error:
                    reason = error.strerror or error
                    raise StartProblem(f"Port {port} of metrics.port can't be listened on: {reason}") from error
            await server.serve()
        return 0


class _Agents:
    """The panel's second listener: it serves from when the first one does until that one ends."""

    def __init__(self, app: "Application", server: "Server", tls: "ssl.SSLContext") -> None:
        self.server = server
        self._app = app
        self._tls = tls
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._tasks = [
            asyncio.create_task(self.server.serve(), name="agent-listener"),
            asyncio.create_task(self._app.renew_agent_tls(self._tls), name="agent-tls"),
            asyncio.create_task(self._app.link_halves(), name="link-halves"),
        ]

    async def end(self) -> None:
        self.server.stop()
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for bound in self.server.sockets:
            bound.close()


async def _agent_listener(app: "Application", settings: Settings, edge: "ServerConfig") -> _Agents | None:
    """Where instances dial. With both halves in one process it may be done without: a port that is in use is told, and
    the rest serves. A master key that can't open the CA's is found out here, before anybody is served. Raises
    `StartProblem`.
    """
    from quazzar.core.server import CannotListen, Server  # noqa: PLC0415 - loaded by now

    assert app.fleet is not None
    assert app.agents is not None
    try:
        tls = await app.agent_tls()
    except SealBroken as error:
        raise StartProblem(
            "The master key is not the one that this database was written with; "
            "put the old secret.key back, or give this process the auth.secret_key of the others"
        ) from error
    config = msgspec.structs.replace(edge, tls=tls, lifespan=False, max_connections=max(edge.max_connections, 10_000))
    try:
        server = Server(app.agents, settings.agent.host, settings.agent.port, config=config, signals=False)
    except CannotListen as error:
        if settings.server.mode == "panel":
            raise StartProblem(str(error)) from error
        log.warning("Other servers can't join this panel", reason=str(error))
        return None
    app.fleet.port = server.port
    return _Agents(app, server, tls)


def _announce(settings: Settings, addresses: list[tuple[str, int]]) -> None:
    for host, port in addresses:
        log.info("Serving", mode=settings.server.mode, host=host, port=port, data_dir=str(settings.server.data_dir))
