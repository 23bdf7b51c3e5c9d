"""Commands that people run in services, each over a WebSocket: recorded at start and end, whoever ends them and how.

The engine ends no command when its connection drops, so we do. A row tells of each one that may still run: what our
process did not outlive is ended, and its end recorded, by the process after it. `docs/exec.md` is the protocol.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
import structlog
from litestar import WebSocket
from litestar.datastructures import MultiDict, State
from litestar.exceptions import WebSocketDisconnect
from msgspec import Meta
from sqlalchemy.exc import SQLAlchemyError

from quazzar.core.auth import Principal
from quazzar.core.db import Database
from quazzar.core.errors import AppError, BadRequest, Conflict, RateLimited, Unavailable
from quazzar.core.ids import new_id
from quazzar.core.records import Caller, audit
from quazzar.instance.apps import exec_store, service
from quazzar.instance.apps.errors import ServiceNotFound
from quazzar.instance.apps.runtimes.base import Execution, Runtime, RuntimeFailure, RuntimeUnavailable

log = structlog.get_logger(__name__)

Socket = WebSocket[Any, Any, State]

CHECK_SECONDS: Final = 4.0
"""How soon a terminal ends once its credential is revoked or the process drains."""
GOODBYE_SECONDS: Final = 5.0
END_SECONDS: Final = 20.0
LEFT_SECONDS: Final = 30.0
_MOST_WORDS: Final = 64
_MOST_WORD: Final = 4096
_MOST_SIZE: Final = 1000
_AHEAD: Final = 4
"""Messages of input that are taken before the command takes them: so a caller who leaves is noticed."""
_CODE_LOOKS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

Reason = Literal[
    "exited",
    "disconnected",
    "idle",
    "credential_ended",
    "shutting_down",
    "runtime_unavailable",
    "not_started",
    "interrupted",
]


class WebSocketRequired(AppError):
    status = 426
    code = "websocket_required"
    message = "This is a WebSocket; connect to it as one"

    def __init__(self) -> None:
        super().__init__(headers={"Upgrade": "websocket"})


class ExecRefused(Conflict):
    """The service does not run, or its image has no such program."""

    code = "exec_refused"
    message = "The command could not be started"


class ExecQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to run where; `command` is None for the best shell that there is."""

    service: str | None = None
    command: tuple[str, ...] | None = None
    tty: bool = True
    columns: int = 80
    rows: int = 24


def read_query(given: MultiDict[Any]) -> ExecQuery:
    """From the parameters of the URL. Raises `BadRequest` naming each that can't be read."""
    problems: dict[str, str] = {}
    values: dict[str, Any] = {}
    if (name := given.get("service")) is not None:
        values["service"] = name
        if not 1 <= len(name) <= 63:
            problems["service"] = "Service must be the name of a service"
    words = tuple(given.getall("command", []))
    if words:
        values["command"] = words
        if not words[0] or len(words) > _MOST_WORDS or any(len(one) > _MOST_WORD or "\x00" in one for one in words):
            problems["command"] = (
                f"Command must be a program and its arguments: 1 to {_MOST_WORDS} of at most {_MOST_WORD} characters"
            )
    if (tty := given.get("tty")) is not None:
        values["tty"] = tty == "true"
        if tty not in {"true", "false"}:
            problems["tty"] = "Tty must be true or false"
    for parameter, field in (("cols", "columns"), ("rows", "rows")):
        if (number := given.get(parameter)) is not None:
            if number.isascii() and number.isdigit() and len(number) <= 4 and 1 <= int(number) <= _MOST_SIZE:
                values[field] = int(number)
            else:
                problems[parameter] = f"{parameter.capitalize()} must be between 1 and {_MOST_SIZE}"
    if problems:
        raise BadRequest("A parameter can't be read", details=problems)
    return ExecQuery(**values)


class Resize(msgspec.Struct, frozen=True, tag_field="type", tag="resize", forbid_unknown_fields=True):
    cols: Annotated[int, Meta(ge=1, le=_MOST_SIZE)]
    rows: Annotated[int, Meta(ge=1, le=_MOST_SIZE)]


