"""A line to the engine that counts what is asked of it, and at one of these calls does something to the engine."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tests.components import Line

When = Literal["before", "after"]
Fault = Callable[[], None]

_CHANGING = {b"POST", b"PUT", b"DELETE"}


class EngineLine(Line):
    """A socket in place of the engine's. Calls that change something are counted.

    At the one that is armed the fault happens before the engine hears of it, or after it has done it: then the caller
    never hears of that.
    """

    def __init__(self, path: Path, behind: Path) -> None:
        super().__init__()
        self.host = f"unix://{path}"
        self.calls: list[str] = []
        self._path = path
        self._behind = behind
        self._armed: tuple[int, When, Fault] | None = None

    def count(self) -> None:
        """Begin to count anew."""
        self.calls = []

    def arm(self, number: int, when: When, fault: Fault) -> None:
        """Let `fault` happen at call `number` from now on (0 is the next)."""
        self.calls = []
        self._armed = (number, when, fault)

    @property
    def is_armed(self) -> bool:
        return self._armed is not None

    def disarm(self) -> None:
        self._armed = None

    async def _listen(self, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> asyncio.Server:
        return await asyncio.start_unix_server(accept, self._path)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        when, fault = self._note(head.partition(b"\r\n")[0])
        if when == "before" and fault is not None:
            await asyncio.to_thread(fault)
        # One request for each connection, so that each is seen.
        head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        inner, outer = await asyncio.open_unix_connection(self._behind)
        sending = asyncio.create_task(_copy(reader, outer))
        try:
            outer.write(head)
            if when == "after" and fault is not None:
                await inner.read()
                await asyncio.to_thread(fault)
                return
            while data := await inner.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            outer.close()

    def _note(self, line: bytes) -> tuple[When | None, Fault | None]:
        method, _, rest = line.partition(b" ")
        if method not in _CHANGING:
            return None, None
        number = len(self.calls)
        self.calls.append(f"{method.decode()} {rest.partition(b' ')[0].decode()}")
        if self._armed is None or self._armed[0] != number:
            return None, None
        _, when, fault = self._armed
        self._armed = None
        return when, fault


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
