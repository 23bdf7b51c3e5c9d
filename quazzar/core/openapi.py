"""OpenAPI 3.1 documents: what Litestar derives from the handlers, completed with what every operation has in common."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import Litestar, Router
from litestar.openapi.config import OpenAPIConfig
from litestar.routes import HTTPRoute

from quazzar import __version__
from quazzar.core.auth import Guard
from quazzar.core.errors import (
    AppError,
    BadRequest,
    BodyTooLarge,
    Conflict,
    Forbidden,
    Invalid,
    InvalidJson,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from quazzar.core.http import JsonRequest
from quazzar.core.routing import Endpoint
from quazzar.core.schema import In, OptionalIn

_HEADERS: dict[str, Any] = {
    "X-Request-Id": {"schema": {"type": "string"}, "description": "The id of this request, as it stands in the log."},
    "X-RateLimit-Limit": {"schema": {"type": "integer"}, "description": "Requests in each window."},
    "X-RateLimit-Remaining": {"schema": {"type": "integer"}, "description": "Requests left in this window."},
    "X-RateLimit-Reset": {"schema": {"type": "integer"}, "description": "End of this window, Unix seconds."},
}
_HEADER_REFS = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}

_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Error",
    "required": ["error", "code", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "One sentence for people."},
        "code": {"type": "string", "pattern": "^[a-z0-9_]+$", "description": "Stable, for programs."},
        "request_id": {"type": "string"},
        "details": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Field (dots for nesting) to one sentence.",
        },
    },
    "additionalProperties": False,
}

_ERRORS: dict[int, tuple[str, type[AppError], dict[str, str]]] = {
    400: ("The body is not JSON, or a path, query or header value can't be read", InvalidJson, {}),
    401: ("No credential, or one that is wrong, expired or revoked", Unauthorized, {}),
    403: ("Known, but not allowed", Forbidden, {}),
    404: ("No such thing, or not the caller's", NotFound, {}),
    409: ("Exists already, or the state does not allow it", Conflict, {}),
    413: ("The body is too large", BodyTooLarge, {}),
    414: ("The path and query are too long", BadRequest, {}),
    422: ("The body was read but does not validate", Invalid, {"name": "Name is required"}),
    426: ("It was not asked for a WebSocket", BadRequest, {}),
    429: ("Rate limit", RateLimited, {}),
    431: ("The headers are too large", BadRequest, {}),
    500: ("Our fault", AppError, {}),
    503: ("Not ready, or a component is out of reach", Unavailable, {}),
}


def build_document(router: Router, *, title: str, description: str) -> dict[str, Any]:
    """The complete document of one API; `router` is what the process mounts for it, without a prefix before `/api`."""
    app = Litestar(
        route_handlers=[router],
        request_class=JsonRequest,
        openapi_config=OpenAPIConfig(title=title, version=__version__, description=description),
        # It would take the root logger of whoever asks for a document.
        logging_config=None,
    )
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(app.openapi_schema.to_schema()))
    document.pop("servers", None)
    components = document.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    schemas["Error"] = _ERROR_SCHEMA
    for schema in schemas.values():
        # Whole objects that Litestar makes up; they differ with every run. Ours stand at the fields.
        schema.pop("examples", None)
        # That a whole body may be left out stands at the operation.
        schema.pop("default", None)
    components["headers"] = _HEADERS
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An access token, or an API key."}
    }
    components["responses"] = {f"Error{status}": _error_response(status) for status in _ERRORS}
    for path, method, endpoint, in_transaction in _endpoints(app):
        operation = document["paths"][path][method]
        if method == "post" and in_transaction:
            operation.setdefault("parameters", []).append(_IDEMPOTENCY)
        _complete(operation, endpoint, path, schemas)
    _tidy(document)
    for name in _strict_bodies():
        if name in schemas:
            schemas[name].setdefault("additionalProperties", False)
    return document


def _endpoints(app: Litestar) -> Iterator[tuple[str, str, Endpoint, bool]]:
    """Path, method and handler of each documented operation, and whether it works in the request's transaction."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, inputs) in route.route_handler_map.items():
                if isinstance(handler, Endpoint) and handler.resolve_include_in_schema():
                    yield (
                        re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path_format),
                        method.lower(),
                        handler,
                        any(dependency.key == "session" for batch in inputs.dependency_batches for dependency in batch),
                    )


def _complete(operation: dict[str, Any], endpoint: Endpoint, path: str, schemas: dict[str, Any]) -> None:
    guard = next((guard for guard in endpoint.resolve_guards() if isinstance(guard, Guard)), None)
    # A bad credential is refused everywhere, and what a body or a query names may not be there.
    statuses = {400, 401, 404, 414, 429, 431, 500, 503}
    if guard is not None:
        statuses |= {401, 403}
        operation["security"] = [{"bearer": []}]
        if guard.scope is not None:
            operation["x-scope"] = guard.scope
            operation["description"] = (operation.get("description") or "").rstrip() + f"\n\nScope: `{guard.scope}`."
    else:
        operation["security"] = []
    if "GET" not in endpoint.http_methods:
        statuses |= {409, 413, 422}
    if "/auth/" in path or path.endswith(("/register", "/setup")):
        statuses |= {401, 403}
    responses: dict[str, Any] = operation["responses"]
    for status in list(responses):
        if int(status) >= 400:
            statuses.add(int(status))
            del responses[status]
    if "204" in responses:
        responses["204"].pop("content", None)
    if any(parameter.get("name") == "follow" for parameter in operation.get("parameters", ())):
        responses["200"].setdefault("content", {})["text/event-stream"] = _STREAM
    for answer in responses.values():
        answer["headers"] = (answer.get("headers") or {}) | _HEADER_REFS
        for content in (answer.get("content") or {}).values():
            # Those that Litestar makes up differ with every run.
            content.pop("examples", None)
            _add_example(content, schemas)
    responses |= {str(code): {"$ref": f"#/components/responses/Error{code}"} for code in sorted(statuses)}
    _complete_inputs(operation, endpoint, schemas)


