"""The gate: one ASGI wrapper around the whole app that names, admits, counts, labels and logs every request.

It stands outside the framework, because the framework's middleware does not see unknown paths and wrong methods. The
order is: request id, size of the head, host, realm, client address, identity, rate limit, cross-origin rules, and only
then the app. What it learned is in `scope["state"]`:

- `request_id`: text, the caller's own when it sent a proper one
- `realm`: `instance` or `panel`
- `address`: the client's address behind trusted proxies; `forwarded`: True when any header speaks of a proxy, whether
  trusted or not, so that "from this machine" is only believed without one
- `principal`: the verified caller or None; `auth_error`: why a credential was refused, when one was
- `cookie`: the credential of a cookie that counts, on an instance and without an `Authorization` header

Bodies are checked when they are read, not before: 401, 403, 404 and 405 come first. Errors of a body are raised out of
`receive` as `AppError`s, which the framework's exception handlers turn into envelopes like any other.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Iterable, Mapping
from time import perf_counter
from typing import Final, Generic, Literal, Protocol, TypeVar
from urllib.parse import quote

import msgspec
import structlog
from litestar.utils.path import normalize_path

from quazzar.core.addresses import TrustedProxies, rate_key
from quazzar.core.auth import Authenticator, Principal, Realm, authorization_of, current_principal
from quazzar.core.bodies import Body, BodyRule
from quazzar.core.cookies import credential, is_of_own_origin
from quazzar.core.downloads import cut_off_in
from quazzar.core.envelope import encode_error, error_headers, from_exception
from quazzar.core.errors import AppError, Forbidden, RateLimited, Unauthorized, Unavailable
from quazzar.core.exchange import NO_STORE, App, Exchange, Message, Receive, Scope, Send, next_request_id, number
from quazzar.core.logs import AccessLog, request_id
from quazzar.core.ratelimit import Bucket, Hit, RateLimiter, parse_bucket

__all__ = ["MAX_HEADER_BYTES", "MAX_HEADER_LINES", "MAX_URL_BYTES", "BodyRule", "Gate", "GateConfig", "LogRequest"]

log = structlog.get_logger(__name__)

MAX_HEADER_LINES = 100
MAX_HEADER_BYTES = 32 * 1024
MAX_URL_BYTES = 8 * 1024


class LogRequest(Protocol):
    """Writes the access line of one request; control characters in `path` and `method` are for it to escape.

    `path` has no query and is percent-encoded as it came. `status` is 499 when the caller left before an answer.
    """

    def __call__(
        self, *, method: str, path: str, status: int, seconds: float, request: str, client: str, principal: str | None
    ) -> None: ...


class GateConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate needs to know. All paths are as within their realm: `/api/…` also where that is below `/panel`.

    `strict` has the buckets of POSTs that are counted once more, by address (login, setup, …). `bodies` has the rules
    of paths that differ from the default one. In both a segment `{name}` stands for any. `allowed_hosts` are names
    without port, `*.example.com` for any name below, `*` for all.
    """

    mode: Literal["instance", "panel", "all"]
    limits: Mapping[Realm, Bucket]
    strict: Mapping[tuple[Realm, str], Bucket] = {}
    uncounted: frozenset[str] = frozenset({"/api/health", "/api/ready"})
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: frozenset[str] = frozenset()
    bodies: Mapping[tuple[Realm, str], BodyRule] = {}
    body: BodyRule = BodyRule()
    log: LogRequest | None = None


_is_request_id: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

# Headers that have one meaning only; two of them are a trick or a fault.
_SINGLE: Final = frozenset(
    {b"authorization", b"content-encoding", b"content-length", b"content-type", b"host", b"idempotency-key"}
    | {b"origin", b"transfer-encoding", b"x-request-id"}
)
_PROXY_HEADERS: Final = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"true-client-ip", b"via", b"x-forwarded-host")

_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, idempotency-key, x-request-id, x-setup-token"),
    (b"access-control-max-age", b"600"),
)


