"""The process that serves: sockets claimed before anything starts, signals, and an end that lets requests finish."""

import asyncio
import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import structlog
import uvicorn
import uvloop
from uvicorn.server import HANDLED_SIGNALS

from quazzar.core.exchange import App
from quazzar.core.handshakes import TlsListener
from quazzar.core.memory import give_back
from quazzar.core.protocol import ServerConfig, UvicornConfig

__all__ = ["CannotListen", "Server", "ServerConfig", "StartFailed", "listen", "run_server"]

log = structlog.get_logger(__name__)


class CannotListen(Exception):
    """The address can't be listened on; the text is one sentence for whoever started the process."""


class StartFailed(Exception):
    """The app's start-up failed; the log has the reason."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address that `host` stands for; port 0 takes one free port for all of them.

    Nothing connects to them before a server takes them over. Raises `CannotListen`.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError, OverflowError):
        raise CannotListen(f"The address {host} can't be resolved") from None
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        taken = sockets[0].getsockname()[1] if sockets and not port else port
        try:
            sockets.append(_bind(family, kind, protocol, (address[0], taken, *address[2:])))
        except OSError as error:
            # A name may stand for an address family that this machine does not have.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                absent = error
                continue
            for other in sockets:
                other.close()
            raise CannotListen(_why(error, host, port)) from error
    if not sockets:
        raise CannotListen(_why(absent, host, port)) from absent
    return sockets


def _bind(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setblocking(False)
        bound.bind(address)
        # Bound alone does not claim the port: another program could still start to listen on it.
        bound.listen(2048)
    except OSError:
        bound.close()
        raise
    return bound


def _why(error: OSError | None, host: str, port: int) -> str:
    match error.errno if error is not None else None:
        case errno.EADDRINUSE:
            return f"Port {port} on {host} is already in use; stop the other program or choose another port"
        case errno.EACCES | errno.EPERM:
            return f"Port {port} on {host} needs more rights than this process has; choose one above 1023"
        case errno.EADDRNOTAVAIL:
            return f"This machine does not have the address {host}"
        case _:
            return f"Port {port} on {host} can't be listened on"


class Server(uvicorn.Server):
    """One listener and the app behind it.

    `run` blocks until the process is told to stop; `serve` does the same inside a running loop and touches signals only
    in the main thread with `signals`. `stop` asks for a graceful end: no new connections, `on_draining`, requests in
    flight get `drain_seconds`, then the app's shutdown `close_seconds`. A second signal ends the process at once.
    """

    def __init__(
        self,
        app: App,
        host: str,
        port: int,
        *,
        config: ServerConfig | None = None,
        on_started: Callable[[list[tuple[str, int]]], None] | None = None,
        on_draining: Callable[[], None] | None = None,
        signals: bool = True,
    ) -> None:
        """Claims the address at once, before the app has begun to start; raises `CannotListen`."""
        self.edge = config or ServerConfig()
        super().__init__(UvicornConfig(app, self.edge))
        self.sockets = listen(host, port)
        self.addresses: list[tuple[str, int]] = [bound.getsockname()[:2] for bound in self.sockets]
        self._on_started = on_started
        self._on_draining = on_draining
        self._signals = signals

    @property
    def port(self) -> int:
        """The port that was bound, also when 0 was asked for."""
        return self.addresses[0][1]

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on an event loop of its own until stopped; returns after a graceful end. Raises `StartFailed`."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self.serve(sockets))

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        _allow_many_files()
        try:
            with self.capture_signals():
                await self._serve(sockets or self.sockets)
        finally:
            for bound in self.sockets:
                bound.close()

    def stop(self) -> None:
        """Ask for a graceful end; safe to call again."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets if self.edge.tls is None else [])
        except SystemExit:
            raise StartFailed("The start failed; the log says why") from None
        if self.edge.tls is not None:
            most = self.edge.most_handshakes
            self.servers: Any = [
                TlsListener(bound, self.edge.tls, self._protocol, most=most) for bound in sockets or self.sockets
            ]
        if self._signals:
            # What is there now lives as long as the process; the collector need not look at it again.
            gc.collect()
            gc.freeze()
            give_back()
            # Requests make many short-lived objects: looking at them less often cuts the slowest answers.
            gc.set_threshold(20_000, 10, 10)
            gc.enable()
        if self._on_started is not None and not self.should_exit:
            self._on_started(self.addresses)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._on_draining is not None:
            self._on_draining()
        try:
            async with asyncio.timeout(self.edge.drain_seconds + self.edge.close_seconds):
                await super().shutdown(sockets)
        except TimeoutError:
            log.warning("The end took too long and was cut short")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signal again afterwards: a graceful end is exit code 0."""
        if not self._signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


def _allow_many_files() -> None:
    """Raise the soft limit of open files, which is made for interactive programs, up to what the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_server(
    app: App,
    host: str,
    port: int,
    *,
    on_started: Callable[[list[tuple[str, int]]], None] | None = None,
    on_draining: Callable[[], None] | None = None,
    config: ServerConfig | None = None,
) -> None:
    """Serve `app` until SIGINT or SIGTERM; returns after a graceful end, so the process may exit with 0.

    `on_started` gets the bound addresses once requests are taken; `on_draining` is called when the end begins. Raises
    `CannotListen` before the app has started, `StartFailed` when its start-up fails.
    """
    Server(app, host, port, config=config, on_started=on_started, on_draining=on_draining).run()
