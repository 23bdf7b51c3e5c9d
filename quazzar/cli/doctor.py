"""`quazzar doctor`: looks at all that the process needs, and says what to do about what is missing."""

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import msgspec

from quazzar.cli.arguments import Arguments
from quazzar.cli.serve import run_async
from quazzar.core.crypto import KeyProblem, parse_keys, read_private
from quazzar.core.db import APP_ROLE
from quazzar.core.migrations import schema_state
from quazzar.settings import Settings, SettingsError

OLDEST_POSTGRES = 16
OLDEST_ENGINE_API = (1, 41)
_MIB = 1024 * 1024
_CLOCK_OK_SECONDS = 5
# No release is older than this, so a clock that says so is wrong.
_NOT_BEFORE = datetime(2026, 1, 1, tzinfo=UTC)

Level: TypeAlias = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the report: `sentence` says what was found and, when it is not well, what to do."""

    level: Level
    name: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.name:<9}  {self.sentence}"


def run(arguments: Arguments) -> int:
    """Prints a line per check; 1 when one of them fails."""
    try:
        settings = arguments.settings()
    except SettingsError as error:
        for problem in error.problems:
            print(Finding("fail", "settings", str(problem)), flush=True)
        return 1
    return run_async(_report(settings))


async def _report(settings: Settings) -> int:
    failed = False
    async for finding in examine(settings):
        print(finding, flush=True)
        failed = failed or finding.level == "fail"
    return 1 if failed else 0


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """All findings in the order in which a start would meet them. Changes nothing anywhere."""
    yield Finding("ok", "settings", f"read; mode {settings.server.mode}")
    yield check_data_dir(settings)
    yield check_disk(settings)
    yield check_key(settings)
    yield await (check_embedded(settings) if settings.database.url is None else check_external(settings))
    if settings.server.mode != "panel":
        yield await check_engine(settings)
    for finding in check_ports(settings):
        yield finding
    if settings.smtp.host is not None:
        yield await check_mail(settings)
    yield check_open_files(settings)
    yield check_clock()


def _nearest(folder: Path) -> Path:
    """The folder itself, or what is there of the way to it."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_data_dir(settings: Settings) -> Finding:
    folder = settings.server.data_dir
    try:
        nearest = _nearest(folder)
    except OSError as error:
        return Finding("fail", "data", f"{folder} can't be looked at: {error.strerror}; start as the user that owns it")
    if not nearest.is_dir():
        return Finding("fail", "data", f"{nearest} is not a folder; choose another server.data_dir")
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Finding("fail", "data", f"{nearest} can't be written; start as its owner or choose another data folder")
    if nearest != folder:
        return Finding("ok", "data", f"{folder} will be made at the first start")
    return Finding("ok", "data", f"{folder} can be written")


def check_disk(settings: Settings) -> Finding:
    try:
        free = shutil.disk_usage(_nearest(settings.server.data_dir)).free
    except OSError as error:
        return Finding("warn", "disk", f"the free space can't be told: {error.strerror}")
    sentence = f"{free // _MIB} MiB are free for the data folder"
    if free < 64 * _MIB:
        return Finding("fail", "disk", f"{sentence}; free some, at least 64 MiB are needed to start")
    if free < 1024 * _MIB:
        return Finding("warn", "disk", f"{sentence}; apps and backups will need more")
    return Finding("ok", "disk", sentence)


def check_key(settings: Settings) -> Finding:
    path = settings.server.data_dir / "secret.key"
    given = settings.auth.secret_key
    try:
        keyring = parse_keys(given.reveal() if given is not None else read_private(path))
    except FileNotFoundError:
        return Finding("ok", "key", "the master key will be made at the first start; keep a copy of it apart")
    except KeyProblem as error:
        return Finding("fail", "key", str(error))
    except OSError as error:
        return Finding("fail", "key", f"secret.key can't be read: {error.strerror}; start as the user that owns it")
    source = "auth.secret_key" if given is not None else "secret.key"
    return Finding("ok", "key", f"{source} holds {len(keyring.key_ids)} strong key(s), current {keyring.current}")


