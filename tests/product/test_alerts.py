"""Alerts from a real line to a real webhook, in a process that is killed between what is found and what is told."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quazzar.link.messages import Heartbeat, pack
from quazzar.link.metrics import row_of
from tests.product.process import Product, product
from tests.product.test_link import Machine, hello, until
from tests.webhooks.receiver import Receiver, receiving, verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ALERTS = "/panel/api/fleet/alerts"


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Product]:
    environment = {
        "QUAZZAR_AGENT_HEARTBEAT_SECONDS": "1",
        "QUAZZAR_AGENT_PUBLIC_HOST": "127.0.0.1",
        "QUAZZAR_WEBHOOKS_ALLOW_NETWORKS": "127.0.0.0/8",
        "QUAZZAR_WEBHOOKS_RETRY_SCHEDULE": "0,0.2,0.2,1,1,1",
    }
    with product(tmp_path / "data", **environment) as running:
        running.start()
        yield running


@contextlib.contextmanager
def measuring(
    machine: Machine, certificate: str, instance_id: str, disk_percent: float
) -> Iterator[Callable[[], None]]:
    """A line on which each call is a heartbeat."""
    with machine.dial(certificate) as line:
        line.send(hello(instance_id))

        def beat() -> None:
            measured = row_of({"disk_percent": disk_percent})
            line.send(pack(Heartbeat(sent_at=datetime.now(UTC), state_hash="", measured=measured)))

        beat()
        yield beat


def run(one: Product, receiver: Receiver, folder: Path) -> tuple[str, str]:
    owner = one.register()
    machine = Machine(folder / "machine", one, owner)
    made = machine.enrol()

    def post(path: str, **body: Any) -> dict[str, Any]:
        answer = one.http.post(f"/panel/api/{path}", json=body, headers=owner)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    channel = post("notification-channels", kind="webhook", name="hook", url=receiver.url())
    rule = {"kind": "threshold", "name": "Disk", "metric": "disk_percent", "value": 90, "severity": "critical"}
    rule_id = post("fleet/alert-rules", **rule, targets={"instances": [made.instance_id]}, channels=[channel["id"]])[
        "id"
    ]

    def alerts() -> list[dict[str, Any]]:
        return list(one.http.get(f"{ALERTS}?rule_id={rule_id}", headers=owner).json())

    with measuring(machine, made.certificate, made.instance_id, 95):
        until(alerts)
        one.kill()
    one.start()
    with measuring(machine, made.certificate, made.instance_id, 95) as beat:
        until(lambda: receiver.requests)
        beat()
        (alert,) = alerts()
        assert (alert["status"], alert["instance_id"], alert["count"]) == ("firing", made.instance_id, 1)
        assert one.http.delete(f"/panel/api/fleet/alert-rules/{rule_id}", headers=owner).status_code == 204
        one.kill()
    one.start()
    until(lambda: len({request.event_id for request in receiver.requests}) == 2)
    ended = one.http.get(f"{ALERTS}/{alert['id']}", headers=owner).json()
    assert (ended["status"], ended["resolved_reason"]) == ("resolved", "The rule was deleted")
    return str(alert["id"]), str(channel["secret"])


async def test_killed_between_what_is_found_and_what_is_told(one: Product, tmp_path: Path) -> None:
    async with receiving() as receiver:
        alert_id, secret = await asyncio.to_thread(run, one, receiver, tmp_path)
        assert all(verify(secret, request) for request in receiver.requests)
    bodies = list(dict.fromkeys(request.body for request in receiver.requests))
    fired, over = [msgspec.json.decode(body)["data"] for body in bodies]
    assert ([row["alert_id"] for row in fired["firing"]], fired["resolved"]) == ([alert_id], [])
    assert ([row["alert_id"] for row in over["resolved"]], over["firing"]) == ([alert_id], [])
