"""Container logs: the engine's frames into lines, and the lines of several containers into one stream."""

import asyncio
import contextlib
import heapq
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from quazzar.instance.apps.runtimes.base import LINE_LIMIT_BYTES, LogLine, Stream
from quazzar.instance.apps.runtimes.engine.failures import Gone

_HEADER_BYTES = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REMEMBERED_LINES = 2000
_REMEMBERED_NS = 50_000_000
_QUEUED_LINES = 1000
_OUT_OF_ORDER_LINES = 16


class Line(NamedTuple):
    """One line with the engine's time of its first byte, in nanoseconds since 1970."""

    at: int
    stream: Stream
    text: str

    def of(self, service: str) -> LogLine:
        time = _EPOCH + timedelta(microseconds=self.at // 1000)
        return LogLine(time=time, service=service, stream=self.stream, line=self.text)


class LineReader:
    """Takes the bytes of `GET /containers/{id}/logs?timestamps=1` as they come and gives whole lines.

    An engine stores a long line in pieces of 16 KiB and sends each as a frame with a time of its own and no line end;
    the pieces are put together again, up to `LINE_LIMIT_BYTES`. With a terminal there are no frames and one stream.
    """

    def __init__(self, *, tty: bool) -> None:
        self._tty = tty
        self._buffer = bytearray()
        self._open: dict[Stream, tuple[int, bytearray]] = {}
        self._second = (b"", 0)

    def feed(self, chunk: bytes) -> list[Line]:
        lines: list[Line] = []
        self._buffer += chunk
        if self._tty:
            self._feed_terminal(lines)
            return lines
        start, buffer = 0, self._buffer
        while len(buffer) - start >= _HEADER_BYTES:
            size = int.from_bytes(buffer[start + 4 : start + 8])
            end = start + _HEADER_BYTES + size
            if end > len(buffer):
                break
            stream: Stream = "stdout" if buffer[start] == 1 else "stderr"
            self._frame(stream, bytes(buffer[start + _HEADER_BYTES : end]), lines)
            start = end
        del buffer[:start]
        return lines

    def finish(self) -> list[Line]:
        """What was printed without a line end before the log ended."""
        lines: list[Line] = []
        if self._tty and self._buffer:
            self._frame("stdout", bytes(self._buffer), lines)
            self._buffer.clear()
        for stream in tuple(self._open):
            self._close(stream, lines)
        return lines

    def _feed_terminal(self, lines: list[Line]) -> None:
        complete, end, rest = self._buffer.rpartition(b"\n")
        if end:
            self._frame("stdout", bytes(complete + end), lines)
        elif len(rest) >= LINE_LIMIT_BYTES:
            self._frame("stdout", bytes(rest), lines)
            rest.clear()
        self._buffer = rest

    def _frame(self, stream: Stream, data: bytes, lines: list[Line]) -> None:
        while data:
            piece, end, data = data.partition(b"\n")
            at, text = self._stamp(piece)
            opened = self._open.get(stream)
            if opened is None:
                opened = self._open[stream] = (at if at is not None else self._second[1] * 10**9, bytearray())
            opened[1].extend(text)
            if end or len(opened[1]) >= LINE_LIMIT_BYTES:
                self._close(stream, lines)

    def _close(self, stream: Stream, lines: list[Line]) -> None:
        at, text = self._open.pop(stream)
        if text.endswith(b"\r"):
            del text[-1:]
        lines.append(Line(at, stream, text.decode(errors="replace")))

    def _stamp(self, piece: bytes) -> tuple[int | None, bytes]:
        """The time at the start of a piece and the rest; no time when there is none, and the piece whole."""
        stamp, _, rest = piece.partition(b" ")
        second, fraction = stamp[:19], stamp[19:]
        if fraction[-1:] != b"Z" or (len(fraction) > 1 and fraction[:1] != b"."):
            return None, piece
        try:
            if second != self._second[0]:
                parsed = datetime.fromisoformat(second.decode("ascii")).replace(tzinfo=UTC)
                self._second = (second, int(parsed.timestamp()))
            return self._second[1] * 10**9 + int(fraction[1:-1].ljust(9, b"0") or 0), rest
        except ValueError:
            return None, piece


async def read_lines(chunks: AsyncGenerator[bytes, None], *, tty: bool) -> AsyncGenerator[Line, None]:
    reader = LineReader(tty=tty)
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            for line in reader.feed(chunk):
                yield line
    for line in reader.finish():
        yield line


async def in_order(lines: AsyncGenerator[Line, None]) -> AsyncGenerator[Line, None]:
    """The lines of one container by their times: an engine takes down its two streams side by side, and what was said
    in the same moment may come in the wrong order.
    """
    held: list[tuple[int, int, Line]] = []
    number = 0
    async with contextlib.aclosing(lines):
        while (line := await _next(lines)) is not None:
            heapq.heappush(held, (line.at, number, line))
            number += 1
            if len(held) > _OUT_OF_ORDER_LINES:
                yield heapq.heappop(held)[-1]
    while held:
        yield heapq.heappop(held)[-1]


async def merged(
    given: Sequence[tuple[str, AsyncGenerator[Line, None]]],
) -> AsyncGenerator[tuple[str, Line], None]:
    """The lines of ended logs, by key, oldest first; holds few lines of each source. A container gone ends its log."""
    sources = [(key, in_order(source)) for key, source in given]
    async with contextlib.AsyncExitStack() as stack:
        for _, source in (*given, *sources):
            await stack.enter_async_context(contextlib.aclosing(source))
        heads: list[tuple[Line, str, AsyncGenerator[Line, None]]] = []
        for key, source in sources:
            if (line := await _next(source)) is not None:
                heads.append((line, key, source))
        while heads:
            oldest = min(range(len(heads)), key=lambda index: heads[index][0].at)
            line, key, source = heads[oldest]
            yield key, line
            if (following := await _next(source)) is None:
                del heads[oldest]
            else:
                heads[oldest] = (following, key, source)


async def _next(source: AsyncGenerator[Line, None]) -> Line | None:
    try:
        return await anext(source, None)
    except Gone:
        return None


class Memory:
    """What was last seen of one container's log: where to take it up again, and which lines are not news then.

    Lines of the two streams are stored out of order by some microseconds, so the log is taken up a little earlier.
    """

    def __init__(self, since: int | None = None) -> None:
        self._seen: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED_LINES)
        self._newest = 0
        self._since = since
        self._repeats: Counter[tuple[int, int]] = Counter()
        self._repeats_until = 0

    def note(self, line: Line) -> None:
        self._seen.append(_key(line))
        self._newest = max(self._newest, line.at)

    def take_up(self) -> int | None:
        """The time to ask the engine for lines from; None for all."""
        if not self._seen:
            return self._since
        start = max(self._newest - _REMEMBERED_NS, min(at for at, _ in self._seen))
        self._repeats = Counter(key for key in self._seen if key[0] >= start)
        self._repeats_until = self._newest
        return start

    def is_news(self, line: Line) -> bool:
        key = _key(line)
        if line.at <= self._repeats_until and self._repeats[key]:
            self._repeats[key] -= 1
            return False
        self.note(line)
        return True


