"""Rules that hold for every route, store and document, walked rather than remembered."""

import ast
import asyncio
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute, WebSocketRoute
from sqlalchemy import text

import quazzar.tables  # noqa: F401 - every model on the metadata
from quazzar.app import instance_router, panel_router
from quazzar.cli.openapi import generate
from quazzar.core.auth import Guard, Realm
from quazzar.core.db import Base, Database
from quazzar.core.routing import Endpoint
from quazzar.reference.routes import document_path
from tests.conftest import RunningApp

ROOT = Path(__file__).resolve().parents[1] / "quazzar"

PUBLIC = {
    "instance": {
        "GET /api/health",
        "GET /api/ready",
        "GET /api/openapi.json",
        "GET /api/docs",
        "GET /api/docs/assets/{name}",
        "GET /api/auth/cp-status",
        # The one place where a token in a URL counts: it is the proof, and opens a session once.
        "GET /api/cp/session",
        "POST /api/auth/setup",
        "POST /api/auth/login",
        "POST /api/auth/refresh",
        "POST /api/auth/totp/verify",
    },
    "panel": {
        "GET /api/health",
        "GET /api/ready",
        "GET /api/openapi.json",
        "GET /api/docs",
        "GET /api/docs/assets/{name}",
        "POST /api/auth/register",
        "POST /api/auth/login",
        "POST /api/auth/refresh",
        "POST /api/auth/totp/verify",
        # For who can't log in; the tokens of mailed links are the proof.
        "POST /api/auth/forgot-password",
        "POST /api/auth/reset-password",
        "POST /api/auth/verify-email",
        # Its token is the proof; whether a login is needed besides depends on the address that it is for.
        "POST /api/invitations/accept",
    },
}
"""The operations that need no login. A new one must be put here by hand, and be argued for."""


def operations(realm: str) -> Iterator[tuple[str, Endpoint]]:
    app = Litestar(
        [instance_router() if realm == "instance" else panel_router()], openapi_config=None, logging_config=None
    )
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path_format)
            for method, (handler, _) in route.route_handler_map.items():
                if method != "OPTIONS":
                    assert isinstance(handler, Endpoint), f"{method} {path} does not use quazzar.core.routing"
                    yield f"{method} {path}", handler


@pytest.mark.parametrize("realm", ["instance", "panel"])
def test_every_operation_is_guarded_or_on_the_public_list(realm: str) -> None:
    public = set()
    for name, handler in operations(realm):
        guards = [guard for guard in handler.resolve_guards() if isinstance(guard, Guard)]
        assert len(guards) <= 1, f"{name} has more than one guard"
        if not guards:
            public.add(name)
    assert public == PUBLIC[realm]


@pytest.mark.parametrize("realm", ["instance", "panel"])
async def test_s11_no_operation_answers_an_anonymous_caller(realm: str, app_client: httpx.AsyncClient) -> None:
    prefix = "/panel" if realm == "panel" else ""
    for name, _ in operations(realm):
        method, _, path = name.partition(" ")
        if name in PUBLIC[realm]:
            continue
        url = prefix + re.sub(r"\{\w+\}", "x_" + "a" * 26, path)
        for variant in (url, url + "?token=abc&access_token=abc"):
            answer = await app_client.request(method, variant)
            assert answer.status_code == 401, f"{name}: {answer.status_code} {answer.text}"
            assert answer.json()["code"] == "unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"
        for other in ("HEAD", "OPTIONS"):
            answer = await app_client.request(other, url)
            assert answer.status_code in {204, 401, 405}, f"{other} {path}: {answer.status_code}"
            assert answer.content == b"" or answer.status_code == 405


@pytest.mark.parametrize("realm", ["instance", "panel"])
async def test_options_and_405_name_all_methods_of_a_path(realm: str, app_client: httpx.AsyncClient) -> None:
    prefix = "/panel" if realm == "panel" else ""
    methods: dict[str, set[str]] = {}
    for name, _ in operations(realm):
        method, _, path = name.partition(" ")
        methods.setdefault(path, {"OPTIONS"}).add(method)
    for path, expected in methods.items():
        url = prefix + re.sub(r"\{\w+\}", "x", path)
        answer = await app_client.options(url)
        assert answer.status_code == 204
        assert set(answer.headers["allow"].split(", ")) == expected, path
        answer = await app_client.request("PROPFIND", url)
        assert answer.status_code == 405
        assert answer.json()["code"] == "method_not_allowed"
        assert set(answer.headers["allow"].split(", ")) >= expected - {"OPTIONS"}, path


@pytest.mark.parametrize("realm", ["instance", "panel"])
def test_handlers_are_short_and_described(realm: str) -> None:
    for name, handler in operations(realm):
        if not handler.resolve_include_in_schema():
            continue
        assert handler.summary, f"{name} has no summary"
        assert handler.operation_id, f"{name} has no operation id"
        source = textwrap.dedent(inspect.getsource(handler.fn))
        tree = ast.parse(source).body[0]
        assert isinstance(tree, ast.AsyncFunctionDef | ast.FunctionDef)
        statements = [item for item in tree.body if not _is_docstring(item)]
        assert len(statements) <= 3, f"{name} has {len(statements)} statements"


