"""Keeps the embedded server running from start to stop."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import asyncpg
import msgspec

from quazzar.core.db import APP_ROLE
from quazzar.core.logs import get_logger
from quazzar.core.postgres.errors import PostgresError
from quazzar.core.postgres.home import MAJOR, Home
from quazzar.core.postgres.processes import Server
from quazzar.core.postgres.roles import DATABASE, OWNER_ROLE, SUPERUSER, ensure_roles

_RECOVERY_SECONDS = 300
_ANSWER_SECONDS = 10
_BACKOFF_SECONDS = (0.1, 15)
_STABLE_SECONDS = 30

_log = get_logger("quazzar.postgres")

P = ParamSpec("P")
R = TypeVar("R")


class DatabaseUrls(msgspec.Struct, frozen=True):
    """Addresses for asyncpg (and SQLAlchemy, with its driver's name): `owner` migrates, `app` serves."""

    owner: str
    app: str


class EmbeddedPostgres:
    """The PostgreSQL of one data folder, kept running from `start` to `stop`.

    `cache_dir` takes a copy of PostgreSQL's programs if the server's user can't reach the installed ones.
    """

    def __init__(self, data_dir: Path, *, cache_dir: Path = Path("/var/cache/quazzar")) -> None:
        self.restarts = 0
        """How often a dead server was brought back since `start`."""
        self._data_dir = data_dir
        self._cache_dir = cache_dir
        self._home = Home(data_dir, cache_dir)
        self._server: Server | None = None
        self._up = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def urls(self) -> DatabaseUrls:
        """What `start` returned; they stay the same over restarts."""
        return _urls(self._home)

    @property
    def superuser_url(self) -> str:
        """For the supervisor, and for tests that make databases of their own. Never for the application."""
        return self._home.url(SUPERUSER, SUPERUSER)

    @property
    def pid(self) -> int | None:
        """The server's process id, None while there is none."""
        return self._server.pid if self._server is not None and not self._server.exit.done() else None

    @property
    def running(self) -> bool:
        """Whether the server was up and answering when we last looked; false while it is brought back."""
        return self._up.is_set() and self.pid is not None

    async def start(self) -> DatabaseUrls:
        """Bring the server up, with its roles and database: made, upgraded, taken over or started, whichever is due.

        Raises `PostgresError`, after which nothing of this object is left behind and `start` may be called again.
        """
        if self._server is not None:
            return self.urls
        self._home = Home(self._data_dir, self._cache_dir)
        self.restarts = 0
        try:
            await self._bring_up()
            await self._prepare_database()
        except BaseException:
            await self._end()
            raise
        self._up.set()
        self._tasks = [asyncio.create_task(self._supervise()), asyncio.create_task(self._tidy())]
        return self.urls

    async def stop(self) -> None:
        """Stop the server in order (fast shutdown, then harder) and give the data folder free. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._end()

    async def wait(self) -> None:
        """Return when the server that runs now has died; by then it is being brought back, unless `stop` was called."""
        if self._server is not None:
            await asyncio.shield(self._server.exit)

    async def wait_running(self) -> None:
        """Return when the server is up: at once, or after a crash when it was brought back. Never after `stop`."""
        while not self.running:
            self._up.clear()
            await self._up.wait()

    @staticmethod
    async def running_urls(data_dir: Path) -> DatabaseUrls | None:
        """The addresses of the server that another process keeps on `data_dir`, None if no process does.

        For commands that work beside a running Quazzar (`quazzar admin …`), which can't `start` a second one.
        """
        home = Home(data_dir, data_dir)
        return _urls(home) if await asyncio.to_thread(home.in_use) else None

    async def _bring_up(self) -> None:
        home = self._home
        await self._thread(home.open)
        current = await self._thread(home.current_major)
        if current is None:
            await self._thread(home.create)
        elif current < MAJOR:
            await self._upgrade(current)
        elif await self._take_over(MAJOR):
            return
        await self._launch(MAJOR)

    async def _take_over(self, major: int) -> bool:
        """Adopt a server that a killed Quazzar left behind; what is there but can't be used is stopped."""
        as_we_would = await self._watch_survivor(major)
        if self._server is None:
            return False
        if as_we_would and await self._answers(self._server):
            _log.info("PostgreSQL was still running and is taken over", pid=self._server.pid)
            return True
        await self._stop_survivor(major)
        return False

    async def _stop_survivor(self, major: int) -> None:
        if self._server is None:
            await self._watch_survivor(major)
        if self._server is not None:
            _log.warning("A PostgreSQL that was left running can't be used and is stopped", pid=self._server.pid)
            await self._stop_server()

    async def _watch_survivor(self, major: int) -> bool:
        """Make the server that runs on the cluster, if one does, ours to stop; whether it is as we would start it."""
        survivor = await self._thread(self._home.survivor, major)
        if survivor is None:
            return False
        server = Server(survivor.pid)
        # Asked again, now that the number can't pass to another process unnoticed.
        if await self._thread(self._home.survivor, major) != survivor:
            server.forget()
            return False
        self._server = server
        return survivor.as_we_would

    async def _answers(self, server: Server) -> bool:
        if not await self._becomes_ready(server, MAJOR):
            return False
        try:
            connection = await asyncpg.connect(self.superuser_url, timeout=_ANSWER_SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await _close(connection)
        return True

    async def _becomes_ready(self, server: Server, major: int) -> bool:
        """Wait while it starts and recovers. False if it died, shuts down or is not done in any sensible time."""
        deadline = time.monotonic() + _RECOVERY_SECONDS
        while not server.exit.done() and time.monotonic() < deadline:
            status = await self._thread(self._home.status, major)
            if status == (server.pid, "ready"):
                return True
            if status == (server.pid, "stopping"):
                return False
            await asyncio.wait({server.exit}, timeout=0.01)
        return False

    async def _upgrade(self, old: int) -> None:
        home = self._home
        await self._thread(home.install, old)
        _log.warning("Upgrading the database", from_version=old, to_version=MAJOR)
        await self._stop_survivor(old)
        if await self._thread(home.control, old, "Database cluster state") != "shut down":
            await self._launch(old)  # recovers what a crash left
            await self._stop_server()
        await self._thread(home.upgrade, old)

    async def _launch(self, major: int) -> None:
        home = self._home
        self._server = home.child = None
        await self._stop_survivor(major)
        await self._thread(home.clear_stale, major)
        child = await self._thread(home.spawn, major)
        server = self._server = Server(child.pid, child)
        if not await self._becomes_ready(server, major):
            await self._stop_server()
            raise PostgresError(await self._thread(home.why_it_failed))

    async def _prepare_database(self) -> None:
        try:
            connection = await asyncpg.connect(self.superuser_url, timeout=30)
            try:
                await ensure_roles(connection)
            finally:
                await _close(connection)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise PostgresError(f"PostgreSQL runs, but its roles can't be made: {error}") from error

    async def _supervise(self) -> None:
        delay = 0.0
        while True:
            server, began = self._server, time.monotonic()
            assert server is not None
            status = await asyncio.shield(server.exit)
            died = time.monotonic()
            self._up.clear()
            last = await self._thread(self._home.last_words)
            _log.error("PostgreSQL died and is started again", pid=server.pid, exit_status=status, last_words=last)
            if died - began > _STABLE_SECONDS:
                delay = 0.0
            while True:
                await asyncio.sleep(delay)
                delay = min(max(delay * 2, _BACKOFF_SECONDS[0]), _BACKOFF_SECONDS[1])
                try:
                    await self._launch(MAJOR)
                except (PostgresError, OSError) as error:
                    _log.error("PostgreSQL can't be started yet", reason=str(error), next_try_seconds=delay)
                else:
                    break
            self.restarts += 1
            self._up.set()
            _log.info("PostgreSQL is back", seconds=round(time.monotonic() - died, 3), restarts=self.restarts)

    async def _tidy(self) -> None:
        with contextlib.suppress(OSError):  # what can't be removed now is tried again at the next start
            await self._thread(self._home.remove_superseded)
        while True:
            await asyncio.sleep(300)
            with contextlib.suppress(OSError):
                await self._thread(self._home.rotate_log)

    async def _end(self) -> None:
        child = self._home.child
        if child is not None and self._server is None and child.poll() is None:
            self._server = Server(child.pid, child)  # cancelled between its start and our note of it
        await self._stop_server()
        self._up.clear()
        await asyncio.to_thread(self._home.close)

    async def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
        self._home.child = None

    async def _thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Blocking work off the event loop. When we are cancelled, its program is ended and waited for."""
        task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._home.cancel(signal.SIGTERM)
            _, waiting = await asyncio.wait({task}, timeout=2)
            if waiting:
                self._home.cancel(signal.SIGKILL)
                await asyncio.wait({task})
            if not task.cancelled():
                task.exception()
            raise


async def _close(connection: "asyncpg.Connection[Any]") -> None:
    """What was wanted of it is done: that it is slow to end, or has ended, is no failure."""
    with contextlib.suppress(OSError, asyncpg.InterfaceError):
        await connection.close(timeout=_ANSWER_SECONDS)


def _urls(home: Home) -> DatabaseUrls:
    return DatabaseUrls(owner=home.url(OWNER_ROLE, DATABASE), app=home.url(APP_ROLE, DATABASE))
