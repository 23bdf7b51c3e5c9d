"""Server-sent events: streams that resume, show that they live, and end cleanly."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import anyio
import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.response import Stream

from quazzar.core.auth import Principal, authorization_of
from quazzar.core.errors import RateLimited, Unauthorized

HEARTBEAT_SECONDS = 15.0
CHECK_SECONDS = 4.0
"""How soon a stream ends once its credential is revoked."""
MOST_OF_ONE: Final = 1_000
"""Streams that one client has open at once: each holds a connection, of which a process has 2,000 unless it is told
otherwise, and costs its client no more than one request. Nobody gets all of them.
"""
_BREAKS = re.compile(r"[\r\n\x00]+")


class ServerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event: `data` is sent as JSON; a client that comes again sends the last `id` as `Last-Event-ID`."""

    data: Any
    id: str | None = None
    event: str | None = None

    def encode(self) -> bytes:
        lines = []
        if self.id is not None:
            lines.append(f"id: {_BREAKS.sub(' ', self.id)}")
        if self.event is not None:
            lines.append(f"event: {_BREAKS.sub(' ', self.event)}")
        # JSON on one line: a line break in a text is `\n` there, so no data can start a line of its own.
        lines.append(f"data: {msgspec.json.encode(self.data).decode()}")
        return ("\n".join(lines) + "\n\n").encode()


class Streams:
    """All open streams of a process. `close` ends them, so that a server which waits for its answers can stop."""

    def __init__(self) -> None:
        self._closed = asyncio.Event()
        self._clients: Counter[str] = Counter()
        self.open = 0

    def begin(self, client: str) -> None:
        """One more that this client (see `Principal.client`) has opened."""
        self.open += 1
        self._clients[client] += 1

    def end(self, client: str) -> None:
        self.open -= 1
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    def check(self, client: str) -> None:
        """Raises `RateLimited` for a client that has as many open as it may have."""
        if self._clients[client] >= MOST_OF_ONE:
            raise RateLimited(
                f"There are {MOST_OF_ONE} streams open already",
                code="too_many_streams",
                headers={"Retry-After": "10"},
            )

    def close(self) -> None:
        """End every stream, and each that is opened from now on; call it when the process begins to drain."""
        self._closed.set()

    @property
    def closed(self) -> asyncio.Event:
        return self._closed


def streams_of(state: Any) -> Streams:
    """The streams of an app, by its state."""
    found: Streams | None = getattr(state, "streams", None)
    if found is None:
        found = state.streams = Streams()
    return found


def server_events(
    request: Request[Any, Any, Any],
    events: AsyncIterator[ServerEvent],
    *,
    still_allowed: Callable[[], Awaitable[bool]] | None = None,
) -> Stream:
    """Answer `request` with `events` until they end, the client goes, the process drains or `still_allowed` is false.

    A comment goes out after 15 seconds of silence. `events` is closed in any case. By default the credential is asked
    for every few seconds, as it stood in the request. Raises `RateLimited` for a client with too many of them.
    """
    streams, principal = streams_of(request.app.state), request.scope["state"].get("principal")
    client = principal.client if principal is not None else ""
    streams.check(client)
    allowed = still_allowed if still_allowed is not None else credential_check(request)
    return Stream(
        encoded(events, streams, allowed, client=client),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


def last_event_id(request: Request[Any, Any, Any]) -> str | None:
    """What a client that comes again has seen last; at most 200 characters, None when it sends none or an odd one."""
    value = request.headers.get("last-event-id")
    return value if value and len(value) <= 200 and value.isprintable() else None


async def encoded(
    events: AsyncIterator[ServerEvent],
    streams: Streams,
    allowed: Callable[[], Awaitable[bool]] | None = None,
    *,
    client: str = "",
    heartbeat_seconds: float | None = None,
) -> AsyncIterator[bytes]:
    """The bytes of a stream; begins with a comment, so that proxies and clients see at once that it is open."""
    silence = heartbeat_seconds if heartbeat_seconds is not None else HEARTBEAT_SECONDS
    loop = asyncio.get_running_loop()
    closing = asyncio.create_task(streams.closed.wait())
    coming: asyncio.Task[ServerEvent | None] | None = None
    quiet_since = checked_at = loop.time()
    streams.begin(client)
    try:
        yield b": open\n\n"
        while not streams.closed.is_set():
            if coming is None:
                coming = asyncio.create_task(_next(events))
            # Whatever comes meanwhile does not put the next look at the credential off.
            left = silence if allowed is None else max(0.0, checked_at + CHECK_SECONDS - loop.time())
            await asyncio.wait({coming, closing}, timeout=min(silence, left), return_when=asyncio.FIRST_COMPLETED)
            now = loop.time()
            if allowed is not None and now - checked_at >= CHECK_SECONDS:
                checked_at = now
                if not await allowed():
                    return
            if coming.done():
                event = coming.result()
                coming = None
                if event is None:
                    return
                quiet_since = now
                yield event.encode()
            elif now - quiet_since >= silence and not streams.closed.is_set():
                quiet_since = now
                yield b": still here\n\n"
    finally:
        streams.end(client)
        closing.cancel()
        # A client that has gone cancels us again and again until we are done.
        with anyio.CancelScope(shield=True):
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()


async def _next(events: AsyncIterator[ServerEvent]) -> ServerEvent | None:
    return await anext(events, None)


def credential_check(connection: ASGIConnection[Any, Any, Any, Any]) -> Callable[[], Awaitable[bool]] | None:
    """What tells whether the credential of a connection still holds, with the rights that it had; None without one."""
    authenticator = getattr(connection.app.state, "authenticator", None)
    authorization = authorization_of(connection.scope)
    if authenticator is None or authorization is None:
        return None
    state = connection.scope["state"]
    realm, address = state.get("realm", "instance"), state.get("address", "")
    rights = _rights(state.get("principal"))

    async def check() -> bool:
        try:
            principal = authenticator.cached(realm, authorization, address)
            if principal is None:
                principal = await authenticator.resolve(realm, authorization, address)
        except Unauthorized:
            return False
        except Exception:  # noqa: BLE001 - a database that is away for a moment revokes nothing
            return True
        # What the stream was opened with decides what it shows; with other rights it has to be asked for anew.
        return _rights(principal) == rights

    return check


def _rights(principal: Principal | None) -> object:
    return principal and (principal.tenant_id, principal.role, principal.scopes, principal.resources)
