"""A process of ours that ends in the middle of a change: the next one leads the app back to what it was."""

import asyncio
from datetime import UTC, datetime

import pytest

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.instance.apps.auto_updating import AutoUpdater
from quazzar.settings import Settings
from tests.factories.apps import job_of, until
from tests.instance.apps.test_changes import (  # noqa: F401 - the fixture is for all tests here
    ALL,
    _at_once,
    ask,
    assert_old,
    body_of,
    forget_images,
    prepared,
)
from tests.instance.apps.test_process_ends import Host


@pytest.fixture(scope="module")
def host(settings: Settings, keyring: Keyring, database: Database) -> Host:
    return Host(settings, keyring, database)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "step"), ALL)
async def test_a_process_that_ends_in_the_middle_leads_back(host: Host, verb: str, step: str) -> None:
    engine = host.engine
    async with host.process() as client:
        before = await prepared(client, engine, verb)
        if step.startswith("pull:"):
            forget_images(engine)
        kept = {one for one in engine.snapshots if one[0] == before["id"]}
        arrived, _ = engine.hold(step)
        asked = await ask(client, before["id"], verb, **body_of(verb))
        await asyncio.wait_for(arrived.wait(), 10)
    async with host.process() as client:
        job = await job_of(client, asked["job_id"])
        assert (job["status"], job["error"]) == ("failed", "This system was stopped in the middle of the change")
        after = await until(client, before["id"], "running")
        assert {one for one in engine.snapshots if one[0] == before["id"]} == kept
        for one in kept:
            engine.snapshots.pop(one)
        assert_old(engine, before, after)
        assert (await client.delete(f"/api/apps/{before['id']}?purge=true")).status_code == 204


@pytest.mark.parametrize("step", ["pull:nginx:1.28", "stop:web", "create:web"])
async def test_an_update_that_nobody_asked_for_is_not_begun_twice_in_its_window(
    host: Host, keyring: Keyring, database: Database, settings: Settings, step: str
) -> None:
    engine, updater = host.engine, AutoUpdater(database, keyring, settings)
    now = datetime.now(UTC)
    # Still open where the hour ends meanwhile.
    window = {"cron": f"0 {now.hour} * * *", "timezone": "UTC", "duration_minutes": 120}
    async with host.process() as client:
        before = await prepared(client, engine, "update")
        forget_images(engine)
        path = f"/api/apps/{before['id']}"
        await client.patch(path, json={"auto_update": {"enabled": True, "window": window}})
        await client.post(f"{path}/check-updates")
        arrived, _ = engine.hold(step)
        assert await updater.look(now) == before["id"]
        await asyncio.wait_for(arrived.wait(), 10)
    async with host.process() as client:
        after = await until(client, before["id"], "running")
        job = await job_of(client, after["job_id"])
        assert (job["status"], job["error"]) == ("failed", "This system was stopped in the middle of the change")
        after = await until(client, before["id"], "running")
        assert_old(engine, before, after)
        assert await updater.look(now) is None
        told = [one["reason"] for one in after["auto_update_state"]["skipped"]]
        assert told == ([] if step.startswith("pull:") else [job["error"]])
        assert (await client.delete(f"{path}?purge=true")).status_code == 204
