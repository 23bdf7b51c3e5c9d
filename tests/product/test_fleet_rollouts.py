"""Rollouts over a large simulated fleet whose panel is killed, and the database behind it, again and again: what was
given is done by every instance once, and every rollout comes to its end.
"""

import asyncio
import contextlib
import os
import random
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import simulator
from benchmarks.simulator import Fleet, Habits, enrol
from tests.product.process import Product, product
from tests.product.test_database_restart import kill_database

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

FULL = os.environ.get("QUAZZAR_TORTURE") == "full"
INSTANCES = 1000 if FULL else 40
ROUNDS = 6 if FULL else 1
SECONDS = 900 if FULL else 180
COMMANDS = "/api/fleet/commands"
STRATEGIES: list[dict[str, Any]] = [
    {},
    {"canary": 2, "percent": 25},
    {"batch_size": max(5, INSTANCES // 20), "max_failures": 1},
]


class Rollouts:
    """Commands for the whole fleet. Who gives one asks until it is heard that it was taken, under one key."""

    def __init__(self, panel: Product, http: httpx.AsyncClient) -> None:
        self.given: list[str] = []
        self._panel = panel
        self._http = http

    async def give(self, strategy: dict[str, Any]) -> None:
        body = {"kind": "app.restart", "args": {"app": "cloud"}, "targets": {"all": True}, "strategy": strategy}
        answer = await self._ask("POST", COMMANDS, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})
        assert len(answer["instances"]) == INSTANCES
        self.given.append(answer["id"])

    async def ended(self, command_id: str) -> dict[str, Any]:
        while True:
            found: dict[str, Any] = await self._ask("GET", f"{COMMANDS}/{command_id}")
            if found["finished_at"] is not None:
                return found
            await asyncio.sleep(0.5)

    async def finished(self) -> list[str]:
        """The commands whose end was announced, as often as it was."""
        events = await self._ask("GET", "/api/events?type=command.finished&limit=200")
        return sorted(event["subject"] for event in events)

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await self._http.request(method, path, **options)
                if answer.status_code < 300:
                    return answer.json()
                # A key under which the first attempt is still at work, or died with its process.
                assert answer.status_code in (409, 503), answer.text
            await asyncio.sleep(0.1)


async def test_rollouts_go_on_whatever_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not FULL:
        monkeypatch.setattr(simulator, "LONGEST_PAUSE", 2.0)
    with product(
        tmp_path / "data",
        mode="panel",
        QUAZZAR_AGENT_PUBLIC_HOST="127.0.0.1",
        # A campaign takes longer than a token lives.
        QUAZZAR_AUTH_ACCESS_MINUTES="1440",
    ) as one:
        one.start()
        headers = one.register()
        token = one.http.post("/api/fleet/tokens", json={"name": "x", "max_uses": INSTANCES}, headers=headers).json()
        members = await asyncio.to_thread(enrol, tmp_path / "fleet", [token["token"]], INSTANCES)
        fleet = Fleet(members, tmp_path / "fleet", Habits(apps=0, order_seconds=0.3))
        await fleet.start(over_seconds=INSTANCES / 100)
        try:
            await fleet.until_connected(300)
            async with httpx.AsyncClient(base_url=one.url, timeout=30, headers=headers) as http:
                rollouts = Rollouts(one, http)
                for _ in range(ROUNDS):
                    await die_in_the_middle(one, rollouts)
                async with asyncio.timeout(SECONDS):
                    for command_id in rollouts.given:
                        done = await rollouts.ended(command_id)
                        assert (done["status"], len(done["instances"])) == ("completed", INSTANCES)
                        units = {(unit["status"], unit["output"]) for unit in done["instances"]}
                        assert units <= {("completed", "done\n"), ("completed", None)}, units
                        assert fleet.tally.done[command_id] == INSTANCES
                        assert len(fleet.tally.orders[command_id]) == INSTANCES, "run twice, or not at all"
                assert await rollouts.finished() == sorted(rollouts.given)
                cuts = fleet.tally.count["connects"] - INSTANCES
                print(f"{INSTANCES} instances, {2 * ROUNDS} kills, {len(rollouts.given)} rollouts, {cuts} new lines")
        finally:
            await fleet.stop()


async def die_in_the_middle(one: Product, rollouts: Rollouts) -> None:
    """The process, then the database, each with rollouts that have begun, and with one that is just being given."""
    for strategy in STRATEGIES:
        await rollouts.give(strategy)
    giving = asyncio.create_task(rollouts.give(random.choice(STRATEGIES)))
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(one.kill)
    await asyncio.to_thread(one.start)
    await giving
    giving = asyncio.create_task(rollouts.give(random.choice(STRATEGIES)))
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(kill_database, one)
    await giving
    await asyncio.to_thread(one.wait_ready, 60)
