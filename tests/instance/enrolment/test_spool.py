"""What is measured without a line: kept in its order, bounded, sent once there is one, and forgotten on leaving."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from quazzar.accounts.authenticator import AccountAuthenticator
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.tokens import Tokens
from quazzar.instance.apps.points import Sample as AppSample
from quazzar.instance.apps.usage import Usage
from quazzar.instance.enrolment import spool as spooling
from quazzar.instance.enrolment import store
from quazzar.instance.enrolment.line import Line
from quazzar.instance.enrolment.recording import Recorder
from quazzar.instance.enrolment.service import Joined, PanelLinkService
from quazzar.instance.enrolment.spool import Spool
from quazzar.link.messages import CLOSE_MALFORMED, CLOSE_REVOKED, MOST_FRAME_BYTES, Enrolled, Sample, Samples, pack
from quazzar.link.metrics import APP_METRICS, HOST_METRICS
from quazzar.link.tokens import new_token

ME = "inst_" + "b" * 26


async def link(database: Database, instance_id: str = ME) -> None:
    async with database.begin() as session:
        await session.execute(text("DELETE FROM panel_link"))
        await store.put_link(
            session,
            instance_id=instance_id,
            panel_url="https://panel.example.com",
            host="panel.example.com",
            port=8443,
            ca_certificate="",
            certificate="",
            signing_key=b"",
        )


@pytest.fixture
async def spool(database: Database) -> Spool:
    await link(database)
    spool = Spool(database)
    await spool.clear()
    return spool


async def count(database: Database) -> int:
    async with database.begin() as session:
        return int((await session.execute(text("SELECT count(*) FROM panel_spool"))).scalar_one())


def samples(number: int, *, every_seconds: float = 30, ago: timedelta = timedelta(0), apps: int = 0) -> list[Sample]:
    last = datetime.now(UTC) - ago
    row: list[float | None] = [1.5] * len(APP_METRICS)
    used = {f"app_{one:026}": row for one in range(apps)}
    return [
        Sample(last - timedelta(seconds=every_seconds * back), [float(back)], used) for back in reversed(range(number))
    ]


class Panel:
    """Takes what is sent and says that it is kept, when a test lets it."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.batches: list[Samples] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.delivering = asyncio.create_task(spool.deliver(ME, self._take))

    async def _take(self, batch: Samples) -> None:
        self.batches.append(batch)
        await self.answering.wait()
        self.spool.kept(batch.batch)

    @property
    def points(self) -> list[datetime]:
        return [point.at for batch in self.batches for point in batch.points]

    async def until(self, points: int) -> None:
        async with asyncio.timeout(30):
            while len(self.points) < points:
                await asyncio.sleep(0.01)

    async def cut(self, *, malformed: bool = False) -> None:
        self.delivering.cancel()
        await asyncio.gather(self.delivering, return_exceptions=True)
        await self.spool.cut(malformed=malformed)


async def test_it_comes_in_order_and_nothing_is_lost(database: Database, spool: Spool) -> None:
    kept = samples(500)
    for begin in range(0, 500, 50):
        await spool.add(ME, kept[begin : begin + 50])
    # Our own restart: what is on disk is all that there is.
    panel = Panel(Spool(database))
    await panel.until(500)
    assert panel.points == [sample.at for sample in kept]
    assert [len(batch.points) for batch in panel.batches] == [200, 200, 100]
    assert len({batch.batch for batch in panel.batches}) == 3
    more = samples(1)
    await panel.spool.add(ME, more)
    await panel.until(501)
    assert panel.points[-1] == more[0].at
    await panel.cut()
    for _ in range(100):
        if await count(database) == 0:
            break
        await asyncio.sleep(0.01)
    # The last one is dropped after its answer, which the cut may have overtaken.
    assert await count(database) <= 1


async def test_what_was_not_confirmed_is_sent_again(database: Database, spool: Spool) -> None:
    await spool.add(ME, samples(250))
    panel = Panel(spool)
    panel.answering.clear()
    await panel.until(200)
    await asyncio.sleep(0.05)
    assert len(panel.batches) == 1, "the next goes once the one before is durable"
    await panel.cut()
    assert await count(database) == 250
    # An answer to a batch of another line means nothing.
    spool.kept(panel.batches[0].batch)
    again = Panel(spool)
    await again.until(250)
    assert again.points[:200] == panel.points
    await again.cut()


async def test_what_the_panel_can_not_read_does_not_stand_in_the_way(database: Database, spool: Spool) -> None:
    await spool.add(ME, samples(250))
    panel = Panel(spool)
    panel.answering.clear()
    await panel.until(200)
    await panel.cut(malformed=True)
    assert await count(database) == 50
    # A line that ends for another message takes nothing along.
    await spool.cut(malformed=True)
    assert await count(database) == 50


async def test_batches_are_small_enough_for_a_slow_line(database: Database, spool: Spool) -> None:
    await spool.add(ME, samples(40, apps=100))
    await spool.add(ME, samples(2, apps=500))
    panel = Panel(spool)
    await panel.until(42)
    sizes = [len(pack(batch)) for batch in panel.batches]
    assert all(size < 80_000 or len(batch.points) == 1 for size, batch in zip(sizes, panel.batches, strict=True))
    assert max(sizes) < MOST_FRAME_BYTES
    await panel.cut()


