"""Route decorators of this project: Litestar's handlers with a guard check that copies nothing."""

from collections.abc import Callable, Sequence
from typing import Any

from litestar.connection import ASGIConnection
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler


class Endpoint(HTTPRouteHandler):
    """A handler whose guards are called with the handler itself; stock Litestar copies it for each guard and request."""

    async def authorize_connection(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        for guard in self.resolve_guards():
            await guard(connection, self)  # type: ignore[misc]


def _decorator(method: HttpMethod) -> Callable[..., Endpoint]:
    def decorate(path: str | Sequence[str] | None = None, **options: Any) -> Endpoint:
        return Endpoint(path, http_method=method, **options)

    decorate.__name__ = method.value.lower()
    return decorate


get = _decorator(HttpMethod.GET)
post = _decorator(HttpMethod.POST)
put = _decorator(HttpMethod.PUT)
patch = _decorator(HttpMethod.PATCH)
delete = _decorator(HttpMethod.DELETE)
