"""A real instance whose panel is away: it measures on, and what it measured outlives its own end."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.product.process import product

pytestmark = [pytest.mark.torture, pytest.mark.timeout(240)]


def until(found: Any, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.2)
    return value


def test_an_instance_measures_on_while_its_panel_is_away(tmp_path: Path) -> None:
    environment = {"QUAZZAR_AGENT_HEARTBEAT_SECONDS": "1", "QUAZZAR_AGENT_PUBLIC_HOST": "127.0.0.1"}
    with (
        product(tmp_path / "panel", mode="panel", **environment) as panel,
        product(tmp_path / "instance", mode="instance") as instance,
    ):
        panel.start()
        instance.start()
        ada = panel.register()
        token = panel.http.post("/api/fleet/tokens", json={"name": "x"}, headers=ada).json()["token"]
        instance.setup()
        admin = instance.authorized(instance.login()["access_token"])
        joined = instance.http.post("/api/panel-link", json={"token": token}, headers=admin)
        assert joined.status_code == 201, joined.text
        path = f"/api/fleet/instances/{joined.json()['instance_id']}"
        history = f"{path}/metrics/history?range=1h&step=10&metric=memory_percent"

        def connected() -> bool:
            return bool(instance.http.get("/api/auth/cp-status").json()["connected"])

        def points() -> list[datetime]:
            found = panel.http.get(history, headers=ada).json()["points"]
            return [datetime.fromisoformat(point["at"]) for point in found]

        until(connected)
        first = until(points)[0]
        panel.kill()
        time.sleep(20)
        # What is on its disk outlives the instance's own end.
        killed_at = datetime.now(UTC)
        instance.kill()
        instance.start()
        panel.start()
        until(connected)
        expected = [
            first + timedelta(seconds=10 * step) for step in range(int((killed_at - first).total_seconds() // 10))
        ]
        assert len(expected) > 1
        until(lambda: set(expected) <= set(points()))
        assert (
            panel.http.get(f"/api/fleet/metrics/{joined.json()['instance_id']}", headers=ada).json()["cpu"]["cores"]
            >= 1
        )
