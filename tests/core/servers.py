"""Servers that tests start beside the database."""

import asyncio
import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from quazzar.core.server import Server, ServerConfig
from tests import components


@contextlib.contextmanager
def redis_server() -> Iterator[int]:
    """A Redis of its own; gives its port. Skips the test where none is installed."""
    components.require("redis")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(5):
            process, port = _start_redis(folder)
            if process is not None:
                break
        else:
            pytest.fail("redis-server did not start")
        try:
            yield port
        finally:
            process.terminate()
            process.wait(timeout=20)


def _start_redis(folder: str) -> tuple[subprocess.Popen[bytes] | None, int]:
    """None where somebody else took the port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    process = subprocess.Popen([*command, "--pidfile", f"{folder}/{port}.pid"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    # It is written when the port has been opened; whoever else may answer there does not write it.
    while not Path(folder, f"{port}.pid").exists():
        if process.poll() is not None:
            return None, port
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            pytest.fail("redis-server did not start")
        time.sleep(0.02)
    return process, port


@contextlib.asynccontextmanager
async def serving(asgi: Any) -> AsyncIterator[int]:
    """An app behind the real server, in this event loop; gives its port."""
    server = Server(asgi, "127.0.0.1", 0, config=ServerConfig(lifespan=False), signals=False)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.port
    server.stop()
    await task
