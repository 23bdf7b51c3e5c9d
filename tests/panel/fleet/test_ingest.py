"""Heartbeats in batches: presence, samples and standing are written together, and one odd instance harms no other."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from quazzar.core.db import Database
from quazzar.link.messages import CLOSE_MALFORMED, CLOSE_REVOKED, LinkProblem, pack, unpack_from_instance
from quazzar.link.metrics import APP_METRICS, HOST_METRICS, MOST_VALUES
from quazzar.panel.fleet import ingest as ingestion
from quazzar.panel.fleet.ingest import Ingest
from tests.panel.fleet.conftest import Tenant
from tests.panel.fleet.lines import Counted, Told, app_facts, ask, beat, make_instance, past, samples_of, state_of, tell


@pytest.fixture
def ingest(database: Database) -> Ingest:
    return Ingest(database, 30)


async def presence(database: Database, line: Told) -> Any:
    query = "SELECT *, clock_timestamp() - last_seen_at AS age FROM fleet_presence WHERE instance_id = :id"
    (row,) = await ask(database, query, id=line.identity.instance_id)
    return row


async def instance(database: Database, line: Told) -> Any:
    (row,) = await ask(database, "SELECT * FROM fleet_instances WHERE id = :id", id=line.identity.instance_id)
    return row


async def events_of(database: Database, line: Told) -> list[str]:
    rows = await ask(
        database, "SELECT type FROM events WHERE subject = :id ORDER BY position", id=line.identity.instance_id
    )
    return [row.type for row in rows]


async def test_a_heartbeat_is_presence_and_a_sample(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    sent = beat(12.5, 1000, None, 3)
    await tell(ingest, line, sent)
    seen = await presence(database, line)
    assert seen.age < timedelta(minutes=1)
    assert (seen.measured, seen.measured_at) == ([12.5, 1000, None, 3], seen.last_seen_at)
    assert await samples_of(database, line) == [(sent.sent_at, [12.5, 1000, None, 3])]
    row = await instance(database, line)
    assert (row.status, row.status_reason, row.health_score, row.checks) == ("online", None, 100, [])
    assert await events_of(database, line) == ["instance.online"]
    # One that says nothing is a sign of life all the same, and leaves what was measured before.
    await tell(ingest, line, beat())
    again = await presence(database, line)
    assert again.last_seen_at > seen.last_seen_at
    assert (again.measured, again.measured_at) == (seen.measured, seen.measured_at)
    assert len(await samples_of(database, line)) == 1


async def test_a_batch_of_many_tenants_is_one_statement_and_one_copy(
    ada: Tenant, eve: Tenant, database: Database, ingest: Ingest
) -> None:
    lines = [await make_instance(database, tenant.id) for tenant in (ada, eve) for _ in range(20)]
    await asyncio.gather(*(ingest.heard(line, beat(1.0)) for line in lines))
    await ingest.write_beats()
    assert {(await instance(database, line)).status for line in lines} == {"online"}
    for line in lines:
        await ingest.heard(line, beat(2.0))
    with Counted(database) as statements:
        await ingest.write_beats()
    assert len(statements) == 2, statements
    assert statements[1].startswith("fleet_samples_")
    # Only who is other than before costs more.
    for line in lines[1:]:
        await ingest.heard(line, beat(3.0))
    await ingest.heard(lines[0], beat(*[0.0] * 5, 95.0))
    with Counted(database) as statements:
        await ingest.write_beats()
    assert len([one for one in statements if "UPDATE fleet_instances" in one]) == 1
    assert [(await instance(database, line)).status for line in lines[:2]] == ["degraded", "online"]
    assert await events_of(database, lines[0]) == ["instance.online", "instance.degraded"]
    assert await events_of(database, lines[1]) == ["instance.online"]
    for line in lines:
        assert len(await samples_of(database, line)) == 3


async def test_a_state_is_written_when_it_is_new_and_never_again(
    ada: Tenant, database: Database, ingest: Ingest
) -> None:
    line = await make_instance(database, ada.id)
    state = state_of(*app_facts("app_one"), name="renamed")
    await tell(ingest, line, beat(1.0, state=state))
    row = await instance(database, line)
    assert (row.version, row.hostname, row.state_hash) == ("0.2.0", "renamed", state.hash())
    await ingest.heard(line, beat(1.0, state=state))
    with Counted(database) as statements:
        await ingest.write_beats()
    assert len(statements) == 2
    assert (await instance(database, line)).updated_at == row.updated_at
    await tell(ingest, line, beat(1.0, state=state_of(*app_facts("app_one", status="crashed"))))
    row = await instance(database, line)
    assert (row.status, row.status_reason) == ("degraded", "Not as they should be: app_one")


async def test_another_process_knows_the_apps_that_were_told_to_the_first(
    ada: Tenant, database: Database, ingest: Ingest
) -> None:
    line = await make_instance(database, ada.id)
    state = state_of(*app_facts("app_one", status="crashed"))
    await tell(ingest, line, beat(1.0, state=state))
    other = Ingest(database, 30)
    sent = beat(1.0, app_one=[1.0] * len(APP_METRICS))
    sent.state_hash = state.hash()
    await tell(other, line, sent)
    assert (await instance(database, line)).status == "degraded"
    assert await samples_of(database, line, "app_one") == [(sent.sent_at, [1.0] * len(APP_METRICS))]


async def test_a_heartbeat_that_comes_twice_is_one_sample(ada: Tenant, database: Database, ingest: Ingest) -> None:
    lines = [await make_instance(database, ada.id) for _ in range(3)]
    for line in lines:
        await tell(ingest, line, beat(1.0))
    (first, *_) = await samples_of(database, lines[0])
    # It was cut off after it had sent this, and sends it again, among others.
    again = beat(99.0, sent_at=first.at)
    for line, message in zip(lines, (again, beat(2.0), beat(2.0)), strict=True):
        await ingest.heard(line, message)
    await ingest.write_beats()
    assert [[row.measured for row in await samples_of(database, line)] for line in lines] == [
        [[1.0]],
        [[1.0], [2.0]],
        [[1.0], [2.0]],
    ]
    assert (await presence(database, lines[0])).measured == [99.0]


async def test_odd_values_are_no_values(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    await tell(ingest, line, beat(1.0, state=state_of(*app_facts("app_one"))))
    odd: list[float | None] = [math.nan, math.inf, -math.inf, 1e300, 2.0**63, 7.0]
    message = beat(*odd)
    message.app_measured = {"app_one": odd, "app_none": [1.0], "": [9.0], "app_other": [1.0]}
    # As they arrive: through the wire's own limits.
    read = unpack_from_instance(pack(message))
    assert read is not None
    await tell(ingest, line, read)  # type: ignore[arg-type]
    kept = [None, None, None, None, 2.0**63, 7.0]
    assert (await presence(database, line)).measured == kept
    assert [row.measured for row in await samples_of(database, line)][-1] == kept
    assert [row.measured for row in await samples_of(database, line, "app_one")] == [kept]
    assert await samples_of(database, line, "app_none") == []
    assert ingest.dropped["not_a_number"] == 8
    assert ingest.dropped["unknown_app"] == 3
    # A later release measures more; this one keeps what it knows. Beyond all measure it is no message.
    await tell(ingest, line, beat(*[5.0] * MOST_VALUES))
    assert (await presence(database, line)).measured == [5.0] * len(HOST_METRICS)
    with pytest.raises(LinkProblem):
        unpack_from_instance(pack(beat(*[5.0] * (MOST_VALUES + 1))))
    assert line.ended == []


async def test_what_can_not_be_written_ends_its_own_line_alone(ada: Tenant, database: Database, ingest: Ingest) -> None:
    lines = [await make_instance(database, ada.id) for _ in range(9)]
    for number, line in enumerate(lines):
        name = "bad\x00" if number == 4 else "good"
        await ingest.heard(line, beat(1.0, state=state_of(name=name)))
    with structlog.testing.capture_logs():
        await ingest.write_beats()
    assert [line.ended for line in lines] == [[CLOSE_MALFORMED] if number == 4 else [] for number in range(9)]
    assert {(await instance(database, line)).hostname for line in lines} == {"good", "server"}
    for number, line in enumerate(lines):
        assert len(await samples_of(database, line)) == (0 if number == 4 else 1)
    # It may come back, and be understood.
    await tell(ingest, lines[4], beat(1.0))
    assert (await instance(database, lines[4])).status == "online"


@pytest.mark.parametrize("foreign", [False, True])
async def test_the_revoked_and_the_foreign_write_nothing(
    foreign: bool, ada: Tenant, eve: Tenant, database: Database, ingest: Ingest
) -> None:
    line = await make_instance(database, ada.id, status="offline" if foreign else "revoked")
    teller = Told(eve.id, line.identity.instance_id) if foreign else line
    await tell(ingest, teller, beat(1.0, state=state_of(name="taken over")))
    assert teller.ended == [CLOSE_REVOKED]
    await tell(ingest, teller, past(datetime.now(UTC)))
    assert await samples_of(database, line) == []
    row = await instance(database, line)
    assert (row.hostname, row.status) == ("server", "offline" if foreign else "revoked")
    assert (await presence(database, line)).last_seen_at is None


async def test_the_past_is_kept_once_and_within_a_day(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    now = datetime.now(UTC)
    good = [now - timedelta(hours=hours) for hours in (23.9, 12, 1, 0)] + [now + timedelta(minutes=4)]
    bad = [now - timedelta(hours=24, minutes=1), now + timedelta(minutes=6), now - timedelta(days=4000)]
    await tell(ingest, line, past(*good, *bad, app_one=[1.0]))
    assert [row.at for row in await samples_of(database, line)] == good
    assert (ingest.dropped["outside_of_24_hours"], ingest.dropped["in_the_future"]) == (2, 1)
    assert line.ended == []
    # Again, since the answer was lost; out of order, and with one that is new.
    new = now - timedelta(hours=2)
    await tell(ingest, line, past(good[2], new, good[0], value=99.0))
    kept = await samples_of(database, line)
    assert [row.at for row in kept] == sorted([*good, new])
    assert [row.measured for row in kept if row.at != new] == [[1.0]] * 5
    # It says nothing of now.
    assert (await presence(database, line)).last_seen_at is None


@pytest.mark.parametrize("ahead", [86_400.0, -7200.0, 125.0, 30.0])
async def test_times_are_those_of_the_panel(ahead: float, ada: Tenant, database: Database, ingest: Ingest) -> None:
    """An instance whose clock is a day ahead has its history where it belongs; small differences are left alone."""
    line = await make_instance(database, ada.id)
    line.skew_seconds = ahead
    ingest.greeted(line)
    now = datetime.now(UTC)
    told = now - timedelta(hours=3) + timedelta(seconds=ahead)
    for _ in range(2):
        await tell(ingest, line, past(told))
    await tell(ingest, line, beat(1.0, sent_at=datetime.now(UTC) + timedelta(seconds=ahead)))
    (old, live) = [row.at for row in await samples_of(database, line)]
    assert abs(old - (now - timedelta(hours=3))) < timedelta(seconds=61)
    assert abs(live - now) < timedelta(seconds=65)
    assert (told - old) % timedelta(minutes=1) == timedelta()


async def test_nobody_sends_more_than_can_be_measured(
    ada: Tenant, database: Database, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_most_points", 10.0)
    line, other = await make_instance(database, ada.id), await make_instance(database, ada.id)
    now = datetime.now(UTC)
    await tell(ingest, line, past(*(now - timedelta(seconds=number) for number in range(50))))
    assert len(await samples_of(database, line)) == 10
    assert ingest.dropped["too_many"] == 40
    # It is heard as before, and others lose nothing by it.
    await tell(ingest, line, beat(1.0))
    assert (await instance(database, line)).status == "online"
    await tell(ingest, other, past(now))
    assert len(await samples_of(database, other)) == 1


async def test_times_that_no_calendar_holds_harm_nobody(ada: Tenant, database: Database, ingest: Ingest) -> None:
    """The clock of a line is told anew while a heartbeat of the one before waits to be written."""
    odd, other = await make_instance(database, ada.id), await make_instance(database, ada.id)
    end = datetime.max.replace(tzinfo=UTC)
    await asyncio.gather(ingest.heard(odd, beat(1.0, sent_at=end)), ingest.heard(other, beat(1.0)))
    odd.skew_seconds = -9e8
    ingest.greeted(odd)
    await ingest.write_beats()
    assert [(await instance(database, line)).status for line in (odd, other)] == ["degraded", "online"]
    assert [len(await samples_of(database, line)) for line in (odd, other)] == [0, 1]
    await tell(ingest, odd, past(end, datetime.now(UTC) + timedelta(seconds=-9e8)))
    assert len(await samples_of(database, odd)) == 1
    assert odd.ended == []


async def test_what_is_tried_again_is_not_counted_again(
    ada: Tenant, database: Database, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is away for some tries costs none of the past, of which the instance keeps nothing any more."""
    monkeypatch.setattr(ingest, "_most_points", 10.0)
    line = await make_instance(database, ada.id)
    await tell(ingest, line, beat(1.0, state=state_of()))
    now = datetime.now(UTC)
    kept = asyncio.create_task(ingest.keep(line, past(*(now - timedelta(minutes=number) for number in range(1, 9)))))
    await asyncio.sleep(0)
    with monkeypatch.context() as patch:

        def away(**_: Any) -> Any:
            raise ConnectionRefusedError

        patch.setattr(database, "begin", away)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await ingest.write_past()
    await ingest.write_past()
    await kept
    assert len(await samples_of(database, line)) == 9
    assert not ingest.dropped