async def test_it_keeps_a_day_and_no_more_than_it_may(
    database: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await spool.add(ME, samples(10, ago=timedelta(hours=23, minutes=50)))
    await spool.add(ME, samples(10, ago=timedelta(hours=24, minutes=1)))
    assert await count(database) == 10
    monkeypatch.setattr(spooling, "MOST_KEPT", 15)
    newest = samples(10)
    await spool.add(ME, newest)
    assert await count(database) == 15
    batch = await spool.next_batch(ME)
    assert batch is not None
    assert [point.at for point in batch.points][-10:] == [sample.at for sample in newest]


async def test_it_is_for_one_panel_only(database: Database, spool: Spool) -> None:
    await spool.add(ME, samples(5))
    await spool.add("inst_of_before", samples(5))
    assert await count(database) == 5
    await link(database, "inst_of_another")
    assert await spool.next_batch("inst_of_another") is None
    await spool.add(ME, samples(5))
    assert await count(database) == 5, "nothing is kept for a panel that was left"


async def test_leaving_and_joining_again_empty_it(
    database: Database, spool: Spool, tmp_path: Path, keyring: Keyring
) -> None:
    line = Line(database, tmp_path, keyring, Usage())
    authenticator = AccountAuthenticator(database, Tokens(keyring))
    await spool.add(ME, samples(5))
    async with database.begin() as session:
        await PanelLinkService(session, line, authenticator).delete()
    assert await count(database) == 0
    async with database.begin() as session:
        await session.execute(
            text("INSERT INTO panel_spool (instance_id, at, sample) VALUES (:me, now(), '')"), {"me": ME}
        )
    token = new_token(host="h", port=1, fingerprint=bytes(32), tenant_id="ten_" + "a" * 26)
    enrolled = Enrolled(instance_id=ME, certificate="", panel_url="", heartbeat_seconds=30, signing_key=b"")
    async with database.begin() as session:
        await PanelLinkService(session, line, authenticator).create(Joined(token, "", enrolled))
    assert await count(database) == 0


@pytest.mark.parametrize(("code", "left"), [(CLOSE_REVOKED, 0), (None, 2), (CLOSE_MALFORMED, 2), (1012, 2)])
async def test_what_was_sent_lately_is_kept_when_the_line_ends(
    code: int | None,
    left: int,
    database: Database,
    spool: Spool,
    tmp_path: Path,
    keyring: Keyring,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(database, tmp_path, keyring, Usage())
    line._linked_as = ME
    clock = Clock(monkeypatch)
    for _ in range(5):
        line.recorder.sending(await line.recorder.measure())
        clock.seconds += 30
    # Of five heartbeats, half a minute apart, those of the last minute may not have come through.
    clock.seconds -= 1
    await line._settle(code)
    assert await count(database) == left
    await line._settle(None)
    assert await count(database) == left


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr("quazzar.instance.enrolment.recording.monotonic", lambda: self.seconds)


async def test_ten_minutes_without_a_line(database: Database, spool: Spool, tmp_path: Path) -> None:
    """Measured each heartbeat while it is cut, and sent in that order between the heartbeats that go on."""
    usage = Usage()
    recorder = Recorder(tmp_path, usage, spool)
    for number in range(20):
        usage.add([app_sample("app_one", cpu_percent=float(number))])
        await recorder.keep(ME)
    assert await count(database) == 20
    panel = Panel(spool)
    panel.answering.clear()
    await panel.until(20)
    # The panel takes its time; measuring and sending what is live does not wait for it.
    live = await asyncio.wait_for(recorder.measure(), 10)
    panel.answering.set()
    assert panel.points == sorted(panel.points)
    points = [point for batch in panel.batches for point in batch.points]
    assert [point.apps["app_one"][0] for point in points] == [float(number) for number in range(20)]
    assert all(len(point.measured) == len(HOST_METRICS) for point in points)
    assert live.at > points[-1].at
    await panel.cut()


def app_sample(app_id: str, **values: Any) -> AppSample:
    zero = dict.fromkeys(AppSample.__struct_fields__[1:], 0)
    return AppSample(app_id=app_id, **zero | values)


class TestUsage:
    def test_between_two_heartbeats_are_several_rounds(self) -> None:
        usage = Usage()
        assert usage.take() == {}
        for cpu, memory, received in ((10.0, 100, 5), (20.0, 300, 7), (60.0, 200, 0)):
            usage.add([app_sample("app_one", cpu_percent=cpu, memory_bytes=memory, network_rx_bytes=received)])
        values = usage.take()["app_one"]
        assert values.keys() == set(APP_METRICS)
        assert (values["cpu_percent"], values["memory_bytes"], values["network_rx_bytes"]) == (30.0, 200, 12)

    def test_a_heartbeat_between_two_rounds_has_the_newest_again_and_nothing_twice(self) -> None:
        usage = Usage()
        usage.add([app_sample("app_one", cpu_percent=10.0, memory_bytes=100, restarts=1)])
        usage.take()
        again = usage.take()["app_one"]
        assert (again["cpu_percent"], again["memory_bytes"], again["restarts"]) == (10.0, 100, 0)

    def test_apps_that_stopped_are_left_out(self) -> None:
        usage = Usage()
        usage.add([app_sample("app_one"), app_sample("app_two")])
        usage.add([app_sample("app_two")])
        assert list(usage.take()) == ["app_two"]
        usage.add([])
        assert usage.take() == {}

    def test_what_is_long_past_is_not_now(self, monkeypatch: pytest.MonkeyPatch) -> None:
        moments = iter([0.0, 61.0])
        monkeypatch.setattr("quazzar.instance.apps.usage.monotonic", lambda: next(moments))
        usage = Usage()
        usage.add([app_sample("app_one")])
        assert usage.take() == {}