class EndOfInput(msgspec.Struct, frozen=True, tag_field="type", tag="eof", forbid_unknown_fields=True):
    pass


Control = Resize | EndOfInput
_control = msgspec.json.Decoder(Control)
_is_message = msgspec.json.Decoder(dict[str, Any])


def read_control(text: str) -> Control | None:
    """A control message; None for any other text, which is input. Raises `msgspec.ValidationError` for a wrong one."""
    if not text.startswith("{"):
        return None
    try:
        if "type" not in _is_message.decode(text):
            return None
    except (msgspec.DecodeError, RecursionError):
        return None
    control: Control = _control.decode(text)
    return control


class Ending(msgspec.Struct, frozen=True):
    """Why a terminal ends, and what its caller is told: a close code and a message before it."""

    reason: Reason
    close_code: int = 1000
    message: str | None = None


_IDLE = Ending("idle", 4408, "Nothing was typed or printed for too long")
_CREDENTIAL_ENDED = Ending("credential_ended", 4401, "The credential has ended")
_SHUTTING_DOWN = Ending("shutting_down", 1012, "Quazzar is being restarted")
_ENGINE_LOST = Ending("runtime_unavailable", 1011, "The container engine is gone")
_DISCONNECTED = Ending("disconnected")
_NOT_STARTED = Ending("not_started")
_REFUSED = Ending("not_started")
"""Nothing runs, where `_NOT_STARTED` leaves that open: the engine may have begun without an answer in time."""


class Target(msgspec.Struct, frozen=True):
    app_id: str
    service: str


async def find_target(database: Database, principal: Principal, app_id: str, query: ExecQuery) -> Target:
    """Where a command is to run. Raises `AppNotFound`, `ServiceNotFound`, `BadRequest` where a name is needed."""
    app = await service.read_app(database, principal, app_id)
    names = [one["name"] for one in msgspec.json.decode(app.services)]
    if query.service is not None:
        if query.service not in names:
            raise ServiceNotFound
        return Target(app_id, query.service)
    match names:
        case []:
            raise ServiceNotFound("This app has no service yet")
        case [only]:
            return Target(app_id, only)
        case _:
            raise BadRequest("A parameter can't be read", details={"service": f"Name one of: {', '.join(names)}"})