async def test_of_more_instances_than_are_remembered_nothing_is_lost(
    ada: Tenant, database: Database, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingestion, "_MOST_KNOWN", 2)
    lines = [await make_instance(database, ada.id) for _ in range(5)]
    state = state_of(*app_facts("app_one", status="crashed"))
    await asyncio.gather(*(ingest.heard(line, beat(1.0, state=state)) for line in lines))
    await ingest.write_beats()
    # Whatever is forgotten between a word and its writing: apps, and by how much a clock is ahead.
    ahead, now = timedelta(hours=3), datetime.now(UTC)
    for line in lines:
        line.skew_seconds = ahead.total_seconds()
        message = beat(1.0, sent_at=now + ahead, app_one=[1.0] * len(APP_METRICS))
        message.state_hash = state.hash()
        await ingest.heard(line, message)
    await ingest.write_beats()
    told = now + ahead - timedelta(hours=1)
    kept = [asyncio.create_task(ingest.keep(line, past(told, app_one=[2.0]))) for line in lines]
    await asyncio.sleep(0)
    await ingest.write_past()
    await asyncio.gather(*kept)
    for line in lines:
        assert len(await samples_of(database, line)) == 3
        (old, live) = await samples_of(database, line, "app_one")
        assert (old.measured, live.measured) == ([2.0], [1.0] * len(APP_METRICS))
        assert abs(live.at - now) < timedelta(seconds=65)
        assert abs(old.at - (now - timedelta(hours=1))) < timedelta(seconds=65)
        assert (await instance(database, line)).status == "degraded"
    assert not ingest.dropped


