"""Apps on a real engine: 200 that run, looked at and measured; long logs, many followers; installs against bare calls.

Needs root, Docker and busybox, as the tests do. The engine is one of its own, in a network namespace of its own.
"""

import asyncio
import json
import random
import resource
import statistics
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from benchmarks.load import SERVER_CORE, call, cpu_seconds, free_port, pinned, rss_mib
from quazzar.core.ids import new_id
from quazzar.core.postgres import EmbeddedPostgres
from quazzar.instance.apps.runtimes.configs import DockerConfig
from quazzar.instance.apps.runtimes.docker import DockerRuntime
from quazzar.instance.apps.spec import AppSpec, NetworkSpec, ServiceSpec
from tests.components import DockerEngine, docker_engine

APPS = 200
FOLLOWERS = 50
INSTALLS = 10
IMAGE = "busybox:1.37"
LINE = "x" * 80
ROOM = ("--default-address-pool", "base=10.200.0.0/14,size=24")
"""A network for each of 200 apps, as docs/operating.md says; the engine's own pools hold about 30."""
COMPOSE = f"""\
x-quazzar: {{slug: sleeper, version: "1", title: Sleeper}}
services:
  web:
    image: {IMAGE}
    command: ["sh", "-c", "exec sleep 100000"]
    stop_grace_period: 1s
    networks: [default]
"""


async def silent(_: float, __: str) -> None:
    return


def app(command: str, *, networks: tuple[NetworkSpec, ...] = ()) -> AppSpec:
    app_id = new_id("app")
    service = ServiceSpec(name="web", image=IMAGE, command=("sh", "-c", command))
    return AppSpec(app_id=app_id, project=f"b{app_id[-8:]}", services=(service,), networks=networks)


def used() -> float:
    """CPU seconds of this process so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def many(runtime: DockerRuntime) -> None:
    """What looking at 200 running apps and measuring them costs this process; the engine's share is not in it."""
    print(f"  starting {APPS} apps …", flush=True)
    gate = asyncio.Semaphore(4)

    async def up() -> None:
        async with gate:
            await runtime.up(app("exec sleep 100000"), silent)

    await asyncio.gather(*(up() for _ in range(APPS)))
    await runtime.measure()
    cpu, seconds = [], []
    for _ in range(5):
        before, began = used(), time.perf_counter()
        readings = await runtime.measure()
        cpu.append(used() - before)
        seconds.append(time.perf_counter() - began)
        assert len(readings) >= APPS
    share = statistics.median(cpu) / 15 * 100
    print(f"  stats of {APPS}: {statistics.median(cpu):.2f} s of CPU in {statistics.median(seconds):.2f} s,")
    print(f"    each 15 s that is {share:.1f} % of a core (10 % at most); each 10 s {share * 1.5:.1f} %")
    cpu = []
    for _ in range(3):
        before = used()
        assert len(await runtime.find()) >= APPS
        cpu.append(used() - before)
    share = statistics.median(cpu) / 30 * 100
    print(f"  a full look of the reconciler: {statistics.median(cpu):.2f} s of CPU;", end=" ")
    print(f"each 30 s that is {share:.1f} % of a core (2 % at most)")


