"""Instances that come in at once: a few statements for all of them, and each is judged by its own certificate."""

import asyncio
from collections.abc import Sequence

import pytest

from quazzar.core.db import Database
from quazzar.panel.fleet.authority import Identity
from quazzar.panel.fleet.doors import Arrival, Doors
from quazzar.panel.fleet.together import Together
from tests.panel.fleet.conftest import Tenant
from tests.panel.fleet.lines import Counted, ask, make_instance


async def test_what_comes_meanwhile_goes_together() -> None:
    batches: list[list[int]] = []
    go_on = asyncio.Event()

    async def double(numbers: Sequence[int]) -> list[int]:
        batches.append(list(numbers))
        await go_on.wait()
        return [2 * number for number in numbers]

    together = Together(double, most=5)
    calls = [asyncio.create_task(together(number)) for number in range(12)]
    await asyncio.sleep(0.01)
    late = asyncio.create_task(together(100))
    calls[7].cancel()
    await asyncio.sleep(0.01)
    go_on.set()
    results = await asyncio.gather(*calls, late, return_exceptions=True)
    assert [result for result in results if isinstance(result, int)] == [*(2 * n for n in range(12) if n != 7), 200]
    assert batches == [[0, 1, 2, 3, 4], [5, 6, 8, 9], [10, 11, 100]]
    assert await together(1) == 2


async def test_a_failure_is_told_to_those_whose_it_is() -> None:
    async def refuse_odd(numbers: Sequence[int]) -> list[int]:
        if any(number % 2 for number in numbers):
            raise ConnectionRefusedError
        return list(numbers)

    together = Together(refuse_odd, most=2)
    results = await asyncio.gather(*(together(number) for number in (0, 2, 3, 4, 6)), return_exceptions=True)
    assert [type(result) for result in results] == [int, int, ConnectionRefusedError, ConnectionRefusedError, int]


async def test_many_come_in_by_few_statements(ada: Tenant, eve: Tenant, database: Database) -> None:
    lines = [await make_instance(database, tenant.id) for tenant in (ada, eve) for _ in range(100)]
    doors = Doors(database)
    with Counted(database) as statements:
        checked = await asyncio.gather(*(doors.check(line.identity) for line in lines))
        entered = await asyncio.gather(
            *(doors.enter(Arrival(line.identity, f"c{number}", 0.5, "::1")) for number, line in enumerate(lines))
        )
    assert len(statements) < 12, statements
    for number, (line, one, other) in enumerate(zip(lines, checked, entered, strict=True)):
        assert one.id == other.id == line.identity.instance_id
        (row,) = await ask(
            database,
            "SELECT p.*, i.ip FROM fleet_presence p JOIN fleet_instances i ON i.id = p.instance_id WHERE i.id = :id",
            id=line.identity.instance_id,
        )
        assert (row.connection, row.skew_seconds, row.ip) == (f"c{number}", 0.5, "::1")
        assert row.last_seen_at is not None


@pytest.mark.parametrize("kind", ["revoked", "of another key", "of another tenant", "unknown"])
async def test_a_certificate_that_does_not_count_lets_nobody_in(
    kind: str, ada: Tenant, eve: Tenant, database: Database
) -> None:
    good = await make_instance(database, ada.id)
    line = await make_instance(database, ada.id, status="revoked" if kind == "revoked" else "offline")
    instance_id = line.identity.instance_id
    identity = {
        "revoked": line.identity,
        "of another key": Identity(instance_id, ada.id, "1", b"other"),
        "of another tenant": Identity(instance_id, eve.id, "1", b"key"),
        "unknown": Identity("inst_" + "a" * 26, ada.id, "1", b"key"),
    }[kind]
    doors = Doors(database)
    assert [row is not None for row in await asyncio.gather(doors.check(good.identity), doors.check(identity))] == [
        True,
        False,
    ]
    arrivals = [Arrival(one, "c", 0.0, None) for one in (identity, good.identity, identity)]
    entered = await asyncio.gather(*(doors.enter(arrival) for arrival in arrivals))
    assert [row is not None for row in entered] == [False, True, False]
    (row,) = await ask(database, "SELECT * FROM fleet_presence WHERE instance_id = :id", id=instance_id)
    assert (row.connection, row.last_seen_at) == (None, None)


async def test_of_two_sockets_at_once_the_later_is_the_one(ada: Tenant, database: Database) -> None:
    line = await make_instance(database, ada.id)
    doors = Doors(database)
    # The first goes alone, the others together.
    arrivals = [Arrival(line.identity, name, 0.0, None) for name in ("first", "second", "third")]
    assert all(await asyncio.gather(*(doors.enter(arrival) for arrival in arrivals)))
    (row,) = await ask(database, "SELECT * FROM fleet_presence WHERE instance_id = :id", id=line.identity.instance_id)
    assert row.connection == "third"