async def check_embedded(settings: Settings) -> Finding:
    from quazzar.core.postgres import EmbeddedPostgres  # noqa: PLC0415 - for the embedded one only
    from quazzar.core.postgres.home import MAJOR  # noqa: PLC0415
    from quazzar.core.postgres.programs import installs  # noqa: PLC0415

    advice = "install again from the lock file, or set database.url"
    programs = installs()
    if MAJOR not in programs:
        return Finding("fail", "database", f"the programs of PostgreSQL {MAJOR} are missing; {advice}")
    if await _output_of(str(programs[MAJOR] / "bin" / "postgres"), "--version") is None:
        return Finding("fail", "database", "the embedded PostgreSQL does not run on this system; set database.url")
    try:
        made_by = [
            int(entry.name) for entry in (settings.server.data_dir / "postgres").iterdir() if entry.name.isdigit()
        ]
    except FileNotFoundError:
        made_by = []
    except OSError as error:
        return Finding("fail", "database", f"the folder of the embedded PostgreSQL can't be read: {error.strerror}")
    newest = max(made_by, default=None)
    if newest is None:
        return Finding("ok", "database", f"embedded PostgreSQL {MAJOR}; made at the first start")
    if newest > MAJOR:
        sentence = f"the data folder is from PostgreSQL {newest}, newer than this release has; install a newer release"
        return Finding("fail", "database", sentence)
    if newest < MAJOR and newest not in programs:
        sentence = f"the data folder is from PostgreSQL {newest}, which this release can't upgrade; see operating.md"
        return Finding("fail", "database", sentence)
    if newest < MAJOR:
        return Finding("warn", "database", f"PostgreSQL {newest} becomes {MAJOR} at the next start; back up first")
    urls = await EmbeddedPostgres.running_urls(settings.server.data_dir)
    if urls is not None:
        return await _connect_and_judge(urls.app)
    return Finding("ok", "database", f"embedded PostgreSQL {MAJOR}, not running now")


async def _output_of(*command: str) -> str | None:
    """What a program prints; None when it can't be run or fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await asyncio.wait_for(process.communicate(), 10)
    except (OSError, TimeoutError):
        return None
    return output.decode(errors="replace").strip() if process.returncode == 0 else None


async def check_external(settings: Settings) -> Finding:
    assert settings.database.url is not None
    return await _connect_and_judge(settings.database.url.reveal())


async def _connect_and_judge(url: str) -> Finding:
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        # The driver's own text may hold the address, the user's name or the password.
        return Finding(
            "fail", "database", f"it can't be reached ({type(error).__name__}); see that database.url is right"
        )
    try:
        return await _judge(connection)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return Finding("fail", "database", f"it does not answer ({type(error).__name__})")
    finally:
        connection.terminate()


async def _judge(connection: "asyncpg.Connection[Any]") -> Finding:
    major = connection.get_server_version().major
    if major < OLDEST_POSTGRES:
        return Finding("fail", "database", f"PostgreSQL {major} is too old; {OLDEST_POSTGRES} or newer is needed")
    state = await schema_state(connection)
    if not state.is_known:
        sentence = f"the schema {state.current} is newer than this release; install a newer release"
        return Finding("fail", "database", sentence)
    if not state.is_current:
        return Finding("warn", "database", f"PostgreSQL {major}; the schema is behind, run `quazzar migrate`")
    member = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1 AND pg_has_role(current_user, oid, 'MEMBER'))"
    if not await connection.fetchval(member, APP_ROLE):
        return Finding("warn", "database", f"PostgreSQL {major}; the user of database.url may not act as {APP_ROLE}")
    apart = abs((datetime.now(UTC) - await connection.fetchval("SELECT clock_timestamp()")).total_seconds())
    if apart > _CLOCK_OK_SECONDS:
        return Finding("warn", "database", f"its clock differs from ours by {apart:.0f} s; set both by NTP")
    return Finding("ok", "database", f"PostgreSQL {major}, schema {state.current}")


async def check_engine(settings: Settings) -> Finding:
    if settings.runtime.driver == "memory":
        return Finding("warn", "engine", "runtime.driver is memory: apps are only pretended to run")
    from aiodocker import Docker  # noqa: PLC0415 - only asked where there is an engine
    from aiodocker.exceptions import DockerError  # noqa: PLC0415
    from aiohttp import ClientError  # noqa: PLC0415

    url = settings.runtime.docker_url
    try:
        async with asyncio.timeout(5), Docker(url=url) as docker:
            version = await docker.version()
            info = await docker.system.info()
            is_manager = settings.runtime.driver == "swarm" and swarm_problem(info.get("Swarm") or {}) is None
            nodes = await docker.nodes.list() if is_manager else []
    except (OSError, ClientError, DockerError, TimeoutError, ValueError):
        where = urlsplit(url).path or f"{urlsplit(url).hostname}:{urlsplit(url).port}"
        advice = "install Docker, start it, give this user access to the socket, or set runtime.docker_host"
        return Finding("fail", "engine", f"no container engine answers at {where}; {advice}")
    api = tuple(int(part) for part in str(version.get("ApiVersion", "0.0")).split("."))
    if api < OLDEST_ENGINE_API:
        return Finding("fail", "engine", f"the container engine is too old (API {version.get('ApiVersion')})")
    if settings.runtime.driver == "swarm" and (problem := swarm_problem(info.get("Swarm") or {})):
        return Finding("fail", "engine", f"runtime.driver is swarm, but {problem}")
    if lost := lost_nodes(nodes):
        sentence = f"of {len(nodes)} nodes of the swarm {', '.join(lost)} can't run apps; see `docker node ls`"
        return Finding("warn", "engine", sentence)
    return Finding("ok", "engine", f"container engine {version.get('Version')} (API {version.get('ApiVersion')})")


def swarm_problem(swarm: Mapping[str, Any]) -> str | None:
    """Why an engine can't run apps on a swarm, from the part `Swarm` of `GET /info`, and what helps; None if it can."""
    match swarm.get("LocalNodeState"):
        case "active" if swarm.get("ControlAvailable"):
            return None
        case "active":
            return "this engine is only a worker of its swarm; run `docker node promote` on a manager, or use a manager"
        case "locked":
            return "the swarm is locked; run `docker swarm unlock`"
        case "pending" | "error":
            return "this engine can't join its swarm; see `docker info`, or leave it and join again"
        case _:
            return "this engine is in none; run `docker swarm init`"


