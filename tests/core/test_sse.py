"""Server-sent events: their form, heartbeats, and every way in which a stream ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from quazzar.core.sse import ServerEvent, Streams, encoded


async def numbers(count: int, closed: list[bool] | None = None) -> AsyncIterator[ServerEvent]:
    try:
        for number in range(count):
            yield ServerEvent(id=str(number), event="number", data={"n": number})
    finally:
        if closed is not None:
            closed.append(True)


async def silent(closed: list[bool], begun: asyncio.Event | None = None) -> AsyncIterator[ServerEvent]:
    try:
        if begun is not None:
            begun.set()
        await asyncio.sleep(60)
        yield ServerEvent(data=None)
    finally:
        closed.append(True)


def test_the_form_of_an_event() -> None:
    event = ServerEvent(id="7", event="line", data={"text": "a\nb\r\n\ndata: c"})
    assert event.encode() == b'id: 7\nevent: line\ndata: {"text":"a\\nb\\r\\n\\ndata: c"}\n\n'
    assert ServerEvent(data=1, id="a\nb").encode() == b"id: a b\ndata: 1\n\n"


async def test_a_stream_ends_with_its_events() -> None:
    streams, closed = Streams(), list[bool]()
    chunks = [chunk async for chunk in encoded(numbers(3, closed), streams)]
    assert chunks[0].startswith(b":")
    assert [chunk.split(b"\n")[0] for chunk in chunks[1:]] == [b"id: 0", b"id: 1", b"id: 2"]
    assert closed == [True]
    assert streams.open == 0


async def test_silence_is_broken_by_comments() -> None:
    closed: list[bool] = []
    stream = encoded(silent(closed), Streams(), heartbeat_seconds=0.05)
    async with asyncio.timeout(20):
        chunks = [await anext(stream) for _ in range(4)]
    assert all(chunk.startswith(b": ") and chunk.endswith(b"\n\n") for chunk in chunks)
    await stream.aclose()  # type: ignore[attr-defined]
    assert closed == [True]


async def test_closing_all_streams_ends_open_and_later_ones() -> None:
    streams, closed = Streams(), list[bool]()
    stream = encoded(silent(closed), streams, heartbeat_seconds=0.05)
    for _ in range(2):
        await anext(stream)
    assert streams.open == 1
    streams.close()
    async with asyncio.timeout(20):
        assert [chunk async for chunk in stream] == []
    assert closed == [True]
    assert len([chunk async for chunk in encoded(numbers(3), streams)]) == 1


async def test_a_revoked_credential_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quazzar.core.sse.CHECK_SECONDS", 0.05)
    answers = iter([True, True, False])

    async def allowed() -> bool:
        return next(answers)

    closed: list[bool] = []
    async with asyncio.timeout(20):
        assert len([chunk async for chunk in encoded(silent(closed), Streams(), allowed)]) == 1
    assert closed == [True]


async def test_what_comes_does_not_put_the_look_at_the_credential_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quazzar.core.sse.CHECK_SECONDS", 60.0)
    wait, waits = asyncio.wait, list[float]()

    async def noted(*arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        waits.append(timeout or 0)
        return await wait(*arguments, timeout=timeout, **options)

    async def allowed() -> bool:
        return True

    async def source() -> AsyncIterator[ServerEvent]:
        for number in range(3):
            await asyncio.sleep(0.1)
            yield ServerEvent(data=number)

    monkeypatch.setattr(asyncio, "wait", noted)
    chunks = [chunk async for chunk in encoded(source(), Streams(), allowed, heartbeat_seconds=100)]
    assert len(chunks) == 4
    assert all(left <= 60 - 0.09 * number for number, left in enumerate(waits))


async def test_a_client_that_goes_leaves_nothing_behind() -> None:
    streams, closed, begun = Streams(), list[bool](), asyncio.Event()

    async def read() -> None:
        async for _ in encoded(silent(closed, begun), streams):
            pass

    reading = asyncio.create_task(read())
    await begun.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    async with asyncio.timeout(20):
        while streams.open or not closed:
            await asyncio.sleep(0.01)
    assert closed == [True]
    assert streams.open == 0


async def test_a_failing_source_fails_the_stream() -> None:
    async def broken() -> AsyncIterator[ServerEvent]:
        yield ServerEvent(data=1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        _ = [chunk async for chunk in encoded(broken(), Streams())]
