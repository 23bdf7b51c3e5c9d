"""Structured logs: one line per event, the request id on each, and no secret in any."""

import asyncio
import logging
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, Literal

import msgspec
import structlog

from quazzar.core.secret import MASK

Format = Literal["console", "json"]

# The id of the request that is being answered; the gate sets it, and every line that is written meanwhile carries it.
request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# These write statement parameters and whole addresses (which may hold tokens) below WARNING.
_NEVER_CHATTY: Final = ("sqlalchemy", "httpx", "httpcore", "aiohttp", "urllib3", "asyncpg")

_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)|secret|authorization|cookie|credential|private|signature"
    r"|(^|[_.-])(token|pwd|otp|totp|key|api_?key|dsn)s?$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"(?:"
    r"qz[a-z]_[A-Za-z0-9_-]{6,}"  # our own keys and tokens
    r"|whsec_[A-Za-z0-9+/=_-]{6,}"
    r"|eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,4}"  # JWT, whole or cut off
    r"|\$argon2[a-z]*\$\S+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\[parameters: [^\n]*\](?=\n|\Z)"  # what SQLAlchemy adds to the text of its errors
    r")"
    r"|(?P<before>\b(?:Bearer|Basic)\s+|://[^\s:/@]*:|\b\w*(?:password|passwd|passphrase|secret|token|api_?key)\w*"
    r"['\"]?\s*[=:]\s*['\"]?)(?P<value>[^\s'\"&,;@}]+)",
    re.IGNORECASE | re.DOTALL,
)
# Control characters, and those that reorder or hide what stands beside them on a screen.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")
_MAX_TEXT = 16 * 1024
_MAX_DEPTH = 6
_MAX_ITEMS = 100


def _without_secret(match: re.Match[str]) -> str:
    return f"{match['before']}{MASK}" if match["before"] else MASK


