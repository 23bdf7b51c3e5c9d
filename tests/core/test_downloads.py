"""A download ends when there is a reason to, though its caller has stopped taking it, and leaves nothing open."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import structlog
from litestar import Litestar, Request
from litestar.response import Stream

from quazzar.core import downloads
from quazzar.core.downloads import CutOff, cut_off_in, download, watched
from quazzar.core.envelope import exception_handlers
from quazzar.core.routing import get
from quazzar.core.sse import Streams
from tests.core.edge_app import toy_gate
from tests.core.servers import serving


class Source:
    """Chunks without end (or `most` of them), and whether they were closed."""

    def __init__(self, most: int = 2**30) -> None:
        self.given = 0
        self.closed = asyncio.Event()
        self._most = most

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            while self.given < self._most:
                self.given += 1
                yield b"x" * 10
                await asyncio.sleep(0)
        finally:
            self.closed.set()


async def test_all_of_it_comes() -> None:
    source, streams = Source(1000), Streams()
    found = [chunk async for chunk in watched(source.chunks(), streams, asyncio.Event())]
    assert found == [b"x" * 10] * 1000
    assert source.closed.is_set()
    assert streams.open == 0


async def test_what_fails_fails_the_download() -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise CutOff("broken")

    found = watched(broken(), Streams(), asyncio.Event())
    assert await anext(found) == b"x"
    with pytest.raises(CutOff, match="broken"):
        await anext(found)


async def test_who_does_not_take_it_is_not_read_for() -> None:
    source = Source()
    found = watched(source.chunks(), Streams(), asyncio.Event())
    await anext(found)
    await asyncio.sleep(0.05)
    assert source.given < 10
    await found.aclose()
    assert source.closed.is_set()


@pytest.mark.parametrize("reason", ["This process ends", "not to be read any more", "not valid any more"])
async def test_it_is_ended_though_nobody_takes_it(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "CHECK_SECONDS", 0.01)
    source, streams, cut, valid = Source(), Streams(), asyncio.Event(), [True]

    async def allowed() -> bool:
        return valid[0]

    found = watched(source.chunks(), streams, cut, allowed)
    await anext(found)
    await asyncio.sleep(0.03)
    assert not source.closed.is_set()
    match reason:
        case "This process ends":
            streams.close()
        case "not to be read any more":
            cut.set()
        case _:
            valid[0] = False
    await asyncio.wait_for(source.closed.wait(), 5)
    with pytest.raises(CutOff, match=reason):
        await anext(found)
    assert streams.open == 0


async def test_a_caller_who_leaves_ends_it() -> None:
    source = Source()

    async def take() -> None:
        async for _ in watched(source.chunks(), Streams(), asyncio.Event()):
            await asyncio.sleep(0)

    taking = asyncio.create_task(take())
    async with asyncio.timeout(20):
        while not source.given:
            await asyncio.sleep(0.01)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    await asyncio.wait_for(source.closed.wait(), 5)


@pytest.mark.parametrize("who", ["its caller", "us"])
async def test_one_that_is_cut_off_is_no_fault_in_the_log(who: str) -> None:
    source, cut = Source(), asyncio.Event()

    @get("/api/file")
    async def file(request: Request[Any, Any, Any]) -> Stream:
        return download(request, source.chunks(), media_type="application/x-tar", name="x.tar", cut=cut)

    app = Litestar([file], exception_handlers=exception_handlers, openapi_config=None, logging_config=None)
    with structlog.testing.capture_logs() as lines:
        async with serving(toy_gate(app)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /api/file HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"xxx")
            if who == "us":
                cut.set()
                while data := await reader.read(65536):
                    assert not data.endswith(b"0\r\n\r\n"), "it has no end"
            else:
                writer.transport.abort()
            await asyncio.wait_for(source.closed.wait(), 5)
            writer.close()
    told = [(line["event"], line["log_level"], line["reason"]) for line in lines if "reason" in line]
    cut_off = ("A download was cut off", "info", "What is sent is not to be read any more")
    assert told == ([cut_off] if who == "us" else [])
    assert not [line for line in lines if "exc_info" in line or line["log_level"] in {"error", "critical"}]


def test_a_fault_is_not_taken_for_one() -> None:
    fault = RuntimeError("midway")
    assert cut_off_in(ExceptionGroup("", [fault])) is None
    wrapped = RuntimeError()
    wrapped.__cause__ = ExceptionGroup("", [CutOff("gone")])
    assert str(cut_off_in(wrapped)) == "gone"
