"""`python -m benchmarks fleet …`: thousands of simulated instances against a panel, and what that costs it.

Without `--url` and `--token` a panel of its own is started on one core; then its use of that core and its memory are
told too, and it is restarted under its instances. `--help` lists the rest; docs/fleet.md says what to look at.
"""

import argparse
import asyncio
import contextlib
import getpass
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.error
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.load import LOAD_CORE, SERVER_CORE, call, cpu_seconds, free_port, pinned, rss_mib
from benchmarks.simulator import Fleet, Habits, Member, enrol

PASSWORD = "correct horse battery staple"
UNLIMITED = {
    "QUAZZAR_RATE_LIMIT_PANEL": "100000000/minute",
    "QUAZZAR_RATE_LIMIT_AUTH": "100000000/minute",
    "QUAZZAR_LOG_FORMAT": "json",
    "QUAZZAR_AGENT_PUBLIC_HOST": "127.0.0.1",
}
_TOKEN_USES = 1000
_COMMANDED = 1000


class Api:
    """The panel's API, as its member uses it."""

    def __init__(self, url: str, email: str, password: str) -> None:
        self._url = url.rstrip("/")
        self._credentials = {"email": email, "password": password}
        self._headers: dict[str, str] = {}
        self._until = 0.0

    def _ask(self, path: str, body: Any = None) -> Any:
        if time.monotonic() > self._until:
            answer = json.loads(call(f"{self._url}/api/auth/login", json.dumps(self._credentials).encode()))
            self._headers = {"Authorization": f"Bearer {answer['access_token']}"}
            self._until = time.monotonic() + 600
        content = None if body is None else json.dumps(body).encode()
        return json.loads(call(f"{self._url}{path}", content, self._headers))

    async def get(self, path: str) -> Any:
        return await asyncio.to_thread(self._ask, path)

    async def post(self, path: str, body: Any) -> Any:
        return await asyncio.to_thread(self._ask, path, body)

    async def tokens(self, instances: int) -> list[str]:
        made = []
        for number in range(-(-instances // _TOKEN_USES)):
            body = {"name": f"Simulation {number}", "max_uses": _TOKEN_USES, "tags": ["simulated"]}
            made.append((await self.post("/api/fleet/tokens", body))["token"])
        return made


class OwnPanel:
    """A panel and its database, each on a core, that can be restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.agent_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.pid = 0
        self.database_url = ""
        self._running = contextlib.ExitStack()
        self._cluster: Any = None

    async def open(self) -> Api:
        from quazzar.core.migrations import upgrade  # noqa: PLC0415
        from quazzar.core.postgres import EmbeddedPostgres  # noqa: PLC0415

        os.sched_setaffinity(0, {int(LOAD_CORE)})
        self._cluster = EmbeddedPostgres(self.folder / "cluster")
        urls = await self._cluster.start()
        await upgrade(urls.owner)
        self.database_url = urls.owner
        await self.start()
        body = {"email": "fleet@example.com", "password": PASSWORD, "name": "Fleet", "organization": "Simulation"}
        await asyncio.to_thread(call, f"{self.url}/api/auth/register", json.dumps(body).encode())
        return Api(self.url, body["email"], PASSWORD)

    async def start(self) -> None:
        command = [sys.executable, "-m", "quazzar", "--mode=panel", "--port", str(self.port)]
        process = pinned(
            [*command, "--data-dir", str(self.folder / "data")],
            core=SERVER_CORE,
            ready=f"{self.url}/api/ready",
            env=UNLIMITED | {"QUAZZAR_DATABASE_URL": self.database_url, "QUAZZAR_AGENT_PORT": str(self.agent_port)},
        )
        self.pid = await asyncio.to_thread(self._running.enter_context, process)

    async def stop(self) -> None:
        await asyncio.to_thread(self._running.close)

    async def close(self) -> None:
        await self.stop()
        await self._cluster.stop()


class Watch:
    """What a stretch of time has cost a panel of our own."""

    def __init__(self, panel: OwnPanel | None) -> None:
        self._panel = panel
        self._began = time.monotonic()
        self._before = cpu_seconds(panel.pid) if panel is not None else 0.0

    def __str__(self) -> str:
        if self._panel is None:
            return ""
        seconds = time.monotonic() - self._began
        share = (cpu_seconds(self._panel.pid) - self._before) / seconds
        return f", panel: {share:.0%} of a core, {rss_mib(self._panel.pid):.0f} MiB"


def load() -> str:
    """How busy the machine is with all that it does: above 2 on two cores the times below are those of a crowd."""
    return f"load of the machine {os.getloadavg()[0]:.1f}"


async def steady(fleet: Fleet, api: Api | None, panel: OwnPanel | None, seconds: float) -> None:
    """Heartbeats alone, for a while."""
    before, watch = fleet.tally.count.copy(), Watch(panel)
    lowest = len(fleet.instances)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(min(10.0, max(0.0, end - time.monotonic())))
        if api is not None:
            status = (await api.get("/api/fleet/summary"))["status"]
            lowest = min(lowest, status["online"] + status["degraded"])
    counts = fleet.tally.count - before
    print(
        f"  steady for {seconds:.0f} s: {counts['beats']} heartbeats, {counts['late beats']} late,"
        f" {counts['connects']} reconnects, at least {lowest} of {len(fleet.instances)} online{watch}; {load()}"
    )
    if panel is not None:
        await _compare(fleet, panel)


async def _compare(fleet: Fleet, panel: OwnPanel) -> None:
    """Whether all that was ever measured is in the history, or waits to be sent."""
    import asyncpg  # noqa: PLC0415

    measured, moment = fleet.tally.count["measured"], datetime.now(UTC)
    await asyncio.sleep(2)
    connection = await asyncpg.connect(panel.database_url)
    try:
        await connection.execute("SELECT set_config('app.worker', 'on', false)")
        query = "SELECT count(*) FROM fleet_samples WHERE app_id = '' AND at BETWEEN $1 AND $2"
        kept = await connection.fetchval(query, fleet.began_at, moment)
    finally:
        await connection.close()
    waiting = fleet.waiting(moment)
    missed = measured - kept - waiting
    print(f"  in the history: {kept} of {measured} samples, {waiting} wait to be sent: {missed} missed")


async def restarted(fleet: Fleet, panel: OwnPanel) -> None:
    """The panel goes, and comes back."""
    began = time.monotonic()
    await panel.stop()
    gone = time.monotonic()
    await panel.start()
    ready, watch = time.monotonic(), Watch(panel)
    refused = fleet.tally.refusals.copy()
    await fleet.until_connected(300)
    took = time.monotonic() - ready
    failed = sum((fleet.tally.refusals - refused).values())
    print(
        f"  restart: stopped in {gone - began:.1f} s, ready after {ready - gone:.1f} s, all {len(fleet.instances)}"
        f" back {took:.1f} s later (60 s at most), {failed} attempts failed meanwhile{watch}; {load()}"
    )


async def commanded(fleet: Fleet, api: Api, panel: OwnPanel | None) -> None:
    """One command to a thousand instances."""
    targets = [instance.member.instance_id for instance in fleet.instances[:_COMMANDED]]
    body = {"kind": "instance.refresh", "args": {}, "targets": {"instances": targets}}
    watch, began = Watch(panel), time.monotonic()
    try:
        made = await api.post("/api/fleet/commands", body)
    except urllib.error.HTTPError as error:
        if error.code not in (404, 405):
            raise
        print("  commands: this panel has none")
        return
    answered = time.monotonic() - began
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            while fleet.tally.done[made["id"]] < len(targets):
                await asyncio.sleep(0.05)
    arrived = sorted(moment - began for moment in fleet.tally.orders.get(made["id"], ()))
    done = time.monotonic() - began
    if not arrived:
        print("  commands: none has arrived within a minute")
        return
    print(
        f"  a command to {len(targets)}: answered after {answered:.2f} s, on {len(arrived)} of them, median"
        f" {statistics.median(arrived):.2f} s, p99 {arrived[int(len(arrived) * 0.99)]:.2f} s (2 s at most),"
        f" done on {fleet.tally.done[made['id']]} after {done:.1f} s{watch}; {load()}"
    )


async def run(options: argparse.Namespace) -> None:
    # What the loop has to say of lines that the panel has just cut is counted already.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with _panel_of(options) as (api, panel, folder):
        tokens = options.token or (await api.tokens(options.instances) if api is not None else [])
        began = time.monotonic()
        members: list[Member] = await asyncio.to_thread(enrol, folder, tokens, options.instances)
        if panel is not None:
            members = [msgspec.structs.replace(member, port=panel.agent_port) for member in members]
        took = time.monotonic() - began
        print(f"\nA fleet of {len(members)} instances, {options.apps} apps each (enrolled in {took:.0f} s)", flush=True)
        habits = Habits(apps=options.apps, heartbeat_seconds=options.heartbeat)
        fleet = Fleet(members, folder, habits)
        try:
            watch, began = Watch(panel), time.monotonic()
            await fleet.start(over_seconds=options.spread)
            await fleet.until_connected(300)
            print(f"  all connected after {time.monotonic() - began:.1f} s{watch}; {load()}", flush=True)
            await asyncio.sleep(options.settle)
            await steady(fleet, api, panel, options.seconds)
            if api is not None:
                await commanded(fleet, api, panel)
            if panel is not None:
                await restarted(fleet, panel)
                await asyncio.sleep(options.settle)
                await steady(fleet, api, panel, options.seconds / 2)
        finally:
            await fleet.stop()
            if fleet.tally.refusals:
                print(f"  attempts that failed: {dict(fleet.tally.refusals)}")


@contextlib.asynccontextmanager
async def _panel_of(options: argparse.Namespace) -> AsyncIterator[tuple[Api | None, OwnPanel | None, Path]]:
    if options.url is not None or options.token:
        api = None
        if options.url is not None:
            password = os.environ.get("QUAZZAR_FLEET_PASSWORD") or getpass.getpass("Password: ")
            api = Api(options.url, options.email, password)
        yield api, None, options.state or Path("quazzar-fleet")
        return
    with tempfile.TemporaryDirectory(prefix="quazzar-bench-") as name:
        folder = options.state or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        panel = OwnPanel(folder)
        try:
            yield await panel.open(), panel, folder / "instances"
        finally:
            await panel.close()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fleet", description=__doc__)
    parser.add_argument("--url", help="the panel's API, such as https://panel.example.com; makes tokens, tells status")
    parser.add_argument("--email", help="whose tenant the instances join; QUAZZAR_FLEET_PASSWORD has the password")
    parser.add_argument(
        "--token", action="append", default=[], help="a registration token, instead of --url or with it"
    )
    parser.add_argument("--state", type=Path, help="where the instances keep themselves, and a panel of its own does")
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--apps", type=int, default=3, help="apps on each, of nine values each")
    parser.add_argument("--heartbeat", type=float, help="seconds between heartbeats; the panel's without it")
    parser.add_argument("--spread", type=float, default=60, help="seconds over which they dial first")
    parser.add_argument("--settle", type=float, default=35, help="seconds to wait before each measurement")
    parser.add_argument("--seconds", type=float, default=120, help="how long to measure")
    options = parser.parse_args(arguments)
    if options.url is not None and options.email is None:
        parser.error("--url needs --email")
    return options


def main(arguments: Sequence[str]) -> None:
    import uvloop  # noqa: PLC0415

    options = parse(arguments)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options))