def redact(text: str) -> str:
    """`text` with everything that looks like a key, token, hash or password replaced by a mask."""
    return _SECRET_TEXT.sub(_without_secret, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(match[0])
    return short or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _clean_text(text: str) -> str:
    text = redact(text[:_MAX_TEXT])
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def _clean(value: Any, depth: int = 0) -> Any:
    """A value that may be written: plain types only, texts redacted and without control characters."""
    match value:
        case str():
            return _clean_text(value)
        case bool() | None | int() | float():
            return value
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case _ if depth >= _MAX_DEPTH:
            return "…"
        case Mapping():
            pairs = list(value.items())[:_MAX_ITEMS]
            return {_clean_text(str(key)): _clean_entry(str(key), item, depth + 1) for key, item in pairs}
        case list() | tuple() | set() | frozenset():
            return [_clean(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
        case _:
            return _clean_text(_text_of(value))


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a value that can't be written must not stop what wanted to write it
        return f"<{type(value).__name__}>"


def _clean_entry(key: str, value: Any, depth: int = 0) -> Any:
    if isinstance(value, bool | None) or not _SECRET_KEY.search(key):
        return _clean(value, depth)
    return MASK


# --- from an event to a line ---------------------------------------------------------------------------------------


def _json_line(event: MutableMapping[str, Any]) -> bytes:
    return msgspec.json.encode(event) + b"\n"


_COLOURS: Final[Mapping[str, str]] = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}


def _console_value(value: Any) -> str:
    if isinstance(value, str) and value and " " not in value:
        return value
    return msgspec.json.encode(value).decode()


def _console_line(event: MutableMapping[str, Any], *, colours: bool) -> bytes:
    clock = str(event.pop("time", ""))[11:23]
    level = str(event.pop("level", "info"))
    text = str(event.pop("event", ""))
    trace = event.pop("exception", None)
    rest = " ".join(f"{key}={_console_value(value)}" for key, value in event.items())
    label = f"{level:<7}"
    if colours:
        label, rest = f"\x1b[{_COLOURS.get(level, '0')}m{label}\x1b[0m", f"\x1b[2m{rest}\x1b[0m"
    line = f"{clock} {label} {text}" + (f"  {rest}" if event else "") + "\n"
    if trace:
        line += "".join(f"    {part}\n" for part in trace)
    return line.encode("utf-8", "backslashreplace")


class _Output:
    """Where lines go. One per process; a line is one write, so that lines of several threads don't mix."""

    def __init__(self) -> None:
        self.stream: BinaryIO = sys.stderr.buffer
        self.render: Callable[[MutableMapping[str, Any]], bytes] = _json_line
        self.level = logging.INFO
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        # A log that nobody reads any more (closed pipe, full disk) must not stop the service.
        try:
            with self._lock:
                self.stream.write(line)
                self.stream.flush()
        except (OSError, ValueError):
            pass

    def emit(self, event: Mapping[str, Any], *, level: str, exc_info: Any = None) -> None:
        line: dict[str, Any] = {"time": _now(), "level": level, "event": _clean(event.get("event", ""))}
        current = request_id.get()
        if current is not None:
            line["request_id"] = _clean_text(current)
        for key, value in event.items():
            if key not in ("event", "exc_info", "stack_info"):
                line[_clean_text(key)] = _clean_entry(key, value)
        if exc_info:
            line["exception"] = _trace(exc_info)
        try:
            encoded = self.render(line)
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
            encoded = self.render({"time": _now(), "level": level, "event": "A log line could not be written"})
        self.write(encoded)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(exc_info: Any) -> list[str]:
    """The traceback line by line, without the values of variables."""
    if isinstance(exc_info, BaseException):
        error: BaseException | None = exc_info
    elif isinstance(exc_info, tuple):
        error = exc_info[1]
    else:
        error = sys.exc_info()[1]
    if error is None:
        return []
    whole = redact("".join(traceback.format_exception(error)))
    return [_clean_text(part) for part in whole.splitlines()[-200:]]


_output = _Output()


class _Logger:
    """What structlog's bound loggers end in: one method per level."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Callable[..., None]:
        name = {"exception": "error", "warn": "warning", "fatal": "critical", "msg": "info"}.get(level, level)

        def write(event: dict[str, Any]) -> None:
            _output.emit({"logger": self._name} | event, level=name, exc_info=event.get("exc_info"))

        # Kept, so that the next call finds it without coming here.
        self.__dict__[level] = write
        return write


def _as_argument(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (event,), {}


class _Routed(logging.Handler):
    """Takes what libraries log through the standard library to the same place and form."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that don't fit their format are the library's fault
            text = str(record.msg)
        _output.emit({"event": text, "logger": record.name}, level=record.levelname.lower(), exc_info=record.exc_info)


def configure(level: str = "info", format: Format | None = None, *, stream: BinaryIO | None = None) -> None:  # noqa: A002 - the setting's own name
    """Set logging up for the whole process: ours and, routed into it, that of every library.

    `format` None is `console` on a terminal and `json` elsewhere. Lines go to standard error, so that the output of
    commands stays clean.
    """
    _output.level = _LEVELS[level]
    if stream is not None:
        _output.stream = stream
    terminal = _output.stream.isatty()
    if (format or ("console" if terminal else "json")) == "json":
        _output.render = _json_line
    else:
        _output.render = lambda event: _console_line(event, colours=terminal)
    structlog.configure(
        processors=[_as_argument],
        wrapper_class=structlog.make_filtering_bound_logger(_output.level),
        logger_factory=_Logger,
        cache_logger_on_first_use=stream is None,
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Routed) or stream is None:
            root.removeHandler(handler)
    root.addHandler(_Routed())
    root.setLevel(logging.DEBUG if _output.level == logging.DEBUG else max(_output.level, logging.WARNING))
    for name in _NEVER_CHATTY:
        logging.getLogger(name).setLevel(max(_output.level, logging.WARNING))
    # uvicorn gives its loggers handlers of their own unless told otherwise; the gate writes the access line.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
    if stream is None:
        logging.captureWarnings(capture=True)
        warnings.simplefilter("default")


def get_logger(name: str) -> Any:
    """A logger whose lines carry `logger=name`: `log.info("App installed", app_id=app.id)`."""
    return structlog.get_logger(name)


class AccessLog:
    """The one line per request that the gate writes; without the query, which may hold what is nobody's business.

    What is the same for each line is done once, when this is made: make it after `configure`.
    """

    def __init__(self) -> None:
        self.enabled = _output.level <= logging.INFO
        self._json = _output.render is _json_line
        self._lines: list[bytes] = []

    def __call__(
        self, *, method: str, path: str, status: int, seconds: float, request: str, client: str, principal: str | None
    ) -> None:
        if not self.enabled:
            return
        if not (path.isascii() and path.isprintable()) or _SUSPICIOUS.search(path):
            path = _clean_text(path)
        if not (method.isascii() and method.isalpha()):
            method = _clean_text(method)
        milliseconds = round(seconds * 1000, 2)
        line = _AccessLine(_clock(), request, method, path, status, milliseconds, client, principal)
        # Lines of requests that end in the same turn of the event loop are one write.
        if not self._lines:
            try:
                asyncio.get_running_loop().call_soon(self._write)
            except RuntimeError:
                # No loop runs: whoever calls this is not a server.
                _output.write(self._encoded(line))
                return
        self._lines.append(self._encoded(line))

    def _encoded(self, line: "_AccessLine") -> bytes:
        return _encode(line) + b"\n" if self._json else _output.render(msgspec.to_builtins(line))

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        _output.write(b"".join(lines))


class _AccessLine(msgspec.Struct):
    time: str
    request_id: str
    method: str
    path: str
    status: int
    duration_ms: float
    client: str
    principal: str | None
    level: str = "info"
    event: str = "request"


_encode = msgspec.json.Encoder().encode
_SUSPICIOUS = re.compile(r"qz[a-z]_|whsec_|eyJ|=", re.IGNORECASE)
_second: tuple[int, str] = (0, "")


def _clock() -> str:
    """`_now()`, with the part that stays the same for a second made once."""
    global _second  # noqa: PLW0603 - a cache of one value
    now = time.time()
    whole = int(now)
    known, text = _second
    if known != whole:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        _second = (whole, text)
    return f"{text}.{int((now - whole) * 1000):03d}Z"