def lost_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The host names of nodes that are down, or that nothing is given to, from `GET /nodes`."""
    return sorted(
        str((one.get("Description") or {}).get("Hostname") or one["ID"])
        for one in nodes
        if (one.get("Status") or {}).get("State") != "ready" or (one.get("Spec") or {}).get("Availability") != "active"
    )


def check_ports(settings: Settings) -> Iterator[Finding]:
    yield _port("port", "server.port", settings.server.host, settings.server.port)
    if settings.metrics.port is not None:
        yield _port("metrics", "metrics.port", "127.0.0.1", settings.metrics.port)


def _port(name: str, key: str, host: str, port: int) -> Finding:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except PermissionError:
        return Finding("fail", name, f"port {port} is for root alone; set {key} to 1024 or more")
    except (socket.gaierror, UnicodeError):
        return Finding("fail", name, f"the address {host} is not known on this machine")
    except OSError as error:
        if _is_quazzar(host, port):
            return Finding("ok", name, f"{host}:{port} is served by Quazzar already")
        why = f"({error.strerror}); set {key} to another"
        return Finding("fail", name, f"{host}:{port} can't be listened on {why}")
    return Finding("ok", name, f"{host}:{port} is free")


def _is_quazzar(host: str, port: int) -> bool:
    """Whether what listens there answers as we do."""
    connection = HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=2)  # noqa: S104
    try:
        connection.request("GET", "/api/health")
        response = connection.getresponse()
        return response.getheader("X-Request-Id", "").startswith("req_")
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


async def check_mail(settings: Settings) -> Finding:
    """Whether the mail server lets us in; nothing is sent."""
    from quazzar.mail.smtp import MailServer, MailUnsent  # noqa: PLC0415 - only where there is one

    where = f"{settings.smtp.host}:{settings.smtp.port}"
    try:
        await MailServer(settings).probe()
    except MailUnsent as unsent:
        return Finding("fail", "mail", f"{where}: {unsent}")
    if settings.smtp.tls == "none" and settings.smtp.host not in {"localhost", "127.0.0.1", "::1"}:
        return Finding("warn", "mail", f"{where} answers, but smtp.tls is none: all can be read on the way")
    return Finding("ok", "mail", f"{where} answers and lets us in")


def check_open_files(settings: Settings) -> Finding:
    # The server raises the soft limit by itself, up to the hard one.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.server.max_connections + 256
    if hard != resource.RLIM_INFINITY and hard < needed:
        return Finding("warn", "files", f"{hard} files may be open at once; allow {needed} (LimitNOFILE, ulimit -n)")
    return Finding("ok", "files", "enough files may be open at once")


def check_clock() -> Finding:
    now = datetime.now(UTC)
    if now < _NOT_BEFORE:
        return Finding("fail", "clock", f"the clock says {now:%Y-%m-%d}; set it, or no token and certificate is valid")
    if _unsynchronised():
        return Finding("warn", "clock", "the clock is not kept by NTP; turn on systemd-timesyncd or chrony")
    return Finding("ok", "clock", f"{now:%Y-%m-%d %H:%M} UTC")


def _unsynchronised() -> bool:
    """What the kernel thinks of its clock (adjtimex(2), only read); false where it can't be asked."""
    with contextlib.suppress(OSError, AttributeError):
        buffer = ctypes.create_string_buffer(512)  # struct timex, all zero: nothing is changed
        return bool(ctypes.CDLL(None).adjtimex(buffer) == 5)  # TIME_ERROR
    return False
