"""A toy app behind the real gate, for the tests of the gate and of the server."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import msgspec
from litestar import Litestar, Request, WebSocket
from litestar.handlers import WebsocketRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import ServerSentEvent, Stream
from litestar.types import Receive, Scope, Send

from quazzar.core.auth import Principal, Realm, authenticated, principal_of, requires
from quazzar.core.envelope import exception_handlers, remember_error
from quazzar.core.errors import NotFound, Unauthorized, Unavailable
from quazzar.core.gate import Gate, GateConfig
from quazzar.core.ratelimit import RateLimiter, parse_bucket
from quazzar.core.routing import get, post, put


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    port: int = 0


class ThingMissing(NotFound):
    code = "thing_not_found"
    message = "There is no such thing here"


def build(prefix: str = "") -> list[Any]:
    @get(f"{prefix}/api/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @get(f"{prefix}/api/open")
    async def read_open(request: Request[Any, Any, Any]) -> dict[str, Any]:
        state = request.scope["state"]
        principal = state["principal"]
        return {
            "realm": state["realm"],
            "address": state["address"],
            "forwarded": state["forwarded"],
            "request_id": state["request_id"],
            "user": None if principal is None else principal.user_id,
        }

    @get(f"{prefix}/api/guarded", guards=[requires("things:read")])
    async def read_guarded(request: Request[Any, Any, Any]) -> dict[str, str]:
        return {"user": principal_of(request).user_id}

    @post(f"{prefix}/api/things", guards=[authenticated()])
    async def create_thing(data: JSONBody[Thing]) -> Thing:
        return data

    @put(f"{prefix}/api/echo")
    async def echo(request: Request[Any, Any, Any]) -> dict[str, int]:
        return {"size": len(await request.body())}

    @put(f"{prefix}/api/files/{{name:str}}")
    async def upload(request: Request[Any, Any, Any], name: FromPath[str]) -> dict[str, Any]:
        chunks = [len(chunk) async for chunk in request.stream() if chunk]
        return {"name": name, "size": sum(chunks), "chunks": len(chunks)}

    @post(f"{prefix}/api/auth/login")
    async def login(data: JSONBody[Thing]) -> Thing:
        return data

    @get(f"{prefix}/api/auth/login")
    async def read_login() -> dict[str, str]:
        return {}

    @get(f"{prefix}/api/things/{{number:int}}")
    async def read_thing(
        number: FromPath[int],
        limit: FromQuery[int],
        exact: FromQuery[bool] = False,
        order: FromQuery[Literal["up", "down"] | None] = None,
        words: Annotated[str | None, QueryParameter(name="q", min_length=1)] = None,
    ) -> dict[str, Any]:
        if number == 404:
            raise ThingMissing
        return {"number": number, "limit": limit, "exact": exact, "order": order, "words": words}

    @get(f"{prefix}/api/crash")
    async def crash() -> None:
        raise RuntimeError("the secret is hunter2")

    @get(f"{prefix}/api/slow")
    async def slow(seconds: FromQuery[float]) -> dict[str, str]:
        await asyncio.sleep(seconds)
        return {"slept": "yes"}

    @get(f"{prefix}/api/big")
    async def big(size: FromQuery[int]) -> Stream:
        async def chunks() -> AsyncGenerator[bytes, None]:
            for _ in range(size // 65536):
                yield b"x" * 65536

        return Stream(chunks(), media_type="application/octet-stream")

    @get(f"{prefix}/api/events")
    async def events() -> ServerSentEvent:
        async def forever() -> AsyncGenerator[str, None]:
            number = 0
            while True:
                yield str(number)
                number += 1
                await asyncio.sleep(0.05)

        return ServerSentEvent(forever())

    @get(f"{prefix}/api/breaks-off")
    async def breaks_off() -> Stream:
        async def chunks() -> AsyncGenerator[bytes, None]:
            yield b"first"
            raise RuntimeError("midway")

        return Stream(chunks(), media_type="text/plain")

    return [
        health, read_open, read_guarded, create_thing, echo, upload, login, read_login, read_thing, crash, slow, big,
        events, breaks_off,
    ]  # fmt: skip


async def socket_handler(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await socket.send_text(socket.scope["state"]["principal"].user_id)
    await socket.close()


PRINCIPALS = {
    b"Bearer good": Principal(
        realm="instance", user_id="usr_good", client="usr_good", scopes=frozenset({"things:read"}), session_id="ses_1"
    ),
    b"Bearer poor": Principal(
        realm="instance", user_id="usr_poor", client="usr_poor", scopes=frozenset(), session_id="ses_2"
    ),
}


class Tokens:
    """Knows two tokens; one is cached, and the word `down` stands for a database that is away."""

    def __init__(self) -> None:
        self.resolved: list[tuple[Realm, bytes, str]] = []

    def cached(self, realm: Realm, authorization: bytes, address: str) -> Principal | None:
        return PRINCIPALS[b"Bearer good"] if authorization == b"Bearer cached" else None

    async def resolve(self, realm: Realm, authorization: bytes, address: str) -> Principal:
        self.resolved.append((realm, authorization, address))
        if authorization == b"Bearer down":
            raise Unavailable
        if authorization == b"Bearer old":
            raise Unauthorized("The token has expired", code="token_expired")
        found = PRINCIPALS.get(authorization)
        if found is None:
            raise Unauthorized
        return found


def toy_app() -> Litestar:
    websocket = WebsocketRouteHandler("/api/socket", guards=[requires("things:read")])(socket_handler)
    return Litestar(
        [*build(), *build("/panel"), websocket],
        exception_handlers=exception_handlers,
        after_exception=[remember_error],
        openapi_config=None,
        logging_config=None,
    )


def toy_gate(
    app: Any = None, *, tokens: Tokens | None = None, limiter: RateLimiter | None = None, **options: Any
) -> Gate:
    config = {
        "mode": "instance",
        "limits": {"instance": parse_bucket("instance", "100/minute"), "panel": parse_bucket("panel", "200/minute")},
        "allowed_hosts": ("localhost", "127.0.0.1", "[::1]", "testserver"),
        "log": lambda **_: None,
        **options,
    }
    return Gate(app or toy_app(), GateConfig(**config), tokens or Tokens(), limiter or RateLimiter())


async def raw_app(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI app without a framework, for what only the gate can be blamed for."""
    if scope["path"] == "/raise":
        raise ValueError("no framework caught this")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
    await send({"type": "http.response.body", "body": b"{}", "more_body": False})
