"""Samples in the binary form of COPY (PostgreSQL's manual, COPY, "Binary Format"; arrays as `array_send` writes them).

The driver's own encoder asks of every single number whether it may be a list, which takes half of the time that a
heartbeat costs.
"""

import struct
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

Row = tuple[str, str, str, datetime, list[float | None]]
"""A sample in the order of the table's columns."""
COLUMNS: Final = ("tenant_id", "instance_id", "app_id", "at", "measured")

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = struct.pack(">h", -1)
_FIELDS: Final = struct.pack(">h", len(COLUMNS))
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FLOAT8: Final = 701
"""The type's OID, which never changes."""
_moment = struct.Struct(">iq").pack
_length = struct.Struct(">i").pack
_array = struct.Struct(">iiiIii").pack
_element = struct.Struct(">id").pack
_PIECE: Final = 2000
_NULL: Final = struct.pack(">i", -1)


async def encode(rows: Iterable[Row]) -> AsyncIterator[bytes]:
    """A whole COPY, piece by piece: the database works on one while the next is made. Rows of one instance and moment
    that follow each other are cheapest.
    """
    parts = [_HEADER]
    tenant = instance = moment = None
    for tenant_id, instance_id, app_id, at, measured in rows:
        if instance_id is not instance or tenant_id is not tenant:
            tenant, instance = tenant_id, instance_id
            whose = _FIELDS + _text(tenant_id) + _text(instance_id)
        if at is not moment:
            moment = at
            when = _moment(8, (at - _EPOCH) // _MICROSECOND)
        parts += (whose, _text(app_id), when, _doubles(measured))
        if len(parts) > _PIECE:
            yield b"".join(parts)
            parts.clear()
    parts.append(_TRAILER)
    yield b"".join(parts)


def _text(value: str) -> bytes:
    data = value.encode()
    return _length(len(data)) + data


@cache
def _whole(count: int) -> tuple[Any, list[Any]]:
    """How an array of so many numbers is packed, and what stands before them."""
    head = [20 + 12 * count, 1, 0, _FLOAT8, count, 1]
    return struct.Struct(">iiiIii" + "id" * count).pack, head + [8, 0.0] * count


def _doubles(values: list[float | None]) -> bytes:
    if None in values:
        elements = b"".join([_NULL if value is None else _element(8, value) for value in values])
        return _array(20 + len(elements), 1, 1, _FLOAT8, len(values), 1) + elements
    pack, form = _whole(len(values))
    filled = form.copy()
    filled[7::2] = values
    return pack(*filled)  # type: ignore[no-any-return]
