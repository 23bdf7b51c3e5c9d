"""The network between an instance and its panel is taken away in the middle of a command, briefly and for ten minutes:
what was ordered is done once and its result comes once, and of what was measured nothing is missing.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import text
from websockets.asyncio.client import connect

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.postgres import DatabaseUrls
from quazzar.instance.enrolment import line as lines
from quazzar.instance.enrolment import recording
from quazzar.panel.fleet import hub, ingest
from tests.conftest import fresh_database
from tests.factories.apps import engine_of, unique
from tests.factories.halves import Halves, both_halves, until
from tests.product.forwarder import Forwarder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MEMORY = "metrics/history?range=1h&step=10&metric=memory_percent"
STEP_SECONDS = 30
STEPS = 20


class World:
    """What time it is for both halves, but for the database: ten minutes ago at first. `pass_by` lets time pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.behind = timedelta(seconds=STEP_SECONDS * STEPS)
        self.passed_seconds = 0.0
        world = self

        class Clock:
            @staticmethod
            def now(tz: tzinfo) -> datetime:
                return world.now().astimezone(tz)

        for module in (lines, recording, hub):
            monkeypatch.setattr(module, "datetime", Clock)
        monkeypatch.setattr(ingest, "_now", self.now)
        monkeypatch.setattr(recording, "monotonic", lambda: monotonic() + self.passed_seconds)

    def now(self) -> datetime:
        return datetime.now(UTC) - self.behind + timedelta(seconds=self.passed_seconds)

    def pass_by(self) -> None:
        self.passed_seconds += STEP_SECONDS


class Linked:
    """The two halves with a network between them, and what they say of one another."""

    def __init__(self, halves: Halves, network: Forwarder, instance_id: str) -> None:
        self.halves = halves
        self.network = network
        self.path = f"/panel/api/fleet/instances/{instance_id}"
        self.instance_id = instance_id

    async def get(self, path: str) -> Any:
        answer = await self.halves.http.get(path, headers=self.halves.owner)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def status_is(self, status: str) -> None:
        async def found() -> bool:
            return bool((await self.get(self.path))["status"] == status)

        await until(found)

    async def rows(self, query: str, **values: Any) -> list[Any]:
        async with self.halves.app.database.begin() as session:
            await see_all_tenants(session)
            return list((await session.execute(text(query), values)).all())

    async def events(self) -> list[str]:
        """What was announced of its coming and going, oldest first."""
        query = "SELECT type FROM events WHERE subject = :id AND realm = 'panel' ORDER BY position"
        found = [row.type for row in await self.rows(query, id=self.instance_id)]
        return [kind for kind in found if kind in ("instance.online", "instance.offline")]

    async def measured(self) -> list[datetime]:
        query = "SELECT at FROM fleet_samples WHERE instance_id = :id AND app_id = '' ORDER BY at"
        return [row.at for row in await self.rows(query, id=self.instance_id)]

    async def spooled(self) -> int:
        return int((await self.rows("SELECT count(*) AS kept FROM panel_spool"))[0].kept)

    async def nothing_is_kept_back(self) -> None:
        async def sent() -> bool:
            return await self.spooled() == 0

        await until(sent)

    async def order(self, kind: str, **args: Any) -> str:
        body = {"kind": kind, "args": args, "targets": {"instances": [self.instance_id]}}
        answer = await self.halves.http.post("/panel/api/fleet/commands", json=body, headers=self.halves.owner)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def was_done_once(self, command_id: str, app: str) -> None:
        """The command has completed: it ran once, and its end was heard once."""

        async def ended() -> Any:
            found = await self.get(f"/panel/api/fleet/commands/{command_id}")
            return found if found["finished_at"] else None

        found = await until(ended)
        (unit,) = found["instances"]
        assert (found["status"], unit["status"], unit["error"]) == ("completed", "completed", None)
        begun = "SELECT subject FROM audit_records WHERE action = 'panel_order.run'"
        assert len(await self.rows(begun)) == 1
        assert len(await self.rows("SELECT id FROM jobs WHERE kind = 'apps.install'")) == 1
        shown = await self.halves.http.get("/api/apps", headers=self.halves.admin)
        assert [(one["name"], one["status"]) for one in shown.json()] == [(app, "running")]
        ends = "SELECT type FROM events WHERE subject = :id AND type = 'command.finished'"
        assert len(await self.rows(ends, id=command_id)) == 1


