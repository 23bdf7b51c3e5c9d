"""One HTTP connection: uvicorn's httptools protocol, and the deadlines and refusals that it leaves to a proxy.

What a proxy in front usually promises holds here without one:

- a head arrives within `head_seconds` and in at most 32 KiB and 100 lines, or the connection ends with an envelope
- what two servers could read differently (RFC 9112, sections 3.2 and 6.3) is refused: both lengths or two of them,
  other transfer codings than `chunked`, bare line feeds, folded lines, a space before the colon, a target of another
  host, HTTP/0.9 and 2
- an unread body is thrown away for a moment, so that the answer reaches the caller before the connection ends
- a caller that does not take its answer is dropped after `write_seconds`
- beyond `max_connections` new requests get a 503; far beyond it connections are not taken at all

The time for a body is the gate's matter.
"""

import asyncio
import re
import ssl
import time
from typing import Any, Final
from urllib.parse import unquote

import httptools
import msgspec
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from quazzar.core.envelope import encode_error, error_headers
from quazzar.core.errors import AppError, Unavailable
from quazzar.core.exchange import App, rate_headers
from quazzar.core.gate import MAX_HEADER_BYTES, MAX_HEADER_LINES, MAX_URL_BYTES
from quazzar.core.ids import new_id
from quazzar.core.ratelimit import Hit

log = structlog.get_logger(__name__)

# How much of a body that nobody wants is read before the connection is cut, and for how long.
DISCARD_BYTES: Final = 16 * 1024 * 1024
DISCARD_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 2.0
MAX_PIPELINED: Final = 16
MAX_UPGRADE_LINE: Final = 8000

