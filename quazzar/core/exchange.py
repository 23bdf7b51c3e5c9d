"""One request on its way through the gate: its id, and the labels that its answer leaves with."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from quazzar.core.auth import Realm
from quazzar.core.ids import new_id
from quazzar.core.ratelimit import Hit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

NO_STORE: Final = (b"cache-control", b"no-store")
_NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
_NUMBERS: Final = tuple(b"%d" % number for number in range(1024))
_EXPOSED: Final = (
    b"x-request-id, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, retry-after, link, location"
)


class _RequestIds:
    """Ids as `new_id` makes them, at a fraction of its price: most of the text is kept for a million requests."""

    def __init__(self) -> None:
        alphabet = "234567abcdefghijklmnopqrstuvwxyz"
        self._pairs = [high + low for high in alphabet for low in alphabet]
        self._renew()
        # A forked child must not go on with its parent's numbers.
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._head = new_id("req")[:-4]
        self._count = 0

    def next(self) -> str:
        count = self._count
        if count >= 1024 * 1024:
            self._renew()
            count = 0
        self._count = count + 1
        pairs = self._pairs
        return self._head + pairs[count >> 10] + pairs[count & 1023]


next_request_id: Final = _RequestIds().next


def number(value: int) -> bytes:
    """`value` in decimal digits; small ones are kept ready."""
    return _NUMBERS[value] if 0 <= value < 1024 else b"%d" % value


def rate_headers(hit: Hit) -> list[tuple[bytes, bytes]]:
    """The three headers that every answer carries."""
    return [
        (b"x-ratelimit-limit", number(hit.limit)),
        (b"x-ratelimit-remaining", number(hit.remaining)),
        (b"x-ratelimit-reset", b"%d" % hit.reset),
    ]


class HeadAnswered(Exception):
    """Ends a handler that would stream on although the answer to a HEAD is complete."""


class Exchange:
    """One request on its way through: what is known of it, and the `send` that labels its answer."""

    __slots__ = (
        "_send",
        "address",
        "finished",
        "head",
        "hit",
        "id",
        "id_bytes",
        "key",
        "origin",
        "path",
        "realm",
        "status",
    )

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.finished = False
        self.head = False
        self.hit: Hit | None = None
        self.origin: bytes | None = None
        self.address = self.key = "-"
        self.realm: Realm = "instance"
        self.path = ""
        self.id = ""
        self.id_bytes = b""

    def labels(self) -> list[tuple[bytes, bytes]]:
        """The headers that every answer of this request carries, but `Cache-Control`, which a handler may set."""
        hit = self.hit
        labels = [(b"x-request-id", self.id_bytes), *(rate_headers(hit) if hit is not None else ()), _NOSNIFF]
        if self.origin is not None:
            labels += (
                (b"access-control-allow-origin", self.origin),
                (b"access-control-expose-headers", _EXPOSED),
                (b"vary", b"origin"),
            )
        return labels

    def send(self, message: Message) -> Awaitable[None]:
        """Hand an answer on, with our headers on its start. Not a coroutine itself: one fewer per message."""
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            own = message.get("headers") or ()
            headers = [*own, *self.labels()]
            if not any(name == b"cache-control" for name, _ in own):
                headers.append(NO_STORE)
            message["headers"] = headers
        elif kind == "http.response.body":
            if self.head:
                return self._end_head()
            if not message.get("more_body", False):
                self.finished = True
        return self._send(message)

    async def _end_head(self) -> None:
        if self.finished:
            raise HeadAnswered
        self.finished = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
