"""What a creation names as the place of the new thing is where it can be read, without what is shown once."""

from typing import Any

import httpx
import pytest

from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, make_member

SHOWN_ONCE = {"token", "agent_address", "ca_fingerprint", "key", "secret", "invitation"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tenants", {"name": "Second"}),
        ("/members", {"email": "grace@example.com", "role": "viewer"}),
        ("/roles", {"name": "Night shift", "permissions": ["fleet:read"]}),
        ("/api-keys", {"name": "x", "permissions": ["fleet:read"]}),
        ("/fleet/tokens", {"name": "x"}),
        ("/fleet/groups", {"name": "Berlin"}),
        ("/fleet/alert-rules", {"name": "x", "kind": "threshold", "metric": "cpu_percent", "value": 90}),
        ("/webhooks", {"url": "https://1.1.1.1/x", "events": ["*"]}),
        ("/notification-channels", {"name": "x", "kind": "webhook", "url": "https://1.1.1.1/x"}),
    ],
)
async def test_what_was_made_is_where_the_answer_says(app: RunningApp, path: str, body: dict[str, Any]) -> None:
    async with app.client() as client:
        headers = await headers_of(client, await make_member(app.database))
        made = await client.post(f"/panel/api{path}", json=body, headers=headers)
        assert made.status_code == 201, made.text
        found: httpx.Response = await client.get(made.headers["location"], headers=headers)
    assert found.status_code == 200, found.text
    assert found.json() == {name: value for name, value in made.json().items() if name not in SHOWN_ONCE}


async def test_a_built_in_role_is_found_by_its_name(app: RunningApp) -> None:
    async with app.client() as client:
        headers = await headers_of(client, await make_member(app.database))
        role = (await client.get("/panel/api/roles/viewer", headers=headers)).json()
        unknown = await client.get("/panel/api/roles/nobody", headers=headers)
    assert (role["id"], role["built_in"]) == ("viewer", True)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "role_not_found")
