"""What Prometheus may read: counters of this process, and what stands in its database.

Off unless `metrics.port` is set; then on a loopback port of its own, without a login, so nothing here names a person,
an app or a path.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from quazzar import __version__
from quazzar.core.db import Database
from quazzar.core.gate import LogRequest

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 15.0
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Count = Callable[[Database], Awaitable[Mapping[str, int]]]
"""How many there are now, by the value of the gauge's one label."""


class Metrics:
    """One per process; `watch` comes before `serving`."""

    def __init__(self, *, mode: str) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        build = Gauge("quazzar_build_info", "Release and mode.", ["version", "mode"], registry=self._registry)
        build.labels(__version__, mode).set(1)
        self._requests = Counter(
            "quazzar_http_requests", "Requests that were answered.", ["method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "quazzar_http_request_seconds", "From the head of a request to its answer.", registry=self._registry
        )
        self._counts: list[tuple[Gauge, Count]] = []

    def watch(self, name: str, text: str, label: str, count: Count) -> None:
        """A gauge that is read from the database every `LOOK_SECONDS`."""
        self._counts.append((Gauge(f"quazzar_{name}", text, [label], registry=self._registry), count))

    def observing(self, write: LogRequest) -> LogRequest:
        """`write`, with each request counted first."""

        def observe(
            *, method: str, path: str, status: int, seconds: float, request: str, client: str, principal: str | None
        ) -> None:
            self._requests.labels(method if method in METHODS else "other", str(status)).inc()
            self._seconds.observe(seconds)
            write(
                method=method,
                path=path,
                status=status,
                seconds=seconds,
                request=request,
                client=client,
                principal=principal,
            )

        return observe

    @contextlib.asynccontextmanager
    async def serving(self, port: int, database: Database) -> AsyncIterator[None]:
        """`GET /metrics` on loopback while the block runs; raises `OSError` when the port is taken."""
        server, thread = start_http_server(port, addr="127.0.0.1", registry=self._registry)
        looking = asyncio.create_task(self._look(database), name="metrics")
        try:
            yield
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            await asyncio.to_thread(thread.join)

    async def _look(self, database: Database) -> None:
        while True:
            for gauge, count in self._counts:
                try:
                    found = await count(database)
                except Exception as error:  # noqa: BLE001 - whatever is away now may be back at the next look
                    log.warning("A metric could not be read", reason=type(error).__name__)
                    continue
                gauge.clear()
                for value, number in found.items():
                    gauge.labels(value).set(number)
            await asyncio.sleep(LOOK_SECONDS)
