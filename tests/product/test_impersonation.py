"""From a click on the panel to a session on an instance, with real processes: and no token in any log."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pyotp
import pytest

from tests.product.process import PASSWORD, Product, free_port, product
from tests.product.test_link import until


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("panel")
    with product(
        folder / "panel",
        mode="panel",
        QUAZZAR_AGENT_HEARTBEAT_SECONDS="1",
        QUAZZAR_AGENT_PUBLIC_HOST="127.0.0.1",
        QUAZZAR_LOG_LEVEL="debug",
    ) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def owner(panel: Product) -> dict[str, str]:
    return panel.register()


@pytest.fixture(scope="module")
def instance(panel: Product, owner: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A server that joins by itself, by the token in a file."""
    folder = tmp_path_factory.mktemp("instance")
    made = panel.http.post("/api/fleet/tokens", json={"name": "x"}, headers=owner).json()
    (folder / "token").write_text(made["token"] + "\n")
    (folder / "token").chmod(0o600)
    port = free_port()
    with product(
        folder / "instance",
        mode="instance",
        QUAZZAR_PANEL_TOKEN_FILE=str(folder / "token"),
        QUAZZAR_SERVER_PUBLIC_URL=f"http://127.0.0.1:{port}",
        QUAZZAR_LOG_LEVEL="debug",
    ) as running:
        running.port, running.url = port, f"http://127.0.0.1:{port}"
        running.http = httpx.Client(base_url=running.url, timeout=30)
        running.start()
        running.setup()
        yield running


@pytest.mark.slow
def test_a_server_joins_by_its_token_at_its_start_and_stays_out_once_it_has_left(
    panel: Product, owner: dict[str, str], instance: Product
) -> None:
    status = until(lambda: (found := instance.http.get("/api/auth/cp-status").json())["connected"] and found)
    (listed,) = panel.http.get("/api/fleet/instances", headers=owner).json()
    assert status == {"connected": True, "panel_url": panel.url, "instance_id": listed["id"]}
    until(lambda: panel.http.get(f"/api/fleet/instances/{listed['id']}", headers=owner).json()["url"] == instance.url)
    # Who has left does not come back by the same setting.
    admin = instance.authorized(instance.login()["access_token"])
    assert instance.http.delete("/api/panel-link", headers=admin).status_code == 204
    instance.stop()
    instance.start()
    assert instance.http.get("/api/auth/cp-status").json() == {"connected": False}
    token = panel.http.post("/api/fleet/tokens", json={"name": "y"}, headers=owner).json()["token"]
    joined = instance.http.post("/api/panel-link", json={"token": token}, headers=admin)
    assert joined.status_code == 201, joined.text
    assert joined.json()["impersonation"] is True


def test_in_and_out_and_both_logs_know(panel: Product, owner: dict[str, str], instance: Product) -> None:
    until(lambda: instance.http.get("/api/auth/cp-status").json()["connected"])
    instance_id = instance.http.get("/api/auth/cp-status").json()["instance_id"]
    secret = panel.http.post("/api/auth/totp/enable", json={"password": PASSWORD}, headers=owner).json()["secret"]
    code = {"code": pyotp.TOTP(secret).now()}
    assert panel.http.post("/api/auth/totp/verify", json=code, headers=owner).status_code == 200
    # The code that turned the second factor on stands for this session.
    path = f"/api/fleet/instances/{instance_id}/impersonate"
    answer = until(
        lambda: (it := panel.http.post(path, json={"reason": "Look"}, headers=owner)).status_code < 300 and it
    )
    ticket = answer.json()
    assert ticket["url"].startswith(f"{instance.url}/api/cp/session?token=")
    with httpx.Client(follow_redirects=True, timeout=30) as browser:
        landed = browser.get(ticket["url"], headers={"X-Request-Id": "canary"})
        assert (landed.status_code, landed.url.path) == (200, "/api/docs")
        assert browser.get(f"{instance.url}/api/auth/me").json()["username"] == "Ada <ada@example.com>"
        same = {"Origin": instance.url}
        made = browser.post(f"{instance.url}/api/apps", json={"template": "hello", "name": "hello"}, headers=same)
        assert made.status_code == 201, made.text
        assert browser.get(ticket["url"]).status_code == 403
        assert browser.post(f"{instance.url}/api/auth/logout", headers=same).status_code == 204
        assert browser.get(f"{instance.url}/api/auth/me").status_code == 401
        assert browser.get(ticket["url"]).json()["code"] == "token_used"
    cookie = next(iter(browser.cookies.values()))
    told = panel_records(panel, owner, instance_id)
    actions = until(lambda: (found := told())[-1:] == ["impersonation.end"] and found)
    assert actions == ["impersonation.create", "impersonation.begin", "app.install", "impersonation.end"]
    time.sleep(0.2)
    for one in (panel, instance):
        log = one.log.read_text(errors="replace")
        assert "canary" in log or one is panel
        for part in (ticket["token"], *ticket["token"].split(".")[1:], cookie):
            assert part not in log
    assert "/api/cp/session" in instance.log.read_text()
    assert "?token" not in instance.log.read_text()


def panel_records(panel: Product, owner: dict[str, str], instance_id: str) -> Callable[[], list[str]]:
    """What the panel's audit log has of sessions on the instance, oldest first; what was done in them by its name."""

    def found() -> list[str]:
        rows: list[dict[str, Any]] = panel.http.get(f"/api/audit?subject={instance_id}&limit=200", headers=owner).json()
        chosen = [row for row in rows if row["action"].startswith("impersonation.")]
        return [(row["after"] or {}).get("action") or row["action"] for row in reversed(chosen)]

    return found
