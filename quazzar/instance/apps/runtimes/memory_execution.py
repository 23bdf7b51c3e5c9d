"""Commands in containers that exist only in memory: a handful of programs that behave as their namesakes."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from quazzar.instance.apps.runtimes.base import DEFAULT_SHELL, RuntimeFailure, RuntimeUnavailable, Stream

_HUNG_UP: Final = 129
_KILLED: Final = 137
_CHUNKS: Final = 8


class MemoryExecution:
    """See `Execution`. Knows `echo`, `cat`, `true`, `false`, `yes`, and a shell with `exit`, `size` and `echo`."""

    def __init__(self, container_id: str, command: Sequence[str], *, tty: bool, size: tuple[int, int]) -> None:
        """Raises `RuntimeFailure` for a program that it does not know."""
        self.container_id = container_id
        self.size = size
        self.input_bytes = 0
        self._tty = tty
        self._code: int | None = None
        self._lost = asyncio.Event()
        self._output: asyncio.Queue[tuple[Stream, bytes] | None] = asyncio.Queue(_CHUNKS)
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue(_CHUNKS)
        program = self._program(tuple(command))
        self._task = asyncio.create_task(self._run(program), name="memory-execution")

    def _program(self, command: tuple[str, ...]) -> Callable[[], Coroutine[Any, Any, int]]:
        name, arguments = command[0], command[1:]
        if command == DEFAULT_SHELL or name in {"sh", "bash"}:
            return self._shell
        programs: dict[str, Callable[[], Coroutine[Any, Any, int]]] = {
            "cat": self._cat,
            "yes": self._yes,
            "echo": lambda: self._echo(" ".join(arguments)),
            "true": lambda: self._end(0),
            "false": lambda: self._end(1),
        }
        if name not in programs:
            raise RuntimeFailure(f"The image has not the program “{name}”", code="command_not_found")
        return programs[name]

    async def _run(self, program: Callable[[], Coroutine[Any, Any, int]]) -> None:
        self._code = await program()
        await self._output.put(None)

    async def _print(self, text: str, stream: Stream = "stdout") -> None:
        await self._output.put(("stdout" if self._tty else stream, text.encode()))

    async def _end(self, code: int) -> int:
        return code

    async def _echo(self, text: str) -> int:
        await self._print(f"{text}\n")
        return 0

    async def _cat(self) -> int:
        while (data := await self._input.get()) is not None:
            await self._output.put(("stdout", data))
        return 0

    async def _yes(self) -> int:
        while True:
            await self._print("y\n" * 4096)

    async def _shell(self) -> int:
        buffer = b""
        await self._print("$ ")
        while (data := await self._input.get()) is not None:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                word, _, rest = line.decode(errors="replace").partition(" ")
                match word:
                    case "exit":
                        return int(rest or 0)
                    case "size":
                        await self._print("{1} {0}\n".format(*self.size))
                    case "echo":
                        await self._print(f"{rest}\n")
                    case _:
                        await self._print(f"sh: {word}: not found\n", "stderr")
        return 0

    def end(self, code: int = _HUNG_UP) -> None:
        """Somebody ends the command."""
        if self._code is None:
            self._task.cancel()
            self._code = code
            while self._output.full():
                self._output.get_nowait()
            self._output.put_nowait(None)

    def kill(self) -> None:
        """Its container ends, and the command with it."""
        self.end(_KILLED)

    def lose(self) -> None:
        """The engine goes away; the command runs on."""
        self._lost.set()

    async def read(self) -> tuple[Stream, bytes] | None:
        output, lost = asyncio.create_task(self._output.get()), asyncio.create_task(self._lost.wait())
        try:
            await asyncio.wait({output, lost}, return_when=asyncio.FIRST_COMPLETED)
            if output.done():
                return output.result()
            raise RuntimeUnavailable
        finally:
            for task in (output, lost):
                task.cancel()

    async def write(self, data: bytes) -> None:
        if self._code is None:
            self.input_bytes += len(data)
            await self._input.put(data)

    async def end_input(self) -> None:
        if not self._tty:
            await self._input.put(None)

    async def resize(self, columns: int, rows: int) -> None:
        if self._tty:
            self.size = (columns, rows)

    async def exit_code(self) -> int | None:
        if self._lost.is_set():
            raise RuntimeUnavailable
        return self._code

    @property
    def is_running(self) -> bool:
        return self._code is None

    async def close(self) -> None:
        """Only the connection: what the command does goes on."""

    async def stop(self) -> None:
        """For the end of a test: nothing of it is left in the event loop."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
