"""Audit chains and the feed: written with the change or not at all, in the order of the commits."""

import asyncio
import contextlib
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from quazzar.core.db import Database
from quazzar.core.postgres import DatabaseUrls
from quazzar.core.records import GENESIS, AuditRecord, Caller, Event, audit, event_types, link_hash, publish


class ThingMade(Event):
    type = "test.thing_made"
    size_bytes: int


async def rows(database: Database, sql: str) -> list[Any]:
    async with database.begin() as session:
        return list((await session.execute(text(sql))).mappings())


def test_defining_an_event_registers_it_once() -> None:
    assert event_types()["test.thing_made"] is ThingMade
    with pytest.raises(ValueError, match="two events"):
        type("Other", (Event,), {"type": "test.thing_made", "__annotations__": {}, "__module__": __name__})


async def test_a_rolled_back_change_leaves_nothing(database: Database) -> None:
    with contextlib.suppress(RuntimeError):
        async with database.begin() as session:
            audit(session, "thing.create")
            publish(session, ThingMade(size_bytes=1))
            raise RuntimeError
    assert await rows(database, "SELECT 1 FROM audit_records") == []
    assert await rows(database, "SELECT 1 FROM events") == []


async def test_parallel_writers_make_one_chain_and_one_order(database: Database) -> None:
    async def write(number: int) -> None:
        async with database.begin() as session:
            session.info["caller"] = Caller(kind="user", id=f"usr_{number}", address="127.0.0.1")
            audit(session, "thing.create", subject=f"thing_{number}", after={"b": number, "a": "ä"})
            audit(session, "thing.touch", subject=f"thing_{number}")
            publish(session, ThingMade(size_bytes=number), subject=f"thing_{number}")

    await asyncio.gather(*(write(number) for number in range(100)))
    chain = await rows(database, "SELECT * FROM audit_records ORDER BY number")
    assert [row["number"] for row in chain] == list(range(1, 201))
    last = GENESIS
    for row in chain:
        assert row["previous_hash"] == last
        assert row["hash"] == link_hash(last, dict(row))
        last = row["hash"]
    assert {row["actor_id"] for row in chain} == {f"usr_{number}" for number in range(100)}
    events = await rows(database, "SELECT * FROM events ORDER BY position")
    assert len(events) == 100
    # Both orders are that of the commits.
    assert [row["subject"] for row in events] == [row["subject"] for row in chain[::2]]
    assert events[0]["data"]["size_bytes"] >= 0


async def test_the_feed_never_grows_behind_a_reader(database: Database) -> None:
    """Whoever reads up to a position never finds a smaller one later."""
    seen: list[int] = []
    done = asyncio.Event()

    async def read() -> None:
        was_done = False
        while not was_done:
            was_done = done.is_set()
            last = seen[-1] if seen else 0
            for row in await rows(database, f"SELECT position FROM events WHERE position > {last} ORDER BY position"):
                seen.append(row["position"])

    async def write(number: int) -> None:
        async with database.begin() as session:
            publish(session, ThingMade(size_bytes=number))
            await asyncio.sleep(0.001 * (number % 7))

    before = len(await rows(database, "SELECT 1 FROM events"))
    reader = asyncio.create_task(read())
    for _ in range(5):
        await asyncio.gather(*(write(number) for number in range(8)))
    done.set()
    await reader
    assert len(seen) == before + 40
    assert seen == sorted(seen)


async def test_audit_records_can_only_be_added(database: Database, database_urls: DatabaseUrls) -> None:
    async with database.begin() as session:
        audit(session, "thing.create")
    for statement in ("UPDATE audit_records SET action = 'x'", "DELETE FROM audit_records", "TRUNCATE audit_records"):
        with pytest.raises(DBAPIError, match="permission denied"):
            async with database.begin() as session:
                await session.execute(text(statement))
        owner = await asyncpg.connect(database_urls.owner)
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await owner.execute(statement)
        await owner.close()


async def test_a_tenant_sees_its_own_records_only(database: Database) -> None:
    for tenant in ("ten_a", "ten_b"):
        async with database.begin(tenant=tenant) as session:
            session.info["caller"] = Caller(kind="user", id="usr_x", realm="panel", tenant_id=tenant)
            audit(session, "tenant.rename")
            publish(session, ThingMade(size_bytes=1))
    for tenant, other in (("ten_a", "ten_b"), ("ten_b", "ten_a")):
        async with database.begin(tenant=tenant) as session:
            chains = set((await session.execute(text("SELECT chain FROM audit_records"))).scalars())
            tenants = set((await session.execute(text("SELECT tenant_id FROM events"))).scalars())
        assert f"panel:{tenant}" in chains
        assert f"panel:{other}" not in chains
        assert other not in tenants
    assert AuditRecord.__tablename__ == "audit_records"
