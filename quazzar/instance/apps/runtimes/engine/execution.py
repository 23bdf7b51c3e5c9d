"""Commands in running containers (`exec`): started, connected, and ended, which no engine does by itself."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from quazzar.instance.apps.runtimes.base import RuntimeFailure, RuntimeUnavailable, Stream
from quazzar.instance.apps.runtimes.engine.connection import CHANGE_SECONDS, Engine
from quazzar.instance.apps.runtimes.engine.failures import Gone, Taken, failure

if TYPE_CHECKING:
    import aiodocker.execs
    import aiodocker.stream

MARK: Final = "QUAZZAR_EXEC"
"""In the environment of a command and of all that it starts: how they are found again."""

_LOOK_SECONDS: Final = 0.02
_COMPLAINT_SECONDS: Final = 5.0
_END_SECONDS: Final = 15.0

# A hang-up first, as a terminal's line that drops gives it; who is still there a second later is killed.
_END: Final = """\
for signal in HUP KILL; do
  found=
  for one in /proc/[0-9]*; do
    if tr '\\0' '\\n' 2>/dev/null <"$one/environ" | grep -qx "$1"; then
      kill -s $signal "${one#/proc/}" 2>/dev/null && found=1
    fi
  done
  [ -n "$found" ] || exit 0
  sleep 1
done
"""


class _Standing(msgspec.Struct, frozen=True, rename="pascal"):
    """From `GET /exec/{id}/json`. `pid` is 0 for a command that could not be started."""

    running: bool = False
    exit_code: int | None = None
    pid: int = 0

    @property
    def is_known(self) -> bool:
        """Whether the engine knows by now if it could start the command; it says `running` while it tries."""
        return self.pid > 0 if self.running else self.exit_code is not None


class DockerExecution:
    """See `Execution`."""

    def __init__(
        self,
        engine: Engine,
        container_id: str,
        command: "aiodocker.execs.Exec",
        stream: "aiodocker.stream.Stream",
        *,
        tty: bool,
    ) -> None:
        self.container_id = container_id
        self._engine = engine
        self._command = command
        self._stream = stream
        self._tty = tty

    async def read(self) -> tuple[Stream, bytes] | None:
        with _lost():
            message = await self._stream.read_out()
        if message is None:
            return None
        return ("stderr" if message.stream == 2 else "stdout"), message.data

    async def write(self, data: bytes) -> None:
        # What is wrong with the line is told by `read`.
        with contextlib.suppress(OSError, RuntimeError, AssertionError):
            await self._stream.write_in(data)

    async def end_input(self) -> None:
        if self._tty:
            return
        answer = self._stream._resp  # noqa: SLF001 - the library closes both ways at once only
        connection = answer.connection if answer is not None else None
        transport = connection.transport if connection is not None else None
        if transport is not None and transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                transport.write_eof()

    async def resize(self, columns: int, rows: int) -> None:
        if self._tty:
            # A command that has just ended has no terminal any more, and engines differ in how they say so.
            with contextlib.suppress(RuntimeFailure):
                async with self._engine.call():
                    await self._command.resize(w=columns, h=rows)

    async def exit_code(self) -> int | None:
        try:
            standing = await self.standing()
        except Gone:
            return None
        return None if standing.running else standing.exit_code

    async def standing(self) -> _Standing:
        async with self._engine.call():
            told = await self._command.inspect()
        return msgspec.convert({key: value for key, value in told.items() if value is not None}, _Standing)

    async def close(self) -> None:
        # Not the library's own `close`: that leaves the answer open when the engine has closed the line already.
        self._stream._closed = True  # noqa: SLF001
        if (answer := self._stream._resp) is not None:  # noqa: SLF001
            answer.close()


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    from aiohttp import ClientError  # noqa: PLC0415 - see `Engine`

    try:
        yield
    except (ClientError, OSError, AssertionError) as error:
        raise RuntimeUnavailable from error


async def start_execution(
    engine: Engine,
    container_id: str,
    command: Sequence[str],
    *,
    exec_id: str,
    size: tuple[int, int] | None,
    service: str,
) -> DockerExecution:
    """Start `command` and wait until it runs (or has ended already); `size` is that of its terminal, if it gets one.

    Raises `RuntimeFailure` when the container does not run, or the image has no such program.
    """
    tty = size is not None
    environment = {MARK: exec_id} | ({"TERM": "xterm-256color"} if tty else {})
    try:
        async with engine.call(CHANGE_SECONDS, service=service) as client:
            made = await client.containers.container(container_id).exec(
                list(command), stdin=True, tty=tty, environment=environment
            )
            stream = made.start()
            await stream._init()  # noqa: SLF001 - what entering it as a context does
    except (Gone, Taken):
        raise not_running(service) from None
    started = DockerExecution(engine, container_id, made, stream, tty=tty)
    try:
        async with asyncio.timeout(CHANGE_SECONDS):
            while not (standing := await started.standing()).is_known:  # noqa: ASYNC110 - an engine has no event of it
                await asyncio.sleep(_LOOK_SECONDS)
        if not standing.running and not standing.pid:
            raise failure(400, await _complaint(started), service)
        if size is not None:
            await started.resize(*size)
    except BaseException as error:
        await started.close()
        if isinstance(error, TimeoutError):
            raise RuntimeUnavailable from error
        raise
    return started


async def _complaint(started: DockerExecution) -> str:
    """What the engine says, in place of the command's output, when there is no such program."""
    said = bytearray()
    async with asyncio.timeout(_COMPLAINT_SECONDS):
        while (found := await started.read()) is not None and len(said) < 4096:
            said += found[1]
    return said.decode(errors="replace").strip()


def not_running(service: str) -> RuntimeFailure:
    return RuntimeFailure(f'The service "{service}" does not run', code="service_not_running", service=service)


async def kill_marked(engine: Engine, container_id: str, exec_id: str) -> None:
    """End every process of a container that carries the mark; see `Runtime.end_execution`."""
    with contextlib.suppress(Gone, Taken):
        async with engine.call(_END_SECONDS) as client:
            ending = await client.containers.container(container_id).exec(
                ["sh", "-c", _END, "sh", f"{MARK}={exec_id}"], stdout=True, stderr=True
            )
            await ending.start(detach=True)
            while (await ending.inspect()).get("Running"):  # noqa: ASYNC110 - as above
                await asyncio.sleep(_LOOK_SECONDS * 5)