async def test_late_samples_leave_a_mark_in_their_hour(ada: Tenant, database: Database, ingest: Ingest) -> None:
    line = await make_instance(database, ada.id)
    now = datetime.now(UTC)
    await tell(ingest, line, beat(1.0))
    query = "SELECT at FROM fleet_late WHERE instance_id = :id ORDER BY at"
    assert await ask(database, query, id=line.identity.instance_id) == []
    hour = (now - timedelta(hours=5)).replace(minute=0, second=0, microsecond=0)
    await tell(ingest, line, past(hour + timedelta(minutes=30), hour + timedelta(minutes=29)))
    (mark,) = await ask(database, query, id=line.identity.instance_id)
    assert mark.at == hour


async def test_what_comes_while_the_database_is_away_is_written_when_it_is_back(
    ada: Tenant, database: Database, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trying again takes nothing of what an instance may send.
    monkeypatch.setattr(ingest, "_most_points", 3.0)
    lines = [await make_instance(database, ada.id) for _ in range(3)]
    begin = database.begin

    def away(**_: Any) -> Any:
        raise ConnectionRefusedError

    monkeypatch.setattr(ingestion, "BATCH_SECONDS", 0.01)
    monkeypatch.setattr(ingestion, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(database, "begin", away)
    await ingest.start()
    try:
        healthy = ingest.healthy_since
        for line in lines:
            await ingest.heard(line, beat(1.0))
        kept = asyncio.create_task(ingest.keep(lines[0], past(datetime.now(UTC) - timedelta(hours=1))))
        # Who sends on waits, and nothing of it piles up.
        waits = asyncio.create_task(ingest.heard(lines[0], beat(2.0)))
        await asyncio.sleep(0.2)
        assert not kept.done()
        assert not waits.done()
        assert ingest.healthy_since > healthy
        monkeypatch.setattr(database, "begin", begin)
        await asyncio.wait_for(asyncio.gather(kept, waits), 30)
    finally:
        await ingest.stop()
    assert [len(await samples_of(database, line)) for line in lines] == [3, 1, 1]
    assert (await presence(database, lines[1])).age > timedelta(seconds=0.15)
    assert {(await instance(database, line)).status for line in lines} == {"online"}


async def test_two_processes_write_of_the_same_instances_at_once(
    ada: Tenant, database: Database, ingest: Ingest
) -> None:
    lines = [await make_instance(database, ada.id) for _ in range(30)]
    other = Ingest(database, 30)
    for _ in range(5):
        for one, order in ((ingest, lines), (other, list(reversed(lines)))):
            await asyncio.gather(*(one.heard(line, beat(1.0)) for line in order))
        results = await asyncio.gather(ingest.write_beats(), other.write_beats(), return_exceptions=True)
        if any(results):
            # Two that wait for each other are told apart by the database; the loser writes again.
            await ingest.write_beats()
            await other.write_beats()
    assert {len(await samples_of(database, line)) for line in lines} == {10}
    assert {tuple(await events_of(database, line)) for line in lines} == {("instance.online",)}
