"""A process of ours that ends in the middle of a change: the next one leads the app back to what it was."""

import asyncio

import pytest

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
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
