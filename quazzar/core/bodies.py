"""The body of a request: read, bounded and checked at the moment when a handler asks for it."""

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from quazzar.core.auth import Realm
from quazzar.core.errors import AppError, BadRequest, BodyTooLarge
from quazzar.core.exchange import Exchange, Message, Receive
from quazzar.core.jsoncheck import check_json

# Larger bodies are checked in a thread; up to here the switch costs more than the check.
CHECK_IN_THREAD_BYTES = 64 * 1024


class BodyRule(msgspec.Struct, frozen=True, kw_only=True):
    """What a path takes as a body.

    `types` are exact media types; JSON among them is checked. With `stream` the body is handed on chunk by chunk and
    `seconds` is the longest wait for the next one, else it is the time for the whole body.
    """

    limit: int = 1024 * 1024
    types: tuple[str, ...] = ("application/json",)
    seconds: float = 30.0
    stream: bool = False


class Body:
    """The `receive` of a request that has a body: reads and checks it when it is first asked for.

    What is wrong with it is raised as an `AppError`, each time that it is asked for again.
    """

    __slots__ = ("_error", "_exchange", "_find_rule", "_found", "_left", "_receive", "_rule", "_started")

    def __init__(
        self,
        find_rule: Callable[[Realm, str], BodyRule],
        exchange: Exchange,
        found: Mapping[bytes, bytes],
        receive: Receive,
    ) -> None:
        self._find_rule = find_rule
        self._exchange = exchange
        self._found = found
        self._receive = receive
        self._started = False
        self._error: AppError | None = None
        self._rule: BodyRule | None = None
        self._left = 0

    async def __call__(self) -> Message:
        # Once the answer has begun, whoever asks wants to hear that the caller left, not what its body was like.
        if self._exchange.status:
            return await self._receive()
        if self._error is not None:
            raise self._error
        try:
            if not self._started:
                self._started = True
                rule = self._find_rule(self._exchange.realm, self._exchange.path)
                json = self._check_head(rule)
                self._left = rule.limit
                if not rule.stream:
                    return await self._whole(rule, json=json)
                self._rule = rule
            if self._rule is not None:
                return await self._chunk(self._rule)
        except AppError as error:
            self._error = error
            raise
        return await self._receive()

    def _check_head(self, rule: BodyRule) -> bool:
        """Raise for what the headers alone tell; return whether the body is JSON."""
        found = self._found
        length = found.get(b"content-length")
        if length is not None:
            if not length.isdigit():
                raise BadRequest("The header Content-Length can't be read")
            if len(length) > 18 or int(length) > rule.limit:
                raise _too_large(rule)
        if found.get(b"content-encoding", b"identity").lower() != b"identity":
            raise BadRequest("The body must not be compressed", code="invalid_content_encoding")
        kind = _media_type(found.get(b"content-type", b""))
        if kind not in rule.types:
            expected = " or ".join(rule.types)
            raise BadRequest(f"The content type must be {expected}", code="invalid_content_type")
        return kind == "application/json"

    async def _whole(self, rule: BodyRule, *, json: bool) -> Message:
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(rule.seconds):
                more = True
                while more:
                    message = await self._next(rule)
                    chunks.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            raise _too_slow() from None
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if json and body:
            if len(body) > CHECK_IN_THREAD_BYTES:
                await asyncio.to_thread(check_json, body)
            else:
                check_json(body)
        return {"type": "http.request", "body": body, "more_body": False}

    async def _chunk(self, rule: BodyRule) -> Message:
        try:
            async with asyncio.timeout(rule.seconds):
                message = await self._next(rule)
        except TimeoutError:
            raise _too_slow() from None
        if not message.get("more_body", False):
            self._rule = None
        return message

    async def _next(self, rule: BodyRule) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            # Nobody is left to read this; it only ends the handler quietly.
            raise BadRequest("The body is incomplete", code="body_incomplete")
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _too_large(rule)
        return message


def _media_type(value: bytes) -> str:
    """The media type without parameters; empty when a parameter other than `charset=utf-8` makes it another one."""
    if value == b"application/json":
        return "application/json"
    kind, _, parameter = value.decode("latin-1").lower().partition(";")
    if parameter.strip() not in ("", "charset=utf-8", 'charset="utf-8"'):
        return ""
    return kind.strip()


def _too_large(rule: BodyRule) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {rule.limit:,} bytes")


def _too_slow() -> BadRequest:
    return BadRequest("The body did not arrive in time", code="body_timeout")
