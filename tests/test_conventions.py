"""What every operation of both APIs does alike, walked by the documents that the process serves."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec
import pytest

from quazzar.reference.routes import document_path
from tests.conftest import RunningApp
from tests.factories.accounts import bearer, headers_of, make_key, make_member, make_user

LABELS: Final = ("x-request-id", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
METHODS: Final = ("get", "post", "put", "patch", "delete")
ENDS_THE_SESSION: Final = "/api/auth/logout"


@dataclass(frozen=True)
class Operation:
    """One of a document, with a path whose ids nothing has."""

    realm: str
    method: str
    template: str
    said: dict[str, Any]

    @property
    def url(self) -> str:
        prefix = "/panel" if self.realm == "panel" else ""
        return prefix + re.sub(r"\{\w+\}", "x_" + "a" * 26, self.template)

    @property
    def public(self) -> bool:
        return not self.said["security"]

    @property
    def about_one(self) -> bool:
        return "{" in self.template

    @property
    def has_body(self) -> bool:
        return "requestBody" in self.said

    @property
    def is_paged(self) -> bool:
        names = {parameter["name"] for parameter in self.said.get("parameters", ())}
        return self.method == "GET" and {"limit", "cursor"} <= names

    @property
    def choices(self) -> list[str]:
        """Query parameters that are not any text, nor lists of those."""
        queries = [one for one in self.said.get("parameters", ()) if one["in"] == "query"]
        return [one["name"] for one in queries if self.method == "GET" and not _is_text(one["schema"])]

    def __str__(self) -> str:
        return f"{self.realm} {self.method} {self.template}"


def _is_text(schema: dict[str, Any]) -> bool:
    kinds = [each.get("items", each) for each in schema.get("oneOf", [schema])]
    return "enum" not in schema and any(each.get("type") == "string" and "enum" not in each for each in kinds)


def _operations() -> Iterator[Operation]:
    for realm in ("instance", "panel"):
        paths: dict[str, Any] = msgspec.json.decode(document_path(realm).read_bytes())["paths"]
        for path, item in paths.items():
            for method in METHODS:
                if method in item:
                    yield Operation(realm, method.upper(), path, item[method])


OPERATIONS: Final = [one for one in _operations() if one.template != ENDS_THE_SESSION]


def _each(*chosen: Operation) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("operation", chosen, ids=str)


@dataclass
class Callers:
    """Who may do everything, and a key that may do nothing of what there is, in both realms."""

    http: httpx.AsyncClient
    everything: dict[str, dict[str, str]]
    nothing: dict[str, dict[str, str]]

    async def ask(
        self, operation: Operation, *, without_rights: bool = False, query: str = "", **given: Any
    ) -> httpx.Response:
        headers = {} if operation.public else (self.nothing if without_rights else self.everything)[operation.realm]
        headers = headers | given.pop("headers", {})
        answer = await self.http.request(operation.method, operation.url + query, headers=headers, **given)
        assert all(name in answer.headers for name in LABELS), answer.headers
        if answer.status_code >= 400:
            assert answer.json().keys() - {"details"} == {"error", "code", "request_id"}, answer.text
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
        return answer


@pytest.fixture(scope="module")
async def callers(app: RunningApp) -> AsyncIterator[Callers]:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(app.client())
        admin = await headers_of(http, await make_user(app.database))
        owner = await headers_of(http, await make_member(app.database))
        key = await make_key(http, admin, scopes=["vpn:read"])
        body = {"name": "x", "permissions": ["blueprints:read"]}
        panel_key = (await http.post("/panel/api/api-keys", json=body, headers=owner)).json()
        yield Callers(
            http,
            {"instance": admin, "panel": owner},
            {"instance": bearer(key["key"]), "panel": bearer(panel_key["key"])},
        )


@_each(*(one for one in OPERATIONS if not one.public and "x-scope" in one.said))
async def test_without_the_scope_it_is_403_never_empty(callers: Callers, operation: Operation) -> None:
    answer = await callers.ask(operation, without_rights=True, json={} if operation.has_body else None)
    assert (answer.status_code, answer.json()["code"]) in {(403, "scope_missing"), (403, "session_required")}


@_each(*(one for one in OPERATIONS if one.about_one and not one.has_body))
async def test_what_is_not_there_has_a_code_of_its_own(callers: Callers, operation: Operation) -> None:
    answer = await callers.ask(operation)
    assert answer.status_code == 404
    assert re.fullmatch(r"[a-z_]+_not_found", answer.json()["code"])


BODIES: Final = [
    ("application/json", b"{"),
    ("application/json", b"[]"),
    ("application/json", b'"text"'),
    ("application/json", b""),
    ("application/json", b"\xff"),
    ("application/json", b'{"a": 1, "a": 2}'),
    ("application/json; charset=latin-1", b"{}"),
    ("text/plain", b"{}"),
    ("application/x-www-form-urlencoded", b"a=1"),
    (None, b"{}"),
]


@_each(*(one for one in OPERATIONS if one.has_body))
async def test_bodies_that_can_not_be_read_and_fields_that_are_not_known(
    callers: Callers, operation: Operation
) -> None:
    answer = await callers.ask(operation, json={"name_of_nothing": 1})
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "validation_failed"
    assert answer.json()["details"]["name_of_nothing"] == "Unknown field"
    for media_type, body in BODIES:
        if not body and not operation.said["requestBody"]["required"]:
            continue
        headers = {} if media_type is None else {"content-type": media_type}
        answer = await callers.ask(operation, content=body, headers=headers)
        assert answer.status_code == 400, f"{media_type} {body!r}: {answer.text}"
        assert answer.json()["code"] in {"invalid_json", "invalid_parameter", "invalid_content_type"}
    headers = {"content-type": "application/json"}
    answer = await callers.ask(operation, content=b'{"x":"' + b"a" * 1024 * 1024 + b'"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@_each(*(one for one in OPERATIONS if not one.has_body and one.method != "GET"))
async def test_fields_are_not_passed_over_where_no_body_is_taken(callers: Callers, operation: Operation) -> None:
    answer = await callers.ask(operation, json={"name_of_nothing": 1})
    assert answer.status_code == 422, answer.text
    assert answer.json()["details"] == {"name_of_nothing": "Unknown field"}
    assert (await callers.ask(operation, json={})).status_code == 404


@_each(*(one for one in OPERATIONS if one.choices))
async def test_null_in_a_query_is_no_word_for_nothing(callers: Callers, operation: Operation) -> None:
    for name in operation.choices:
        # Of a name that is there twice the framework takes the last.
        for query in (f"{name}=null", f"{name}=NULL", f"{name}=%6eull", f"{name}=x&{name}=null"):
            answer = await callers.ask(operation, query=f"?{query}")
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), answer.text
            assert answer.json()["details"].keys() == {name}


@_each(*(one for one in OPERATIONS if one.is_paged and not one.about_one))
async def test_the_edges_of_a_page(callers: Callers, operation: Operation) -> None:
    for limit in ("0", "201", "-1", "1.5", "ten", ""):
        answer = await callers.ask(operation, params={"limit": limit})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), limit
        assert answer.json()["details"].keys() == {"limit"}
    for cursor in ("", "!", "Tm90aGluZyE", "a" * 201):
        answer = await callers.ask(operation, params={"cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), cursor
        assert answer.json()["details"].keys() == {"cursor"}
    answer = await callers.ask(operation, params={"limit": "200"})
    assert isinstance(answer.json(), list)
    assert len((await callers.ask(operation, params={"limit": "1"})).json()) <= 1


@_each(*(one for one in OPERATIONS if one.method != "GET" and not one.public))
async def test_what_changes_something_knows_all_of_its_parameters(callers: Callers, operation: Operation) -> None:
    known = [one["name"] for one in operation.said.get("parameters", ()) if one["in"] == "query"]
    answer = await callers.ask(operation, params=dict.fromkeys((*known, "name_of_nothing"), "x"))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), answer.text
    assert answer.json()["details"] == {"name_of_nothing": "Unknown parameter"}
    for name in known:
        # Which of two is meant nobody can say: the last one would install.
        twice = await callers.ask(operation, query=f"?{name}=true&{name}=false")
        assert (twice.status_code, twice.json()["details"]) == (400, {name: "Is there more than once"}), twice.text
        close = await callers.ask(operation, params={name.replace("_", "-") + "s": "true"})
        assert list(close.json()["details"].values()) == [f"Unknown parameter; did you mean {name}?"]
