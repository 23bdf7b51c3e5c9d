"""Two panel processes on one database: both write what comes on their lines, and only the newest line counts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs
from sqlalchemy import exc

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.exchange import Message
from quazzar.instance.enrolment.keys import signing_request
from quazzar.link.messages import (
    CLOSE_MALFORMED,
    CLOSE_MOVED,
    CLOSE_REVOKED,
    PROTOCOL,
    Certificate,
    Deeds,
    Heartbeat,
    Hello,
    Kept,
    Leave,
    Noted,
    Renew,
    Welcome,
    pack,
    unpack_from_panel,
)
from quazzar.panel.fleet import hub
from quazzar.panel.fleet.authority import Authority, ensure_authority, key_hash, read_request
from quazzar.panel.fleet.hub import Hub
from quazzar.panel.fleet.service import revoke
from tests.panel.fleet.conftest import Tenant
from tests.panel.fleet.lines import Told, ask, beat, make_instance, past, samples_of, state_of


class Wire:
    """The far end of a WebSocket that a hub holds."""

    def __init__(self, hub: Hub, authority: Authority, line: Told) -> None:
        self.line = line
        self._to_panel: asyncio.Queue[Message] = asyncio.Queue()
        self._from_panel: asyncio.Queue[Message] = asyncio.Queue()
        self._held = asyncio.create_task(
            hub.hold(line.identity, authority, self._to_panel.get, self._from_panel.put, "203.0.113.5")
        )

    def say(self, message: Any) -> None:
        self._to_panel.put_nowait({"type": "websocket.receive", "bytes": pack(message)})

    def greet(self) -> None:
        moment = datetime.now(UTC)
        self.say(
            Hello(
                instance_id=self.line.identity.instance_id,
                protocol=PROTOCOL,
                version="0.1.0",
                sent_at=moment,
                state_hash="",
            )
        )

    async def hear(self) -> Any:
        event = await asyncio.wait_for(self._from_panel.get(), 30)
        return unpack_from_panel(event["bytes"]) if event["type"] == "websocket.send" else event["code"]

    async def close(self) -> None:
        self._to_panel.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self._held, 30)


@pytest.fixture(scope="module")
async def authority(database: Database, keyring: Keyring) -> Authority:
    async with database.begin() as session:
        return await ensure_authority(session, keyring)


@pytest.fixture(scope="module")
async def hubs(database: Database) -> AsyncIterator[list[Hub]]:
    async with contextlib.AsyncExitStack() as stack:
        found = [Hub(database, 1.0, lambda: "https://panel.example.com") for _ in range(2)]
        for hub in found:
            await hub.start()
            stack.push_async_callback(hub.stop)
        yield found


async def status_of(database: Database, line: Told, expected: str) -> None:
    """Wait until the instance is of this status."""
    async with asyncio.timeout(30):
        while True:
            (row,) = await ask(
                database, "SELECT status FROM fleet_instances WHERE id = :id", id=line.identity.instance_id
            )
            if row.status == expected:
                return
            await asyncio.sleep(0.05)


async def came_online(database: Database, line: Told) -> None:
    """Wait until it was announced: whoever looks late finds one that said a single word offline again."""
    query = "SELECT 1 FROM events WHERE subject = :id AND type = 'instance.online'"
    async with asyncio.timeout(30):
        while not await ask(database, query, id=line.identity.instance_id):
            await asyncio.sleep(0.05)


async def test_each_writes_what_comes_on_its_lines(
    ada: Tenant, eve: Tenant, database: Database, hubs: list[Hub], authority: Authority
) -> None:
    wires = [
        Wire(hub, authority, await make_instance(database, tenant.id))
        for hub in hubs
        for tenant in (ada, eve)
        for _ in range(3)
    ]
    for wire in wires:
        wire.greet()
        welcome = await wire.hear()
        assert isinstance(welcome, Welcome)
        assert (welcome.heartbeat_seconds, welcome.want_state) == (1.0, True)
    sent = []
    for wire in wires:
        sent.append(beat(5.0))
        wire.say(sent[-1])
        wire.say(past(datetime.now(UTC) - timedelta(hours=1), batch=7))
    for wire, message in zip(wires, sent, strict=True):
        kept = await wire.hear()
        assert isinstance(kept, Kept)
        assert kept.batch == 7
        await came_online(database, wire.line)
        assert [row.at for row in await samples_of(database, wire.line)][-1] == message.sent_at
        assert len(await samples_of(database, wire.line)) == 2
    for wire in wires:
        await wire.close()
    # Who falls silent is offline two and a half heartbeats later, by whichever process looks.
    for wire in wires:
        await status_of(database, wire.line, "offline")
    assert [hub.connected for hub in hubs] == [0, 0]


@pytest.mark.parametrize("said", ["renew", "deeds", "leave"])
async def test_what_is_said_while_the_database_is_away_is_answered_on_the_same_line(
    said: str, ada: Tenant, database: Database, hubs: list[Hub], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = signing_request(key)
    own = {"public_key_hash": key_hash(read_request(request))}
    line = await make_instance(database, ada.id, **own)
    line.identity = structs.replace(line.identity, **own)
    wire = Wire(hubs[0], authority, line)
    wire.greet()
    assert isinstance(await wire.hear(), Welcome)
    begin, tries = database.begin, 0

    def away(**scope: Any) -> Any:
        nonlocal tries
        tries += "tenant" in scope
        if tries == 3:
            monkeypatch.undo()
            return begin(**scope)
        raise exc.DBAPIError("x", {}, OSError(), connection_invalidated=True)

    monkeypatch.setattr("quazzar.panel.fleet.hub._RETRY_SECONDS", 0.01)
    monkeypatch.setattr(database, "begin", away)
    wire.say({"renew": Renew(csr=request), "deeds": Deeds(impersonation_id="imp_x", deeds=[]), "leave": Leave()}[said])
    answer = await wire.hear()
    (row,) = await ask(
        database, "SELECT status, certificate_serial FROM fleet_instances WHERE id = :id", id=line.identity.instance_id
    )
    if said == "leave":
        assert (answer, row.status) == (1000, "revoked")
        return
    assert isinstance(answer, Certificate if said == "renew" else Noted)
    assert (row.certificate_serial != "1") is (said == "renew")
    await wire.close()


async def test_a_process_that_did_not_run_takes_nobody_for_silent(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine stood still, say: what was said meanwhile has not been read yet."""
    clock, swept = 1000.0, []
    naps = [0.25, 0.3, 5.0, *[0.25] * 10]

    async def sleep(_: float) -> None:
        nonlocal clock
        if not naps:
            raise EOFError
        clock += naps.pop(0)

    async def sweep() -> None:
        swept.append(clock)

    one = Hub(database, 1.0, lambda: "https://panel.example.com")
    one.ingest.healthy_since = 0.0
    monkeypatch.setattr(one, "sweep", sweep)
    monkeypatch.setattr(hub, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=lambda: clock))
    with pytest.raises(EOFError):
        await one._sweep_often()
    assert swept == [1000.25, 1000.55, 1000.55 + 5 + 2.5]


