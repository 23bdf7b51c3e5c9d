"""The page of all events, and the events of logins, keys and the process."""

import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from quazzar import __version__
from quazzar.__main__ import main
from quazzar.app import panel_router
from quazzar.cli.events import page, schema_of
from quazzar.core.records import event_types
from tests.conftest import PASSWORD, RunningApp
from tests.factories.accounts import headers_of, make_key, make_member, make_user

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
panel_router()  # loads every event
OWN = {name: kind for name, kind in event_types().items() if kind.__module__.startswith("quazzar.")}


def test_the_page_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make events` and commit the result"
    assert main(["events", "--output", str(PAGE), "--check"]) == 0
    assert main(["events", "--output", str(tmp_path / "new.md")]) == 0
    assert (tmp_path / "new.md").read_text(encoding="utf-8") == page()
    (tmp_path / "new.md").write_text("old")
    assert main(["events", "--output", str(tmp_path / "new.md"), "--check"]) == 1
    assert "make events" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(OWN))
def test_every_event_is_described(name: str) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", name)
    assert OWN[name].__doc__, "an event says when it is fired"
    text = page()
    assert f"\n## {name}\n" in text
    schema = schema_of(OWN[name])
    assert schema["type"] == "object"
    assert msgspec.json.decode(msgspec.json.encode(schema)) == schema


async def newest(client: httpx.AsyncClient, query: str, prefix: str = "", **headers: str) -> dict[str, Any]:
    answer = await client.get(f"{prefix}/api/events?limit=1&{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()[0]
    return found


async def test_the_start_is_announced(admin: httpx.AsyncClient) -> None:
    event = await newest(admin, "type=system.started")
    assert (event["subject"], event["data"]) == (None, {"version": __version__, "mode": "all"})


async def test_logins_are_announced(app: RunningApp, admin: httpx.AsyncClient, app_client: httpx.AsyncClient) -> None:
    user = await make_user(app.database)
    headers = await headers_of(app_client, user)
    sessions = (await app_client.get("/api/auth/sessions", headers=headers)).json()
    event = await newest(admin, "type=auth.login")
    assert event["subject"] == user.id
    assert event["data"] == {"user_id": user.id, "session_id": sessions[0]["id"], "address": "127.0.0.1"}
    typed = "a password in the wrong field"
    for name, known in ((user.name, user.id), (typed, None)):
        answer = await app_client.post("/api/auth/login", json={"username": name, "password": "wrong" + PASSWORD})
        assert answer.status_code in {401, 422}
        if answer.status_code == 401:
            event = await newest(admin, "type=auth.login_failed")
            assert event["data"] == {"user_id": known, "step": "password", "address": "127.0.0.1"}
    assert typed not in (await admin.get("/api/events?limit=200")).text
    assert PASSWORD not in (await admin.get("/api/events?limit=200")).text


async def test_a_wrong_password_of_the_panel_is_news_for_its_tenant_alone(
    app: RunningApp, owner: httpx.AsyncClient, app_client: httpx.AsyncClient
) -> None:
    member = await make_member(app.database)
    body = {"email": member.name, "password": "wrong" + PASSWORD}
    assert (await app_client.post("/panel/api/auth/login", json=body)).status_code == 401
    nobody = body | {"email": "nobody@example.com"}
    assert (await app_client.post("/panel/api/auth/login", json=nobody)).status_code == 401
    headers = await headers_of(app_client, member)
    event = await newest(app_client, "type=auth.login_failed", "/panel", **headers)
    assert event["data"]["user_id"] == event["subject"] == member.id
    assert (await owner.get("/panel/api/events?type=auth.login_failed")).json() == []


async def test_a_new_key_is_announced_without_itself(app: RunningApp, app_client: httpx.AsyncClient) -> None:
    user = await make_user(app.database)
    headers = await headers_of(app_client, user)
    made = await make_key(app_client, headers, name="for the robot", scopes=["apps:read"])
    event = await newest(app_client, "type=auth.api_key_created", **headers)
    data = event["data"]
    assert data.pop("expires_at") == made["expires_at"]
    expected = {"key_id": made["id"], "user_id": user.id, "name": "for the robot", "scopes": ["apps:read"]}
    assert (event["subject"], data) == (user.id, expected)
    assert made["key"] not in (await app_client.get("/api/events?limit=200", headers=headers)).text