def _key(line: Line) -> tuple[int, int]:
    return line.at, hash((line.stream, line.text))


class Followed(NamedTuple):
    """A container whose log is followed."""

    id: str
    service: str
    tty: bool
    running: bool
    started_at: datetime | None


Open = Callable[[Followed, int | None], AsyncGenerator[bytes, None]]


class Follower:
    """The live lines of containers that stop, start and come and go meanwhile.

    An engine ends a log when its container stops, so the containers are looked at again: soon while one of them has
    no open log, seldom else. Slow takers are waited for: the engine is read no faster than the lines are taken.
    """

    LOOK_SECONDS = 1.0
    LOOK_SELDOM_SECONDS = 5.0
    LEAST_SECONDS = 0.2

    def __init__(
        self,
        find: Callable[[], Awaitable[Sequence[Followed]]],
        open_log: Open,
        memories: dict[str, Memory],
    ) -> None:
        """`memories` (by container id) hold what was given already, so that it is not given again."""
        self._find = find
        self._open_log = open_log
        self._memories = memories
        self._queue: asyncio.Queue[tuple[str, Line] | None] = asyncio.Queue(_QUEUED_LINES)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._opened_at_start: dict[str, datetime | None] = {}

    async def lines(self) -> AsyncGenerator[tuple[str, Line], None]:
        """Service and line, until no container is left. Raises what a broken log raises."""
        try:
            while present := await self._find():
                for one in present:
                    self._read_if_due(one)
                waiting = len(self._readers) < len(present)
                until = self._until(self.LOOK_SECONDS if waiting else self.LOOK_SELDOM_SECONDS)
                async with contextlib.aclosing(until) as batches:
                    async for batch in batches:
                        for item in batch:
                            yield item
            while any(not reader.done() for reader in self._readers.values()) or not self._queue.empty():
                async with contextlib.aclosing(self._until(self.LEAST_SECONDS)) as batches:
                    async for batch in batches:
                        for item in batch:
                            yield item
        finally:
            for reader in self._readers.values():
                reader.cancel()
            await asyncio.gather(*self._readers.values(), return_exceptions=True)

    def _read_if_due(self, one: Followed) -> None:
        reader = self._readers.get(one.id)
        if reader is not None and reader.done():
            del self._readers[one.id]
            reader.result()
        if one.id in self._readers:
            return
        memory = self._memories.get(one.id)
        if memory is None:  # came after the beginning: all of its log is news
            memory = self._memories[one.id] = Memory()
        elif not one.running and self._opened_at_start.get(one.id, one.started_at) == one.started_at:
            self._opened_at_start[one.id] = one.started_at
            return
        self._opened_at_start[one.id] = one.started_at
        self._readers[one.id] = asyncio.create_task(self._read(one, memory))

    async def _read(self, one: Followed, memory: Memory) -> None:
        try:
            chunks = self._open_log(one, memory.take_up())
            async with contextlib.aclosing(read_lines(chunks, tty=one.tty)) as lines:
                async for line in lines:
                    if memory.is_news(line):
                        await self._queue.put((one.service, line))
        except Gone:
            return
        finally:
            with contextlib.suppress(asyncio.QueueFull):
                self._queue.put_nowait(None)

    async def _until(self, seconds: float) -> AsyncGenerator[list[tuple[str, Line]], None]:
        """Lines in batches, each sorted by time; ends after `seconds`, sooner when a log ended."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while (left := started + seconds - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    first = await self._queue.get()
            except TimeoutError:
                return
            batch = self._ready() if first is None else sorted([first, *self._ready()], key=_time)
            if batch:
                yield batch
            if any(reader.done() for reader in self._readers.values()):
                seconds = min(seconds, max(self.LEAST_SECONDS, loop.time() - started))

    def _ready(self) -> list[tuple[str, Line]]:
        batch: list[tuple[str, Line]] = []
        while not self._queue.empty():
            if (item := self._queue.get_nowait()) is not None:
                batch.append(item)
        return sorted(batch, key=_time)


def _time(item: tuple[str, Line]) -> int:
    return item[1].at