@pytest.mark.parametrize("realm", ["instance", "panel"])
def test_every_websocket_is_guarded(realm: str) -> None:
    app = Litestar(
        [instance_router() if realm == "instance" else panel_router()], openapi_config=None, logging_config=None
    )
    for route in app.routes:
        if isinstance(route, WebSocketRoute):
            guards = [guard for guard in route.route_handler.resolve_guards() if isinstance(guard, Guard)]
            assert [guard.scope is not None for guard in guards] == [True], route.path


def _is_docstring(item: ast.stmt) -> bool:
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)


def test_every_store_function_of_the_panel_is_scoped_by_tenant() -> None:
    for file in ROOT.glob("panel/**/store.py"):
        for item in ast.parse(file.read_text()).body:
            if isinstance(item, ast.AsyncFunctionDef) and not item.name.startswith("_"):
                names = [argument.arg for argument in item.args.args]
                assert names[:1] == ["tenant_id"] or names[1:2] == ["tenant_id"], f"{file.name}: {item.name}{names}"


async def test_every_tenant_table_has_forced_row_security(database: Database) -> None:
    # A chain of audit records is of one tenant, too.
    owners = {"tenant_id", "chain"}
    tables = {table.name for table in Base.metadata.tables.values() if owners & set(table.columns.keys())}
    async with database.begin() as session:
        rows = await session.execute(
            text("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity AND relkind IN ('r', 'p')")
        )
        forced = {row[0] for row in rows}
    assert tables
    assert tables <= forced


async def test_the_app_works_under_a_role_that_owns_nothing(database: Database) -> None:
    async with database.begin() as session:
        role = (
            await session.execute(
                text("SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
            )
        ).one()
        owned = (
            await session.execute(
                text("SELECT count(*) FROM pg_class JOIN pg_roles r ON r.oid = relowner WHERE rolname = current_user")
            )
        ).scalar_one()
    assert tuple(role) == ("quazzar_app", False, False)
    assert owned == 0


@pytest.mark.parametrize("realm", ["instance", "panel"])
def test_the_checked_in_document_equals_the_generated_one(realm: Realm) -> None:
    assert document_path(realm).read_bytes() == generate(realm), "run `make openapi` and commit the result"


@pytest.mark.parametrize("realm", ["instance", "panel"])
def test_the_documents_are_complete(realm: str) -> None:
    document: dict[str, Any] = msgspec.json.decode(document_path(realm).read_bytes())
    assert document["openapi"].startswith("3.1")
    ids = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            where = f"{method.upper()} {path}"
            ids.append(operation["operationId"])
            assert operation["summary"], where
            assert "security" in operation, where
            assert {"400", "429", "500", "503"} <= operation["responses"].keys(), where
            if operation["security"]:
                assert {"401", "403"} <= operation["responses"].keys(), where
            success = [status for status in operation["responses"] if status < "400"]
            assert success, where
            for status in success:
                for content in operation["responses"][status].get("content", {}).values():
                    assert "example" in content or "examples" in content, where
            for content in operation.get("requestBody", {}).get("content", {}).values():
                assert "example" in content or "examples" in content, where
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("realm", ["instance", "panel"])
def test_the_examples_of_bodies_are_what_their_schemas_allow(realm: Realm) -> None:
    document: dict[str, Any] = msgspec.json.decode(document_path(realm).read_bytes())
    wrong = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                validator = jsonschema_rs.validator_for(body["schema"] | {"components": document["components"]})
                errors = validator.iter_errors(body["example"])
                wrong += [f"{method.upper()} {path}: {error.instance_path}: {error.message}" for error in errors]
    assert wrong == []


@pytest.mark.parametrize("realm", ["instance", "panel"])
def test_every_list_comes_in_pages(realm: Realm) -> None:
    document: dict[str, Any] = msgspec.json.decode(document_path(realm).read_bytes())
    for path, methods in document["paths"].items():
        if "get" not in methods or path.endswith("/logs"):
            continue  # the lines of logs are counted from their end
        operation = methods["get"]
        media = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
        if media.get("schema", {}).get("type") == "array":
            names = {parameter["name"] for parameter in operation.get("parameters", ())}
            assert {"limit", "cursor"} <= names, f"{operation['operationId']} takes no limit and cursor"


async def test_no_request_keeps_a_connection(admin: httpx.AsyncClient, app: RunningApp) -> None:
    """Also not one whose other dependencies, parameters or body are refused after the transaction has begun."""
    for name, _ in operations("instance"):
        method, _, path = name.partition(" ")
        if path in {"/api/auth/logout", "/api/webhooks/{webhook_id}/test"}:
            continue
        url = re.sub(r"\{\w+\}", "x_" + "a" * 26, path)
        for query in ("", "?limit=0", "?limit=x&since=x&cursor=%00", "?follow=maybe&tail=-1"):
            for headers in ({}, {"Idempotency-Key": "a b"}, {"Content-Type": "text/plain"}):
                await admin.request(method, url + query, headers=headers, content=b"{" if method != "GET" else None)
    # What works beside the requests has one for a moment, now and then.
    async with asyncio.timeout(10):
        while app.database.engine.pool.checkedout():  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
