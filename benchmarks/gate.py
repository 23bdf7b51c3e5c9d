"""The gate alone: CPU time of a request with and without it, in one process, around the same inner app.

The share is of what a bare request costs on the server, so the bare Litestar handler is measured over HTTP first.
"""

import asyncio
import subprocess
import sys
import time
from typing import Any

from benchmarks.load import SERVER_CORE, Subject, cpu_seconds, free_port, pinned, wrk

REQUESTS = 40_000
CLIENTS = 10_000


async def _inner(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


async def _send(_message: Any) -> None:
    pass


async def _receive() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


def _gate() -> Any:
    from quazzar.core.auth import Principal  # noqa: PLC0415
    from quazzar.core.gate import Gate, GateConfig  # noqa: PLC0415
    from quazzar.core.ratelimit import RateLimiter, parse_bucket  # noqa: PLC0415

    known = {
        b"Bearer %d" % number: Principal(
            realm="instance",
            user_id=f"usr_{number}",
            client=f"usr_{number}",
            scopes=frozenset({"*"}),
            session_id="ses_x",
        )
        for number in range(CLIENTS)
    }

    class Known:
        def cached(self, _realm: Any, authorization: bytes, _address: str) -> Any:
            return known.get(authorization)

        async def resolve(self, *_: Any) -> Any:
            raise AssertionError

    limits: dict[Any, Any] = {"instance": parse_bucket("instance", "100000000/minute")}
    return Gate(_inner, GateConfig(mode="instance", limits=limits), Known(), RateLimiter())


def _scope(number: int) -> dict[str, Any]:
    headers = [
        (b"host", b"localhost"),
        (b"user-agent", b"wrk"),
        (b"authorization", b"Bearer %d" % (number % CLIENTS)),
        (b"accept", b"*/*"),
    ]
    return {
        "type": "http",
        "method": "GET",
        "path": "/api/auth/me",
        "raw_path": b"/api/auth/me",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }


async def _cpu_of(app: Any) -> float:
    """Microseconds of CPU for one call."""
    scopes = [_scope(number) for number in range(REQUESTS)]
    began = time.process_time()
    for scope in scopes:
        scope["state"] = {}
        await app(scope, _receive, _send)
    return (time.process_time() - began) / REQUESTS * 1e6


def _worker() -> None:
    from quazzar.core import logs  # noqa: PLC0415

    logs.configure("info", "json")
    app = _gate()

    async def run() -> None:
        for one in (_inner, app):
            await _cpu_of(one)
        bare = min([await _cpu_of(_inner) for _ in range(3)])
        gated = min([await _cpu_of(app) for _ in range(3)])
        sys.stdout.write(f"{gated - bare}")

    asyncio.run(run())


def measure() -> None:
    alone = subprocess.run(
        ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "benchmarks.gate"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    gate = float(alone.stdout)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/auth/me"
    with pinned(
        [sys.executable, "-m", "benchmarks.baselines", "litestar-me", str(port)], core=SERVER_CORE, ready=url
    ) as pid:
        subject = Subject("bare", url, pid)
        wrk(subject, 2)
        before = cpu_seconds(pid)
        reading = wrk(subject, 4)
        bare = (cpu_seconds(pid) - before) / (reading.rate * 4) * 1e6
    print(f"\nThe gate alone: {gate:.1f} µs of CPU, a bare request {bare:.1f} µs: {gate / bare:.0%} (25 % at most)")


if __name__ == "__main__":
    _worker()
