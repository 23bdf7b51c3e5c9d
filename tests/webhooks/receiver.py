"""A receiver of webhooks that answers as it is told, and remembers what came."""

import asyncio
import base64
import contextlib
import hmac
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec


class Request(msgspec.Struct):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    at: float
    """When it had come whole, by the monotonic clock."""

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def response(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Receiver:
    """An HTTP server on loopback; `script` has the next answers of each path, the last one again and again."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.script: dict[str, list[bytes | Behaviour]] = {}
        self.connections = 0
        self.at_once: dict[str, int] = {}
        self.most_at_once: dict[str, int] = {}
        self.delay = 0.0
        self.port = 0

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def of(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    async def until(self, path: str, count: int, seconds: float = 10) -> list[Request]:
        async with asyncio.timeout(seconds):
            while len(self.of(path)) < count:
                await asyncio.sleep(0.01)
        return self.of(path)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Request(method, path, headers, body, number, time.monotonic())
                self.requests.append(request)
                self.at_once[path] = self.at_once.get(path, 0) + 1
                self.most_at_once[path] = max(self.most_at_once.get(path, 0), self.at_once[path])
                answers = self.script.get(path, [response(204)])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                try:
                    if self.delay:
                        await asyncio.sleep(self.delay)
                    if isinstance(answer, bytes):
                        writer.write(answer)
                        await writer.drain()
                    else:
                        await answer(request, writer)
                        break
                finally:
                    self.at_once[path] -= 1


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(receiver.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    yield receiver
    server.close()
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def hang(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def reset(_: Request, writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()


async def drip(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_head(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X")
        await writer.drain()
        await asyncio.sleep(0.05)


async def huge(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
    for _part in range(16 * 1024):
        writer.write(b"x" * 65536)
        await writer.drain()


async def many_headers(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100_000):
        writer.write(b"X-%d: y\r\n" % number)
        if number % 1000 == 0:
            await writer.drain()
    writer.write(b"Content-Length: 0\r\n\r\n")
    await writer.drain()


async def garbage(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await writer.drain()


def verify(secret: str, request: Request) -> bool:
    """Written apart from the code under test, after the specification."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    expected = base64.b64encode(hmac.new(key, signed, "sha256").digest()).decode()
    return any(hmac.compare_digest(each, f"v1,{expected}") for each in request.headers["webhook-signature"].split(" "))
