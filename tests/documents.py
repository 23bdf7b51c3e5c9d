"""Holds what a test is answered against the document of the API: each status of each operation, with its kind of body,
and each body that is JSON.
"""

import re
from functools import cache
from typing import Any, Literal, NamedTuple

import httpx
import jsonschema_rs
import msgspec

from quazzar.app import realms_of
from quazzar.reference.routes import document_path

Mode = Literal["instance", "panel", "all"]


class _Known(NamedTuple):
    """An operation: its path as an expression, the API, and where in its document the answers are said."""

    path: re.Pattern[str]
    realm: str
    place: str
    responses: dict[str, Any]

    def find(self, status: str) -> tuple[str, dict[str, Any]]:
        """The place of what is said of the status, and that."""
        said = self.responses[status]
        if "$ref" not in said:
            return f"{self.place}/{status}", said
        return said["$ref"], _document(self.realm)["components"]["responses"][said["$ref"].rpartition("/")[2]]


_METHODS = {"get", "post", "put", "patch", "delete"}
_BESIDE = re.compile(r"(/panel)?/api/(openapi\.json|docs(/.*)?)")
"""What is below the paths of the APIs and no call of them."""


class Documents:
    """Those of a process in `mode`, to hold its answers against."""

    def __init__(self, mode: Mode) -> None:
        self._operations = _operations(mode)

    def check_status(self, answer: httpx.Response) -> bool:
        """Fails where the document does not know the status, or not with this kind of body; whether the body is JSON,
        and so can be held against it.
        """
        path = answer.request.url.path
        known, told = self._find(answer), f"{answer.request.method} {path}"
        if known is None:
            called = answer.request.method.lower() in _METHODS and path.startswith(("/api/", "/panel/api/"))
            called = called and _BESIDE.fullmatch(path) is None
            assert not called or answer.status_code >= 400, f"{told} is in no document"
            return False
        status = str(answer.status_code)
        assert status in known.responses, f"{told} answered {status}, which the document does not know"
        kind = str(answer.headers.get("content-type", "")).partition(";")[0]
        kinds = known.find(status)[1].get("content", {})
        empty = not kind or answer.headers.get("content-length") == "0"
        assert empty or kind in kinds, f"{told} answered {status} with {kind}; the document knows {list(kinds)}"
        return not empty and kind == "application/json"

    def check_body(self, answer: httpx.Response) -> None:
        """Fails where the body, which has been read, is not what the document says of this status."""
        known = self._find(answer)
        if known is None or not answer.content:
            return
        place, said = known.find(str(answer.status_code))
        if "application/json" in said.get("content", {}):
            told = f"{answer.request.method} {answer.request.url.path} {answer.status_code}"
            found = _validator(known.realm, place).iter_errors(answer.json())
            problems = [f"{error.instance_path}: {error.message}" for error in found]
            assert not problems, f"{told} is not what the document says: {problems[:3]}"

    async def check(self, answer: httpx.Response) -> None:
        """For the event hooks of an asynchronous client."""
        if self.check_status(answer):
            await answer.aread()
            self.check_body(answer)

    def check_now(self, answer: httpx.Response) -> None:
        """For those of a synchronous one."""
        if self.check_status(answer):
            answer.read()
            self.check_body(answer)

    def _find(self, answer: httpx.Response) -> _Known | None:
        path = answer.request.url.path
        alike = self._operations.get((answer.request.method, path.count("/")), ())
        return next((one for one in alike if one.path.fullmatch(path)), None)


@cache
def _operations(mode: Mode) -> dict[tuple[str, int], list[_Known]]:
    found: dict[tuple[str, int], list[_Known]] = {}
    for realm, prefix in realms_of(mode).items():
        for path, item in _document(realm)["paths"].items():
            # What stands in the path as it is goes before what any name fits.
            pattern = re.compile(prefix + re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))
            for method in _METHODS & item.keys():
                place = f"#/paths/{path.replace('/', '~1')}/{method}/responses"
                known = _Known(pattern, realm, place, item[method]["responses"])
                found.setdefault((method.upper(), (prefix + path).count("/")), []).append(known)
    for several in found.values():
        several.sort(key=lambda one: one.path.pattern.count("[^/]+"))
    return found


@cache
def _document(realm: str) -> dict[str, Any]:
    document: dict[str, Any] = _closed(msgspec.json.decode(document_path(realm).read_bytes()))
    return document


@cache
def _registry(realm: str) -> jsonschema_rs.Registry:
    # One for all of a document: each validator with a copy of it takes more than a MiB.
    return jsonschema_rs.Registry([(f"urn:{realm}", _document(realm))])


@cache
def _validator(realm: str, place: str) -> jsonschema_rs.Draft202012Validator:
    place = place.replace("{", "%7B").replace("}", "%7D")
    schema = {"$ref": f"urn:{realm}{place}/content/application~1json/schema"}
    return jsonschema_rs.Draft202012Validator(schema, registry=_registry(realm), validate_formats=True)


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
