"""A newcomer's first command: the panel tells the server beside it to install an app, and shows how that went."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.factories.apps import unique
from tests.product.process import Product, product
from tests.product.test_link import until

COMMANDS = "/panel/api/fleet/commands"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("commands")
    with product(
        folder / "data", QUAZZAR_AGENT_HEARTBEAT_SECONDS="1", QUAZZAR_AGENT_PUBLIC_HOST="127.0.0.1"
    ) as running:
        running.start()
        running.setup()
        yield running


@pytest.fixture(scope="module")
def owner(one: Product) -> dict[str, str]:
    return one.register()


def ended(one: Product, owner: dict[str, str], made: dict[str, Any]) -> dict[str, Any]:
    def look() -> Any:
        found = one.http.get(f"{COMMANDS}/{made['id']}", headers=owner).json()
        return found if found["finished_at"] else None

    found: dict[str, Any] = until(look)
    return found


def test_an_app_is_installed_by_a_command(one: Product, owner: dict[str, str]) -> None:
    admin = one.authorized(one.login()["access_token"])
    until(lambda: one.http.get("/panel/api/fleet/instances?status=online", headers=owner).json())
    name = unique("app")
    body = {"kind": "app.install", "args": {"template": "hello", "name": name}, "targets": {"all": True}}
    answer = one.http.post(COMMANDS, json=body, headers=owner)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    events: list[str] = []

    def follow() -> None:
        path = f"{one.url}{COMMANDS}/{made['id']}?follow=true"
        with httpx.stream("GET", path, headers=owner, timeout=60) as stream:
            events.extend(line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: "))

    watching = threading.Thread(target=follow)
    watching.start()
    done = ended(one, owner, made)
    watching.join(60)
    assert events[-1] == "end"
    (unit,) = done["instances"]
    assert (done["status"], unit["status"], unit["error"]) == ("completed", "completed", None)
    (app,) = [one for one in one.http.get("/api/apps", headers=admin).json() if one["name"] == name]
    assert app["status"] == "running"
    # On the server it was done by the user of the panel.
    records = one.http.get("/api/audit?limit=200", headers=admin).json()
    (record,) = [record for record in records if record["action"] == "app.install"]
    assert record["actor"]["kind"] == "panel"
    # Again it can't be done, and the reason comes back.
    again = ended(one, owner, one.http.post(COMMANDS, json=body, headers=owner).json())
    (unit,) = again["instances"]
    assert (again["status"], unit["status"], unit["error_code"]) == ("failed", "failed", "app_name_taken")
    args = {"kind": "app.stop", "args": {"app": name}, "targets": {"all": True}}
    done = ended(one, owner, one.http.post(COMMANDS, json=args, headers=owner).json())
    assert done["status"] == "completed"
    assert one.http.get(f"/api/apps/{app['id']}", headers=admin).json()["status"] == "stopped"
