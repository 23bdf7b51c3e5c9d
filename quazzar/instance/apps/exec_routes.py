"""Terminals over HTTP: what is refused before the upgrade, and the WebSocket itself."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from litestar import Controller, Request, WebSocket
from litestar.datastructures import State
from litestar.handlers import WebsocketRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Operation, Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath
from msgspec import Meta

from quazzar.core.auth import principal_of, requires
from quazzar.core.http import caller_of
from quazzar.core.routing import get
from quazzar.core.sse import credential_check, streams_of
from quazzar.instance.apps.exec import Socket, Terminals, WebSocketRequired, find_target, read_query

AppId = FromPath[Annotated[str, Meta(description="Id of an app.", examples=["app_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]]
PROTOCOL: Final = "quazzar.exec"


def _parameter(name: str, schema: Schema, description: str) -> Parameter:
    return Parameter(name=name, param_in="query", schema=schema, description=description)


_PARAMETERS = [
    _parameter(
        "service",
        Schema(type=OpenAPIType.STRING, min_length=1, max_length=63),
        "The service; may be left out where the app has only one.",
    ),
    _parameter(
        "command",
        Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING, max_length=4096), max_items=64),
        "The program and its arguments, one `command=` each; bash or else sh where none is given. It is kept in the"
        " audit log: no place for secrets.",
    ),
    _parameter("tty", Schema(type=OpenAPIType.BOOLEAN, default=True), "With a terminal."),
    _parameter("cols", Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=1000, default=80), "Its width."),
    _parameter("rows", Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=1000, default=24), "Its height."),
]


@dataclass
class ExecOperation(Operation):
    """Documents the query, which is read by hand: it is the same for the WebSocket."""

    def __post_init__(self) -> None:
        self.parameters = [*(self.parameters or ()), *_PARAMETERS]


class ExecController(Controller):
    path = "/apps/{app_id:str}/exec"
    tags = ("Apps",)

    @get(
        guards=[requires("apps:exec")],
        operation_id="ExecInApp",
        operation_class=ExecOperation,
        summary="A terminal in a service of an app, as a WebSocket",
        responses={
            101: ResponseSpec(None, description="The WebSocket is open", generate_examples=False),
            426: ResponseSpec(None, description="It was not asked for a WebSocket", generate_examples=False),
        },
    )
    async def exec_in_app(self, request: Request[Any, Any, State], app_id: AppId) -> None:
        """Runs a command beside what runs in the service's container, as the same user, and connects it.

        Input is sent in binary messages and output comes in such; text messages are JSON: `{"type": "resize", "cols",
        "rows"}` and `{"type": "eof"}` to the command, `started`, `exit` with its `exit_code` and `error` from it.
        Without a terminal the first byte of a binary message is 1 for stdout and 2 for stderr. Closing the WebSocket
        ends the command. A browser, which can set no headers, offers the subprotocols `quazzar.exec` and
        `bearer.TOKEN`. Start and end are audited.
        """
        query = read_query(request.query_params)
        await find_target(request.app.state.database, principal_of(request), app_id, query)
        raise WebSocketRequired

    @WebsocketRouteHandler(guards=[requires("apps:exec")])
    async def terminal(self, socket: WebSocket[Any, Any, State], app_id: AppId) -> None:
        await serve(socket, app_id)


async def serve(socket: Socket, app_id: str) -> None:
    """Start the command, take the WebSocket, and carry what passes between them. Refuses before the upgrade."""
    state = socket.app.state
    terminals: Terminals = state.terminals
    query = read_query(socket.query_params)
    target = await find_target(state.database, principal_of(socket), app_id, query)
    async with terminals.open(caller_of(socket), target, query) as terminal:
        # A token among the offered protocols is never named back.
        offered = socket.scope["subprotocols"]
        await socket.accept(subprotocols=PROTOCOL if PROTOCOL in offered else None)
        await terminal.run(
            socket,
            idle_seconds=terminals.idle_seconds,
            allowed=_check(socket),
            closing=streams_of(state).closed,
        )


def _check(socket: Socket) -> Callable[[], Awaitable[bool]]:
    """Whether the caller may go on. A terminal outlives an access token, but not the session that it came from."""
    principal = principal_of(socket)
    holds = credential_check(socket)
    authenticator = socket.app.state.authenticator

    async def allowed() -> bool:
        if holds is not None and await holds():
            return True
        try:
            standing = await authenticator.still_stands(principal)
        except Exception:  # noqa: BLE001 - a database that is away for a moment revokes nothing
            return True
        return standing is not None and standing.allows("apps:exec")

    return allowed
