"""Servers that tests of the core start beside the database."""

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

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
