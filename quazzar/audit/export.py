"""The audit log as a file: JSON lines, or a table whose cells no spreadsheet takes for a formula."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, assert_never

import msgspec

from quazzar.audit import store
from quazzar.audit.schemas import AuditFilter, AuditRecordOut, ExportFormat
from quazzar.audit.store import Scope
from quazzar.core.db import Database

_BATCH: Final = 500

COLUMNS: Final = (
    "number",
    "id",
    "created_at",
    "actor_kind",
    "actor_id",
    "address",
    "request_id",
    "action",
    "subject",
    "outcome",
    "before",
    "after",
    "previous_hash",
    "hash",
    "impersonation",
)
# What makes spreadsheets compute a cell, also behind blanks that they pass over (OWASP, CSV injection).
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


async def exported(database: Database, scope: Scope, narrowed: AuditFilter, form: ExportFormat) -> AsyncIterator[bytes]:
    """The records in the order in which they were written; a batch of them is in memory at a time."""
    write: Callable[[Sequence[AuditRecordOut]], bytes]
    match form:
        case "csv":
            write = _table
            yield _lines([COLUMNS])
        case "jsonl":
            write = _json_lines
        case _:
            assert_never(form)
    after = 0
    while True:
        async with database.begin(tenant=scope.tenant_id) as session:
            rows = await store.find_next(scope, session, narrowed, after=after, limit=_BATCH)
        if rows:
            after = rows[-1].number
            yield write([AuditRecordOut.of(row) for row in rows])
        if len(rows) < _BATCH:
            return


def _json_lines(records: Sequence[AuditRecordOut]) -> bytes:
    return _encoder.encode_lines(records)


def _table(records: Sequence[AuditRecordOut]) -> bytes:
    return _lines([_cells(record) for record in records])


def _cells(record: AuditRecordOut) -> list[str]:
    plain: dict[str, Any] = msgspec.to_builtins(record)
    actor = plain.pop("actor")
    plain |= {"actor_kind": actor["kind"], "actor_id": actor["id"]}
    return [_cell(plain.get(name)) for name in COLUMNS]


def _cell(value: Any) -> str:
    """A text that would begin a formula gets an apostrophe before it."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else _encoder.encode(value).decode()
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _lines(rows: Sequence[Sequence[str]]) -> bytes:
    """RFC 4180, in UTF-8."""
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


_encoder = msgspec.json.Encoder(order="deterministic")
