"""The error envelope: every answer of 400 or more, from whichever layer, has this one shape."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import asyncpg
import msgspec
import sqlalchemy.exc
import structlog
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Scope
from litestar.typing import FieldDefinition

from quazzar.core.errors import (
    AppError,
    BadRequest,
    BodyTooLarge,
    DatabaseUnavailable,
    Forbidden,
    InvalidJson,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from quazzar.core.ids import new_id

log = structlog.get_logger(__name__)


class Envelope(msgspec.Struct, omit_defaults=True):
    """The body of an error; `details` is left out when there is nothing to say."""

    error: str
    code: str
    request_id: str
    details: dict[str, str] = {}


_encode = msgspec.json.Encoder().encode


def encode_error(error: AppError, request_id: str) -> bytes:
    """The envelope of `error` as JSON."""
    return _encode(Envelope(error.message, error.code, request_id, error.details))


def error_headers(error: AppError) -> list[tuple[bytes, bytes]]:
    """The headers that `error` asks for, encoded for ASGI; line breaks in a value can't start another header."""
    return [
        (name.lower().encode("latin-1"), re.sub(r"[\x00-\x1f\x7f]", " ", value).encode("latin-1", "replace"))
        for name, value in error.headers.items()
    ]


def request_id_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The id that the gate gave to the request; a new one when the app is called without the gate."""
    state = connection.scope["state"]
    if "request_id" not in state:
        state["request_id"] = new_id("req")
    found: str = state["request_id"]
    return found


def _respond(connection: ASGIConnection[Any, Any, Any, Any], error: AppError) -> Response[bytes]:
    return Response(
        encode_error(error, request_id_of(connection)),
        status_code=error.status,
        media_type="application/json",
        headers=error.headers,
    )


def _app_error(request: Request[Any, Any, Any], error: AppError) -> Response[bytes]:
    if error.status >= 500 and not isinstance(error, Unavailable):
        _log_fault(request, error)
    return _respond(request, error)


def _http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    if isinstance(error, ValidationException):
        mapped: AppError = _invalid_parameter(error, request.route_handler.parsed_fn_signature.parameters)
    else:
        mapped = from_http_exception(error)
    if mapped.status >= 500:
        _log_fault(request, error)
    return _respond(request, mapped)


def _any_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    mapped = from_exception(error)
    if isinstance(mapped, Unavailable):
        log.warning("Database not reachable", request_id=request_id_of(request), cause=type(error).__name__)
    else:
        _log_fault(request, error)
    return _respond(request, mapped)


def _log_fault(request: Request[Any, Any, Any], error: Exception) -> None:
    log.error(
        "Request failed",
        request_id=request_id_of(request),
        method=request.method,
        path=request.scope["path"],
        exc_info=error,
    )


exception_handlers: dict[int | type[Exception], Callable[[Request[Any, Any, Any], Any], Response[Any]]] = {
    AppError: _app_error,
    HTTPException: _http_exception,
    Exception: _any_exception,
}
"""For `Litestar(exception_handlers=…)`: no exception gets past these."""


async def remember_error(error: Exception, scope: Scope) -> None:
    """For `Litestar(after_exception=[…])`: lets the gate close a refused WebSocket with the status of the refusal."""
    if scope["type"] == ScopeType.WEBSOCKET:
        scope["state"]["error"] = from_exception(error)


def from_exception(error: Exception) -> AppError:
    """The answer to any exception: itself, what it stands for, 503 when the database is away, else the fixed 500."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, HTTPException):
        return from_http_exception(error)
    return DatabaseUnavailable() if is_database_away(error) else AppError()


# --- the framework's own exceptions --------------------------------------------------------------------------------


def from_http_exception(error: HTTPException) -> AppError:
    """What an exception of the framework means to a caller. Its own text is not shown: it may quote internals."""
    headers = error.headers or {}
    match error.status_code:
        case 401:
            return Unauthorized()
        case 403:
            return Forbidden()
        case 404:
            return NotFound()
        case 405:
            allow = next((value for name, value in headers.items() if name.lower() == "allow"), "")
            return MethodNotAllowed(headers={"Allow": allow})
        case 413:
            return BodyTooLarge()
        case 429:
            return RateLimited(headers=headers)
        case 503:
            return Unavailable()
        case status if 400 <= status < 500:
            return _invalid_parameter(error, {})
        case _:
            return AppError()


