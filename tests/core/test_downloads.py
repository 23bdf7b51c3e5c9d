"""A download ends when there is a reason to, though its caller has stopped taking it, and leaves nothing open."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from quazzar.core import downloads
from quazzar.core.downloads import CutOff, watched
from quazzar.core.sse import Streams


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
    await asyncio.sleep(0.02)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    await asyncio.wait_for(source.closed.wait(), 5)
