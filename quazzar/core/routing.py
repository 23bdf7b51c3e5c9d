"""Route decorators of this project: Litestar's handlers with a guard check that copies nothing."""

from collections.abc import Callable, Iterator, Sequence
from types import NoneType
from typing import Any, cast

import msgspec
from litestar import Litestar, Request
from litestar.connection import ASGIConnection
from litestar.enums import HttpMethod
from litestar.exceptions import ValidationException
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.response.base import ASGIResponse
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, ExceptionHandlersMap, Receive, Scope, Send
from litestar.typing import FieldDefinition

from quazzar.core.errors import BadRequest
from quazzar.core.idempotency import Pending
from quazzar.core.schema import In, decode_body, unknown_of

READS_BODY = "reads_body"


class _Nothing(In):
    """The body of a call that takes none."""


class Endpoint(HTTPRouteHandler):
    """A handler with the per-request work of Litestar's own done once, or not at all.

    Guards get the handler itself, where the stock one is copied for each guard and request; exception handlers are
    gathered from the layers once; and a plain answer leaves without a response object. A handler that takes no body
    gets none with fields in it, and one that changes something no parameters that it does not know: what a caller
    wanted by them is not passed over. `opt={READS_BODY: True}` is for one that reads its body by itself.
    """

    _gathered: "ExceptionHandlersMap | None" = None
    _queried: "dict[str, FieldDefinition] | None" = None
    _nullable: frozenset[str] = frozenset()
    _refuses_body: bool | None = None

    def resolve_exception_handlers(self) -> ExceptionHandlersMap:
        if self._gathered is None:
            self._gathered = super().resolve_exception_handlers()
        return self._gathered

    async def authorize_connection(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        for guard in self.resolve_guards():
            await guard(connection, self)  # type: ignore[misc]
        if self._refuses_body is None:
            bare = self.parsed_data_field is None and READS_BODY not in self.opt
            self._refuses_body = bare and "GET" not in self.http_methods
        if connection.scope["query_string"]:
            self._check_query(connection)
        if self._refuses_body and isinstance(connection, Request) and (body := await connection.body()):
            decode_body(body, _Nothing)

    def _check_query(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        """Refuse what the framework would take for no parameter at all: unknown names where something is changed (a
        misspelt `dry_run` would not stay dry) and names given twice, and `null`, which is a value like any other.
        """
        if self._queried is None:
            self._queried = dict(self._find_queried())
            self._nullable = frozenset(name for name, field in self._queried.items() if _takes_null(field))
        query = connection.query_params
        if "GET" not in self.http_methods:
            hints = unknown_of(dict.fromkeys(query), self._queried)
            if details := {name: f"Unknown parameter{hint}" for name, hint in hints}:
                raise BadRequest("There is no such parameter", details=details)
            single = [name for name, field in self._queried.items() if not field.is_non_string_sequence]
            if details := {name: "Is there more than once" for name in single if len(query.getall(name, ())) > 1}:
                raise BadRequest("A parameter can have one value", details=details)
        if self._nullable:
            # Of a name that is there twice the framework takes the last.
            last = dict(query.multi_items())
            wrong = [name for name in sorted(self._nullable) if last.get(name, "").lower() == "null"]
            if wrong:
                extra = [{"key": name, "message": "Invalid enum value 'null'"} for name in wrong]
                raise ValidationException(extra=extra)

    def _find_queried(self) -> Iterator[tuple[str, FieldDefinition]]:
        """The query parameters of the handler and of what it depends on."""
        providers, signatures = dict(self.resolve_dependencies()), [self.parsed_fn_signature]
        for signature in signatures:
            for name, field in signature.parameters.items():
                if name in providers:
                    signatures.append(providers.pop(name).parsed_fn_signature)
                elif isinstance(field.kwarg_definition, QueryParameter):
                    yield field.kwarg_definition.name or name, field

    async def to_response(self, app: Litestar, data: Any, request: Request[Any, Any, Any]) -> ASGIApp:
        """Build the answer, keep it when it has an `Idempotency-Key`, and commit the request's transaction."""
        response: ASGIApp
        if isinstance(data, _PLAIN):
            response = Answer(self.status_code, None if data is None else _encode(data))
        else:
            response = await super().to_response(app, data, request)
        pending: Pending | None = request.scope["state"].get("idempotent")
        if pending is not None and isinstance(response, Answer | ASGIResponse):
            await pending.keep(response)
        transaction = request.scope["state"].pop("transaction", None)
        if transaction is not None:
            await transaction.__aexit__(None, None, None)
        return response


def _takes_null(field: FieldDefinition) -> bool:
    """Of several values of one name each is read by itself, and none as a whole."""
    if field.is_non_string_sequence:
        return False
    try:
        return msgspec.convert("null", field.annotation, strict=False) is None
    except msgspec.ValidationError:
        return False


_PLAIN = (msgspec.Struct, list, dict, NoneType)
_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")


class Answer:
    """What a handler returned, as JSON; Litestar's own response objects cost as much as a small handler does.

    `body` is None for an answer without one (204).
    """

    __slots__ = ("_headers", "body", "status_code")

    def __init__(self, status_code: int, body: bytes | None) -> None:
        self.status_code = status_code
        self.body = body or b""
        self._headers = [] if body is None else [_JSON, (b"content-length", b"%d" % len(body))]

    def encode_headers(self) -> list[tuple[bytes, bytes]]:
        return self._headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - an ASGI app
        await send({"type": "http.response.start", "status": self.status_code, "headers": self._headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


Decorator = Callable[[Callable[..., Any]], Endpoint]


def _decorator(method: HttpMethod) -> Callable[..., Decorator]:
    def decorate(path: str | Sequence[str] | None = None, **options: Any) -> Decorator:
        return cast("Decorator", Endpoint(path, http_method=method, **options))

    decorate.__name__ = method.value.lower()
    return decorate


get = _decorator(HttpMethod.GET)
post = _decorator(HttpMethod.POST)
put = _decorator(HttpMethod.PUT)
patch = _decorator(HttpMethod.PATCH)
delete = _decorator(HttpMethod.DELETE)


def renew_options(app: Litestar) -> None:
    """Let each path's OPTIONS name all of its methods.

    Litestar makes that answer when the first handler of a path is registered and keeps it when more join.
    """
    for route in app.routes:
        if isinstance(route, HTTPRoute) and not isinstance(route.route_handler_map["OPTIONS"][0], Endpoint):
            handler = route.create_options_handler(route.path)
            handler.owner = route.route_handlers[0].owner
            handler.on_registration(app)
            model = handler.create_kwargs_model(path_parameters=route.path_parameters)
            route.route_handler_map[HttpMethod.OPTIONS] = (handler, model)
