"""HTTP to addresses that users chose: every connection goes to an address that was checked, every answer has an end.

The library is loaded with the first request, since a process that sends nothing should not pay for it.
"""

import asyncio
import importlib
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from quazzar.core.outbound import OutboundPolicy

if TYPE_CHECKING:
    import ssl

    import aiohttp

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
READ_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 4.0
"""Shorter than what common servers grant (5 s), so that a kept connection is not closed under a request."""


class OutboundFailed(Exception):
    """No whole answer came: `reason` is a sentence for the user, `status` what the answer had begun with, if it did."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Answer(msgspec.Struct, frozen=True):
    """What came back: names of headers in lower case, and the beginning of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool
    seconds: float


class OutboundHttp:
    """A client without redirects, cookies, proxies of the environment, or unbounded answers.

    A name is resolved for each connection, all its addresses are checked, and one of them is dialled; the TLS name
    stays the name. Connections are kept for a moment and used again.
    """

    def __init__(
        self,
        policy: OutboundPolicy,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
        tls: "ssl.SSLContext | None" = None,
    ) -> None:
        self.policy = policy
        self._connect_seconds = connect_seconds
        self._total_seconds = total_seconds
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One request, never repeated. Raises `OutboundRefused` or `OutboundFailed`; any status is an answer."""
        return await self._send("POST", url, body, headers, READ_BYTES)

    async def get(self, url: str, *, most_bytes: int) -> Answer:
        """As `post`; of the answer at most `most_bytes` are read."""
        return await self._send("GET", url, None, {}, most_bytes)

    async def _send(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], most_bytes: int
    ) -> Answer:
        target = self.policy.read(url)
        if self._session is None:
            # In a thread: the library takes longer than other requests should wait.
            await asyncio.to_thread(importlib.import_module, "aiohttp")
        import aiohttp  # noqa: PLC0415 - see above
        from yarl import URL  # noqa: PLC0415

        session = self._session
        if session is None or session.closed:
            session = self._session = self._open()
        started = time.monotonic()
        status: int | None = None
        try:
            async with session.request(
                method, URL(target.url, encoded=True), data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
                content, truncated = await _read(response, most_bytes)
                if truncated:
                    response.close()
                found = {name.lower(): value for name, value in response.headers.items()}
                return Answer(status, found, content, truncated, time.monotonic() - started)
        except TimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            seconds = self._connect_seconds if connecting else self._total_seconds
            what = "No connection" if connecting else "No whole answer"
            raise OutboundFailed(f"{what} within {seconds:g} seconds", status) from error
        except aiohttp.ClientError as error:
            raise OutboundFailed(_sentence(error), status) from error
        except (OSError, ValueError) as error:
            # The library lets errors of its parsers and of the socket through here and there.
            raise OutboundFailed("The connection failed", status) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> "aiohttp.ClientSession":
        import aiohttp  # noqa: PLC0415

        connector = aiohttp.TCPConnector(
            limit=0,
            use_dns_cache=False,
            resolver=_resolver(self.policy),
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            ssl=self._tls if self._tls is not None else True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._total_seconds, connect=self._connect_seconds),
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding"),
            max_headers=100,
        )


async def _read(response: "aiohttp.ClientResponse", most_bytes: int) -> tuple[bytes, bool]:
    """Up to `most_bytes`, and whether there was more: then the connection is of no use any more."""
    parts: list[bytes] = []
    size = 0
    while part := await response.content.readany():
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            return b"".join(parts)[:most_bytes], True
    return b"".join(parts), False


def _resolver(policy: OutboundPolicy) -> Any:
    from aiohttp.abc import AbstractResolver, ResolveResult  # noqa: PLC0415

    class Checked(AbstractResolver):
        """Only what the policy lets through is dialled."""

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            del family
            target = policy.read(f"https://{host}:{port}/")
            return [
                ResolveResult(
                    hostname=host,
                    host=str(address),
                    port=port,
                    family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                    proto=socket.IPPROTO_TCP,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
                for address in await policy.resolve(target)
            ]

        async def close(self) -> None:
            """Nothing is kept."""

    return Checked()


def _sentence(error: "aiohttp.ClientError") -> str:
    """Why there is no answer, without addresses: what a name leads to inside is nobody's business."""
    import aiohttp  # noqa: PLC0415

    match error:
        case aiohttp.ClientConnectorDNSError():
            return "The name can't be resolved"
        case aiohttp.ClientConnectorCertificateError():
            return "The certificate is not valid for this name"
        case aiohttp.ClientSSLError():
            return "The TLS handshake failed"
        case aiohttp.ClientConnectorError():
            return "The connection was refused"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return "The connection was closed before the answer"
        case aiohttp.ClientPayloadError():
            return "The answer broke off"
        case aiohttp.ClientResponseError() | aiohttp.InvalidURL():
            return "The answer is not HTTP that can be read"
        case _:
            return "The connection failed"
