"""The product as its users run it: a process of its own, spoken to over HTTP, killed when a test says so."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.documents import Documents, Mode

PASSWORD = "correct horse battery staple"
ROOT = Path(__file__).resolve().parents[2]


_PORTS = range(30_000, 32_768)
"""Below what the system gives to whoever asks for any, and above what the product finds for apps."""
_WORKERS = 8
_numbers = itertools.count(random.randrange(len(_PORTS)))


def free_port() -> int:
    """One that is free, and stays so until it is listened on: no other test worker is given it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    for number in itertools.islice(_numbers, len(_PORTS)):
        port = _PORTS[(number * _WORKERS + worker) % len(_PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError("There is no free port")


class Product:
    """One data folder and the process on it; `start` and `kill` may be called again and again."""

    def __init__(self, data_dir: Path, *, mode: Mode = "all", **environment: str) -> None:
        self.data_dir = data_dir
        self.mode = mode
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.environment = {
            "QUAZZAR_RATE_LIMIT_INSTANCE": "1000000/minute",
            "QUAZZAR_RATE_LIMIT_PANEL": "1000000/minute",
            "QUAZZAR_RATE_LIMIT_AUTH": "1000000/minute",
            "QUAZZAR_RUNTIME_DRIVER": "memory",
            "QUAZZAR_AGENT_PORT": str(free_port()),
            "QUAZZAR_LOG_FORMAT": "json",
        } | environment
        self.process: subprocess.Popen[bytes] | None = None
        hooks: dict[str, list[Any]] = {"response": [Documents(mode).check_now]}
        self.http = httpx.Client(base_url=self.url, timeout=30, event_hooks=hooks)

    def start(self, *, wait: bool = True, timeout: float = 120) -> float:
        """Start the process; with `wait` until it is ready. Gives the seconds that it took."""
        began = time.monotonic()
        command = [sys.executable, "-m", "quazzar", f"--mode={self.mode}", "--port", str(self.port)]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("QUAZZAR_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(self.data_dir)],
                cwd=ROOT,
                env=inherited | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_ready(timeout)
        return time.monotonic() - began

    def wait_ready(self, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the process ended with {self.process.returncode}:\n{self.tail()}")
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/api/ready").status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"not ready within {timeout} s:\n{self.tail()}")

    def kill(self) -> None:
        """`kill -9`, as a crash or a lost machine would do it; the embedded database is left to itself."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def setup(self) -> httpx.Response:
        return self.http.post("/api/auth/setup", json={"username": "admin", "password": PASSWORD})

    def login(self) -> dict[str, Any]:
        answer = self.http.post("/api/auth/login", json={"username": "admin", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    def register(self) -> dict[str, str]:
        """The headers of the owner of a new tenant of the panel."""
        prefix = "" if self.mode == "panel" else "/panel"
        body = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada", "organization": "Engines"}
        assert self.http.post(f"{prefix}/api/auth/register", json=body).status_code == 201
        answer = self.http.post(f"{prefix}/api/auth/login", json={"email": body["email"], "password": PASSWORD})
        return self.authorized(answer.json()["access_token"])

    def authorized(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}


@contextlib.contextmanager
def product(data_dir: Path, **options: Any) -> Iterator[Product]:
    """A product that is not started yet; whatever runs at the end is stopped, its database too."""
    one = Product(data_dir, **options)
    try:
        yield one
    finally:
        if one.process is not None and one.process.poll() is None:
            one.stop()
        elif one.process is not None and one.process.returncode not in (0, None):
            # After a kill the embedded database lives on for the next start to adopt: this is that start.
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                one.start()
                one.stop()
        one.http.close()