# What the framework raises for an absent parameter has no list of errors, only this sentence.
_MISSING = re.compile(r"Missing required (\w+) parameter '([^']+)'")
_EXPECTED = re.compile(r"Expected `([^`]+)`(?:, got `([^`]+)`| (of length )?(>=|<=|>|<|==) (-?[\d.]+)|)")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "datetime": "a time in RFC 3339 form",
    "date": "a date",
    "uuid": "a UUID",
    "str": "text",
    "array": "a list",
}
_COMPARISONS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than", "==": "exactly"}


def _invalid_parameter(error: HTTPException, parameters: Mapping[str, FieldDefinition]) -> BadRequest:
    """With `parameters`, those of the handler, each is told under the name that the caller knows it by."""
    details: dict[str, str] = {}
    if missing := _MISSING.search(error.detail):
        name = _asked_name(missing[2], parameters)
        details[name] = f"{_label(name)} is required"
    elif isinstance(error, ValidationException) and isinstance(error.extra, list):
        for problem in error.extra:
            field = str(problem.get("key", ""))
            if field == "data":  # the framework's name for the body of a request that sent none
                return InvalidJson("The body is empty")
            name = _asked_name(field, parameters)
            choices = list(_literals(parameters[field].annotation)) if field in parameters else []
            details[name] = _sentence(_label(name), str(problem.get("message", "")), choices)
    return BadRequest("A parameter can't be read" if details else None, details=details)


def _asked_name(field: str, parameters: Mapping[str, FieldDefinition]) -> str:
    definition = parameters[field].kwarg_definition if field in parameters else None
    return getattr(definition, "name", None) or field


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _literals(part)


def _label(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ").replace("-", " ").capitalize() or "Value"


def _sentence(label: str, message: str, choices: Sequence[Any]) -> str:
    """One sentence about a parameter from the validator's message, which speaks of Python's types. `choices` are the
    values that there are, where they are known.
    """
    match = _EXPECTED.search(message)
    if match is None:
        if "Invalid enum value" not in message:
            return f"{label} is not valid"
        if not choices:
            return f"{label} is not one of the allowed values"
        return f"{label} must be one of: {', '.join(map(str, choices))}"
    expected, _, of_length, comparison, bound = match.groups()
    if comparison is not None:
        if of_length and (comparison, bound) == (">=", "1"):
            return f"{label} must not be empty"
        unit = " characters long" if of_length else ""
        return f"{label} must be {_COMPARISONS[comparison]} {bound}{unit}"
    kinds = [_TYPES.get(kind.strip(), "valid") for kind in expected.split("|") if kind.strip() != "null"]
    return f"{label} must be {' or '.join(dict.fromkeys(kinds)) or 'valid'}"


# --- is it the database? -------------------------------------------------------------------------------------------

# Classes and codes of SQLSTATE that pass by themselves: connections (08), resources (53), an operator or a restart
# (57, which has the statement timeout too), a rollback to be repeated (40), a lock that was not free, and writing to
# a server that has become a standby.
_PASSING = re.compile(r"08|53|57|40|55P03|25006")


def is_database_away(error: BaseException) -> bool:
    """Whether `error` says that the database can't be reached or can't serve now, not that we made a mistake."""
    match error:
        case sqlalchemy.exc.TimeoutError():
            return True
        case sqlalchemy.exc.DBAPIError():
            if error.connection_invalidated or isinstance(error, sqlalchemy.exc.OperationalError):
                return True
            code = getattr(error.orig, "sqlstate", None)
            # The driver's InterfaceError has no code: a closed connection and a misuse of the driver look alike.
            closed = isinstance(error, sqlalchemy.exc.InterfaceError) and "clos" in str(error.orig)
            return closed or (isinstance(code, str) and _PASSING.match(code) is not None)
        case asyncpg.PostgresError():
            return _PASSING.match(error.sqlstate or "") is not None
        case asyncpg.InterfaceError():
            return "clos" in str(error)
        case asyncpg.InternalClientError():
            # What a connection says whose server was killed between two messages of one exchange.
            return "cannot switch to state" in str(error)
        case OSError() | TimeoutError():
            # Refused, reset, timed out: by the database only when it was its driver that met it.
            return any(name.partition(".")[0] in ("asyncpg", "sqlalchemy") for name in _modules(error))
        case _:
            return False


def _modules(error: BaseException) -> Iterator[str]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