def _complete_inputs(operation: dict[str, Any], endpoint: Endpoint, schemas: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path" and parameter["schema"].get("type") == "string":
            parameter["schema"] = {"minLength": 1, "maxLength": 200, "pattern": "^[A-Za-z0-9_.-]+$"} | parameter[
                "schema"
            ]
    if "requestBody" in operation:
        body = endpoint.parsed_data_field
        operation["requestBody"]["required"] = body is None or not body.has_default
        for content in operation["requestBody"]["content"].values():
            _add_example(content, schemas)


_STREAM: dict[str, Any] = {
    "schema": {
        "type": "object",
        "required": ["data"],
        "properties": {
            "id": {"type": "string"},
            "event": {"type": "string"},
            "data": {"type": "string", "description": "JSON on one line"},
        },
    },
    "example": {"event": "line", "data": "{}"},
}
"""What an operation with `follow` answers when that is true: the schema is that of one event."""

_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key with the same body within 24 hours gives the first answer again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]{1,200}$"},
}


def _error_response(status: int) -> dict[str, Any]:
    description, kind, details = _ERRORS[status]
    example: dict[str, Any] = {"error": kind.message, "code": kind.code, "request_id": "req_c6xk2m4v7q3n5t2a"}
    if details:
        example["details"] = details
    headers: dict[str, Any] = dict(_HEADER_REFS)
    if status in {429, 503}:
        headers["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}, "example": example}}
    return {"description": description, "headers": headers, "content": content}


def _add_example(content: dict[str, Any], schemas: dict[str, Any]) -> None:
    if "schema" in content and "example" not in content and "examples" not in content:
        content["example"] = _example(content["schema"], schemas, 0)


def _example(schema: dict[str, Any], schemas: dict[str, Any], depth: int, name: str = "") -> Any:
    """A value that shows the shape: the field's own example where it has one, else one by name and type."""
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas, depth, name)
    if examples := schema.get("examples"):
        return examples[0] if isinstance(examples, list) else next(iter(examples.values()))
    fixed = schema.get("default"), schema.get("const"), *schema.get("enum", ())
    if (value := next((value for value in fixed if value is not None), None)) is not None:
        return value
    choices = [choice for key in _CHOICES for choice in schema.get(key, ())]
    if choice := next((choice for choice in choices if choice.get("type") != "null"), None):
        # Limits of a value that may be null stand beside the choice.
        beside = {key: value for key, value in schema.items() if key not in _CHOICES}
        return _example(beside | choice, schemas, depth, name)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((entry for entry in kind if entry != "null"), "null")
    match kind:
        case "object":
            if depth > 4:
                return {}
            properties = schema.get("properties", {})
            return {key: _example(value, schemas, depth + 1, key) for key, value in properties.items()}
        case "array":
            return [] if depth > 4 else [_example(schema.get("items", {}), schemas, depth + 1, name)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case "string":
            return _string_example(schema, name)
        case _:
            return None


_CHOICES = ("oneOf", "anyOf", "allOf")
_BY_NAME = {
    "id": "app_3k2m4v7q3n5t2ac6xk2m4v7q3n",
    "username": "admin",
    "email": "ada@example.com",
    "password": "correct horse battery staple",
    "current_password": "correct horse battery staple",
    "new_password": "another horse battery staple",
    "code": "123456",
    "user_agent": "curl/8.5.0",
    "ip": "203.0.113.7",
    "token_type": "bearer",
    "resources": "app_3k2m4v7q3n5t2ac6xk2m4v7q3n",
    "allowed_ips": "203.0.113.0/24",
}


def _string_example(schema: dict[str, Any], name: str) -> str:
    if schema.get("format") == "date-time":
        return "2026-01-31T12:00:00Z"
    if name in _BY_NAME:
        return _BY_NAME[name]
    return name.replace("_", "-") or "text"


def _strict_bodies() -> set[str]:
    def below(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return {kind.__name__ for base in (In, OptionalIn) for kind in below(base)}


def _tidy(value: Any) -> None:
    """Kinds of numbers don't overlap; patterns are Python's in the code, ECMA's here: `\\Z` there is `$` here."""
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            value["pattern"] = value["pattern"].replace("\\Z", "$")
        if {"type": "number"} in value.get("oneOf", ()) and {"type": "integer"} in value["oneOf"]:
            # A whole number would be both.
            value["oneOf"].remove({"type": "integer"})
        for item in value.values():
            _tidy(item)
    elif isinstance(value, list):
        for item in value:
            _tidy(item)
