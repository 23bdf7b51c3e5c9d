"""`kill -9` while events are announced and delivered: none is lost, and each keeps its id."""

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from quazzar.core.ids import new_id
from quazzar.core.records import FEED_LOCK
from tests.product.process import product
from tests.webhooks.receiver import Receiver, receiving, verify

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]

FULL = os.environ.get("QUAZZAR_TORTURE") == "full"
EVENTS = 10_000 if FULL else 600
KILLS = 30 if FULL else 3
PAUSE_SECONDS = 2.0 if FULL else 0.7
ENDPOINTS = 10 if FULL else 3


async def announce(data_dir: Path, count: int, pause: float) -> set[str]:
    """Events as transactions of the product write them, whether its process lives or not; gives the committed ones."""
    made: set[str] = set()
    url = f"postgresql://quazzar_app@/quazzar?host={data_dir}/postgres/run&port=5432"
    line: asyncpg.Connection[asyncpg.Record] | None = None
    while len(made) < count:
        event_ids = [new_id("evt") for _ in range(10)]
        try:
            line = line or await asyncpg.connect(url, timeout=5)
            async with line.transaction():
                await line.execute("SELECT pg_advisory_xact_lock($1)", FEED_LOCK)
                await line.executemany(
                    "INSERT INTO events (id, realm, type, data) VALUES ($1, 'instance', 'app.installed', '{\"n\": 1}')",
                    [(event_id,) for event_id in event_ids],
                )
                await line.execute("SELECT pg_notify('events', '')")
            made.update(event_ids)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            line = None
            await asyncio.sleep(0.2)
        await asyncio.sleep(pause)
    if line is not None:
        await line.close()
    return made


def missing(receiver: Receiver, events: set[str]) -> int:
    return sum(len(events - {each.event_id for each in receiver.of(f"/{n}")}) for n in range(ENDPOINTS))


async def test_killed_during_deliveries(tmp_path: Path) -> None:
    options = {"QUAZZAR_WEBHOOKS_ALLOW_NETWORKS": "127.0.0.0/8", "QUAZZAR_WEBHOOKS_RETRY_SCHEDULE": "0,0.2,0.2,1,1,1"}
    async with receiving() as receiver:
        with product(tmp_path / "data", mode="instance", **options) as one:
            await asyncio.to_thread(one.start)
            await asyncio.to_thread(one.setup)
            headers = one.authorized((await asyncio.to_thread(one.login))["access_token"])
            secrets = []
            for number in range(ENDPOINTS):
                body = {"url": receiver.url(f"/{number}"), "events": ["app.installed"]}
                answer = await asyncio.to_thread(one.http.post, "/api/webhooks", json=body, headers=headers)
                assert answer.status_code == 201, answer.text
                secrets.append(answer.json()["secret"])
            announcing = asyncio.create_task(announce(one.data_dir, EVENTS, PAUSE_SECONDS * KILLS / (EVENTS / 10) / 2))
            for _ in range(KILLS):
                await asyncio.sleep(random.uniform(0.5, 1.0) * PAUSE_SECONDS)
                await asyncio.to_thread(one.kill)
                await asyncio.to_thread(one.start)
            events = await announcing
            async with asyncio.timeout(600 if FULL else 60):
                while missing(receiver, events):
                    await asyncio.sleep(0.1)
            assert await asyncio.to_thread(one.stop) == 0
    again = 0
    for number, secret in enumerate(secrets):
        requests = receiver.of(f"/{number}")
        assert {request.event_id for request in requests} == events
        assert all(verify(secret, request) for request in requests)
        bodies = {(request.event_id, request.body) for request in requests}
        assert len(bodies) == len(events)
        again += sum(Counter(request.event_id for request in requests).values()) - len(events)
    print(f"{len(events)} events to {ENDPOINTS} endpoints, {KILLS} kills: 0 lost, {again} delivered again")
    # What was answered in the moments before a kill and not written down yet.
    assert again <= KILLS * ENDPOINTS * 60
