"""The embedded PostgreSQL, with real servers: crashes, adoption, upgrades, closed folders and everything in its way."""

import asyncio
import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Any

import asyncpg
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from quazzar.core.postgres import DatabaseUrls, EmbeddedPostgres, PostgresError, ensure_roles, home, processes, programs
from quazzar.core.postgres import supervisor as supervision
from quazzar.core.postgres.home import MAJOR, Home

ROOT = Path(__file__).resolve().parents[2]
OLD = 16
CONNECTION_LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can walk to; in memory if there is room, as a hundred clusters keep a disk busy."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30
    base = Path(tempfile.mkdtemp(prefix="qz-", dir=memory if roomy else "/var/tmp"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base)


@pytest.fixture
def closed_folder(open_folder: Path) -> Path:
    """A folder whose parent lets nobody but its owner through, as /root is."""
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "project").mkdir(mode=0o755)
    return closed / "project"


@pytest.fixture(params=["open", "closed"])
def data_dir(request: pytest.FixtureRequest, open_folder: Path, closed_folder: Path) -> Path:
    return (open_folder if request.param == "open" else closed_folder) / "data"


Make = Callable[[Path], EmbeddedPostgres]


@pytest.fixture
async def make(open_folder: Path) -> AsyncIterator[Make]:
    """Makes supervisors, which are stopped in the end, before the folder goes."""
    made: list[EmbeddedPostgres] = []

    def one(folder: Path) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(folder, cache_dir=folder.parent / "cache"))
        return made[-1]

    yield one
    for embedded in made:
        await embedded.stop()


@pytest.fixture
async def running(make: Make, open_folder: Path) -> EmbeddedPostgres:
    embedded = make(open_folder / "data")
    await embedded.start()
    return embedded