async def logs(runtime: DockerRuntime) -> None:
    """The last 200 of 50 MB, and 50 followers of a log that goes on."""
    lines = 50_000_000 // (len(LINE) + 1)
    spec = app(f"yes {LINE} | head -n {lines}; touch /tmp/done; exec sleep 100000")
    # The engine keeps three files of 10 MB: what is asked for is the end of all that it has.
    await runtime.up(spec, silent)
    while True:
        last = [one async for one in runtime.logs(spec.app_id, tail=1)]
        await asyncio.sleep(1)
        if last and [one async for one in runtime.logs(spec.app_id, tail=1)] == last:
            break
    times = []
    before = resident()
    for _ in range(10):
        began = time.perf_counter()
        found = [one async for one in runtime.logs(spec.app_id, tail=200)]
        times.append((time.perf_counter() - began) * 1000)
        assert len(found) == 200
    print(f"  tail=200 of 50 MB of logs: {statistics.median(times):.0f} ms (100 ms at most),", end=" ")
    print(f"memory +{resident() - before:.1f} MiB")

    talker = app("while true; do echo hello; sleep 0.2; done")
    await runtime.up(talker, silent)
    before, counts = resident(), [0] * FOLLOWERS

    async def follow(number: int) -> None:
        async with aclosing(runtime.logs(talker.app_id, tail=10, follow=True)) as lines_:
            async for _ in lines_:
                counts[number] += 1

    tasks = [asyncio.create_task(follow(number)) for number in range(FOLLOWERS)]
    await asyncio.sleep(10)
    print(
        f"  {FOLLOWERS} followers: +{resident() - before:.1f} MiB (60 MiB at most), {min(counts)} lines at least each"
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def installs(runtime: DockerRuntime, engine: DockerEngine) -> None:
    """A one-service app whose image is there: ours against the same calls made bare, turn by turn."""
    ours, bare = [], []
    for number in range(INSTALLS):
        began = time.perf_counter()
        spec = app("exec sleep 100000", networks=(NetworkSpec(name="default"),))
        await runtime.pull(spec, silent)
        await runtime.up(spec, silent)
        await runtime.get(spec.app_id)
        ours.append(time.perf_counter() - began)
        bare.append(await asyncio.to_thread(_bare, engine, f"bare{number}-{random.randrange(10**9)}"))
    ratio = statistics.median(ours) / statistics.median(bare)
    print(
        f"  install: {statistics.median(ours) * 1000:.0f} ms, bare calls {statistics.median(bare) * 1000:.0f} ms:",
        end=" ",
    )
    print(f"{ratio:.2f}x (1.5x at most)")


def _bare(engine: DockerEngine, name: str) -> float:
    began = time.perf_counter()
    engine.ok("GET", f"/images/{IMAGE}/json")
    engine.ok("POST", "/networks/create", body={"Name": name, "CheckDuplicate": True})
    body: dict[str, Any] = {
        "Image": IMAGE,
        "Cmd": ["sh", "-c", "exec sleep 100000"],
        "HostConfig": {"NetworkMode": name, "RestartPolicy": {"Name": "unless-stopped"}},
        "NetworkingConfig": {"EndpointsConfig": {name: {"Aliases": ["web"]}}},
    }
    made = engine.ok("POST", "/containers/create", params={"name": name}, body=body)["Id"]
    engine.ok("POST", f"/containers/{made}/start")
    json.dumps(engine.ok("GET", f"/containers/{made}/json"))
    return time.perf_counter() - began


async def _measure(engine: DockerEngine) -> None:
    runtime = DockerRuntime(DockerConfig(host=engine.host))
    try:
        await installs(runtime, engine)
        await logs(runtime)
        await many(runtime)
    finally:
        await runtime.close()


async def whole(folder: Path, engine: DockerEngine) -> None:
    """The product with 200 running apps, whose database and engine run on the other core: its list, and its idling."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "quazzar", "--mode=instance", "--port", str(port), "--data-dir", f"{folder}/whole"]
    cluster = EmbeddedPostgres(folder / "whole-cluster")
    urls = await cluster.start()
    environment = {
        "QUAZZAR_DATABASE_URL": urls.owner,
        "QUAZZAR_RUNTIME_DOCKER_HOST": engine.host,
        "QUAZZAR_RATE_LIMIT_INSTANCE": "100000000/minute",
    }
    try:
        with pinned(command, core=SERVER_CORE, ready=f"{url}/api/ready", env=environment) as pid:
            await asyncio.to_thread(_watch, url, pid)
    finally:
        await cluster.stop()


def _watch(url: str, pid: int) -> None:
    credentials = json.dumps({"username": "admin", "password": "correct horse battery staple"}).encode()
    call(f"{url}/api/auth/setup", credentials)
    token = json.loads(call(f"{url}/api/auth/login", credentials))["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    idle(pid, 0)
    call(f"{url}/api/templates", json.dumps({"compose": COMPOSE}).encode(), headers)
    for number in range(APPS):
        call(f"{url}/api/apps", json.dumps({"template": "sleeper", "name": f"sleeper-{number}"}).encode(), headers)
    path = f"{url}/api/apps?limit={APPS}"
    while sum(one["status"] == "running" for one in json.loads(call(path, None, headers))) < APPS:
        time.sleep(2)
    times = []
    for _ in range(500):
        began = time.perf_counter()
        call(path, None, headers)
        times.append((time.perf_counter() - began) * 1000)
    times.sort()
    median, slowest = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(f"  GET /api/apps of {APPS}: median {median:.1f} ms, p99 {slowest:.1f} ms (30 ms at most)")
    idle(pid, APPS)


def idle(pid: int, apps: int) -> None:
    """What nobody asks for: the looks of the reconciler, stats each 15 s, metrics, the queue."""
    time.sleep(10)
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(60)
    share = (cpu_seconds(pid) - before) / (time.monotonic() - began)
    print(f"  the whole product with {apps} apps, idle: {share:.1%} of a core, {rss_mib(pid):.0f} MiB")


def measure(folder: Path) -> None:
    print("\nApps on a real engine")
    with docker_engine(folder) as engine:
        engine.import_busybox(IMAGE)
        asyncio.run(_measure(engine))
    with docker_engine(folder, *ROOM) as engine:
        engine.import_busybox(IMAGE)
        asyncio.run(whole(folder, engine))