class Terminal:
    """One command and the WebSocket that it is connected to."""

    def __init__(self, exec_id: str, target: Target, query: ExecQuery, execution: Execution) -> None:
        self.id = exec_id
        self.target = target
        self.query = query
        self.execution = execution
        self.ending: Ending = _DISCONNECTED
        self.exit_code: int | None = None
        self.input_bytes = 0
        self.output_bytes = 0
        self._input: asyncio.Queue[bytes | Control] = asyncio.Queue(_AHEAD)
        self._active_at = asyncio.get_running_loop().time()

    async def run(
        self, socket: Socket, *, idle_seconds: float, allowed: Callable[[], Awaitable[bool]], closing: asyncio.Event
    ) -> None:
        """Carry bytes both ways until one side ends, then say why and close."""
        await _tell(socket, type="started", exec_id=self.id, service=self.target.service, tty=self.query.tty)
        works = [self._output(socket), self._receive(socket), self._feed(), self._watch(idle_seconds, allowed, closing)]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # In this order: what the command has printed last counts more than a caller who leaves.
            self.ending = next(task for task in tasks if task.done()).result()
        except (RuntimeUnavailable, RuntimeFailure):
            self.ending = _ENGINE_LOST
        except (WebSocketDisconnect, OSError):
            self.ending = _DISCONNECTED
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._say_goodbye(socket)

    async def _output(self, socket: Socket) -> Ending:
        plain = self.query.tty
        while (found := await self.execution.read()) is not None:
            stream, data = found
            await socket.send_bytes(data if plain else (b"\x01" if stream == "stdout" else b"\x02") + data)
            self.output_bytes += len(data)
            self._active_at = asyncio.get_running_loop().time()
        # An engine ends the output a moment before it knows the exit code.
        for pause in _CODE_LOOKS:
            if (code := await self.execution.exit_code()) is not None:
                self.exit_code = code
                break
            await asyncio.sleep(pause)
        return Ending("exited")

    async def _receive(self, socket: Socket) -> Ending:
        while True:
            message: Mapping[str, Any] = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return _DISCONNECTED
            self._active_at = asyncio.get_running_loop().time()
            data, text = message.get("bytes"), message.get("text")
            if data is not None:
                await self._input.put(data)
            elif text is not None:
                try:
                    control = read_control(text)
                except msgspec.ValidationError as error:
                    await _tell(socket, type="error", code="invalid_message", error=str(error))
                    continue
                await self._input.put(text.encode() if control is None else control)

    async def _feed(self) -> Ending:
        while True:
            match await self._input.get():
                case Resize(cols=columns, rows=rows):
                    await self.execution.resize(columns, rows)
                case EndOfInput():
                    await self.execution.end_input()
                case data:
                    await self.execution.write(data)
                    self.input_bytes += len(data)
                    self._active_at = asyncio.get_running_loop().time()

    async def _watch(
        self, idle_seconds: float, allowed: Callable[[], Awaitable[bool]], closing: asyncio.Event
    ) -> Ending:
        loop = asyncio.get_running_loop()
        while True:
            left = self._active_at + idle_seconds - loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(CHECK_SECONDS, max(left, 0.01))):
                    await closing.wait()
                    return _SHUTTING_DOWN
            if loop.time() - self._active_at >= idle_seconds:
                return _IDLE
            if not await allowed():
                return _CREDENTIAL_ENDED

    async def _say_goodbye(self, socket: Socket) -> None:
        """Not for long: a caller who does not take it is not waited for."""
        ending = self.ending
        if ending is _DISCONNECTED:
            return
        with contextlib.suppress(WebSocketDisconnect, OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                if ending.message is None:
                    await _tell(socket, type="exit", exit_code=self.exit_code)
                else:
                    await _tell(socket, type="error", code=ending.reason, error=ending.message)
                await socket.close(code=ending.close_code)


async def _tell(socket: Socket, **message: Any) -> None:
    await socket.send_text(msgspec.json.encode(message).decode())


class Terminals:
    """All commands that run through this process, and those that one before it has left. One per process."""

    def __init__(self, database: Database, runtime: Runtime, *, most: int, idle_seconds: float) -> None:
        self.idle_seconds = idle_seconds
        self._database = database
        self._runtime = runtime
        self._most = most
        self._open: set[str] = set()
        self._ends: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()
        self._left.set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._sweep_often(), name="apps-exec")

    async def stop(self) -> None:
        """Wait for the ends that are being recorded; what can't be is left to the next process."""
        if self._ends:
            await asyncio.wait(self._ends, timeout=GOODBYE_SECONDS)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @contextlib.asynccontextmanager
    async def open(self, caller: Caller, target: Target, query: ExecQuery) -> AsyncIterator[Terminal]:
        """A command that runs, and is ended and recorded with the block.

        Raises `RateLimited` when there are too many, `ExecRefused`, `RuntimeUnavailable`.
        """
        if len(self._open) >= self._most:
            raise RateLimited(
                f"There are {self._most} terminals open already",
                code="too_many_terminals",
                headers={"Retry-After": "60"},
            )
        exec_id = new_id("exec")
        self._open.add(exec_id)
        started_at = asyncio.get_running_loop().time()
        ended: Terminal | Ending = _NOT_STARTED
        try:
            # Written down before it begins: nothing runs that is not on record, whatever happens to us.
            await self._record_start(caller, exec_id, target, query)
            try:
                execution = await self._runtime.execute(
                    target.app_id,
                    target.service,
                    query.command,
                    exec_id=exec_id,
                    tty=query.tty,
                    columns=query.columns,
                    rows=query.rows,
                )
            except RuntimeFailure as failure:
                ended = _REFUSED
                raise ExecRefused(failure.reason, code=failure.code) from failure
            ended = terminal = Terminal(exec_id, target, query, execution)
            yield terminal
        finally:
            seconds = asyncio.get_running_loop().time() - started_at
            end = asyncio.create_task(self._end(caller, exec_id, target, ended, seconds))
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)
            # The end goes on when we are cancelled in the middle of it.
            await asyncio.shield(end)

    async def _record_start(self, caller: Caller, exec_id: str, target: Target, query: ExecQuery) -> None:
        after = {"exec_id": exec_id, "service": target.service, "command": query.command, "tty": query.tty}
        async with self._database.begin() as session:
            session.info["caller"] = caller
            await exec_store.add_exec(
                session, exec_id=exec_id, app_id=target.app_id, service=target.service, actor_id=caller.id or ""
            )
            audit(session, "app.exec_start", subject=target.app_id, after=after)

    async def _end(
        self, caller: Caller, exec_id: str, target: Target, ended: Terminal | Ending, seconds: float
    ) -> None:
        terminal = ended if isinstance(ended, Terminal) else None
        ending = ended.ending if isinstance(ended, Terminal) else ended
        try:
            if terminal is not None:
                await terminal.execution.close()
            is_over = ending is _REFUSED or ending.reason == "exited"
            over = is_over or await self._end_command(target.app_id, exec_id)
            after: dict[str, Any] = {
                "exec_id": exec_id,
                "service": target.service,
                "reason": ending.reason,
                "seconds": round(seconds, 1),
                "ended": over,
            }
            if terminal is not None:
                after |= {
                    "exit_code": terminal.exit_code,
                    "input_bytes": terminal.input_bytes,
                    "output_bytes": terminal.output_bytes,
                }
            async with self._database.begin() as session:
                session.info["caller"] = caller
                outcome: Literal["done", "failed"] = "done" if terminal is not None else "failed"
                audit(session, "app.exec_end", subject=target.app_id, after=after, outcome=outcome)
                await (exec_store.forget_exec if over else exec_store.end_exec)(session, exec_id)
            if not over:
                self._left.set()
        except (SQLAlchemyError, OSError, TimeoutError, Unavailable) as error:
            # The row is still there: the sweep records the end as soon as the database is back.
            log.warning("apps.exec_end_failed", exec_id=exec_id, error=type(error).__name__)
            self._left.set()
        finally:
            self._open.discard(exec_id)

    async def _end_command(self, app_id: str, exec_id: str) -> bool:
        """End the command if it still runs; false when the engine could not be asked. What can't be ended is told."""
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._runtime.end_execution(app_id, exec_id)
        except RuntimeFailure as failure:
            # No shell in the image, or no room for another process: the end of the container will be its end.
            log.warning("apps.exec_not_ended", app_id=app_id, exec_id=exec_id, reason=failure.reason)
        except (Unavailable, TimeoutError):
            return False
        return True

    async def _sweep_often(self) -> None:
        while True:
            await self._left.wait()
            self._left.clear()
            try:
                if not await self.sweep():
                    self._left.set()
            except (SQLAlchemyError, OSError, TimeoutError, Unavailable) as error:
                log.warning("apps.exec_sweep_failed", error=type(error).__name__)
                self._left.set()
            except Exception as error:  # this loop must outlive every fault
                log.error("apps.exec_sweep_failed", exc_info=error)
            await asyncio.sleep(LEFT_SECONDS)

    async def sweep(self) -> bool:
        """End and record what is written down and not open here: what a killed process or a lost engine has left.

        False when something is left still.
        """
        async with self._database.begin() as session:
            left = await exec_store.find_left(session, self._open)
            for one in left:
                if one.ended_at is None:
                    after = {
                        "exec_id": one.id,
                        "service": one.service,
                        "reason": "interrupted",
                        "started_by": one.actor_id,
                    }
                    audit(session, "app.exec_end", subject=one.app_id, after=after, outcome="failed")
                    await exec_store.end_exec(session, one.id)
        over = [one.id for one in left if await self._end_command(one.app_id, one.id)]
        async with self._database.begin() as session:
            for exec_id in over:
                await exec_store.forget_exec(session, exec_id)
        return len(over) == len(left)
