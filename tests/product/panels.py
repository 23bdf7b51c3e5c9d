"""Several processes of one panel, with what they share: a PostgreSQL, a Redis, a master key, and Caddy before them."""

import asyncio
import base64
import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import httpx

from quazzar.core.postgres import EmbeddedPostgres
from quazzar.core.postgres.programs import installs
from tests import components
from tests.product.process import ROOT, Product, free_port


class Database:
    """One PostgreSQL beside all processes; its databases are made, dumped and restored by its own programs."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server = EmbeddedPostgres(folder)
        self.url = ""

    def start(self) -> None:
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(60).owner

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url_of(self, name: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def program(self, name: str, *arguments: str) -> None:
        """As the superuser: whom row-level security binds gets no whole dump."""
        (socket,) = parse_qs(urlsplit(self.url).query)["host"]
        folder = installs()[max(installs())] / "bin"
        environment = {"PGHOST": socket, "PGUSER": "postgres", "PATH": os.environ["PATH"]}
        environment |= {f"PG{key.upper()}": values[0] for key, values in self._query().items()}
        command = [str(folder / name), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr

    def _query(self) -> dict[str, list[str]]:
        found = parse_qs(urlsplit(self.url).query)
        return {key: values for key, values in found.items() if key == "port"}


@contextlib.contextmanager
def database(folder: Path) -> Iterator[Database]:
    one = Database(folder)
    one.start()
    try:
        yield one
    finally:
        one.stop()


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def migrate(url: str, key: str, folder: Path) -> None:
    """`quazzar migrate`, as an operator runs it once before the processes."""
    command = [sys.executable, "-m", "quazzar", "migrate", "--mode=panel", "--data-dir", str(folder)]
    environment = {"QUAZZAR_DATABASE_URL": url, "QUAZZAR_AUTH_SECRET_KEY": key}
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def caddy(folder: Path, upstreams: list[Product]) -> Iterator[str]:
    """The Caddy of deploy/ before these processes; gives its address."""
    components.require("caddy")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    places = {"PANEL_SITE": address, "PANEL_UPSTREAMS": " ".join(f"127.0.0.1:{one.port}" for one in upstreams)}
    folders = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "HOME": str(folder)}
    command = [components.program("caddy"), "run", "--adapter", "caddyfile"]
    command += ["--config", str(ROOT / "deploy" / "panel.Caddyfile")]
    with (folder / "caddy.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | places | folders, stdout=log, stderr=log)
    try:
        wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "it has ended"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/api/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")
