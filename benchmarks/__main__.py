"""`python -m benchmarks [section …]`: see `SECTIONS`; all of them when none is named. `fleet` takes flags as well."""

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data import fill
from benchmarks.load import (
    CONNECTIONS,
    LOAD_CORE,
    ROUNDS,
    SERVER_CORE,
    Reading,
    Subject,
    call,
    compare,
    free_port,
    header_script,
    pinned,
    rss_mib,
    wait_ready,
)

UNLIMITED = {
    "QUAZZAR_RATE_LIMIT_INSTANCE": "100000000/minute",
    "QUAZZAR_RATE_LIMIT_PANEL": "100000000/minute",
    "QUAZZAR_RATE_LIMIT_AUTH": "100000000/minute",
    "QUAZZAR_RUNTIME_DRIVER": "memory",
    "QUAZZAR_LOG_FORMAT": "json",
}
PASSWORD = "correct horse battery staple"


class Lab:
    """A temporary data folder whose database runs on the load's core, so that the server has its core to itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.headers: list[str] = []
        self.url = ""

    async def open(self) -> Any:
        from quazzar.core.crypto import load_keyring  # noqa: PLC0415
        from quazzar.core.migrations import upgrade  # noqa: PLC0415
        from quazzar.core.postgres import EmbeddedPostgres  # noqa: PLC0415

        self.data.mkdir(mode=0o755)
        load_keyring(None, self.data)
        cluster = EmbeddedPostgres(self.folder / "cluster")
        urls = await cluster.start()
        await upgrade(urls.owner)
        self.headers = await fill(urls.owner, self.data)
        self.url = urls.owner
        return cluster

    def product(self, port: int, mode: str = "instance") -> Any:
        command = [sys.executable, "-m", "quazzar", f"--mode={mode}", "--port", str(port), "--data-dir", str(self.data)]
        env = UNLIMITED | {"QUAZZAR_DATABASE_URL": self.url}
        return pinned(command, core=SERVER_CORE, ready=f"http://127.0.0.1:{port}/api/ready", env=env)

    def baseline(self, name: str, port: int, path: str, **environment: str) -> Any:
        command = [sys.executable, "-m", "benchmarks.baselines", name, str(port)]
        env = {"BENCH_DATABASE_URL": self.url} | environment
        return pinned(command, core=SERVER_CORE, ready=f"http://127.0.0.1:{port}{path}", env=env)


def table(title: str, readings: dict[str, Reading], base: str) -> None:
    print(f"\n{title} (medians of {ROUNDS} interleaved rounds)")
    for name, reading in readings.items():
        ratio = reading.rate / readings[base].rate
        tail = reading.p99 / readings[base].p99
        print(
            f"  {name:42} {reading.rate:9.0f}/s  ratio {ratio:5.2f}  p99 {reading.p99:7.2f} ms ({tail:4.2f}x)"
            f"  core used {reading.busy:4.0%}"
        )


def me(lab: Lab) -> None:
    """`GET /api/auth/me`: JWT, session check, rate limit, all headers, 10,000 clients; base: a bare handler."""
    one, other = free_port(), free_port()
    path = "/api/auth/me"
    script = header_script(lab.folder, "clients", lab.headers)
    with lab.baseline("litestar-me", one, path) as base, lab.product(other) as product:
        readings = compare(
            [
                Subject("bare Litestar handler", f"http://127.0.0.1:{one}{path}", base, script),
                Subject("GET /api/auth/me, 10,000 clients", f"http://127.0.0.1:{other}{path}", product, script),
            ],
            warm=len(lab.headers) + CONNECTIONS,
        )
    table("GET /api/auth/me", readings, "bare Litestar handler")


def apps(lab: Lab) -> None:
    """`GET /api/apps` with 50 apps; base: raw ASGI with the same query; and FastAPI with the usual parts."""
    from benchmarks.fastapi_app import token  # noqa: PLC0415

    ports = [free_port() for _ in range(3)]
    path = "/api/apps"
    ours = header_script(lab.folder, "one", lab.headers[:1])
    session = asyncio.run(_first_session(lab.url))
    theirs = header_script(lab.folder, "fastapi", [f"Bearer {token(session)}"])
    with (
        lab.baseline("raw-apps", ports[0], path) as raw,
        lab.product(ports[1]) as product,
        lab.baseline("fastapi-apps", ports[2], path) as fastapi,
    ):
        readings = compare(
            [
                Subject("raw ASGI, asyncpg, msgspec", f"http://127.0.0.1:{ports[0]}{path}", raw),
                Subject("GET /api/apps, everything on", f"http://127.0.0.1:{ports[1]}{path}", product, ours),
                Subject("FastAPI with the usual parts", f"http://127.0.0.1:{ports[2]}{path}", fastapi, theirs),
            ]
        )
    table("GET /api/apps, 50 apps", readings, "raw ASGI, asyncpg, msgspec")
    rates = {name: reading.rate for name, reading in readings.items()}
    print(f"  against FastAPI: {rates['GET /api/apps, everything on'] / rates['FastAPI with the usual parts']:.1f}x")


async def _first_session(url: str) -> str:
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SELECT id FROM sessions WHERE realm = 'instance' ORDER BY id LIMIT 1"))
    finally:
        await connection.close()


def gate(_: Lab) -> None:
    """CPU time of the gate alone, as a share of a bare request's CPU time on the same server."""
    from benchmarks.gate import measure  # noqa: PLC0415

    measure()


