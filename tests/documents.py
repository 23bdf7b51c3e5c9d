"""Holds what a test is answered against the document of the API: every status of every operation, with its kind of body,
and every body that is JSON.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import httpx
import jsonschema_rs
import msgspec

from quazzar.reference.routes import document_path


class _Known(NamedTuple):
    """An operation, its path as an expression, and the document that it is from."""

    path: re.Pattern[str]
    responses: dict[str, Any]
    document: dict[str, Any]


_BESIDE = re.compile(r"(/panel)?/api/(openapi\.json|docs(/.*)?)")
"""What is below the paths of the APIs and no call of them."""


def check_status(answer: httpx.Response) -> bool:
    """Fails where the document does not know the status, or not with this kind of body; whether the body is JSON, and
    so can be held against it.
    """
    path = answer.request.url.path
    known, told = _operation(answer.request.method, path), f"{answer.request.method} {path}"
    if known is None:
        called = path.startswith(("/api/", "/panel/api/")) and _BESIDE.fullmatch(path) is None
        assert not called or answer.status_code >= 400, f"{told} is in no document"
        return False
    status = str(answer.status_code)
    assert status in known.responses, f"{told} answered {status}, which the document does not know"
    kind = str(answer.headers.get("content-type", "")).partition(";")[0]
    kinds = _response(known, status).get("content", {})
    assert not kind or kind in kinds, f"{told} answered {status} with {kind}; the document knows {list(kinds)}"
    return kind == "application/json"


def check_body(answer: httpx.Response) -> None:
    """Fails where the body, which has been read, is not what the document says of this status."""
    known = _operation(answer.request.method, answer.request.url.path)
    if known is None or not answer.content:
        return
    validator = _validator(id(known), str(answer.status_code))
    if validator is not None:
        told = f"{answer.request.method} {answer.request.url.path} {answer.status_code}"
        problems = [f"{error.instance_path}: {error.message}" for error in validator.iter_errors(answer.json())]
        assert not problems, f"{told} is not what the document says: {problems[:3]}"


async def check(answer: httpx.Response) -> None:
    """For the event hooks of an asynchronous client."""
    if check_status(answer):
        await answer.aread()
        check_body(answer)


def check_now(answer: httpx.Response) -> None:
    """For those of a synchronous one."""
    if check_status(answer):
        answer.read()
        check_body(answer)


@cache
def _operations() -> dict[tuple[str, int], list[_Known]]:
    found: dict[tuple[str, int], list[_Known]] = {}
    for realm, prefix in (("instance", ""), ("panel", "/panel")):
        document = msgspec.json.decode(document_path(realm).read_bytes())
        for path, item in document["paths"].items():
            # What stands in the path as it is goes before what any name fits.
            pattern = re.compile(prefix + re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))
            for method in {"get", "post", "put", "patch", "delete"} & item.keys():
                known = _Known(pattern, item[method]["responses"], document)
                found.setdefault((method.upper(), (prefix + path).count("/")), []).append(known)
    for several in found.values():
        several.sort(key=lambda one: one.path.pattern.count("[^/]+"))
    return found


def _operation(method: str, path: str) -> _Known | None:
    return next((one for one in _operations().get((method, path.count("/")), ()) if one.path.fullmatch(path)), None)


def _all() -> Iterator[_Known]:
    for several in _operations().values():
        yield from several


@cache
def _validator(operation: int, status: str) -> jsonschema_rs.Draft202012Validator | None:
    known = next(one for one in _all() if id(one) == operation)
    schema = _response(known, status).get("content", {}).get("application/json", {}).get("schema")
    if schema is None:
        return None
    closed = _closed(schema | {"components": known.document["components"]})
    return jsonschema_rs.Draft202012Validator(closed, validate_formats=True)


def _response(known: _Known, status: str) -> dict[str, Any]:
    found: dict[str, Any] = known.responses[status]
    if "$ref" in found:
        found = known.document["components"]["responses"][found["$ref"].rpartition("/")[2]]
    return found


def _closed(schema: Any) -> Any:
    """`schema` where objects have no more than it says: clients may pass over more, but here it is a leak or a slip."""
    match schema:
        case {"properties": dict()}:
            return {"additionalProperties": False} | {name: _closed(part) for name, part in schema.items()}
        case dict():
            return {name: _closed(part) for name, part in schema.items()}
        case list():
            return [_closed(part) for part in schema]
        case _:
            return schema