def _tighter(one: Hit, other: Hit) -> Hit:
    return other if other.remaining < one.remaining or not other.allowed else one


T = TypeVar("T")


class _Paths(Generic[T]):
    """A table by realm and path, in which a segment `{name}` stands for any."""

    def __init__(self, table: Mapping[tuple[Realm, str], T]) -> None:
        self._exact = {key: value for key, value in table.items() if "{" not in key[1]}
        self._patterns = [
            (realm, re.compile("".join(_segment(part) for part in path.split("/")[1:])).fullmatch, value)
            for (realm, path), value in table.items()
            if "{" in path
        ]

    def find(self, realm: Realm, path: str) -> T | None:
        value = self._exact.get((realm, path))
        if value is None:
            for its_realm, matches, its_value in self._patterns:
                if its_realm == realm and matches(path):
                    return its_value
        return value


def _segment(part: str) -> str:
    return "/[^/]+" if part.startswith("{") else "/" + re.escape(part)


class _Refused(AppError):
    """What is wrong with the head of a request."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message, code=code)
        self.status = status  # type: ignore[misc]


class Gate:
    """The ASGI app that stands before `app`. One per process; used from one event loop.

    `in_flight` counts the requests and WebSockets that are inside.
    """

    def __init__(self, app: App, config: GateConfig, authenticator: Authenticator, limiter: RateLimiter) -> None:
        self.app = app
        self.in_flight = 0
        self._idle: asyncio.Event | None = None
        self._mode = config.mode
        self._authenticator = authenticator
        self._limiter = limiter
        self._limits = dict(config.limits)
        self._strict = _Paths(config.strict)
        self._uncounted = config.uncounted
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._origins = frozenset(origin.encode() for origin in config.cors_origins)
        self._rules = _Paths(config.bodies)
        self._default_rule = config.body
        self._log: LogRequest = config.log or AccessLog()
        # Credentials that fail cost more than requests without one: beyond ten times the limit none is looked at.
        most = max((bucket.amount for bucket in self._limits.values()), default=100)
        self._failures = parse_bucket("credentials", f"{max(1000, 10 * most)}/minute")
        self.allow_hosts(config.allowed_hosts)

    def allow_hosts(self, names: Iterable[str]) -> None:
        """Replace the names that a Host header may have, for domains that come and go while the process runs."""
        known = {name.lower().rstrip(".") for name in names}
        self._any_host = "*" in known
        self._host_names = frozenset(name for name in known if not name.startswith("*"))
        self._host_ends = tuple(name[1:] for name in known if name.startswith("*."))
        self._good_hosts: set[bytes] = set()

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        while self.in_flight:
            self._idle = asyncio.Event()
            await self._idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http":
            if kind == "websocket":
                await self._websocket(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        started = perf_counter()
        self.in_flight += 1
        exchange = Exchange(send)
        method: str = scope["method"]
        principal: Principal | None = None
        naming = None
        try:
            found = self._enter(scope, exchange)
            naming = request_id.set(exchange.id)
            principal = await self._admit(scope, exchange, found, strict=method == "POST")
            # Each request is a task of its own, with a context of its own: nothing has to be put back.
            current_principal.set(principal)
            if exchange.origin is not None and method == "OPTIONS" and b"access-control-request-method" in found:
                await _preflight(exchange)
                return
            length = found.get(b"content-length")
            if (length is not None and length != b"0") or b"transfer-encoding" in found:
                receive = Body(self._rule_of, exchange, found, receive)
            if method == "HEAD":
                # The server looks into its own scope to see that no body may follow.
                exchange.head = True
                scope = {**scope, "method": "GET"}
            await self.app(scope, receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            await self._failed(scope, exchange, error)
        finally:
            await roll_back(scope)
            self._leave()
            if naming is not None:
                request_id.reset(naming)
            raw_path = scope.get("raw_path")
            self._log(
                method=method,
                path=raw_path.decode("latin-1") if raw_path else quote(scope["path"]),
                status=exchange.status or 499,
                seconds=perf_counter() - started,
                request=exchange.id,
                client=exchange.address,
                principal=None if principal is None else principal.key_id or principal.user_id,
            )

    def _rule_of(self, realm: Realm, path: str) -> BodyRule:
        return self._rules.find(realm, path) or self._default_rule

    def _leave(self) -> None:
        self.in_flight -= 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()

    # --- what is asked of a head -------------------------------------------------------------------------------

    def _enter(self, scope: Scope, exchange: Exchange) -> dict[bytes, bytes]:
        """Name the request and judge its head; returns the headers (the last of each name), raises `_Refused`."""
        headers = scope["headers"]
        found: dict[bytes, bytes] = dict(headers)
        given = found.get(b"x-request-id")
        if given is not None and _is_request_id(given):
            exchange.id_bytes = given
            exchange.id = given.decode("ascii")
        else:
            exchange.id = next_request_id()
            exchange.id_bytes = exchange.id.encode("ascii")
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        state["request_id"] = exchange.id
        state["principal"] = None

        client = scope.get("client")
        peer: str = client[0] if client is not None else "-"
        state["forwarded"] = False
        if not found.keys().isdisjoint(_PROXY_HEADERS):
            state["forwarded"] = True
            if self._proxies and b"x-forwarded-for" in found:
                peer = self._proxies.client(peer, [value for name, value in headers if name == b"x-forwarded-for"])
        state["address"] = exchange.address = peer
        exchange.key = rate_key(peer)

        path = self._find_realm(scope, exchange)
        state["realm"] = exchange.realm
        raw_path = scope.get("raw_path") or b""
        query: bytes = scope.get("query_string") or b""
        _check_sizes(headers, found, max(len(raw_path), len(path)) + len(query))
        if not path.isprintable() and _CONTROL.search(path):
            raise _Refused(400, "invalid_parameter", "The path has a control character")
        if b"%00" in query:
            raise _Refused(400, "invalid_parameter", "The query has a NUL character")
        if not self._any_host:
            self._check_host(found.get(b"host", b""))
        if self._origins:
            origin = found.get(b"origin")
            if origin is not None and origin in self._origins:
                exchange.origin = origin
        return found

    def _find_realm(self, scope: Scope, exchange: Exchange) -> str:
        """Set realm and path within it. The router collapses slashes, so all that is decided here does so as well."""
        path: str = scope["path"]
        if "//" in path or (path[-1:] == "/" and path != "/") or path[:1] != "/":
            path = scope["path"] = normalize_path(path)
        exchange.path = path
        if self._mode == "panel":
            exchange.realm = "panel"
        elif self._mode == "all" and path.startswith("/panel") and path[6:7] in ("", "/"):
            exchange.realm = "panel"
            exchange.path = path[6:] or "/"
        return path

    def _check_host(self, value: bytes) -> None:
        if value in self._good_hosts:
            return
        name = value.decode("latin-1").lower()
        if name.startswith("["):
            name, bracket, port = name.partition("]")
            name += bracket
            port = port.removeprefix(":") if port.startswith(":") or not port else "x"
        else:
            name, _, port = name.partition(":")
        name = name.rstrip(".")
        if (port and not (port.isascii() and port.isdigit())) or not (
            name in self._host_names or (self._host_ends and name.endswith(self._host_ends))
        ):
            raise _Refused(
                400, "invalid_host", "This host name is not served here; server.allowed_hosts says which are"
            )
        if len(self._good_hosts) < 1024:
            self._good_hosts.add(value)

    # --- who it is, and whether it may come in now --------------------------------------------------------------

    async def _admit(
        self, scope: Scope, exchange: Exchange, found: Mapping[bytes, bytes], *, strict: bool
    ) -> Principal | None:
        """Find the caller out and count the request; raises `RateLimited`, or `Unavailable` when that can't be done."""
        bucket = self._limits[exchange.realm]
        if exchange.path in self._uncounted:
            exchange.hit = self._limiter.untouched(bucket)
            return None
        authorization = found.get(b"authorization")
        if authorization is None and b"cookie" in found and exchange.realm == "instance":
            authorization = _admit_cookie(scope, found)
        principal: Principal | None = None
        if authorization is not None:
            principal = self._authenticator.cached(exchange.realm, authorization, exchange.address)
            if principal is None:
                principal = await self._resolve(scope, exchange, authorization)
            scope["state"]["principal"] = principal
        key = exchange.key if principal is None else principal.client
        limiter = self._limiter
        hit = limiter.hit_now(bucket, key) if limiter.memory else await limiter.hit(bucket, key)
        exchange.hit = hit
        if not hit.allowed:
            raise _rate_limited(hit)
        if strict:
            narrow = self._strict.find(exchange.realm, exchange.path)
            if narrow is not None:
                hit = await limiter.hit(narrow, exchange.key)
                exchange.hit = _tighter(exchange.hit, hit)
                if not hit.allowed:
                    raise _rate_limited(hit)
        return principal

    async def _resolve(self, scope: Scope, exchange: Exchange, authorization: bytes) -> Principal | None:
        """Verify a credential that is not known yet; a bad one is noted, so that guards can tell why."""
        failures = await self._limiter.peek(self._failures, exchange.key)
        if not failures.allowed:
            exchange.hit = failures
            raise _rate_limited(failures)
        try:
            return await self._authenticator.resolve(exchange.realm, authorization, exchange.address)
        except Unauthorized as error:
            scope["state"]["auth_error"] = error
            await self._limiter.hit(self._failures, exchange.key)
            return None

    # --- answers of our own --------------------------------------------------------------------------------------

    async def _failed(self, scope: Scope, exchange: Exchange, error: Exception) -> None:
        """Answer for an exception that ended the request, or note that the answer broke off."""
        if exchange.head and exchange.finished:
            return
        answer = from_exception(error)
        if exchange.status and (cut_off := cut_off_in(error)) is not None:
            # On purpose, and a caller tells: a line, and nobody to look into it.
            log.info("A download was cut off", request_id=exchange.id, path=scope["path"], reason=str(cut_off))
            return
        if exchange.status or (answer.status >= 500 and not isinstance(answer, Unavailable)):
            log.error(
                "Request failed" if not exchange.status else "An answer broke off",
                request_id=exchange.id,
                method=scope["method"],
                path=scope["path"],
                exc_info=error,
            )
        if exchange.status:
            return
        exchange.head = exchange.head or scope["method"] == "HEAD"
        await self._count_refusal(exchange)
        body = encode_error(answer, exchange.id)
        headers = [(b"content-type", b"application/json"), (b"content-length", number(len(body)))]
        await exchange.send(
            {"type": "http.response.start", "status": answer.status, "headers": headers + error_headers(answer)}
        )
        await exchange.send({"type": "http.response.body", "body": body})

    async def _count_refusal(self, exchange: Exchange) -> None:
        """What was refused before it was counted is counted now, by its address."""
        if exchange.hit is None:
            bucket = self._limits[exchange.realm]
            try:
                exchange.hit = await self._limiter.hit(bucket, exchange.key)
            except Unavailable:
                exchange.hit = self._limiter.untouched(bucket)

    # --- WebSockets ----------------------------------------------------------------------------------------------

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As a request: named, admitted, counted. A refusal is an HTTP answer where the server can send one."""
        started = perf_counter()
        self.in_flight += 1
        exchange = Exchange(send)
        principal: Principal | None = None
        naming = None

        def pass_on(message: Message) -> Awaitable[None]:
            kind = message["type"]
            if kind == "websocket.accept":
                exchange.status = 101
                message["headers"] = [*(message.get("headers") or ()), *exchange.labels()]
            elif kind == "websocket.close" and not exchange.status:
                refusal = scope["state"].get("error")
                if refusal is not None:
                    return self._close(scope, exchange, send, refusal)
                exchange.status = 403
            return send(message)

        try:
            found = self._enter(scope, exchange)
            naming = request_id.set(exchange.id)
            credential = authorization_of(scope)
            if credential is not None:
                found[b"authorization"] = credential
            principal = await self._admit(scope, exchange, found, strict=False)
            if "auth_error" in scope["state"]:
                raise scope["state"]["auth_error"]
            await self.app(scope, receive, pass_on)
        except Exception as error:
            answer = from_exception(error)
            # A caller that is gone is met as an error of the operating system, whenever it is spoken to.
            gone = exchange.status == 101 and isinstance(error, OSError)
            if answer.status >= 500 and not isinstance(answer, Unavailable) and not gone:
                log.error("WebSocket failed", request_id=exchange.id, path=scope["path"], exc_info=error)
            if exchange.status != 101:
                await self._close(scope, exchange, send, answer)
            elif not isinstance(error, OSError):
                await send({"type": "websocket.close", "code": 1011})
        finally:
            self._leave()
            if naming is not None:
                request_id.reset(naming)
            self._log(
                method="WEBSOCKET",
                path=quote(scope["path"]),
                status=exchange.status or 499,
                seconds=perf_counter() - started,
                request=exchange.id,
                client=exchange.address,
                principal=None if principal is None else principal.key_id or principal.user_id,
            )

    async def _close(self, scope: Scope, exchange: Exchange, send: Send, error: AppError) -> None:
        exchange.status = error.status
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 4000 + error.status, "reason": error.code})
            return
        await self._count_refusal(exchange)
        body = encode_error(error, exchange.id)
        headers = [(b"content-type", b"application/json"), (b"content-length", number(len(body))), NO_STORE]
        headers += exchange.labels() + error_headers(error)
        await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})


def _admit_cookie(scope: Scope, found: Mapping[bytes, bytes]) -> bytes | None:
    """The credential of our cookie; one that another site may have had sent is noted, so that guards can tell why."""
    admitted = credential(found[b"cookie"])
    if admitted is None:
        return None
    state = scope["state"]
    if not is_of_own_origin(found, scope.get("method")):
        state["auth_error"] = Forbidden("A session by cookie is for pages of this server", code="cross_origin_refused")
        return None
    state["cookie"] = admitted
    return admitted


def _check_sizes(headers: list[tuple[bytes, bytes]], found: Mapping[bytes, bytes], url_bytes: int) -> None:
    """The limits of a head, and no header twice that has one meaning."""
    if url_bytes > MAX_URL_BYTES:
        raise _Refused(414, "uri_too_long", "Path and query are too long")
    lines = len(headers)
    if lines > MAX_HEADER_LINES:
        raise _Refused(431, "headers_too_large", f"There are more than {MAX_HEADER_LINES} header lines")
    if len(found) == lines:
        size = sum(map(len, found)) + sum(map(len, found.values()))
    else:
        size = 0
        seen = set()
        for name, value in headers:
            size += len(name) + len(value)
            if name in _SINGLE and name in seen:
                raise _Refused(400, "invalid_header", f"The header {name.decode('ascii')} is there twice")
            seen.add(name)
    if size > MAX_HEADER_BYTES:
        raise _Refused(431, "headers_too_large", f"The headers are larger than {MAX_HEADER_BYTES:,} bytes")


async def roll_back(scope: Scope) -> None:
    """End a transaction that no answer has committed, so that its connection goes back whatever happened."""
    transaction = scope.get("state", {}).pop("transaction", None)
    if transaction is not None:
        with contextlib.suppress(Exception):
            await transaction.__aexit__(_Unfinished, _Unfinished(), None)


class _Unfinished(Exception):
    """Tells a transaction that its request ended without an answer that stands for it."""


def _rate_limited(hit: Hit) -> RateLimited:
    return RateLimited(headers={"Retry-After": str(hit.retry_after())})


async def _preflight(exchange: Exchange) -> None:
    await exchange.send({"type": "http.response.start", "status": 204, "headers": list(_PREFLIGHT)})
    await exchange.send({"type": "http.response.body", "body": b""})
