"""A network between an instance and its panel, that a test can take away."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any


class Forwarder:
    """Passes bytes on between `port` and a port behind it."""

    def __init__(self, behind: int) -> None:
        self.port = 0
        self._behind = behind
        self._open = asyncio.Event()
        self._open.set()
        self._lines: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Nobody gets through any more, and whoever had a line hears so."""
        assert self._server is not None
        self._server.close()
        await self.lose_lines()

    def fall_silent(self) -> None:
        """Whatever is sent arrives nowhere, and nobody is told."""
        self._open.clear()

    def go_on(self) -> None:
        """What was sent meanwhile on lines that are still held arrives."""
        self._open.set()

    async def lose_lines(self) -> None:
        """All lines break, with what is on its way on them."""
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        writers = [writer]
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._open.wait()
                inner, outer = await asyncio.open_connection("127.0.0.1", self._behind)
                writers.append(outer)
                await _first(self._copy(reader, outer), self._copy(inner, writer))
        finally:
            self._lines.discard(line)
            for one in writers:
                one.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        await self._open.wait()


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Until one of them has ended; the others end with it."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
