"""The error envelope: one shape for every exception, nothing of ours in it, and 503 when the database is away."""

import asyncio
from typing import Any, cast

import asyncpg
import httpx
import msgspec
import pytest
import sqlalchemy.exc
import structlog
from litestar.exceptions import HTTPException, NotFoundException, TooManyRequestsException
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from quazzar.core.envelope import encode_error, error_headers, from_exception, is_database_away
from quazzar.core.errors import AppError, Conflict, Invalid, Unauthorized
from tests.core.edge_app import toy_app, toy_gate


@pytest.fixture(scope="module")
def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(toy_gate()), base_url="http://localhost")


def test_encode() -> None:
    assert msgspec.json.decode(encode_error(Conflict("Busy", code="app_busy"), "req_1")) == {
        "error": "Busy",
        "code": "app_busy",
        "request_id": "req_1",
    }
    assert msgspec.json.decode(encode_error(Invalid(details={"a.b": "Wrong"}), "req_1"))["details"] == {"a.b": "Wrong"}


def test_headers_of_an_error_are_single_lines() -> None:
    assert error_headers(Unauthorized()) == [(b"www-authenticate", b"Bearer")]
    assert error_headers(AppError(headers={"X-A": "one\r\nX-B: two"})) == [(b"x-a", b"one  X-B: two")]


async def test_parameters_are_named_in_good_sentences(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/things/1?limit=many&exact=perhaps")
    assert answer.status_code == 400
    body = answer.json()
    assert body["code"] == "invalid_parameter"
    assert body["error"] == "A parameter can't be read"
    assert body["details"] == {"limit": "Limit must be a whole number", "exact": "Exact must be true or false"}
    wrong = (await client.get("/api/things/1?limit=1&order=left&q=")).json()
    assert wrong["details"] == {"order": "Order must be one of: up, down", "q": "Q must not be empty"}
    missing = (await client.get("/api/things/1")).json()
    assert missing["details"] == {"limit": "Limit is required"}


async def test_a_path_parameter_of_another_type_is_unknown(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/things/first?limit=1")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_errors_of_a_domain_keep_their_code(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/things/404?limit=1")
    assert (answer.status_code, answer.json()["code"]) == (404, "thing_not_found")


async def test_a_wrong_method_lists_the_right_ones(client: httpx.AsyncClient) -> None:
    answer = await client.request("DELETE", "/api/auth/login")
    assert answer.status_code == 405
    assert answer.json()["code"] == "method_not_allowed"
    assert {"GET", "POST"} <= {method.strip() for method in answer.headers["allow"].split(",")}


async def test_a_crash_says_nothing_and_is_logged_with_its_traceback(client: httpx.AsyncClient) -> None:
    with structlog.testing.capture_logs() as lines:
        answer = await client.get("/api/crash", headers={"X-Request-Id": "my-request.1"})
    assert answer.status_code == 500
    assert answer.json() == {
        "error": "Something went wrong on our side",
        "code": "internal_error",
        "request_id": "my-request.1",
    }
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["request_id"] == "my-request.1"
    assert isinstance(line["exc_info"], RuntimeError)
    assert line["exc_info"].__traceback__ is not None


async def test_the_app_without_a_gate_still_answers_with_envelopes() -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(cast("Any", toy_app())), base_url="http://localhost"
    ) as bare:
        answer = await bare.get("/api/nowhere")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["request_id"].startswith("req_")


def test_exceptions_of_the_framework() -> None:
    assert from_exception(NotFoundException()).code == "not_found"
    limited = from_exception(TooManyRequestsException(headers={"Retry-After": "7"}))
    assert (limited.status, limited.headers) == (429, {"Retry-After": "7"})
    teapot = from_exception(HTTPException(status_code=418, detail="SELECT secret FROM users"))
    assert (teapot.status, teapot.message) == (400, "The request can't be read")
    assert from_exception(HTTPException(status_code=502, detail="x")).code == "internal_error"


def _wrapped(kind: type[sqlalchemy.exc.DBAPIError], orig: BaseException) -> sqlalchemy.exc.DBAPIError:
    return kind("SELECT 1", {}, orig)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (sqlalchemy.exc.TimeoutError("pool"), True),
        (_wrapped(sqlalchemy.exc.OperationalError, Exception("x")), True),
        (_wrapped(sqlalchemy.exc.InterfaceError, asyncpg.InterfaceError("connection is closed")), True),
        (_wrapped(sqlalchemy.exc.InterfaceError, asyncpg.InterfaceError("another operation is in progress")), False),
        (_wrapped(sqlalchemy.exc.DBAPIError, asyncpg.QueryCanceledError("statement timeout")), True),
        (_wrapped(sqlalchemy.exc.DBAPIError, asyncpg.DeadlockDetectedError("deadlock")), True),
        (_wrapped(sqlalchemy.exc.ProgrammingError, asyncpg.UndefinedTableError("x")), False),
        (_wrapped(sqlalchemy.exc.IntegrityError, asyncpg.UniqueViolationError("x")), False),
        (asyncpg.CannotConnectNowError("starting up"), True),
        (asyncpg.TooManyConnectionsError("x"), True),
        (asyncpg.ConnectionDoesNotExistError("x"), True),
        (asyncpg.InterfaceError("pool is closed"), True),
        (asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"), True),
        (asyncpg.InternalClientError("x"), False),
        (asyncpg.UndefinedColumnError("x"), False),
        (ConnectionRefusedError(), False),
        (RuntimeError("x"), False),
    ],
)
def test_is_database_away(error: Exception, away: bool) -> None:
    assert is_database_away(error) is away
    assert from_exception(error).status == (503 if away else 500)


async def test_a_refused_connection_counts_when_it_was_the_database() -> None:
    engine = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    attempts: list[Any] = [
        asyncpg.connect("postgresql://nobody@127.0.0.1:1/none"),
        _select(engine),
        asyncio.open_connection("127.0.0.1", 1),
    ]
    found = [from_exception(error) async for error in _errors(attempts)]
    assert [error.status for error in found] == [503, 503, 500]
    assert found[0].code == "database_unavailable"
    assert found[0].headers == {"Retry-After": "1"}


async def _select(engine: Any) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))


async def _errors(attempts: list[Any]) -> Any:
    for attempt in attempts:
        try:
            await attempt
        except Exception as error:  # noqa: BLE001 - which one it is, is the question
            yield error