async def sql(url: str, *statements: str) -> Any:
    """Run the statements; the last one's first value."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


def server_user() -> pwd.struct_passwd:
    return pwd.getpwnam(programs.SYSTEM_USER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def alive(pid: int | None) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def server_processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(("postgres", "initdb", "pg_")) and processes.works_in(process, folder):
                found.append(process)
    return found


@contextlib.contextmanager
def owner_process(
    folder: Path, *, under: list[str] | None = None, python: str = sys.executable, path: str = str(ROOT), **popen: Any
) -> Iterator[tuple["subprocess.Popen[str]", IO[str]]]:
    """A process of its own that runs the supervisor on `folder`, and its output."""
    argv = [*(under or []), python, "-m", "tests.core.postgres_owner", str(folder)]
    owner = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "CANARY": "canary-of-the-environment"},
        **popen,
    )
    with owner:
        assert owner.stdout is not None
        try:
            yield owner, owner.stdout
        finally:
            owner.kill()


async def lines(output: IO[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await asyncio.to_thread(output.readline))
    return found


# Starting


async def test_first_and_warm_start(make: Make, data_dir: Path) -> None:
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in data_dir.parents}
    began = time.monotonic()
    embedded = make(data_dir)
    urls = await embedded.start()
    first = time.monotonic() - began
    await sql(urls.owner, "CREATE TABLE kept (id int)", "INSERT INTO kept VALUES (7) RETURNING id")
    await embedded.stop()
    assert server_processes(data_dir) == []

    began = time.monotonic()
    again = await embedded.start()
    warm = time.monotonic() - began
    print(f"first start {first:.3f} s, warm start {warm:.3f} s")
    assert again == urls
    assert await sql(urls.owner, "SELECT id FROM kept") == 7
    assert first < 30
    assert warm < 20
    assert {folder: stat.S_IMODE(folder.stat().st_mode) for folder in data_dir.parents} == modes
    assert "not properly shut down" not in (data_dir / "postgres/log/postgres.log").read_text()


async def test_urls_work_with_asyncpg_and_sqlalchemy(running: EmbeddedPostgres) -> None:
    for url, role in ((running.urls.owner, "quazzar_owner"), (running.urls.app, "quazzar_app")):
        assert await sql(url, "SELECT current_user::text") == role
        engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT current_user"))).scalar_one() == role
        await engine.dispose()


async def test_the_server_is_small_durable_and_not_on_the_network(running: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(running.superuser_url)
    rows = await connection.fetch("SELECT name, setting FROM pg_settings")
    database = await connection.fetchrow(
        "SELECT datlocprovider::text AS provider, datlocale, pg_encoding_to_char(encoding) AS encoding"
        " FROM pg_database WHERE datname = 'quazzar'"
    )
    await connection.close()
    settings = {row["name"]: row["setting"] for row in rows}
    assert [settings[name] for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")] == [
        "on"
    ] * 4
    assert settings["listen_addresses"] == ""
    assert dict(database or {}) == {"provider": "b", "datlocale": "C.UTF-8", "encoding": "UTF8"}
    server = psutil.Process(running.pid)
    for process in (server, *server.children()):
        with contextlib.suppress(psutil.NoSuchProcess):  # those that serve a connection end with it
            assert process.net_connections("inet") == []


async def test_the_server_belongs_to_its_user_alone(running: EmbeddedPostgres, open_folder: Path) -> None:
    server = psutil.Process(running.pid)
    user = server_user()
    assert user.pw_uid != 0
    assert set(server.uids()) == {user.pw_uid}
    assert set(server.gids()) == {user.pw_gid}
    if os.geteuid() == 0:
        status = Path(f"/proc/{running.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "\nGroups:\t \n" in status
    for part in (f"{MAJOR}/data", "run"):
        known = (open_folder / "data/postgres" / part).stat()
        assert (known.st_uid, stat.S_IMODE(known.st_mode)) == (user.pw_uid, 0o700)
    for part in ("lock", "log/postgres.log"):
        assert stat.S_IMODE((open_folder / "data/postgres" / part).stat().st_mode) == 0o600
    # A session of its own, so that Ctrl-C on our terminal doesn't reach it.
    assert os.getsid(running.pid or 0) == running.pid


async def test_nothing_of_our_environment_reaches_the_server(open_folder: Path) -> None:
    with owner_process(open_folder / "data") as (owner, output):
        pid = (await lines(output))["pid"]
        assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert owner.stdin is not None
        owner.stdin.close()
        assert await asyncio.to_thread(owner.wait) == 0
    assert not alive(pid)


async def test_the_event_loop_goes_on_meanwhile(make: Make, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticked, called = threading.Event(), set()

    async def tick() -> None:
        while True:
            ticked.set()
            await asyncio.sleep(0.005)

    def watch(name: str) -> None:
        work = getattr(Home, name)

        def call(self: Home, *arguments: Any) -> Any:
            called.add(name)
            ticked.clear()
            assert ticked.wait(20), f"{name} holds the event loop up"
            return work(self, *arguments)

        monkeypatch.setattr(Home, name, call)

    work = ("open", "current_major", "create", "survivor", "clear_stale", "spawn", "status", "close")
    for name in work:
        watch(name)
    ticking = asyncio.create_task(tick())
    embedded = make(open_folder / "data")
    await embedded.start()
    await embedded.stop()
    ticking.cancel()
    assert called == set(work)


async def test_a_stopped_one_can_be_stopped_again_and_a_started_one_started(make: Make, open_folder: Path) -> None:
    embedded = make(open_folder / "data")
    await embedded.stop()
    urls = await embedded.start()
    pid = embedded.pid
    assert await embedded.start() == urls
    assert embedded.pid == pid
    await embedded.stop()
    await embedded.stop()
    assert embedded.pid is None
    assert not embedded.running


# Who may do what


async def test_the_app_role_can_do_nothing_that_was_not_granted(running: EmbeddedPostgres) -> None:
    await sql(running.urls.owner, "CREATE TABLE owned (id int)", "SELECT 1")
    for statement in (
        "CREATE TABLE public.t (id int)",
        "CREATE TEMP TABLE t (id int)",
        "CREATE SCHEMA s",
        "CREATE ROLE r",
        "CREATE DATABASE d",
        "SET ROLE quazzar_owner",
        "SET ROLE postgres",
        "ALTER ROLE quazzar_app SUPERUSER",
        "ALTER ROLE quazzar_app BYPASSRLS",
        "ALTER SYSTEM SET fsync = off",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT * FROM owned",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await sql(running.urls.app, statement)


async def test_the_owner_owns_the_database_and_no_more(running: EmbeddedPostgres) -> None:
    await sql(running.urls.owner, "CREATE SCHEMA s", "CREATE TABLE s.t (id int)", "SELECT 1")
    for statement in ("CREATE ROLE r", "SET ROLE postgres", "COPY (SELECT 1) TO PROGRAM 'true'", "CREATE DATABASE d"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await sql(running.urls.owner, statement)
    assert await sql(running.urls.owner, "SET ROLE quazzar_app", "SELECT current_user::text") == "quazzar_app"


async def test_roles_that_drifted_are_put_right(running: EmbeddedPostgres) -> None:
    admin = await asyncpg.connect(running.superuser_url)
    await admin.execute("ALTER ROLE quazzar_app SUPERUSER BYPASSRLS NOLOGIN")
    await admin.execute("ALTER ROLE quazzar_owner CREATEROLE")
    await admin.execute("REVOKE quazzar_app FROM quazzar_owner")
    await admin.execute("GRANT quazzar_owner TO quazzar_app")
    await admin.execute("GRANT ALL ON DATABASE quazzar TO PUBLIC")
    await admin.execute("ALTER DATABASE quazzar OWNER TO postgres")
    await ensure_roles(admin)
    before = await admin.fetchval("SELECT txid_current()")
    await ensure_roles(admin)
    assert await admin.fetchval("SELECT txid_current()") == before + 1, "it wrote though all was right"
    rows = await admin.fetch(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcanlogin FROM pg_roles WHERE rolname LIKE 'quazzar%'"
    )
    assert [tuple(row) for row in rows] == [(False, False, False, True)] * 2
    assert not await admin.fetchval("SELECT pg_has_role('quazzar_app', 'quazzar_owner', 'MEMBER')")
    assert not await admin.fetchval("SELECT has_database_privilege('public', 'quazzar', 'CONNECT')")
    assert (
        await admin.fetchval("SELECT datdba::regrole::text FROM pg_database WHERE datname = 'quazzar'")
        == "quazzar_owner"
    )
    await admin.close()


@as_root
async def test_another_user_is_refused_by_the_folder_and_by_peer(running: EmbeddedPostgres, open_folder: Path) -> None:
    run = open_folder / "data/postgres/run"
    nobody = pwd.getpwnam("nobody")

    def connect(role: str) -> str:
        # With the kernel's own view of who connects; no program of PostgreSQL has to be within reach.
        script = (
            "import socket,struct,sys\n"
            f"s=socket.socket(socket.AF_UNIX); s.connect({str(run / '.s.PGSQL.5432')!r})\n"
            f"b=b'\\0\\3\\0\\0user\\0{role}\\0database\\0quazzar\\0\\0'\n"
            "s.sendall(struct.pack('!i',len(b)+4)+b); print(s.recv(4096))"
        )
        argv = [sys.executable, "-I", "-S", "-c", script]
        argv = ["/usr/bin/python3", *argv[1:]] if Path("/usr/bin/python3").exists() else argv
        done = subprocess.run(
            argv, check=False, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], capture_output=True, text=True
        )
        return done.stdout + done.stderr

    roles = ("quazzar_app", "quazzar_owner", "postgres", "nobody")
    for role in roles:
        assert "Permission denied" in await asyncio.to_thread(connect, role)
    for path in (open_folder / "data", open_folder / "data/postgres", run):
        path.chmod(0o755)
    (run / ".s.PGSQL.5432").chmod(0o777)
    for role in roles:
        answer = await asyncio.to_thread(connect, role)
        assert "Peer authentication failed" in answer or "no pg_hba.conf entry" in answer


# Crashes


async def test_a_killed_server_comes_back_with_all_that_was_acknowledged(running: EmbeddedPostgres) -> None:
    await sql(running.urls.owner, "CREATE TABLE t (id int PRIMARY KEY)", "SELECT 1")
    acknowledged: list[int] = []

    async def write(start: int) -> None:
        number = start
        while len(acknowledged) < 2000:
            with contextlib.suppress(*CONNECTION_LOST):
                connection = await asyncpg.connect(running.urls.owner, timeout=5)
                try:
                    while len(acknowledged) < 2000:
                        number += 1
                        await connection.execute("INSERT INTO t VALUES ($1)", number)
                        acknowledged.append(number)
                finally:
                    connection.terminate()
            await asyncio.sleep(0.01)

    writers = [asyncio.create_task(write(start)) for start in (0, 100_000, 200_000)]
    for kill_at in (300, 900):
        while len(acknowledged) < kill_at:
            await asyncio.sleep(0.005)
        pid = running.pid
        assert pid is not None
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await running.wait()
        await running.wait_running()
        print(f"back after {time.monotonic() - began:.3f} s")
        assert running.pid != pid
    await asyncio.gather(*writers)
    connection = await asyncpg.connect(running.urls.owner)
    kept = {row[0] for row in await connection.fetch("SELECT id FROM t")}
    await connection.close()
    assert set(acknowledged) <= kept
    assert running.restarts == 2


async def test_a_busy_backend_of_a_killed_server_does_not_stand_in_the_way(running: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(running.urls.owner)
    # Computes without ever looking whether its postmaster lives.
    task = asyncio.create_task(connection.fetchval("SELECT count(*) FROM generate_series(1, 300000000)"))
    await asyncio.sleep(0.2)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    await running.wait()
    async with asyncio.timeout(10):
        await running.wait_running()
    assert await sql(running.urls.app, "SELECT 1") == 1
    with pytest.raises(CONNECTION_LOST):
        await task
    connection.terminate()


async def test_a_killed_backend_leaves_no_statement_in_the_log(running: EmbeddedPostgres, open_folder: Path) -> None:
    connection = await asyncpg.connect(running.urls.owner)
    await connection.execute("CREATE TABLE t (secret text UNIQUE)")
    await connection.execute("INSERT INTO t VALUES ($1)", "canary-parameter")
    for statement in (
        "INSERT INTO t VALUES ('canary-parameter')",
        "SELECT 'canary-text'::int",
        "canary-syntax",
        "SELECT 1/0 AS canary_column",
    ):
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(statement)
    with pytest.raises(asyncpg.PostgresError):
        await connection.execute("INSERT INTO t VALUES ($1)", "canary-parameter")
    backend = await connection.fetchval("SELECT pg_backend_pid()")
    task = asyncio.create_task(connection.fetchval("SELECT pg_sleep(60), 'canary-running'"))
    await asyncio.sleep(0.1)
    os.kill(backend, signal.SIGKILL)
    with pytest.raises(CONNECTION_LOST):
        await task
    log = open_folder / "data/postgres/log/postgres.log"
    # Its client knows before the server has noticed, and a new one may still be let in meanwhile.
    async with asyncio.timeout(20):
        while "was terminated by signal 9" not in log.read_text():
            await asyncio.sleep(0.02)
        while True:
            with contextlib.suppress(*CONNECTION_LOST):
                await sql(running.urls.app, "SELECT 1")
                break
            await asyncio.sleep(0.05)
    assert "canary" not in log.read_text()


async def test_starting_again_is_tried_until_it_works(
    running: EmbeddedPostgres, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_BACKOFF_SECONDS", (0.02, 0.05))
    control = open_folder / f"data/postgres/{MAJOR}/data/global/pg_control"
    hidden = open_folder / "pg_control"
    shutil.copy2(control, hidden)
    control.unlink()
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    await running.wait()
    await asyncio.sleep(1)
    assert not running.running
    shutil.move(hidden, control)
    user = server_user()
    os.chown(control, user.pw_uid, user.pw_gid)
    async with asyncio.timeout(10):
        await running.wait_running()
    assert await sql(running.urls.app, "SELECT 1") == 1


# Adoption


async def orphan(folder: Path) -> dict[str, Any]:
    """A server whose owner was killed."""
    with owner_process(folder) as (owner, output):
        told = await lines(output)
        await sql(told["owner"], "CREATE TABLE IF NOT EXISTS kept (id int)", "INSERT INTO kept VALUES (1) RETURNING id")
        owner.kill()
        await asyncio.to_thread(owner.wait)
    assert alive(told["pid"])
    return told


async def test_a_server_whose_owner_was_killed_is_taken_over(make: Make, data_dir: Path) -> None:
    told = await orphan(data_dir)
    embedded = make(data_dir)
    began = time.monotonic()
    urls = await embedded.start()
    print(f"taken over after {time.monotonic() - began:.3f} s")
    assert embedded.pid == told["pid"]
    assert await sql(urls.owner, "SELECT count(*) FROM kept") == 1

    os.kill(told["pid"], signal.SIGKILL)  # it is watched as a child would be
    await embedded.wait()
    await embedded.wait_running()
    assert await sql(urls.owner, "SELECT count(*) FROM kept") == 1
    await embedded.stop()
    assert server_processes(data_dir) == []


@as_root
async def test_a_server_is_taken_over_with_a_containers_rights(data_dir: Path) -> None:
    """Docker's root may not look at the folders and programs of other users' processes (no CAP_SYS_PTRACE)."""
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv (util-linux)")
    rights = "chown dac_override fsetid fowner mknod net_raw setgid setuid setfcap setpcap net_bind_service"
    bounding = ",".join(["-all", *(f"+{right}" for right in f"{rights} sys_chroot kill audit_write".split())])
    under = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all"]
    pids = []
    for end in ("kill", "close"):
        with owner_process(data_dir, under=under) as (owner, output):
            pids.append((await lines(output))["pid"])
            assert owner.stdin is not None
            owner.kill() if end == "kill" else owner.stdin.close()
            await asyncio.to_thread(owner.wait)
    assert pids[0] == pids[1]
    assert not alive(pids[0])


async def test_an_adopted_server_is_stopped(make: Make, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_slow(self: "asyncpg.Connection[Any]", *, timeout: float | None = None) -> None:
        self.terminate()
        raise TimeoutError

    told = await orphan(open_folder / "data")
    embedded = make(open_folder / "data")
    with monkeypatch.context() as patch:
        # What it was asked it has answered: how long it takes to say goodbye does not matter.
        patch.setattr(asyncpg.Connection, "close", too_slow)
        await embedded.start()
    assert embedded.pid == told["pid"]
    await embedded.stop()
    assert not alive(told["pid"])


async def test_a_survivor_with_other_settings_is_replaced(
    make: Make, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await orphan(data_dir)
    monkeypatch.setitem(home._SETTINGS, "max_connections", "30")
    embedded = make(data_dir)
    urls = await embedded.start()
    assert embedded.pid != told["pid"]
    assert not alive(told["pid"])
    assert await sql(urls.owner, "SHOW max_connections") == "30"
    assert await sql(urls.owner, "SELECT count(*) FROM kept") == 1


async def test_a_survivor_that_hangs_is_replaced(
    make: Make, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_ANSWER_SECONDS", 0.3)
    told = await orphan(open_folder / "data")
    os.kill(told["pid"], signal.SIGSTOP)
    embedded = make(open_folder / "data")
    urls = await embedded.start()
    assert embedded.pid != told["pid"]
    assert await sql(urls.owner, "SELECT count(*) FROM kept") == 1


async def test_a_survivor_is_watched_without_a_pidfd(
    make: Make, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", absent)
    told = await orphan(open_folder / "data")
    embedded = make(open_folder / "data")
    await embedded.start()
    assert embedded.pid == told["pid"]
    os.kill(told["pid"], signal.SIGKILL)
    await embedded.wait()
    await embedded.wait_running()
    await embedded.stop()
    assert server_processes(open_folder / "data") == []


@pytest.mark.slow
async def test_what_the_dead_owner_asked_for_is_given_up(make: Make, open_folder: Path) -> None:
    script = (
        "import asyncio,asyncpg,sys\n"
        "async def go():\n"
        "    c = await asyncpg.connect(sys.argv[1])\n"
        "    t = asyncio.create_task(c.execute('SELECT pg_sleep(600)'))\n"
        "    await asyncio.sleep(.2); print('asking', flush=True); await t\n"
        "asyncio.run(go())"
    )
    embedded = make(open_folder / "data")
    urls = await embedded.start()
    with subprocess.Popen([sys.executable, "-c", script, urls.owner], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        await asyncio.to_thread(client.stdout.readline)
        client.kill()
    asking = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600%' AND pid <> pg_backend_pid()"
    for _ in range(200):
        if await sql(urls.owner, asking) == 0:
            return
        await asyncio.sleep(0.1)
    pytest.fail("still asked for after 20 s, and it is looked every five whether anybody listens")


# One data folder, one Quazzar


async def test_of_two_starts_at_once_one_wins(make: Make, open_folder: Path) -> None:
    results = await asyncio.gather(*(make(open_folder / "data").start() for _ in range(3)), return_exceptions=True)
    assert sum(isinstance(result, DatabaseUrls) for result in results) == 1
    refused = [str(result) for result in results if isinstance(result, PostgresError)]
    assert len(refused) == 2
    for sentence in refused:
        assert f"(process {os.getpid()}) is running on {open_folder / 'data'}" in sentence
        assert "\n" not in sentence


@contextlib.contextmanager
def held_lock(data_dir: Path, operation: int) -> Iterator[IO[str]]:
    """The lock of a data folder that nobody has opened yet, held from here."""
    lock = data_dir / "postgres" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, operation)
        yield file


async def test_who_only_looks_at_the_lock_keeps_no_start_from_it(
    make: Make, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_LOCK_UNNAMED_TRIES", 1000)
    with held_lock(open_folder / "data", fcntl.LOCK_SH) as looking:
        start = asyncio.create_task(make(open_folder / "data").start())
        await asyncio.sleep(0.3)
        assert not start.done()
        fcntl.flock(looking, fcntl.LOCK_UN)
        await start


async def test_who_has_only_just_taken_the_lock_is_named(make: Make, open_folder: Path) -> None:
    with held_lock(open_folder / "data", fcntl.LOCK_EX) as holder:
        start = asyncio.create_task(make(open_folder / "data").start())
        await asyncio.sleep(0.3)
        holder.write("4711\n")
        holder.flush()
        with pytest.raises(PostgresError, match=r"^Another Quazzar \(process 4711\) is running on "):
            await start


async def test_a_second_process_is_refused_and_told_the_address(running: EmbeddedPostgres, open_folder: Path) -> None:
    with owner_process(open_folder / "data") as (_, output):
        assert f"process {os.getpid()}" in (await lines(output))["error"]
    assert running.running
    assert await EmbeddedPostgres.running_urls(open_folder / "data") == running.urls
    await running.stop()
    assert await EmbeddedPostgres.running_urls(open_folder / "data") is None
    assert await EmbeddedPostgres.running_urls(open_folder / "nothing") is None


# What interrupted starts leave


def names(folder: Path) -> set[str]:
    return {entry.name for entry in (folder / "postgres").iterdir()}


async def under_way(folder: Path, what: str) -> None:
    """Return once a cluster is being made, or is whole already: a busy machine may not have shown us how."""
    while not list(folder.glob(f"postgres/{what}")) and not (folder / f"postgres/{MAJOR}").exists():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("delay", [0, 0.1, 0.3])
async def test_a_kill_while_the_cluster_is_made_leaves_nothing_half_made(
    make: Make, open_folder: Path, delay: float
) -> None:
    for number in range(10):
        folder = open_folder / str(number)
        with owner_process(folder) as (owner, _):
            await under_way(folder, f"{MAJOR}.new-*/data")
            await asyncio.sleep(delay)
            owner.kill()
            await asyncio.to_thread(owner.wait)
        if delay == 0.3 or str(MAJOR) not in names(folder):
            break
        await make(folder).start()  # killed too late, on a busy machine: to be stopped in the end
    else:
        pytest.fail("it was whole each time")
    urls = await make(folder).start()
    assert await sql(urls.app, "SELECT 1") == 1
    assert names(folder) == {str(MAJOR), "conf", "lock", "log", "run"}
    data = folder / f"postgres/{MAJOR}/data"
    assert {Path(process.cwd()) for process in server_processes(folder)} <= {data}


async def test_a_cancelled_start_ends_its_programs_and_frees_the_folder(make: Make, open_folder: Path) -> None:
    folder = open_folder / "data"
    for delay in (0.0, 0.02, 0.1, 0.25, 0.45, 0.6):
        embedded = make(folder)
        start = asyncio.create_task(embedded.start())
        await asyncio.sleep(delay)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
            await embedded.stop()
        assert server_processes(folder) == []
        assert await EmbeddedPostgres.running_urls(folder) is None
    assert await sql((await make(folder).start()).app, "SELECT 1") == 1


@pytest.mark.parametrize("whose", ["ours", "another program", "zombie", "nobody", "rubbish", "link"])
async def test_a_stale_pid_file_is_seen_through(make: Make, open_folder: Path, whose: str) -> None:
    folder = open_folder / "data"
    embedded = make(folder)
    await embedded.start()
    pidfile = folder / f"postgres/{MAJOR}/data/postmaster.pid"
    kept = pidfile.read_text()
    await embedded.stop()
    with subprocess.Popen(["sleep", "600"]) as other, subprocess.Popen(["true"]) as dead:
        await asyncio.sleep(0.1)  # nobody waits for `true`: a zombie
        pid = {"ours": os.getpid(), "another program": other.pid, "zombie": dead.pid, "nobody": 4_100_000}.get(whose)
        if whose == "link":
            pidfile.symlink_to("/etc/hostname")
        else:
            pidfile.write_text(kept.replace(kept.split("\n")[0], str(pid), 1) if pid else "\0\xff rubbish")
        (folder / "postgres/run/.s.PGSQL.5432.lock").write_text(kept)
        (folder / "postgres/run/.s.PGSQL.5432").write_text("")
        urls = await embedded.start()
        assert await sql(urls.app, "SELECT 1") == 1
        assert alive(other.pid)
        other.kill()


async def test_the_server_of_another_folder_is_left_alone(make: Make, closed_folder: Path) -> None:
    """Both run as the same user, with a command line that reads the same."""
    one, two = make(closed_folder / "one"), make(closed_folder / "two")
    await one.start()
    await two.start()
    await two.stop()
    folders = [closed_folder / name / f"postgres/{MAJOR}/data/postmaster.pid" for name in ("one", "two")]
    folders[1].write_text(folders[0].read_text())
    pid = one.pid
    await two.start()
    assert two.pid != pid
    assert alive(pid)
    assert one.restarts == 0


@pytest.mark.parametrize("name", ["long" * 40, 'with space, comma\' "quote" $HOME \\ % ü', "UPPER.and-dash_"])
async def test_any_path_works(make: Make, open_folder: Path, name: str) -> None:
    folder = open_folder / name
    embedded = make(folder)
    urls = await embedded.start()
    pid = embedded.pid
    assert await sql(urls.app, "SELECT 1") == 1
    run = Path(os.path.realpath(folder / "postgres/run"))
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert await EmbeddedPostgres.running_urls(folder) == urls
    engine = create_async_engine(urls.app.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()
    await embedded.stop()
    assert not alive(pid)
    assert not run.exists() or run == folder / "postgres/run"
    assert await sql((await embedded.start()).app, "SELECT 1") == 1


async def test_a_long_path_is_taken_over_too(make: Make, open_folder: Path) -> None:
    folder = open_folder / ("long" * 40)
    told = await orphan(folder)
    embedded = make(folder)
    assert (await embedded.start()).owner == told["owner"]
    assert embedded.pid == told["pid"]


async def test_a_moved_folder_works(make: Make, open_folder: Path) -> None:
    told = await orphan(open_folder / "data")
    (open_folder / "data").rename(open_folder / "moved")
    urls = await make(open_folder / "moved").start()
    assert not alive(told["pid"])
    assert await sql(urls.owner, "SELECT count(*) FROM kept") == 1


# Upgrades


def make_old_cluster(folder: Path, *, checksums: bool = True) -> Home:
    """A cluster as a Quazzar with the older PostgreSQL would have left it."""
    old = Home(folder, folder.parent / "cache")
    old.open()
    data = folder / "postgres" / str(OLD) / "data"
    old._own_folder(data.parent, 0o711)
    old._server_folder(data)
    argv = ["-D", old._seen(data), "-U", "postgres", "--auth=peer", "--no-sync", "--encoding=UTF8", "--locale=C"]
    old._tool(OLD, "initdb", *argv, *(["--data-checksums"] if checksums else []))
    return old


async def fill_old_cluster(folder: Path, *, checksums: bool = True, crashed: bool = False) -> None:
    old = await asyncio.to_thread(make_old_cluster, folder, checksums=checksums)
    embedded = EmbeddedPostgres(folder)
    embedded._home = old
    await embedded._launch(OLD)
    await embedded._prepare_database()
    await sql(
        embedded.urls.owner,
        "CREATE TABLE kept (id int PRIMARY KEY, body jsonb)",
        "INSERT INTO kept SELECT n, jsonb_build_object('n', n) FROM generate_series(1, 1000) n",
        "GRANT SELECT ON kept TO quazzar_app",
        "SELECT 1",
    )
    if crashed:
        assert embedded.pid is not None
        os.kill(embedded.pid, signal.SIGKILL)
        await embedded.wait()
    await embedded._end()


async def check_upgraded(urls: DatabaseUrls, folder: Path) -> None:
    assert (await sql(urls.app, "SHOW server_version")).startswith(f"{MAJOR}.")
    assert await sql(urls.app, "SELECT sum((body->>'n')::int) FROM kept") == 500500
    assert await sql(urls.app, "SHOW data_checksums") == "on"
    for _ in range(1000):
        if names(folder) == {str(MAJOR), "conf", "lock", "log", "run"}:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"left behind: {names(folder)}")


async def test_an_older_cluster_is_upgraded(make: Make, data_dir: Path) -> None:
    worst = "closed" in data_dir.parts
    await fill_old_cluster(data_dir, checksums=not worst, crashed=worst)
    embedded = make(data_dir)
    began = time.monotonic()
    urls = await embedded.start()
    print(f"upgraded after {time.monotonic() - began:.3f} s")
    await check_upgraded(urls, data_dir)
    await embedded.stop()
    await check_upgraded(await embedded.start(), data_dir)


@pytest.mark.slow
async def test_a_kill_during_the_upgrade_loses_nothing(make: Make, open_folder: Path) -> None:
    folder = open_folder / "data"
    await fill_old_cluster(folder)
    for seconds in (0.5, 1.2, 2.0, 2.8):
        with owner_process(folder) as (owner, _):
            await under_way(folder, f"{MAJOR}.new-*")
            await asyncio.sleep(seconds)
            owner.kill()
            await asyncio.to_thread(owner.wait)
        if (folder / f"postgres/{MAJOR}").exists():
            break
        assert (folder / f"postgres/{OLD}/data/PG_VERSION").read_text() == f"{OLD}\n"
    await check_upgraded(await make(folder).start(), folder)


@pytest.mark.slow
async def test_a_cancelled_upgrade_ends_its_programs_and_loses_nothing(make: Make, closed_folder: Path) -> None:
    data_dir = closed_folder / "data"
    await fill_old_cluster(data_dir)
    for seconds in (0.8, 1.5, 2.2):
        embedded = make(data_dir)
        start = asyncio.create_task(embedded.start())
        await asyncio.sleep(seconds)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
        await embedded.stop()
        assert server_processes(data_dir) == []
    await check_upgraded(await make(data_dir).start(), data_dir)


@pytest.mark.slow
async def test_a_failed_upgrade_leaves_the_old_cluster(make: Make, open_folder: Path) -> None:
    folder = open_folder / "data"
    await fill_old_cluster(folder)
    old = folder / f"postgres/{OLD}/data"
    table = max((old / "base").glob("*/pg_filenode.map"), key=lambda path: path.stat().st_mtime)
    kept = table.read_bytes()
    table.write_bytes(b"\0" * len(kept))
    with pytest.raises(PostgresError, match="pg_upgrade failed: "):
        await make(folder).start()
    table.write_bytes(kept)
    await check_upgraded(await make(folder).start(), folder)


async def test_a_newer_cluster_is_refused(make: Make, open_folder: Path) -> None:
    folder = open_folder / "data"
    (folder / "postgres/19/data").mkdir(parents=True)
    with pytest.raises(PostgresError, match="written by PostgreSQL 19, but this Quazzar brings PostgreSQL 18"):
        await make(folder).start()


async def test_an_older_cluster_without_its_programs_is_refused(make: Make, open_folder: Path) -> None:
    folder = open_folder / "data"
    await fill_old_cluster(folder)
    (folder / f"postgres/{OLD}/data/PG_VERSION").write_text("15\n")
    (folder / f"postgres/{OLD}").rename(folder / "postgres/15")
    with pytest.raises(PostgresError, match="programs of PostgreSQL 15 are missing"):
        await make(folder).start()


async def test_a_cluster_that_is_not_whole_is_refused_and_not_overwritten(make: Make, open_folder: Path) -> None:
    folder = open_folder / "data"
    embedded = make(folder)
    await embedded.start()
    await embedded.stop()
    version = folder / f"postgres/{MAJOR}/data/PG_VERSION"
    version.unlink()
    with pytest.raises(PostgresError, match="is not a whole PostgreSQL 18 cluster"):
        await embedded.start()
    version.write_text(f"{MAJOR}\n")
    shutil.copystat(version.with_name("PG_VERSION"), version)
    os.chown(version, server_user().pw_uid, server_user().pw_gid)
    assert await sql((await embedded.start()).app, "SELECT 1") == 1


# What stands in the way


def sentence(error: pytest.ExceptionInfo[PostgresError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 300
    print(said)
    return said


async def test_a_file_in_the_way(make: Make, open_folder: Path) -> None:
    (open_folder / "data").write_text("")
    with pytest.raises(PostgresError) as error:
        await make(open_folder / "data").start()
    assert f"{open_folder / 'data'} is in the way" in sentence(error)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"can't mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@as_root
@pytest.mark.parametrize("size", ["4k", "200k", "8m", "36m"])
async def test_a_full_disk(make: Make, open_folder: Path, size: str) -> None:
    disk = open_folder / "disk"
    with mounted(disk, f"size={size},mode=755"):
        with pytest.raises(PostgresError) as error:
            await make(disk / "data").start()
        assert "full" in sentence(error)
        assert server_processes(disk) == []
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        embedded = make(disk / "data")
        assert await sql((await embedded.start()).app, "SELECT 1") == 1
        await embedded.stop()


@as_root
async def test_a_read_only_file_system(make: Make, open_folder: Path) -> None:
    disk = open_folder / "disk"
    with mounted(disk, "ro"), pytest.raises(PostgresError) as error:
        await make(disk / "data").start()
    assert "read-only" in sentence(error)


@as_root
async def test_a_cluster_of_another_user(make: Make, open_folder: Path) -> None:
    folder = open_folder / "data"
    embedded = make(folder)
    urls = await embedded.start()
    await sql(urls.owner, "CREATE TABLE kept (id int)", "SELECT 1")
    await embedded.stop()
    data = folder / f"postgres/{MAJOR}/data"
    subprocess.run(["chown", "-R", "nobody", str(data)], check=True)
    with pytest.raises(PostgresError) as error:
        await embedded.start()
    assert "belongs to nobody, but PostgreSQL would run as quazzar-postgres" in sentence(error)
    # A number that nobody has: another image's system user.
    subprocess.run(["chown", "-R", "54321", str(data)], check=True)
    urls = await embedded.start()
    assert await sql(urls.owner, "SELECT count(*) FROM kept") == 0


@as_root
async def test_a_system_user_that_cannot_be_made(
    make: Make, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "SYSTEM_USER", "not a name")
    with pytest.raises(PostgresError) as error:
        await make(open_folder / "data").start()
    assert "must not run as root" in sentence(error)
    monkeypatch.setattr(programs, "SYSTEM_USER", "root")
    with pytest.raises(PostgresError, match="is root"):
        await make(open_folder / "data").start()


async def test_missing_programs(make: Make, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "PACKAGE", "no_such_package")
    with pytest.raises(PostgresError) as error:
        await make(open_folder / "data").start()
    assert "install the package" in sentence(error)


@as_root
async def test_programs_behind_a_closed_folder_are_copied_once(
    make: Make, closed_folder: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = programs.installs()
    package = real[MAJOR].parent
    hidden = closed_folder / "site-packages"
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.with_name(name), hidden / name, ignore=shutil.ignore_patterns("include"))
    monkeypatch.setattr(
        home, "installs", lambda: {major: hidden / package.name / folder.name for major, folder in real.items()}
    )
    embedded = EmbeddedPostgres(closed_folder / "data", cache_dir=open_folder / "cache")
    try:
        with pytest.raises(PostgresError, match="closed to it or open for others"):
            await EmbeddedPostgres(closed_folder / "data", cache_dir=closed_folder / "cache").start()
        urls = await embedded.start()
        assert await sql(urls.app, "SELECT 1") == 1
        (copy,) = (open_folder / "cache").iterdir()
        assert psutil.Process(embedded.pid).exe().startswith(str(copy))
        await embedded.stop()

        made = copy.stat().st_ino
        await embedded.start()
        await embedded.stop()
        assert copy.stat().st_ino == made
        # What a power failure may leave of files that were not written out yet.
        os.truncate(next(copy.glob("*/*/share/postgresql/postgres.bki")), 0)
        await embedded.start()
        assert [entry.name for entry in (open_folder / "cache").iterdir()] == [copy.name]
        assert copy.stat().st_ino != made
    finally:
        await embedded.stop()


async def test_the_log_stays_small(
    running: EmbeddedPostgres, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_LOG_BYTES", 1000)
    log = open_folder / "data/postgres/log/postgres.log"
    with log.open("a") as file:
        file.write("x" * 2000)
    running._home.rotate_log()
    assert log.stat().st_size == 0
    assert log.with_suffix(".log.1").stat().st_size > 2000
    await running.stop()
    assert "database system is shut down" in log.read_text()
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


# As an ordinary user


def ordinary_python() -> tuple[str, str]:
    """An interpreter that nobody can start, and the path on which it finds what we need."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    path = os.pathsep.join([str(ROOT), site])
    nobody = pwd.getpwnam("nobody")
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            tried = subprocess.run(
                [python, "-c", "import quazzar.core.postgres"],
                check=False,
                env={"PYTHONPATH": path},
                user=nobody.pw_uid,
                group=nobody.pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
            )
            if tried.returncode == 0:
                return python, path
    pytest.skip("no interpreter that the user nobody could start")


@as_root
async def test_an_ordinary_user_runs_it_as_itself(open_folder: Path) -> None:
    python, path = await asyncio.to_thread(ordinary_python)
    nobody = pwd.getpwnam("nobody")
    identity: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    own = open_folder / "own"
    own.mkdir(mode=0o700)
    os.chown(own, nobody.pw_uid, nobody.pw_gid)
    told = []
    for kill in (True, False):
        with owner_process(own / "data", python=python, path=path, **identity) as (owner, output):
            told.append(await lines(output))
            assert told[-1]["user"] == "quazzar_owner"
            assert psutil.Process(told[-1]["pid"]).uids().real == nobody.pw_uid
            assert owner.stdin is not None
            owner.kill() if kill else owner.stdin.close()
            await asyncio.to_thread(owner.wait)
    assert told[0]["pid"] == told[1]["pid"], "it was not taken over"
    assert not alive(told[1]["pid"])
    assert stat.S_IMODE((own / "data").stat().st_mode) == 0o700

    with owner_process(open_folder / "data", python=python, path=path, **identity) as (_, output):
        error = (await lines(output))["error"]
    assert "Permission is denied" in error