@pytest.fixture
async def database(cluster: DatabaseUrls) -> AsyncIterator[Database]:
    """Of one test: what is linked stays so."""
    async with fresh_database(cluster) as urls:
        own = Database(urls.app, pool_size=10)
        yield own
        await own.close()


@pytest.fixture
async def linked(
    tmp_path: Path, keyring: Keyring, database: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Linked]:
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(lines, name, 0.1)
    # Who sleeps until a measurement is due looks again soon: time passes in leaps here.
    monkeypatch.setattr(recording, "sleep", lambda seconds: asyncio.sleep(min(seconds, 0.01)))
    async with both_halves(tmp_path, keyring, database) as halves:
        network = Forwarder(halves.fleet.port)
        await network.start()
        # What the instance is told to dial.
        halves.fleet.port = network.port
        halves.begin()
        await halves.set_up()
        yield Linked(halves, network, (await halves.online())["id"])
        network.go_on()
        await network.stop()


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.torture)])
async def test_a_short_silence_in_the_middle_of_a_command(seconds: int, linked: Linked) -> None:
    """Longer than two and a half heartbeats and shorter than it takes to give up a line: the same line goes on."""
    arrived, go_on = engine_of(linked.halves.app).hold("create:web")
    name = unique("app")
    command_id = await linked.order("app.install", template="hello", name=name)
    await asyncio.wait_for(arrived.wait(), 30)
    (socket,) = linked.halves.fleet.hub.sockets.values()
    before = await linked.events()
    linked.network.fall_silent()
    fell_silent_at = monotonic()
    go_on.set()
    await linked.status_is("offline")
    await asyncio.sleep(seconds - (monotonic() - fell_silent_at))
    linked.network.go_on()
    await linked.status_is("online")
    assert list(linked.halves.fleet.hub.sockets.values()) == [socket]
    await linked.was_done_once(command_id, name)
    assert await linked.events() == [*before, "instance.offline", "instance.online"]
    steps = [later - earlier for earlier, later in pairwise(await linked.measured())]
    assert max(steps) < timedelta(seconds=STEP_SECONDS), "what was sent into the silence has arrived"


@pytest.mark.parametrize("heard", [False, True], ids=["silence", "reset"])
async def test_ten_minutes_without_a_network_in_the_middle_of_a_command(
    heard: bool, linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock: either nothing is heard any more, or that nobody is there."""
    # What gives up a line that is silent, sooner than after 40 seconds.
    monkeypatch.setattr(lines, "connect", partial(connect, ping_interval=0.2, ping_timeout=0.5, open_timeout=2))
    world = World(monkeypatch)
    await linked.halves.line.hang_up()
    await linked.rows("DELETE FROM fleet_samples WHERE instance_id = :id RETURNING at", id=linked.instance_id)

    async def measures() -> bool:
        return bool(linked.halves.line.connected and await linked.measured())

    await until(measures)
    arrived, go_on = engine_of(linked.halves.app).hold("create:web")
    name = unique("app")
    command_id = await linked.order("app.install", template="hello", name=name)
    await asyncio.wait_for(arrived.wait(), 30)
    before = await linked.events()
    if heard:
        await linked.network.stop()
    else:
        linked.network.fall_silent()
    await linked.status_is("offline")

    async def is_cut() -> bool:
        return not linked.halves.line.connected and linked.halves.line.error is not None

    await until(is_cut)
    go_on.set()
    for _ in range(STEPS):
        kept = await linked.spooled()
        world.pass_by()

        async def measured_again(kept: int = kept) -> bool:
            return await linked.spooled() > kept

        await until(measured_again)
    assert await linked.events() == [*before, "instance.offline"]
    await linked.network.lose_lines()
    if heard:
        await linked.network.start()
    else:
        linked.network.go_on()
    await linked.status_is("online")
    await linked.was_done_once(command_id, name)
    await linked.nothing_is_kept_back()
    measured = await linked.measured()
    assert measured[-1] - measured[0] >= timedelta(seconds=STEP_SECONDS * STEPS)
    steps = [later - earlier for earlier, later in pairwise(measured)]
    # Half a minute, and what the test itself took.
    assert max(steps) < timedelta(seconds=STEP_SECONDS * 1.5), "there is no gap"
    points = (await linked.get(f"{linked.path}/{MEMORY}"))["points"]
    assert len(points) >= STEPS
    assert await linked.events() == [*before, "instance.offline", "instance.online"]
