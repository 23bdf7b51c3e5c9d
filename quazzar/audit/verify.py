"""Proving that a chain is whole: every record as it was written, none missing, none added, none moved."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from quazzar.audit import store
from quazzar.audit.schemas import ChainCheckOut
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.records import GENESIS, link_hash

_BATCH: Final = 500
_CHANGED: Final = "The record is not as it was written"
_MISSING: Final = "Records are missing before this one"
_CUT: Final = "The chain ends before its head: the last records are missing"
_HEAD: Final = "The head of the chain is not that of its last record"
_ADDED: Final = "The record is behind the head of the chain"


async def verify_chain(database: Database, chain: str) -> ChainCheckOut:
    """Reads in batches, each in a short transaction, up to the head as it stands now; hashes beside the event loop."""
    async with database.begin() as session:
        await see_all_tenants(session)
        head = await store.get_head(session, chain) or store.Head(0, GENESIS)
    number, last = 0, GENESIS
    while number < head.number:
        async with database.begin() as session:
            await see_all_tenants(session)
            rows = await store.find_links(session, chain, after=number, to=head.number, limit=_BATCH)
        if not rows:
            return _bad(number, None, number + 1, _CUT)
        number, last, bad = await asyncio.to_thread(_walk, rows, number, last)
        if bad is not None:
            return bad
    if last != head.hash:
        return _bad(number, None, number, _HEAD)
    async with database.begin() as session:
        await see_all_tenants(session)
        beyond = await store.find_beyond_head(session, chain)
    if beyond is not None:
        return _bad(number, beyond.id, beyond.number, _ADDED)
    return ChainCheckOut(valid=True, checked=number)


async def verify_all(database: Database) -> AsyncIterator[tuple[str, ChainCheckOut]]:
    """Every chain of the database with its check."""
    async with database.begin() as session:
        await see_all_tenants(session)
        chains = await store.find_chains(session)
    for chain in chains:
        yield chain, await verify_chain(database, chain)


def _walk(rows: Sequence[store.Found], number: int, last: bytes) -> tuple[int, bytes, ChainCheckOut | None]:
    """The number and hash of the last good record, and what is wrong with the next one."""
    for row in rows:
        if row.number != number + 1:
            return number, last, _bad(number, row.id, number + 1, _MISSING)
        if bytes(row.previous_hash) != last or bytes(row.hash) != link_hash(last, row._asdict()):
            return number, last, _bad(number, row.id, row.number, _CHANGED)
        number, last = row.number, bytes(row.hash)
    return number, last, None


def _bad(checked: int, record_id: str | None, number: int, problem: str) -> ChainCheckOut:
    return ChainCheckOut(valid=False, checked=checked, first_bad=record_id, first_bad_number=number, problem=problem)
