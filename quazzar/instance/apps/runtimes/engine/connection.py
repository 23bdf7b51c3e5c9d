"""One connection to an Engine API: found, versioned, every call within a time limit, every error in our words."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from quazzar.instance.apps.runtimes.base import RuntimeUnavailable
from quazzar.instance.apps.runtimes.engine.failures import failure

if TYPE_CHECKING:
    import aiodocker

QUICK_SECONDS: Final = 4.0
"""For calls that an engine answers from memory; one that does not is not there."""
CHANGE_SECONDS: Final = 60.0
"""For calls that make the engine work: networks, start, small removals."""
HEAVY_SECONDS: Final = 300.0
"""For calls that may copy or delete gigabytes: create (a volume is filled from its image), remove."""
SILENCE_SECONDS: Final = 120.0
"""The longest time without a byte in a stream that should have some: an engine retries a registry within it."""

_OLDEST_API: Final = (1, 41)
_NEWEST_API: Final = (1, 47)
_DEFAULT_SOCKET: Final = "unix:///var/run/docker.sock"


def engine_url(host: str | None) -> str:
    """Where the engine is: `host`, else `DOCKER_HOST`, else the usual socket. Raises ValueError on another scheme.

    A plain absolute path counts as the path of a socket.
    """
    url = host or os.environ.get("DOCKER_HOST") or _DEFAULT_SOCKET
    if url.startswith("/"):
        url = "unix://" + url
    if not url.startswith(("unix:///", "tcp://")):
        raise ValueError("The container engine's address must begin with unix:/// or tcp://")
    return url


class Engine:
    """Speaks the newest version of the API that both sides know; finds it out again after each broken line.

    The client library is loaded at the first call. Used from one event loop.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: aiodocker.Docker | None = None
        self._negotiated = False
        self._negotiating = asyncio.Lock()
        self._closed = False

    async def close(self) -> None:
        """Close all connections; calls that are made later find no engine."""
        self._closed = True
        client, self._client, self._negotiated = self._client, None, False
        if client is not None:
            await client.close()
            await client.connector.close()

    @property
    def is_local(self) -> bool:
        """Whether the engine runs on this machine."""
        return self._url.startswith("unix://")

    async def version(self) -> dict[str, Any]:
        """The engine's answer to `GET /version`, asked now, so it is proof that the engine is there."""
        async with self.call() as client:
            return await client.version()

    async def api_version(self) -> str:
        async with self.call() as client:
            return client.api_version.removeprefix("v")

    @contextlib.asynccontextmanager
    async def call(
        self, limit: float = QUICK_SECONDS, *, service: str | None = None
    ) -> AsyncIterator["aiodocker.Docker"]:
        """The client for the calls inside, which together get `limit` seconds.

        Raises `RuntimeUnavailable` or the `RuntimeFailure` that the refusal means, naming `service`.
        """
        with self._our_words(service):
            async with asyncio.timeout(limit):
                yield await self._ready()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        limit: float = QUICK_SECONDS,
        service: str | None = None,
    ) -> Any:
        """The decoded answer of a call that the client library has no function for; None for an empty one."""
        from yarl import URL  # noqa: PLC0415 - see `_connect`

        async with self.call(limit, service=service) as client:
            response = await client.session.request(
                method,
                URL(f"{client.docker_host}/{client.api_version}/{path}"),
                params=dict(params or {}),
                data=msgspec.json.encode(body) if body is not None else None,
                headers={"Content-Type": "application/json", **(headers or {})},
            )
            async with response:
                content = await response.read()
            if response.status >= 400:
                raise failure(response.status, _message(content), service)
            return msgspec.json.decode(content) if content else None

    async def chunks(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        silence: float | None = None,
        service: str | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a streamed answer as they come; `silence` is the longest wait for the next.

        A line that breaks raises `RuntimeUnavailable`, where the client library's own streams just end.
        """
        from aiohttp import ClientTimeout  # noqa: PLC0415 - see `_connect`
        from yarl import URL  # noqa: PLC0415

        with self._our_words(service):
            async with asyncio.timeout(silence or QUICK_SECONDS):
                client = await self._ready()
                response = await client.session.request(
                    method,
                    URL(f"{client.docker_host}/{client.api_version}/{path}"),
                    params=dict(params),
                    headers=dict(headers or {}),
                    timeout=ClientTimeout(total=None, sock_read=None),
                )
        try:
            if response.status >= 400:
                with self._our_words(service):
                    async with asyncio.timeout(QUICK_SECONDS):
                        body = await response.content.read(64 * 1024)
                raise failure(response.status, _message(body), service)
            while True:
                with self._our_words(service):
                    async with asyncio.timeout(silence):
                        chunk = await response.content.readany()
                if not chunk:
                    return
                yield chunk
        finally:
            response.close()

    async def upload(
        self,
        method: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        params: Mapping[str, str],
        silence: float,
        last: float,
    ) -> None:
        """Send a tar as it comes; never more than a few chunks are held.

        `silence` is the longest time in which the engine takes nothing, `last` that from the last byte to the answer.
        What `chunks` raises is raised, and the engine gets a broken stream then, never an early end.
        """
        upload = _Upload(chunks)
        sending = asyncio.create_task(self._send(method, path, upload, params), name="engine-upload")
        reading = asyncio.create_task(upload.read(), name="engine-upload-source")
        try:
            while not sending.done():
                taken = upload.taken
                waiting = {sending} if reading.done() else {sending, reading}
                limit = last if upload.ended else silence
                done, _ = await asyncio.wait(waiting, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                if reading in done:
                    reading.result()
                elif not done and taken == upload.taken and not upload.is_starved:
                    raise RuntimeUnavailable
            with self._our_words(None):
                await sending
        finally:
            for task in (sending, reading):
                task.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)

    async def _send(self, method: str, path: str, upload: "_Upload", params: Mapping[str, str]) -> None:
        from aiohttp import ClientTimeout  # noqa: PLC0415
        from yarl import URL  # noqa: PLC0415

        client = await self._ready()
        response = await client.session.request(
            method,
            URL(f"{client.docker_host}/{client.api_version}/{path}"),
            params=dict(params),
            data=upload,
            headers={"Content-Type": "application/x-tar"},
            timeout=ClientTimeout(total=None, sock_read=None),
        )
        async with response:
            if response.status >= 400:
                raise failure(response.status, _message(await response.content.read(64 * 1024)))

    async def _ready(self) -> "aiodocker.Docker":
        async with self._negotiating:
            if self._closed:
                raise RuntimeUnavailable
            if self._client is None:
                self._client = _connect(self._url)
            client = self._client
            if not self._negotiated:
                client.api_version = "auto"
                client.api_version = f"v{_negotiate(await client.version())}"
                self._negotiated = True
            return client

    @contextlib.contextmanager
    def _our_words(self, service: str | None) -> Iterator[None]:
        from aiodocker.exceptions import DockerError  # noqa: PLC0415
        from aiohttp import ClientError  # noqa: PLC0415

        try:
            yield
        except DockerError as error:
            if error.status >= 900:  # aiodocker's own number for "no connection"
                self._negotiated = False
                raise RuntimeUnavailable from error
            raise failure(error.status, error.message, service) from error
        except (TimeoutError, ClientError, OSError, ValueError, TypeError, KeyError) as error:
            # The latter three: something answers that is no engine.
            self._negotiated = False
            raise RuntimeUnavailable from error


class _Upload:
    """A body that is read by one task and sent by another, so that either may end before the other."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(2)
        self.taken = 0
        self.ended = False

    async def read(self) -> None:
        async for chunk in self._chunks:
            if chunk:
                await self._queue.put(chunk)
        await self._queue.put(None)

    @property
    def is_starved(self) -> bool:
        """Whether it is the source that nothing comes from."""
        return self._queue.empty() and not self.ended

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._queue.get()
        self.taken += 1
        if chunk is None:
            self.ended = True
            raise StopAsyncIteration
        return chunk


def _connect(url: str) -> "aiodocker.Docker":
    # The client brings aiohttp along, some 15 MB that a process without a container engine never needs.
    import aiodocker  # noqa: PLC0415
    from aiohttp import UnixConnector  # noqa: PLC0415

    if not url.startswith("unix://"):
        return aiodocker.Docker(url=url)
    # No limit on connections: a hundred followed logs must not keep the next call waiting.
    connector = UnixConnector(url.removeprefix("unix://"), limit=0)
    return aiodocker.Docker(url="unix://localhost", connector=connector)


def _negotiate(version: Mapping[str, Any]) -> str:
    """The API version to speak, by the engine's own range and ours."""
    newest = _number(version.get("ApiVersion", ""))
    if newest < _OLDEST_API:
        raise RuntimeUnavailable("The container engine is too old: API 1.41 (Docker 20.10) or newer is needed")
    spoken = max(min(newest, _NEWEST_API), _number(version.get("MinAPIVersion") or "1.0"))
    return f"{spoken[0]}.{spoken[1]}"


def _number(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def _message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=dict[str, str])["message"]
    except (msgspec.DecodeError, KeyError):
        return body[:1000].decode(errors="replace")
