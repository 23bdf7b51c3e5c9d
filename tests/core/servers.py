"""Servers that tests start beside the database."""

import asyncio
import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from quazzar.core.server import Server, ServerConfig
from tests import components


@contextlib.contextmanager
def redis_server() -> Iterator[int]:
    """A Redis of its own; gives its port. Skips the test where none is installed."""
    components.require("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                if time.monotonic() > deadline:
                    pytest.fail("redis-server did not start")
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=10)


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
