"""Deliveries: every event once for each endpoint that waits for it, tried again as promised, and never in the way."""

import asyncio
import contextlib
import itertools
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from quazzar.core.db import Database
from quazzar.core.records import Event, publish
from quazzar.webhooks import lanes
from quazzar.webhooks.engine import PER_ENDPOINT
from quazzar.webhooks.store import Scope
from tests.factories.accounts import make_member
from tests.webhooks.conftest import Ended, Lab, StartEngine
from tests.webhooks.receiver import (
    Behaviour,
    Receiver,
    Request,
    drip,
    hang,
    huge,
    many_headers,
    reset,
    response,
    verify,
)


async def test_an_event_arrives_signed(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    made = await lab.endpoint(receiver.url())
    async with engine():
        (event_id,) = await lab.announce(7)
        (request,) = await receiver.until("/hook", 1)
        (row,) = await lab.settled(made.id, 1)
    assert request.method == "POST"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == event_id
    assert request.headers["x-quazzar-event"] == "sample.happened"
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    assert verify(made.secret, request)
    body = json.loads(request.body)
    assert list(body) == ["id", "type", "created_at", "data"]
    assert (body["id"], body["type"], body["data"]) == (event_id, "sample.happened", {"number": 7})
    assert body["created_at"].endswith("Z")
    assert bytes(row["body"]) == request.body
    assert (row["status"], row["tries"], row["next_attempt_at"]) == ("delivered", 1, None)
    (attempt,) = row["attempts"]
    assert (attempt["status"], attempt["error"], attempt["response_excerpt"]) == (204, None, "")


async def test_only_what_was_asked_for_arrives(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    every = await lab.endpoint(receiver.url("/every"), "*")
    area = await lab.endpoint(receiver.url("/area"), "sample.*")
    one = await lab.endpoint(receiver.url("/one"), "sample.ended")
    none = await lab.endpoint(receiver.url("/none"), "webhook.disabled")
    async with engine():
        (happened,) = await lab.announce(1)
        (ended,) = await lab.announce(2, kind=Ended)
        for made in (every, area):
            assert {row["event_id"] for row in await lab.settled(made.id, 2)} == {happened, ended}
        assert [row["event_id"] for row in await lab.settled(one.id, 1)] == [ended]
    assert await lab.deliveries(none.id) == []


async def test_the_past_and_what_happens_while_inactive_is_not_sent(
    lab: Lab, engine: StartEngine, receiver: Receiver
) -> None:
    await lab.announce(1)
    made = await lab.endpoint(receiver.url())
    await lab.rows("UPDATE webhooks SET active = false")
    witness = await lab.endpoint(receiver.url("/witness"))
    async with engine():
        await lab.announce(2)
        await lab.settled(witness.id, 1)
        await lab.rows("UPDATE webhooks SET active = true")
        (event_id,) = await lab.announce(3)
        assert [row["event_id"] for row in await lab.settled(made.id, 1)] == [event_id]


async def test_tenants_and_realms_hear_of_their_own(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    one, other = [Scope(realm="panel", tenant_id=(await make_member(lab.database)).tenant_id) for _ in range(2)]
    a = await lab.endpoint(receiver.url("/a"), scope=one)
    b = await lab.endpoint(receiver.url("/b"), scope=other)
    own = await lab.endpoint(receiver.url("/own"))
    async with engine():
        (of_a,) = await lab.announce(1, scope=one)
        (of_b,) = await lab.announce(2, scope=other)
        (of_own,) = await lab.announce(3)
        for made, event_id in ((a, of_a), (b, of_b), (own, of_own)):
            assert [row["event_id"] for row in await lab.settled(made.id, 1)] == [event_id]


async def test_failures_are_tried_again_by_the_schedule(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/hook"] = [response(500, b"no\x00pe\r\nwhsec_abcdefghijkl"), response(503), response(200, b"fine")]
    made = await lab.endpoint(receiver.url())
    async with engine((0, 0.2, 0.4)):
        await lab.announce(1)
        (row,) = await lab.settled(made.id, 1)
    assert row["status"] == "delivered"
    assert [attempt["status"] for attempt in row["attempts"]] == [500, 503, 200]
    assert row["attempts"][0]["error"] == "The endpoint answered 500"
    assert row["attempts"][0]["response_excerpt"] == "no pe ********"
    times = [datetime.fromisoformat(attempt["at"]) for attempt in row["attempts"]]
    assert (times[1] - times[0]).total_seconds() > 0.2
    assert (times[2] - times[1]).total_seconds() > 0.4
    first, second, third = receiver.requests
    assert first.event_id == second.event_id == third.event_id
    assert first.body == second.body == third.body


async def test_after_the_last_attempt_it_has_failed(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/hook"] = [response(500)]
    made = await lab.endpoint(receiver.url())
    async with engine():
        await lab.announce(1)
        (row,) = await lab.settled(made.id, 1)
    assert (row["status"], row["tries"], row["next_attempt_at"]) == ("failed", 3, None)
    assert len(receiver.requests) == 3


@pytest.mark.parametrize(
    ("behaviour", "total_seconds", "error"),
    [
        (hang, 1.0, "No whole answer within 1 seconds"),
        (drip, 1.0, "No whole answer within 1 seconds"),
        (reset, 20.0, "The connection was closed before the answer"),
        (many_headers, 20.0, "The answer is not HTTP that can be read"),
    ],
)
async def test_s40_bad_receivers_are_recorded(
    lab: Lab, engine: StartEngine, receiver: Receiver, behaviour: Behaviour, total_seconds: float, error: str
) -> None:
    receiver.script["/hook"] = [behaviour]
    made = await lab.endpoint(receiver.url())
    async with engine((0,), total_seconds=total_seconds):
        await lab.announce(1)
        (row,) = await lab.settled(made.id, 1)
    assert row["status"] == "failed"
    assert row["attempts"][0]["error"] == error


async def test_s40_a_huge_answer_is_cut(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/hook"] = [huge]
    made = await lab.endpoint(receiver.url())
    async with engine():
        await lab.announce(1)
        (row,) = await lab.settled(made.id, 1)
    assert row["status"] == "delivered"
    assert row["attempts"][0]["response_excerpt"] == "x" * 1024


async def test_s31_redirects_are_failures(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/hook"] = [response(307, Location="http://169.254.169.254/latest/meta-data/")]
    made = await lab.endpoint(receiver.url())
    async with engine((0,)):
        await lab.announce(1)
        (row,) = await lab.settled(made.id, 1)
    assert row["status"] == "failed"
    assert "redirect" in row["attempts"][0]["error"]


async def test_s31_a_name_that_turns_inside_is_a_failure(
    lab: Lab, engine: StartEngine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = asyncio.get_running_loop().getaddrinfo

    async def resolve(host: Any, port: Any, **options: Any) -> Any:
        if host == "hooks.example.com":
            return [(None, None, None, "", ("10.0.0.1", port))]
        return await original(host, port, **options)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
    made = await lab.endpoint("https://hooks.example.com/")
    async with engine((0,)):
        await lab.announce(1)
        (row,) = await lab.settled(made.id, 1)
    assert row["attempts"][0]["error"] == "The address is not a public one"
    assert row["attempts"][0]["status"] is None


async def test_retry_after_is_honoured(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(hours=3), usegmt=True)
    receiver.script["/number"] = [response(429, Retry_After="1"), response(200)]
    receiver.script["/date"] = [response(503, Retry_After=soon)]
    receiver.script["/long"] = [response(503, Retry_After="999999")]
    number, date, long = [await lab.endpoint(receiver.url(path)) for path in ("/number", "/date", "/long")]
    async with engine():
        await lab.announce(1)
        (row,) = await lab.settled(number.id, 1)
        times = [datetime.fromisoformat(attempt["at"]) for attempt in row["attempts"]]
        assert (times[1] - times[0]).total_seconds() >= 1
        for made, seconds in ((date, 3 * 3600), (long, 24 * 3600)):
            async with asyncio.timeout(15):
                while not (row := (await lab.deliveries(made.id))[0])["tries"]:
                    await asyncio.sleep(0.02)
            left = (row["next_attempt_at"] - datetime.now(UTC)).total_seconds()
            assert seconds - 60 < left <= seconds + 1


async def test_410_disables(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/hook"] = [response(410)]
    made = await lab.endpoint(receiver.url())
    watcher = await lab.endpoint(receiver.url("/watch"), "webhook.disabled")
    async with engine():
        await lab.announce(1)
        (row,) = await lab.settled(made.id, 1)
        (told,) = await receiver.until("/watch", 1)
        await lab.settled(watcher.id, 1)
        await lab.announce(2)
        await asyncio.sleep(0.2)
    assert (row["status"], row["tries"]) == ("failed", 1)
    assert json.loads(told.body)["data"]["webhook_id"] == made.id
    (webhook,) = await lab.rows("SELECT * FROM webhooks WHERE id = :id", id=made.id)
    assert webhook["active"] is False
    assert "410" in webhook["disabled_reason"]
    assert len(receiver.of("/hook")) == 1
    (record,) = await lab.rows(
        "SELECT * FROM audit_records WHERE action = 'webhook.disable' AND subject = :id", id=made.id
    )
    assert record["actor_kind"] == "system"


async def test_five_days_of_failures_disable(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/hook"] = [response(500)]
    made = await lab.endpoint(receiver.url())
    async with engine((0, 0, 0, 0)):
        await lab.announce(1)
        await lab.settled(made.id, 1)
        await lab.rows("UPDATE webhook_lanes SET failing_since = now() - interval '5 days 1 minute'")
        await lab.announce(2)
        async with asyncio.timeout(10):
            while (await lab.rows("SELECT active FROM webhooks"))[0]["active"]:
                await asyncio.sleep(0.02)
    (webhook,) = await lab.rows("SELECT * FROM webhooks")
    assert "5 days" in webhook["disabled_reason"]
    assert [row["type"] for row in await lab.rows("SELECT type FROM events WHERE subject = :id", id=made.id)] == [
        "webhook.disabled"
    ]


async def test_one_success_begins_the_days_anew(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/hook"] = [*[response(500)] * 4, response(200)]
    made = await lab.endpoint(receiver.url())
    async with engine((0, 0, 0, 0, 0)):
        await lab.announce(1)
        await lab.settled(made.id, 1)
        # The lane is left only once it has found nothing more to send.
        async with asyncio.timeout(30):
            while (lane := (await lab.rows("SELECT * FROM webhook_lanes"))[0])["owner"] is not None:
                await asyncio.sleep(0.02)
    assert (lane["failures"], lane["failing_since"]) == (0, None)


async def test_a_dead_endpoint_slows_no_other(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/dead"] = [hang]
    receiver.delay = 0.005
    dead = await lab.endpoint(receiver.url("/dead"))
    good = await lab.endpoint(receiver.url("/good"))
    async with engine((0, 60), total_seconds=50.0):
        await lab.announce(*range(100))
        await lab.settled(good.id, 100)
        assert len(receiver.of("/dead")) == PER_ENDPOINT
    assert receiver.most_at_once["/good"] <= PER_ENDPOINT
    assert all(row["status"] == "pending" for row in await lab.deliveries(dead.id))


async def test_the_circuit_opens_and_closes(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    receiver.script["/hook"] = [*[response(500)] * 6, response(200)]
    made = await lab.endpoint(receiver.url())
    async with engine((0, 0.5, 0.5, 0.5)):
        await lab.announce(*range(30))
        rows = await lab.settled(made.id, 30)
    # With two at a time, one more may have been on its way.
    around = [request.at for request in receiver.requests[4:7]]
    assert max(later - earlier for earlier, later in itertools.pairwise(around)) >= 0.5
    assert all(row["status"] == "delivered" for row in rows)
    (lane,) = await lab.rows("SELECT * FROM webhook_lanes")
    assert lane["failures"] == 0


async def test_two_engines_deliver_once(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    made = [await lab.endpoint(receiver.url(f"/{number}")) for number in range(5)]
    async with engine(), engine():
        events: list[str] = []
        for start in range(0, 100, 10):
            events += await lab.announce(*range(start, start + 10))
        for each in made:
            await lab.settled(each.id, 100)
    for number in range(5):
        assert sorted(request.event_id for request in receiver.of(f"/{number}")) == sorted(events)


async def test_what_a_killed_process_left_is_taken_over(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    """A process that ends without a word in the middle of its requests: its place's next one sends them again."""
    receiver.script["/hook"] = [hang, hang, response(200)]
    made = await lab.endpoint(receiver.url())
    async with engine(total_seconds=30, identity="here") as first:
        events = await lab.announce(1, 2, 3)
        await receiver.until("/hook", 2)
        lane = first._lanes[made.id]
        for task in (*first._tasks, lane.task):
            assert task is not None
            task.cancel()
        connection = first._line._connection
        assert connection is not None
        connection.terminate()
        first._line.stop_waiting()
        started = time.monotonic()
        async with engine(identity="here"):
            rows = await lab.settled(made.id, 3)
            assert time.monotonic() - started < 8
    assert {row["event_id"] for row in rows} == set(events)
    assert {request.event_id for request in receiver.requests} == set(events)


async def test_a_lease_ends_by_itself(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    made = await lab.endpoint(receiver.url())
    await lab.rows(
        "UPDATE webhook_lanes SET owner = gen_random_uuid(), leased_until = now() - interval '1 second', due_at = now()"
    )
    async with engine():
        await lab.announce(1)
        await lab.settled(made.id, 1)


async def test_the_lines_come_back_after_an_outage(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    made = await lab.endpoint(receiver.url())
    receiver.delay = 0.02
    async with engine():
        await lab.announce(*range(20))
        await receiver.until("/hook", 3)
        await lab.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database() AND usename = current_user"
        )
        events = {request.event_id for request in receiver.requests}
        await asyncio.sleep(0.1)
        more = await lab.announce(*range(20, 40))
        rows = await lab.settled(made.id, 40)
    assert all(row["status"] == "delivered" for row in rows)
    assert events | set(more) <= {row["event_id"] for row in rows}


async def test_what_came_back_outlives_a_full_disk(
    lab: Lab, engine: StartEngine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await lab.endpoint(receiver.url())
    failures = 2
    record = lanes.record

    async def full(*arguments: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise asyncpg.DiskFullError("could not extend file")
        return await record(*arguments)

    monkeypatch.setattr(lanes, "record", full)
    async with engine():
        await lab.announce(1, 2, 3)
        rows = await lab.settled(made.id, 3)
    assert failures == 0
    assert [len(row["attempts"]) for row in rows] == [1, 1, 1]
    assert len(receiver.requests) == 3


async def test_a_clock_that_was_set_back_holds_nothing_up(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    made = await lab.endpoint(receiver.url())
    await lab.rows(
        "INSERT INTO webhook_deliveries (id, webhook_id, realm, event_id, type, body, next_attempt_at, updated_at)"
        " VALUES ('whd_x', :id, 'instance', 'evt_x', 'sample.happened', '{}', now() + interval '1 hour',"
        " now() + interval '1 hour')",
        id=made.id,
    )
    await lab.rows(
        "UPDATE webhook_lanes SET due_at = now() + interval '1 hour', updated_at = now() + interval '1 hour',"
        " owner = gen_random_uuid(), leased_until = now() + interval '1 hour'"
    )
    async with engine():
        await lab.settled(made.id, 1)


async def test_a_deleted_endpoint_gets_nothing_more(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    deleted = asyncio.Event()

    async def fail(_: Request, writer: asyncio.StreamWriter) -> None:
        await deleted.wait()
        writer.write(response(500))
        await writer.drain()

    receiver.script["/hook"] = [fail]
    made = await lab.endpoint(receiver.url())
    async with engine((0, 0.3, 0.3)):
        await lab.announce(1)
        await receiver.until("/hook", 1)
        async with lab.service() as webhooks:
            await webhooks.delete(made.id)
        deleted.set()
        await asyncio.sleep(0.6)
        assert len(receiver.requests) == 1
    assert await lab.rows("SELECT 1 FROM webhook_lanes") == []


async def test_nothing_is_sent_for_a_change_that_failed(
    lab: Lab, engine: StartEngine, receiver: Receiver, database: Database
) -> None:
    class Lost(Event):
        type = "sample.lost"

    await lab.endpoint(receiver.url())
    async with engine():
        with contextlib.suppress(RuntimeError):
            async with database.begin() as session:
                publish(session, Lost())
                await session.execute(text("SELECT 1"))
                raise RuntimeError
        (event_id,) = await lab.announce(1)
        await receiver.until("/hook", 1)
    assert [request.event_id for request in receiver.requests] == [event_id]


async def test_an_event_is_on_its_way_at_once(lab: Lab, engine: StartEngine, receiver: Receiver) -> None:
    await lab.endpoint(receiver.url())
    async with engine():
        await lab.announce(0)
        await receiver.until("/hook", 1)
        took = []
        for number in range(1, 21):
            started = time.monotonic()
            await lab.announce(number)
            while len(receiver.requests) < number + 1:
                await asyncio.sleep(0.001)
            took.append(time.monotonic() - started)
    # Found by looking alone, each would take some seconds.
    assert sorted(took)[len(took) // 2] < 1.5