async def written(database: Database, line: Told, count: int) -> None:
    """Until so many samples of an instance are there; a line that is moved takes with it what it had not read yet."""
    async with asyncio.timeout(30):
        while len(await samples_of(database, line)) < count:
            await asyncio.sleep(0.05)


async def test_the_newest_line_is_the_one(
    ada: Tenant, database: Database, hubs: list[Hub], authority: Authority
) -> None:
    line = await make_instance(database, ada.id)
    first = Wire(hubs[0], authority, line)
    first.greet()
    assert isinstance(await first.hear(), Welcome)
    first.say(beat(1.0))
    await written(database, line, 1)
    second = Wire(hubs[1], authority, line)
    second.greet()
    assert isinstance(await second.hear(), Welcome)
    assert await first.hear() == CLOSE_MOVED
    second.say(beat(2.0))
    await written(database, line, 2)
    # The same on one process.
    third = Wire(hubs[1], authority, line)
    third.greet()
    assert isinstance(await third.hear(), Welcome)
    assert await second.hear() == CLOSE_MOVED
    async with database.begin(tenant=ada.id) as session:
        await revoke(session, ada.id, line.identity.instance_id, "server", "test")
    assert await third.hear() == CLOSE_REVOKED
    again = Wire(hubs[0], authority, line)
    again.greet()
    assert await again.hear() == CLOSE_REVOKED


async def test_a_revocation_that_nobody_told_of_is_seen_when_the_words_come_again(
    ada: Tenant, database: Database, hubs: list[Hub], authority: Authority
) -> None:
    revoked, other = [Wire(hubs[0], authority, await make_instance(database, ada.id)) for _ in range(2)]
    for wire in (revoked, other):
        wire.greet()
        assert isinstance(await wire.hear(), Welcome)
    await hubs[0]._listener.stop()
    async with database.begin(tenant=ada.id) as session:
        await revoke(session, ada.id, revoked.line.identity.instance_id, "server", "test")
    await hubs[0]._listener.start()
    assert await revoked.hear() == CLOSE_REVOKED
    other.say(past(datetime.now(UTC) - timedelta(hours=1)))
    assert isinstance(await other.hear(), Kept)
    await other.close()


async def test_one_that_sends_without_end_waits_alone(
    ada: Tenant, database: Database, hubs: list[Hub], authority: Authority
) -> None:
    loud, quiet = [Wire(hubs[0], authority, await make_instance(database, ada.id)) for _ in range(2)]
    for wire in (loud, quiet):
        wire.greet()
        assert isinstance(await wire.hear(), Welcome)
    for number in range(2000):
        loud.say(Heartbeat(sent_at=datetime.now(UTC) + timedelta(microseconds=number), state_hash="", measured=[1.0]))
    quiet.say(beat(1.0))
    await came_online(database, quiet.line)
    # As many as there were batches, not as many as it sent.
    assert len(await samples_of(database, loud.line)) < 100
    await quiet.close()
    loud.say(Hello(instance_id="x" * 60, protocol=1, version="", sent_at=datetime.now(UTC), state_hash=""))


async def test_a_state_that_can_not_be_kept_ends_its_line(
    ada: Tenant, database: Database, hubs: list[Hub], authority: Authority
) -> None:
    wire = Wire(hubs[0], authority, await make_instance(database, ada.id))
    wire.greet()
    assert isinstance(await wire.hear(), Welcome)
    message = beat(1.0)
    message.state_hash = "bad\x00"

    message.state = state_of(name="bad\x00")
    wire.say(message)
    assert await wire.hear() == CLOSE_MALFORMED
