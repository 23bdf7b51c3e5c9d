"""Tar archives as they stream by: entries of our own, and a whole archive put under another folder.

Only the headers are looked at; what files hold passes through, so memory does not grow with an archive. Formats are
ustar and pax (POSIX.1-2017, pax interchange format), and the long names of GNU tar are understood.
"""

import io
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""What an archive ends with."""
_MOST_EXTENDED: Final = 1024 * 1024
"""Bytes of extended headers before one entry: the names and attributes of a file are far smaller."""
_NAME: Final = slice(0, 100)
_MODE: Final = slice(100, 108)
_SIZE: Final = slice(124, 136)
_CHECKSUM: Final = slice(148, 156)
_KIND: Final = slice(156, 157)
_LINK: Final = slice(157, 257)
_MAGIC: Final = slice(257, 262)
_PREFIX: Final = slice(345, 500)
_NO_CONTENT: Final = frozenset(b"123456")
"""Kinds of entries whose size says nothing: links, devices, folders and pipes."""


class TarBroken(Exception):
    """What was read is no archive, or holds what none of ours would."""


def entry(name: str, content: bytes, *, mode: int, at: float) -> bytes:
    """A file with its header and padding; `at` is its time in seconds since 1970."""
    made = tarfile.TarInfo(name)
    made.size, made.mode, made.mtime = len(content), mode, int(at)
    return made.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % BLOCK)


def folder(name: str, *, mode: int, at: float) -> bytes:
    made = tarfile.TarInfo(name)
    made.type, made.mode, made.mtime = tarfile.DIRTYPE, mode, int(at)
    return made.tobuf(tarfile.PAX_FORMAT)


async def moved(chunks: AsyncIterator[bytes], *, root: str, to: str) -> AsyncGenerator[bytes, None]:
    """The entries of an archive in which all lies in the folder `root`, in the folder `to` instead; without its end.

    Raises `TarBroken` for an entry that lies elsewhere, and for what is no archive.
    """
    reader = _Reader(chunks)
    extended: dict[bytes, bytes] = {}
    size_extended = 0
    while (header := await reader.exactly(BLOCK)) != bytes(BLOCK):
        if _sum(header) != _octal(header[_CHECKSUM]):
            raise TarBroken("A header is broken")
        kind, size = header[_KIND], _octal(header[_SIZE])
        if kind in {b"x", b"L", b"K"}:
            size_extended += size
            if size_extended > _MOST_EXTENDED:
                raise TarBroken("An entry has a header that is too long")
            content = (await reader.exactly(size + -size % BLOCK))[:size]
            extended |= _records(content) if kind == b"x" else {_GNU[kind]: content.rstrip(b"\0")}
            continue
        if kind == b"g":
            raise TarBroken("An archive of a volume has no header for all of its entries")
        size = int(extended.get(b"size", size))
        yield _placed(header, extended, root=root.encode(), to=to.encode())
        extended, size_extended = {}, 0
        if kind[0] not in _NO_CONTENT:
            async for chunk in reader.passing(size + -size % BLOCK):
                yield chunk
    async for _ in reader.rest():
        pass


_GNU: Final = {b"L": b"path", b"K": b"linkpath"}


def _placed(header: bytes, extended: dict[bytes, bytes], *, root: bytes, to: bytes) -> bytes:
    """The headers of an entry with its name, and that of what it is a hard link to, below `to`."""
    name = extended.get(b"path") or _own_name(header)
    records = dict(extended) | {b"path": _below(name, root, to)}
    block = bytearray(header)
    if header[_KIND] == b"1":
        target = extended.get(b"linkpath") or header[_LINK].rstrip(b"\0")
        records[b"linkpath"] = _below(target, root, to)
        block[_LINK] = records[b"linkpath"][:100].ljust(100, b"\0")
    block[_NAME] = records[b"path"][:100].ljust(100, b"\0")
    if header[_MAGIC] == b"ustar":
        block[_PREFIX] = bytes(155)
    block[_CHECKSUM] = b"%06o\0 " % _sum(block)
    return _extended_header(records, block) + bytes(block)


def _own_name(header: bytes) -> bytes:
    name = header[_NAME].rstrip(b"\0")
    prefix = header[_PREFIX].rstrip(b"\0") if header[_MAGIC] == b"ustar" else b""
    return prefix + b"/" + name if prefix else name


def _below(name: bytes, root: bytes, to: bytes) -> bytes:
    first, slash, rest = name.removeprefix(b"./").partition(b"/")
    if first != root or b".." in rest.split(b"/"):
        raise TarBroken("An entry lies outside of the volume")
    return to + slash + rest


def _extended_header(records: dict[bytes, bytes], block: bytearray) -> bytes:
    content = b"".join(_record(key, value) for key, value in records.items())
    header = bytearray(BLOCK)
    header[_NAME] = (b"PaxHeaders/" + block[_NAME].rstrip(b"\0"))[:100].ljust(100, b"\0")
    header[_MODE] = b"0000644\0"
    header[_SIZE] = b"%011o\0" % len(content)
    header[_KIND] = b"x"
    header[257:265] = b"ustar\x0000"
    header[_CHECKSUM] = b"%06o\0 " % _sum(header)
    return bytes(header) + content + bytes(-len(content) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH key=value`, where the length counts itself."""
    length = rest = len(key) + len(value) + 3
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _records(content: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(content):
            raise TarBroken("An extended header is broken")
        key, sign, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if not sign:
            raise TarBroken("An extended header is broken")
        found[key] = value
        content = content[int(length) :]
    return found


def _sum(header: bytes | bytearray) -> int:
    """What the checksum of a header must be: its bytes, those of the checksum counted as blanks."""
    return sum(header) - sum(header[_CHECKSUM]) + 8 * 0x20


def _octal(field: bytes | bytearray) -> int:
    if field[0] & 0x80:  # the binary form of GNU tar, for what is too large
        return int.from_bytes(bytes([field[0] & 0x7F]) + bytes(field[1:]))
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise TarBroken("A header is broken") from None


class _Reader:
    """Takes chunks of any size and gives what is asked for."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = io.BytesIO()

    async def exactly(self, size: int) -> bytes:
        return b"".join([chunk async for chunk in self.passing(size)])

    async def passing(self, size: int) -> AsyncGenerator[bytes, None]:
        """The next `size` bytes, as they come."""
        while size > 0:
            chunk = self._buffer.read(size)
            if not chunk:
                following = await anext(self._chunks, None)
                if following is None:
                    raise TarBroken("The archive is cut off")
                self._buffer = io.BytesIO(following)
                continue
            size -= len(chunk)
            yield chunk

    async def rest(self) -> AsyncGenerator[bytes, None]:
        """What comes behind the end; who gives the archive may have something to say there."""
        async for chunk in self._chunks:
            yield chunk