# 16 bytes in base64 (RFC 6455, section 4.1).
_is_websocket_key: Final = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==").fullmatch


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines in seconds and caps. `rate_limit` is what refusals below the gate show as the limit per minute.

    A stop waits `drain_seconds` for requests and then `close_seconds` for the app to close what it holds. With `tls`
    there are `most_handshakes` at once, and more are turned away. A second listener of a process has `lifespan` False:
    its app is started and ended by the first one's.
    """

    head_seconds: float = 10.0
    keep_alive_seconds: int = 60
    write_seconds: float = 30.0
    drain_seconds: int = 20
    close_seconds: float = 5.0
    max_connections: int = 8192
    most_handshakes: int = 500
    rate_limit: int = 100
    websocket_bytes: int = 1024 * 1024
    tls: ssl.SSLContext | None = None
    lifespan: bool = True


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with the deadline of HTTP answers for a caller that does not take what is sent."""

    _write_deadline: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        edge = self.config.edge  # type: ignore[attr-defined]
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(edge.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _forget_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # Else a refusal that was answered is logged as one that was forgotten.
            self.handshake_complete = self.close_sent = True

    async def run_asgi(self) -> None:
        tls = _shown_certificate(self.transport)
        if tls is not None:
            extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
            extensions["tls"] = tls
        await super().run_asgi()


class UvicornConfig(uvicorn.Config):
    """uvicorn's configuration with ours inside, where the protocol finds it."""

    def __init__(self, app: App, edge: ServerConfig) -> None:
        tls = edge.tls
        super().__init__(
            app,
            http=Protocol,
            ws=WebSocketProtocol,
            ws_max_size=edge.websocket_bytes,
            interface="asgi3",
            # Compression would let one small message become a large one.
            ws_per_message_deflate=False,
            lifespan="on" if edge.lifespan else "off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=edge.keep_alive_seconds,
            timeout_graceful_shutdown=edge.drain_seconds,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        self.edge = edge


class _Refusal(AppError):
    """A request that is answered here, before the gate."""

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_http") -> None:
        super().__init__(message, code=code)
        self.status = status  # type: ignore[misc]


def _answer(error: AppError, limit: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an answer of our own, labelled as those of the gate are."""
    request_id = new_id("req")
    body = encode_error(error, request_id)
    hit = Hit(allowed=True, limit=limit, remaining=limit, reset=int(time.time() // 60 + 1) * 60)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", request_id.encode()),
        *rate_headers(hit),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *error_headers(error),
    ]
    return headers, body


class _Channel:
    """What a cycle sees of the transport: closing it first gives an unread body the time to be thrown away."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, protocol: "Protocol") -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.finish


class _Cycle(RequestResponseCycle):
    """One request and its answer; the app behind is the gate, so its own 500 is for a gate that broke."""

    limit = 0

    async def send_500_response(self) -> None:
        headers, body = _answer(AppError(), self.limit)
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, UvicornConfig)
        self._edge = config.edge
        self._channel: Any = None
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._discard_deadline: asyncio.TimerHandle | None = None
        # The head that is being read: whether there is one, and how much of it has come.
        self._in_head = False
        self._fed = 0
        self._lines = 0
        self._size = 0
        self._hosts: list[bytes] = []
        self._coding: bytes | None = None
        self._has_length = False
        # Whether the message that is being read has a cycle that takes its body.
        self._has_cycle = False
        # Set when nothing more is parsed: what is to be said once earlier requests are answered.
        self._refusal: AppError | None = None
        self._deaf = False
        self._discarding = False
        self._discarded = 0
        self._close_after_discard = False

    # --- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._channel = _Channel(self)
        if len(self.connections) > self._edge.max_connections * 5 // 4:
            transport.abort()
            return
        self._deadline = self.loop.call_later(self._edge.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._write_deadline, self._discard_deadline):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        """Whether no request waits for its answer."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > DISCARD_BYTES:
                self.transport.abort()
                return
        if self._deaf:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade()
            return
        except httptools.HttpParserError:
            self._stop_parsing(self._refusal or _Refusal("The request is not valid HTTP/1.1"))
            return
        if self._in_head:
            self._fed += len(data)
            # The parser shows a line only when it has the next one; what it holds back is counted here.
            if self._fed > MAX_HEADER_BYTES + len(self.url) + 512:
                self._stop_parsing(_too_large())
                return
        elif self._discarding or not self._is_idle():
            return
        # A head has begun and is not complete, or nothing but empty lines has come.
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._edge.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self._stop_parsing(_Refusal("The head of the request did not arrive in time", code="head_timeout"))
        elif self._is_idle():
            self._close()

    def _upgrade(self) -> None:
        if self._should_upgrade():
            self.handle_websocket_upgrade()
        else:
            # The request was taken as an ordinary one; the parser can't go on behind it.
            self._deaf = True
            self.cycle.keep_alive = False

    # --- parsing -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._has_cycle = False
        self._fed = self._lines = self._size = 0
        self._hosts.clear()
        self._coding = None
        self._has_length = False

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_URL_BYTES:
            self._give_up(_Refusal("Path and query are too long", status=414, code="uri_too_long"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += 1
        self._size += len(name) + len(value)
        if self._lines > MAX_HEADER_LINES or self._size > MAX_HEADER_BYTES:
            self._give_up(_too_large())
        if not self._in_head:
            # A trailer: the request is on its way with the headers that it had.
            return
        name = name.lower()
        value = value.rstrip()
        if name == b"host":
            self._hosts.append(value)
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        elif name == b"transfer-encoding":
            self._coding = value if self._coding is None else b"twice"
        elif name == b"content-length":
            self._has_length = value != b"0"
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._lines = self._size = 0
        version = self.parser.get_http_version()
        method = self.parser.get_method().decode("ascii")
        url = httptools.parse_url(self.url) if method != "CONNECT" else None
        problem = self._head_problem(method, version, url)
        if problem is not None:
            self._give_up(_Refusal(problem))
        assert url is not None
        scope = self.scope
        scope["method"] = method
        if version != "1.1":
            scope["http_version"] = version
        if self.parser.should_upgrade() and self._should_upgrade():
            return
        raw_path: bytes = url.path
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = url.query or b""
        self._begin(keep_alive=version == "1.1" and self.parser.should_keep_alive())

    def _begin(self, *, keep_alive: bool) -> None:
        """Start the app on the request, or put it behind those before it."""
        first = self._is_idle()
        cycle = self.cycle = _Cycle(
            scope=self.scope,
            transport=self._channel,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.limit = self._edge.rate_limit
        self._has_cycle = True
        app = self._busy if len(self.connections) > self._edge.max_connections else self.app
        if first:
            self._start_asgi_task(cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))

    def _head_problem(self, method: str, version: str, url: Any) -> str | None:
        """What is wrong with a head that the parser takes; None when nothing is."""
        if version not in ("1.1", "1.0"):
            return f"HTTP/{version} is not spoken here"
        if self._coding is not None and (self._coding.lower() != b"chunked" or version == "1.0"):
            return "The transfer coding must be chunked"
        if len(self._hosts) > 1 or (not self._hosts and version == "1.1"):
            return "There must be exactly one Host header"
        if url is None:
            return "This is not a proxy"
        if not url.path:
            return "The request has no path"
        if url.host is not None:
            default = 443 if url.schema == b"https" else 80
            target = b"%s:%d" % (url.host.lower(), url.port or default)
            named = self._hosts[0].lower() if self._hosts else b""
            if target not in (named, b"%s:%d" % (named, default)):
                return "The target and the Host header name different hosts"
        elif url.path[:1] != b"/" and url.path != b"*":
            return "The path must start with a slash"
        if len(self.pipeline) >= MAX_PIPELINED:
            return "There are too many requests at once on this connection"
        if self.parser.should_upgrade():
            return self._upgrade_problem(method)
        return None

    def _upgrade_problem(self, method: str) -> str | None:
        if self._coding is not None or self._has_length:
            return "A request with a body can't change the protocol"
        if not self._is_idle():
            return "The protocol can't change while a request is being answered"
        if not self._should_upgrade():
            return None
        found = dict(self.headers)
        if method != "GET" or found.get(b"sec-websocket-version") != b"13":
            return "The WebSocket handshake is not valid"
        if not _is_websocket_key(found.get(b"sec-websocket-key", b"")):
            return "The key of the WebSocket handshake is not valid"
        # The library that takes over gives up on longer lines, without an answer.
        if max(len(self.url), *(len(name) + len(value) for name, value in self.headers)) > MAX_UPGRADE_LINE:
            return "The WebSocket handshake has too long a line"
        return None

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._has_cycle:
            self.cycle.more_body = False
            if self._discarding:
                self._discarded_all()

    # --- refusing ------------------------------------------------------------------------------------------------

    def _give_up(self, error: AppError) -> None:
        """Make the parser stop; it turns any exception of a callback into its own."""
        self._refusal = error
        raise error

    def _stop_parsing(self, error: AppError) -> None:
        """Nothing after this point of the stream can be understood: say so when it is this message's turn, then end."""
        self._deaf = True
        self._in_head = False
        self._refusal = error
        if self._is_idle():
            self._send_refusal()
        elif self._has_cycle:
            # The body of a request that is being handled broke off.
            cycle = self.cycle
            started = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if started or self.pipeline:
                self.transport.abort()
            else:
                self._send_refusal()
        # Else it is said after the answers to the requests before it.

    def _send_refusal(self) -> None:
        error = self._refusal
        if error is None or self.transport.is_closing():
            return
        log.debug("Connection refused", code=error.code, client=self.client and self.client[0])
        headers, body = _answer(error, self._edge.rate_limit)
        head = [STATUS_LINE[error.status]]
        for name, value in (*self.server_state.default_headers, *headers):
            head += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*head, b"\r\n", body)))
        # The caller may still be sending; closing now could take the answer away from it.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._discard(LINGER_SECONDS, close=True)

    async def _busy(self, _scope: Any, _receive: Any, send: Any) -> None:
        error = Unavailable("There are too many connections right now", code="too_many_connections")
        headers, body = _answer(error, self._edge.rate_limit)
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    # --- ending --------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        cycle = self.cycle
        if cycle.response_complete and cycle.more_body and not self._discarding:
            self._discard(DISCARD_SECONDS, close=False)
        super().on_response_complete()
        if self._refusal is not None and cycle.response_complete:
            self._send_refusal()

    def finish(self) -> None:
        """Close after an answer, once the rest of its request's body is out of the way."""
        cycle = self.cycle
        if cycle.response_complete and cycle.more_body and not cycle.disconnected:
            self._discard(DISCARD_SECONDS, close=True)
        else:
            self._close()

    def _discard(self, seconds: float, *, close: bool) -> None:
        self._discarding = True
        self._close_after_discard = close
        self.flow.resume_reading()
        if self._discard_deadline is None:
            self._discard_deadline = self.loop.call_later(seconds, self._discarded_enough)

    def _discarded_enough(self) -> None:
        self._discard_deadline = None
        if not self.transport.is_closing():
            self._close()

    def _discarded_all(self) -> None:
        self._discarding = False
        self._discarded = 0
        if self._discard_deadline is not None:
            self._discard_deadline.cancel()
            self._discard_deadline = None
        if self._close_after_discard:
            self._close()
        elif not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _close(self) -> None:
        """Close, but do not wait for ever for a caller that does not take what is left to send."""
        self.transport.close()
        if self._write_deadline is None and self.transport.get_write_buffer_size():
            self._write_deadline = self.loop.call_later(self._edge.write_seconds, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.is_closing():
            self._close()

    def shutdown(self) -> None:
        if self._is_idle():
            self._close()
        else:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self._edge.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_deadline is not None and not self.transport.is_closing():
            self._write_deadline.cancel()
            self._write_deadline = None


def _too_large() -> AppError:
    return _Refusal("The headers are too large", status=431, code="headers_too_large")


def _shown_certificate(transport: asyncio.BaseTransport) -> dict[str, Any] | None:
    """The `tls` extension of ASGI as far as we need it: the caller's certificate, which the handshake has verified.

    `client_cert_chain` is empty where the caller has shown none; None without TLS.
    """
    connection = transport.get_extra_info("ssl_object")
    if connection is None:
        return None
    shown = connection.getpeercert(binary_form=True)
    return {"client_cert_chain": [ssl.DER_cert_to_PEM_cert(shown)] if shown else []}
