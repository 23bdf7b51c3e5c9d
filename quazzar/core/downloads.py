"""Downloads that take their time: bytes that are made while they are sent.

One that can't be finished is cut off, which the caller's client tells: its end marker never comes.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

import anyio
from litestar import Request
from litestar.response import Stream

from quazzar.core.sse import CHECK_SECONDS, Streams, credential_check, streams_of

_AHEAD: Final = 2


class CutOff(Exception):
    """A download ended before its end; the text is for the log."""


def cut_off_in(error: BaseException) -> CutOff | None:
    """The `CutOff` that `error` is, was raised from or groups; None for an error that is a fault."""
    if isinstance(error, CutOff):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(cut_off_in, error.exceptions)), None)
    return cut_off_in(error.__cause__) if error.__cause__ is not None else None


def download(
    request: Request[Any, Any, Any],
    chunks: AsyncGenerator[bytes, None],
    *,
    media_type: str,
    name: str,
    cut: asyncio.Event,
) -> Stream:
    """Answer `request` with `chunks` as the file `name` (of letters, digits, `.`, `-` and `_`).

    `chunks` are closed in any case: at their end, when the caller goes, and, though the caller may have stopped taking
    them, when `cut` is set, the process drains or the credential that the request came with is revoked.
    """
    return Stream(
        watched(chunks, streams_of(request.app.state), cut, credential_check(request)),
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def watched(
    chunks: AsyncGenerator[bytes, None],
    streams: Streams,
    cut: asyncio.Event,
    allowed: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncGenerator[bytes, None]:
    """`chunks`, of which a few are read ahead; raises `CutOff` in their middle when they are ended before their end."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(_AHEAD)
    # A task of its own: this one waits for as long as the caller likes.
    reading = asyncio.create_task(_read(chunks, queue), name="download")
    guarding = asyncio.create_task(_guard(reading, streams.closed, cut, allowed), name="download-guard")
    streams.open += 1
    try:
        while True:
            taking = asyncio.create_task(queue.get())
            await asyncio.wait({taking, reading}, return_when=asyncio.FIRST_COMPLETED)
            if guarding.done():
                taking.cancel()
                raise CutOff(guarding.result())
            if not taking.done() and queue.empty():
                taking.cancel()
                reading.result()
                return
            yield await taking
    finally:
        streams.open -= 1
        # A client that has gone cancels us again and again until we are done.
        with anyio.CancelScope(shield=True):
            for task in (guarding, reading):
                task.cancel()
            await asyncio.gather(guarding, reading, return_exceptions=True)


async def _read(chunks: AsyncGenerator[bytes, None], queue: asyncio.Queue[bytes]) -> None:
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            await queue.put(chunk)


async def _guard(
    reading: "asyncio.Task[None]",
    closed: asyncio.Event,
    cut: asyncio.Event,
    allowed: Callable[[], Awaitable[bool]] | None,
) -> str:
    """End the reading when there is a reason to, and give that."""
    waits = [asyncio.create_task(one.wait()) for one in (closed, cut)]
    try:
        reason = None
        while reason is None:
            await asyncio.wait(waits, timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if closed.is_set():
                reason = "This process ends"
            elif cut.is_set():
                reason = "What is sent is not to be read any more"
            elif allowed is not None and not await allowed():
                reason = "The credential is not valid any more"
        reading.cancel()
        return reason
    finally:
        for wait in waits:
            wait.cancel()
