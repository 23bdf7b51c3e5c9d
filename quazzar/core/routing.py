"""Route decorators of this project: Litestar's handlers with a guard check that copies nothing."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from litestar import Litestar, Request
from litestar.connection import ASGIConnection
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp

from quazzar.core.idempotency import Pending


class Endpoint(HTTPRouteHandler):
    """A handler whose guards get the handler itself; stock Litestar copies it for each guard and request."""

    async def authorize_connection(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        for guard in self.resolve_guards():
            await guard(connection, self)  # type: ignore[misc]

    async def to_response(self, app: Litestar, data: Any, request: Request[Any, Any, Any]) -> ASGIApp:
        """Build the answer; one under an `Idempotency-Key` is kept in the still open transaction."""
        response = await super().to_response(app, data, request)
        pending: Pending | None = request.scope["state"].get("idempotent")
        if pending is not None and isinstance(response, ASGIResponse):
            await pending.keep(response)
        return response


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