def start(lab: Lab) -> None:
    """Seconds from the start to readiness, and resident memory of an idle instance."""
    print("\nStart to ready, and memory")
    empty, existing, resident = [], [], []
    for number in range(3):
        data = lab.folder / f"start-{number}"
        for times in (empty, existing):
            port = free_port()
            command = [sys.executable, "-m", "quazzar", "--mode=instance", "--port", str(port), "--data-dir", str(data)]
            began = time.monotonic()
            with pinned(command, core=f"{SERVER_CORE},{LOAD_CORE}", ready=None, env=UNLIMITED) as pid:
                wait_ready(f"http://127.0.0.1:{port}/api/ready")
                times.append(time.monotonic() - began)
                if times is existing:
                    time.sleep(10)
                    resident.append(rss_mib(pid))
    print(f"  empty data folder    {statistics.median(empty):5.2f} s (6 s at most)")
    print(f"  existing data folder {statistics.median(existing):5.2f} s (3 s at most)")
    print(f"  mode instance, idle  {statistics.median(resident):5.0f} MiB resident (120 MiB at most)")


def logins(lab: Lab) -> None:
    """64 logins at once: what they do to another endpoint's p99, and to memory."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    lab_data = lab.folder / "logins"
    command = [sys.executable, "-m", "quazzar", "--mode=instance", "--port", str(port), "--data-dir", str(lab_data)]
    with pinned(command, core=f"{SERVER_CORE},{LOAD_CORE}", ready=f"{base}/api/ready", env=UNLIMITED) as pid:
        credentials = json.dumps({"username": "admin", "password": PASSWORD}).encode()
        call(f"{base}/api/auth/setup", credentials)
        session = json.loads(call(f"{base}/api/auth/login", credentials))["access_token"]
        # A key, since only the newest twenty sessions stay.
        wanted = json.dumps({"name": "bench", "scopes": ["apps:read"]}).encode()
        key = json.loads(call(f"{base}/api/auth/api-keys", wanted, {"Authorization": f"Bearer {session}"}))["key"]
        headers = {"Authorization": f"Bearer {key}"}
        idle = [timed(lambda: call(f"{base}/api/apps", None, headers)) for _ in range(500)]
        before, peak = rss_mib(pid), 0.0
        statuses: list[int] = []
        threads = [
            threading.Thread(target=_login, args=(f"{base}/api/auth/login", credentials, statuses)) for _ in range(64)
        ]
        busy: list[float] = []
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            busy.append(timed(lambda: call(f"{base}/api/apps", None, headers)))
            peak = max(peak, rss_mib(pid))
        for thread in threads:
            thread.join()
    good = statuses.count(200)
    print(f"\n64 logins at once: {good} logged in, {len(statuses) - good} told to come back")
    print(
        f"  p99 of GET /api/apps: idle {p99(idle):.2f} ms, meanwhile {p99(busy):.2f} ms: {p99(busy) / p99(idle):.1f}x"
    )
    print(f"  memory: {before:.0f} MiB before, {peak:.0f} MiB at most: +{peak - before:.0f} MiB (300 MiB at most)")


def _login(url: str, body: bytes, statuses: list[int]) -> None:
    try:
        call(url, body)
        statuses.append(200)
    except urllib.error.HTTPError as error:
        statuses.append(error.code)


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def deliveries(lab: Lab) -> None:
    """Signed webhook deliveries a second, and how soon an event is on its way when idle."""
    print(flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.webhooks", lab.url], check=True)


def publishing(lab: Lab) -> None:
    """A request that announces an event against the same one in a process that announces nothing."""
    print("\nPOST /api/auth/api-keys, which announces an event")
    with contextlib.ExitStack() as stack:
        posts = {}
        for name, module in (("announcing", "quazzar"), ("silent", "benchmarks.silent")):
            port, data = free_port(), lab.folder / f"publishing-{name}"
            arguments = ["--mode=instance", "--port", str(port), "--data-dir", str(data)]
            command = [sys.executable, "-m", module, *arguments]
            base = f"http://127.0.0.1:{port}"
            stack.enter_context(pinned(command, core=SERVER_CORE, ready=f"{base}/api/ready", env=UNLIMITED))
            posts[name] = _key_maker(base)
        taken: dict[str, list[float]] = {name: [] for name in posts}
        for _ in range(400):
            for name, post in posts.items():
                taken[name].append(post())
    medians = {name: statistics.median(values[20:]) for name, values in taken.items()}
    for name, median in medians.items():
        print(f"  {name:12} median {median:5.2f} ms")
    added = medians["announcing"] / medians["silent"] - 1
    print(f"  an event adds {added:.1%} (15 % at most)")


def _key_maker(base: str) -> Callable[[], float]:
    """Sets an instance up; each call makes one API key and gives how many milliseconds that took."""
    credentials = json.dumps({"username": "admin", "password": PASSWORD}).encode()
    call(f"{base}/api/auth/setup", credentials)
    token = json.loads(call(f"{base}/api/auth/login", credentials))["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    wanted = json.dumps({"name": "bench", "scopes": ["apps:read"]}).encode()

    def make() -> float:
        began = time.perf_counter()
        made = json.loads(call(f"{base}/api/auth/api-keys", wanted, headers))
        taken = (time.perf_counter() - began) * 1000
        call(f"{base}/api/auth/api-keys/{made['id']}", None, headers, method="DELETE")
        return taken

    return make


def followers(lab: Lab) -> None:
    """1,000 followers of one feed: what they cost in memory."""
    from benchmarks.followers import measure  # noqa: PLC0415

    port = free_port()
    with lab.product(port) as pid:
        asyncio.run(measure(f"http://127.0.0.1:{port}", lab.headers[0], pid))


def commands(lab: Lab) -> None:
    """How soon a command is on all of 1,000 instances, and their reports are written down."""
    print(flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.commands", lab.url], check=True)


def instances(lab: Lab) -> None:
    """`GET /api/fleet/instances` with 200 of them; base: raw ASGI with the query that it needs."""
    from benchmarks.data import INSTANCES  # noqa: PLC0415

    one, other = free_port(), free_port()
    base, path = f"http://127.0.0.1:{other}", f"/api/fleet/instances?limit={INSTANCES}"
    with lab.product(other, mode="panel") as product:
        body = {"email": "list@example.com", "password": PASSWORD, "name": "List", "organization": "List"}
        call(f"{base}/api/auth/register", json.dumps(body).encode())
        answer = json.loads(
            call(f"{base}/api/auth/login", json.dumps({key: body[key] for key in ("email", "password")}).encode())
        )
        token = {"Authorization": f"Bearer {answer['access_token']}"}
        tenant = json.loads(call(f"{base}/api/auth/me", None, token))["tenant"]["id"]
        asyncio.run(_fill_instances(lab.url, tenant, INSTANCES))
        assert len(json.loads(call(f"{base}{path}", None, token))) == INSTANCES
        ours = header_script(lab.folder, "list", [token["Authorization"]])
        with lab.baseline("raw-instances", one, "/", BENCH_TENANT=tenant) as raw:
            readings = compare(
                [
                    Subject("raw ASGI, asyncpg, msgspec", f"http://127.0.0.1:{one}{path}", raw, ours),
                    Subject("GET /api/fleet/instances", f"{base}{path}", product, ours),
                ]
            )
    table("GET /api/fleet/instances, 200 instances (0.6 at least)", readings, "raw ASGI, asyncpg, msgspec")


async def _fill_instances(url: str, tenant_id: str, count: int) -> None:
    from benchmarks.measurements import a_state, make_instances  # noqa: PLC0415
    from quazzar.core.db import Database  # noqa: PLC0415

    database = Database(url)
    await make_instances(database, tenant_id, count, a_state())
    await database.close()


def fleet(_: Lab) -> None:
    """5,000 simulated instances on one panel: heartbeats, a command to 1,000 of them, and a restart under all."""
    subprocess.run([sys.executable, "-m", "benchmarks", "fleet", "--instances", "5000"], check=True)


def measurements(lab: Lab) -> None:
    """What instances measure: taken in against COPY of the same rows, and read from among ten million."""
    print(flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.measurements", lab.url], check=True)


def engine(lab: Lab) -> None:
    """Apps on a real engine: installs against bare calls, long logs, followers, 200 apps looked at and measured."""
    from benchmarks.apps_engine import measure  # noqa: PLC0415

    measure(lab.folder)


SECTIONS: dict[str, Callable[[Lab], None]] = {
    section.__name__: section
    for section in (
        me,
        apps,
        gate,
        start,
        logins,
        deliveries,
        publishing,
        followers,
        instances,
        commands,
        fleet,
        measurements,
        engine,
    )
}


async def main(names: list[str]) -> None:
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with tempfile.TemporaryDirectory(prefix="quazzar-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        lab = Lab(folder)
        cluster = await lab.open()
        try:
            for section in names or list(SECTIONS):
                await asyncio.to_thread(SECTIONS[section], lab)
        finally:
            await cluster.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["fleet"]:
        from benchmarks.fleet import main as simulate

        simulate(sys.argv[2:])
    elif unknown := [name for name in sys.argv[1:] if name not in SECTIONS]:
        sys.exit(f"There is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    else:
        asyncio.run(main(sys.argv[1:]))
