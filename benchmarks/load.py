"""One core for the server, the other for the load: start, warm, measure, and take medians of interleaved rounds."""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SERVER_CORE, LOAD_CORE = "0", "1"
SECONDS = int(os.environ.get("QUAZZAR_BENCH_SECONDS", "4"))
ROUNDS = int(os.environ.get("QUAZZAR_BENCH_ROUNDS", "5"))
CONNECTIONS = 32


class Reading(NamedTuple):
    """Requests a second, p99 in milliseconds, and the share of its core that the server used."""

    rate: float
    p99: float
    busy: float


class Subject(NamedTuple):
    """Something that serves: where, which process, and the script that makes wrk's requests."""

    name: str
    url: str
    pid: int
    script: Path | None = None


def free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def pinned(command: Sequence[str], *, core: str, ready: str | None, env: dict[str, str] | None = None) -> Iterator[int]:
    """Run `command` on one core until the block ends; gives its pid once `ready` answers."""
    process = subprocess.Popen(
        ["taskset", "-c", core, *command],
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr if os.environ.get("QUAZZAR_BENCH_VERBOSE") else subprocess.DEVNULL,
    )
    try:
        if ready is not None:
            wait_ready(ready)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_ready(url: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            if error.code in {401, 404}:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"{url} does not answer")


def wrk(subject: Subject, seconds: int) -> Reading:
    """One round of load from the other core."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    if subject.script is not None:
        command += ["-s", str(subject.script)]
    before, began = cpu_seconds(subject.pid), time.monotonic()
    output = subprocess.run([*command, subject.url], capture_output=True, text=True, check=True).stdout
    busy = (cpu_seconds(subject.pid) - before) / (time.monotonic() - began)
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"{subject.name}: {output}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    slowest = re.search(r"99%\s+([\d.]+)(us|ms|s)", output)
    assert rate is not None
    assert slowest is not None
    return Reading(float(rate[1]), float(slowest[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[slowest[2]], busy)


def compare(subjects: Sequence[Subject], *, warm: int = 1) -> dict[str, Reading]:
    """Medians over interleaved rounds, so that what else goes on hits all alike; `warm` requests come first."""
    readings: dict[str, list[Reading]] = {subject.name: [] for subject in subjects}
    for subject in subjects:
        # Every client is known before the measuring begins, as a first request costs a query. Each round of wrk starts
        # with the first client again, so one round has to reach the last.
        seconds = 2
        while (asked := wrk(subject, seconds).rate * seconds) < warm:
            seconds = int(seconds * 1.3 * warm / asked) + 1
    for _ in range(ROUNDS):
        for subject in subjects:
            readings[subject.name].append(wrk(subject, SECONDS))
    return {
        name: Reading(*(statistics.median(values) for values in zip(*rows, strict=True)))
        for name, rows in readings.items()
    }


def header_script(folder: Path, name: str, headers: Sequence[str]) -> Path:
    """A wrk script that goes round a list of Authorization headers; the requests are made before the load begins."""
    values = folder / f"{name}.txt"
    values.write_text("\n".join(headers) + "\n")
    script = folder / f"{name}.lua"
    script.write_text(
        "local ready, at = {}, 0\n"
        "function init(args)\n"
        f"  for line in io.lines({json.dumps(str(values))}) do\n"
        '    ready[#ready + 1] = wrk.format("GET", nil, {["Authorization"] = line, ["Host"] = "localhost"})\n'
        "  end\n"
        "end\n"
        "function request()\n"
        "  at = at % #ready + 1\n"
        "  return ready[at]\n"
        "end\n"
    )
    return script


def median_of(measure: Callable[[], float], times: int = 3) -> float:
    return statistics.median(measure() for _ in range(times))


def call(
    url: str, body: bytes | None = None, headers: dict[str, str] | None = None, *, method: str | None = None
) -> bytes:
    headers = (headers or {}) | ({"Content-Type": "application/json"} if body is not None else {})
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content
