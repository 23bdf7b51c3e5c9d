"""The calls about webhooks: who may, what is refused, what is shown once, and what is on record."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import TextClause, text

from quazzar.app import gate_config
from quazzar.core.auth import Principal, Realm
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.gate import _Paths
from quazzar.core.jobs import enqueue, wait_for
from quazzar.core.records import Event, publish
from quazzar.settings import Settings
from quazzar.webhooks import service
from quazzar.webhooks.jobs import prune
from quazzar.webhooks.schemas import WebhookOut
from quazzar.webhooks.service import shown_to
from tests.conftest import RunningApp, make_settings
from tests.core.test_outbound import ODD, PRIVATE
from tests.factories.accounts import bearer, headers_of, make_key, make_member, make_user
from tests.webhooks.receiver import Receiver, hang, receiving, response, verify

PREFIXES = ["", "/panel"]
HOOK = "https://hooks.example.com/a"


class Pinged(Event):
    type = "sample.pinged"
    number: int


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(
        tmp_path_factory.mktemp("data"),
        QUAZZAR_WEBHOOKS_ALLOW_NETWORKS="127.0.0.0/8",
        QUAZZAR_WEBHOOKS_RETRY_SCHEDULE="0,0.1,0.1",
    )


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture
def callers(admin: httpx.AsyncClient, owner: httpx.AsyncClient) -> dict[str, httpx.AsyncClient]:
    return {"": admin, "/panel": owner}


async def make(client: httpx.AsyncClient, prefix: str = "", **body: Any) -> dict[str, Any]:
    answer = await client.post(f"{prefix}/api/webhooks", json={"url": HOOK, "events": ["*"]} | body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def delivered(client: httpx.AsyncClient, webhook_id: str, count: int = 1, prefix: str = "") -> list[Any]:
    async with asyncio.timeout(15):
        while True:
            rows = (await client.get(f"{prefix}/api/webhooks/{webhook_id}/deliveries?limit=200")).json()
            if len(rows) >= count and all(row["status"] != "pending" for row in rows):
                return list(rows)
            await asyncio.sleep(0.02)


async def announce(database: Database, number: int = 1) -> str:
    async with database.begin() as session:
        return publish(session, Pinged(number=number))


@contextmanager
def without_networks(app: RunningApp) -> Iterator[None]:
    """As the product is without the setting: only public addresses."""
    policy = app.asgi.app.state.webhooks.http.policy
    allowed, policy._allowed = policy._allowed, ()
    try:
        yield
    finally:
        policy._allowed = allowed


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_create_show_change_delete(callers: dict[str, httpx.AsyncClient], prefix: str) -> None:
    client = callers[prefix]
    answer = await client.post(
        f"{prefix}/api/webhooks", json={"url": HOOK, "events": ["app.installed", "app.*", "app.installed"]}
    )
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{prefix}/api/webhooks/{made['id']}"
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert made["events"] == ["app.installed", "app.*"]
    assert (made["active"], made["disabled_reason"]) == (True, None)
    shown = await client.get(f"{prefix}/api/webhooks/{made['id']}")
    assert (shown.status_code, shown.json()) == (200, made)
    listed = await client.get(f"{prefix}/api/webhooks")
    assert made in listed.json()
    assert "whsec_" not in listed.text + shown.text
    changed = await client.put(f"{prefix}/api/webhooks/{made['id']}", json={"active": False})
    assert changed.status_code == 200
    assert changed.json() | {"updated_at": 0} == made | {"active": False, "updated_at": 0}
    same = await client.put(f"{prefix}/api/webhooks/{made['id']}", json={})
    assert same.json() == changed.json()
    gone = await client.delete(f"{prefix}/api/webhooks/{made['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    for path in (f"/{made['id']}", f"/{made['id']}/deliveries"):
        missing = await client.get(f"{prefix}/api/webhooks{path}")
        assert (missing.status_code, missing.json()["code"]) == (404, "webhook_not_found")


async def test_lists_are_paged_newest_first(admin: httpx.AsyncClient) -> None:
    made = [(await make(admin))["id"] for _ in range(3)]
    first = await admin.get("/api/webhooks?limit=2")
    assert [each["id"] for each in first.json()] == made[:0:-1]
    second = await admin.get(first.links["next"]["url"])
    assert second.json()[0]["id"] == made[0]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"url", "events"}),
        ({"url": HOOK, "events": []}, {"events"}),
        ({"url": HOOK, "events": ["app.instaled", "*", "nothing.*", ""]}, {"events.3"}),
        ({"url": HOOK, "events": ["app.instaled", "*", "nothing.*"]}, {"events.0", "events.2"}),
        ({"url": "ftp://example.com", "events": ["x.y"]}, {"url", "events.0"}),
        ({"url": HOOK, "events": ["*"], "secret": "mine"}, {"secret"}),
        ({"url": HOOK, "events": ["*"], "active": None}, {"active"}),
    ],
)
async def test_what_is_not_valid_is_named(admin: httpx.AsyncClient, body: Any, fields: set[str]) -> None:
    answer = await admin.post("/api/webhooks", json=body)
    assert answer.status_code == 422
    assert set(answer.json()["details"]) == fields


async def test_a_typing_error_gets_a_hint(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/api/webhooks", json={"url": HOOK, "events": ["app.instaled"]})
    assert answer.json()["details"]["events.0"].endswith("did you mean app.installed?")


async def test_s31_addresses_inside_are_refused(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await make(admin)
    assert len(PRIVATE) >= 60
    with without_networks(app):
        for url in [*PRIVATE, *ODD]:
            for method, path, body in (
                ("POST", "/api/webhooks", {"url": url, "events": ["*"]}),
                ("PUT", f"/api/webhooks/{made['id']}", {"url": url}),
            ):
                answer = await admin.request(method, path, json=body)
                # A NUL is refused with the whole body, before anybody looks at the address.
                assert answer.status_code == (400 if "\x00" in url else 422), f"{method} {url!r}: {answer.text}"
                assert set(answer.json().get("details", {"url": ""})) == {"url"}
    assert (await admin.get(f"/api/webhooks/{made['id']}")).json()["url"] == HOOK


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_test_says_what_came_back(
    callers: dict[str, httpx.AsyncClient], receiver: Receiver, prefix: str
) -> None:
    client = callers[prefix]
    receiver.script["/hook"] = [response(202, b"thank you"), response(500, b"no")]
    made = await make(client, prefix, url=receiver.url(), events=["app.installed"], active=False)
    answer = await client.post(f"{prefix}/api/webhooks/{made['id']}/test")
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["type"], shown["status"], shown["webhook_id"]) == ("webhook.test", "delivered", made["id"])
    (attempt,) = shown["attempts"]
    assert (attempt["status"], attempt["response_excerpt"], attempt["error"]) == (202, "thank you", None)
    (request,) = receiver.requests
    assert verify(made["secret"], request)
    assert request.event_id == shown["event_id"]
    failed = (await client.post(f"{prefix}/api/webhooks/{made['id']}/test")).json()
    assert (failed["status"], failed["attempts"][0]["error"]) == ("failed", "The endpoint answered 500")
    listed = await client.get(f"{prefix}/api/webhooks/{made['id']}/deliveries")
    assert listed.json() == [failed, shown]
    assert (await client.get(f"{prefix}/api/webhook-deliveries/{shown['id']}")).json() == shown
    # Announced, but sent to nobody else.
    await asyncio.sleep(0.2)
    assert len(receiver.requests) == 2


async def test_a_test_holds_no_transaction(app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.script["/hook"] = [hang]
    made = await make(admin, url=receiver.url())
    waiting = asyncio.create_task(admin.post(f"/api/webhooks/{made['id']}/test"))
    await receiver.until("/hook", 1)
    idle = text(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND datname = current_database()"
    )
    # What works beside the requests has one for a moment, now and then.
    async with asyncio.timeout(10):
        while await _count(app, idle):
            await asyncio.sleep(0.02)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def _count(app: RunningApp, query: TextClause) -> int:
    async with app.database.begin() as session:
        return int((await session.execute(query)).scalar_one())


async def test_a_test_under_a_key_is_sent_once(admin: httpx.AsyncClient, receiver: Receiver) -> None:
    made = await make(admin, url=receiver.url())
    answers = [
        await admin.post(f"/api/webhooks/{made['id']}/test", headers={"Idempotency-Key": "one"}) for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert len(receiver.requests) == 1


async def test_rotated_secrets_sign_together(app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver) -> None:
    made = await make(admin, url=receiver.url())
    secrets = [made["secret"]]
    for _ in range(3):
        answer = await admin.post(f"/api/webhooks/{made['id']}/rotate-secret")
        assert answer.status_code == 200
        secrets.append(answer.json()["secret"])
    assert len(set(secrets)) == 4
    await admin.post(f"/api/webhooks/{made['id']}/test")
    signed = receiver.requests[-1]
    assert len(signed.headers["webhook-signature"].split(" ")) == 3
    assert [verify(secret, signed) for secret in secrets] == [False, True, True, True]
    # The newest comes first, for receivers that look at one only.
    first = signed.headers["webhook-signature"].split(" ", maxsplit=1)[0]
    signed.headers["webhook-signature"] = first
    assert verify(secrets[-1], signed)
    async with app.database.begin() as session:
        left = await session.execute(
            text("SELECT max(expires_at) - now() FROM webhook_secrets WHERE webhook_id = :id"), {"id": made["id"]}
        )
        assert 86_300 < left.scalar_one().total_seconds() <= 86_400
        await session.execute(text("UPDATE webhook_secrets SET expires_at = now() WHERE expires_at IS NOT NULL"))
    await admin.post(f"/api/webhooks/{made['id']}/test")
    assert [verify(secret, receiver.requests[-1]) for secret in secrets] == [False, False, False, True]


async def test_deliveries_are_shown_with_every_attempt(
    app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.script["/hook"] = [response(500, b"first"), response(200, b"second")]
    made = await make(admin, url=receiver.url(), events=["sample.pinged"])
    event_id = await announce(app.database)
    (row,) = await delivered(admin, made["id"])
    assert row.keys() == {
        "id",
        "webhook_id",
        "event_id",
        "type",
        "status",
        "attempts",
        "next_attempt_at",
        "created_at",
    }
    assert (row["event_id"], row["type"], row["status"]) == (event_id, "sample.pinged", "delivered")
    assert [attempt["response_excerpt"] for attempt in row["attempts"]] == ["first", "second"]
    assert row["attempts"][0].keys() == {"at", "status", "duration_seconds", "response_excerpt", "error"}
    assert (await admin.get(f"/api/webhooks/{made['id']}/deliveries?status=failed")).json() == []
    assert (await admin.get(f"/api/webhooks/{made['id']}/deliveries?status=nonsense")).status_code == 400


async def test_redeliver_one(app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.script["/hook"] = [*[response(500)] * 3, response(200)]
    made = await make(admin, url=receiver.url(), events=["sample.pinged"])
    event_id = await announce(app.database)
    (row,) = await delivered(admin, made["id"])
    assert row["status"] == "failed"
    answer = await admin.post(f"/api/webhook-deliveries/{row['id']}/redeliver")
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")
    (again,) = await delivered(admin, made["id"])
    assert (again["id"], again["status"], len(again["attempts"])) == (row["id"], "delivered", 4)
    assert {request.event_id for request in receiver.requests} == {event_id}
    await admin.put(f"/api/webhooks/{made['id']}", json={"active": False})
    refused = await admin.post(f"/api/webhook-deliveries/{row['id']}/redeliver")
    assert (refused.status_code, refused.json()["code"]) == (409, "webhook_inactive")


async def test_redeliver_since(app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver) -> None:
    made = await make(admin, url=receiver.url(), events=["sample.pinged"])
    events = [await announce(app.database, number) for number in range(3)]
    rows = await delivered(admin, made["id"], 3)
    path = f"/api/webhooks/{made['id']}/redeliver"
    nothing = await admin.post(path, json={"since": rows[0]["created_at"], "status": "failed"})
    assert (nothing.status_code, nothing.json()) == (200, {"count": 0})
    oldest_but_one = sorted(row["created_at"] for row in rows)[1]
    count = sum(row["created_at"] >= oldest_but_one for row in rows)
    answer = await admin.post(path, json={"since": oldest_but_one})
    assert answer.json() == {"count": count}
    await receiver.until("/hook", 3 + count)
    assert {request.event_id for request in receiver.requests[3:]} <= set(events)
    for since in ("yesterday", "0001-01-01T00:00:00+12:00", "9999-12-31T23:59:59-12:00"):
        refused = await admin.post(path, json={"since": since})
        assert (refused.status_code, set(refused.json()["details"])) == (422, {"since"})


async def test_activating_sends_what_waited(app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.script["/hook"] = [response(410), response(200)]
    made = await make(admin, url=receiver.url(), events=["sample.pinged"])
    await announce(app.database)
    await delivered(admin, made["id"])
    async with asyncio.timeout(5):
        while (shown := (await admin.get(f"/api/webhooks/{made['id']}")).json())["active"]:
            await asyncio.sleep(0.02)
    assert "410" in shown["disabled_reason"]
    assert shown["disabled_at"] is not None
    shown = (await admin.put(f"/api/webhooks/{made['id']}", json={"active": True})).json()
    assert (shown["active"], shown["disabled_reason"], shown["disabled_at"]) == (True, None, None)
    await announce(app.database)
    assert [row["status"] for row in await delivered(admin, made["id"], 2)] == ["delivered", "failed"]


async def test_every_change_is_on_record(app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver) -> None:
    made = await make(admin, url=receiver.url("/secret-path?token=abc"))
    await admin.put(f"/api/webhooks/{made['id']}", json={"active": False, "events": ["app.*"]})
    await admin.post(f"/api/webhooks/{made['id']}/rotate-secret")
    await admin.post(f"/api/webhooks/{made['id']}/test")
    await admin.delete(f"/api/webhooks/{made['id']}")
    async with app.database.begin() as session:
        rows = await session.execute(
            text("SELECT action, before, after FROM audit_records WHERE subject = :id ORDER BY number"),
            {"id": made["id"]},
        )
        records = [tuple(row) for row in rows]
    assert [record[0] for record in records] == [
        "webhook.create",
        "webhook.update",
        "webhook.rotate_secret",
        "webhook.test",
        "webhook.delete",
    ]
    assert records[1][1:] == ({"active": True, "events": ["*"]}, {"active": False, "events": ["app.*"]})
    assert "secret-path" not in str(records)
    assert "whsec_" not in str(records)


CALLS = [
    ("GET", "/api/webhooks", "read"),
    ("POST", "/api/webhooks", "write"),
    ("GET", "/api/webhooks/{webhook}", "read"),
    ("PUT", "/api/webhooks/{webhook}", "write"),
    ("GET", "/api/webhooks/{webhook}/deliveries", "read"),
    ("POST", "/api/webhooks/{webhook}/rotate-secret", "write"),
    ("POST", "/api/webhooks/{webhook}/test", "write"),
    ("POST", "/api/webhooks/{webhook}/redeliver", "write"),
    ("GET", "/api/webhook-deliveries/{delivery}", "read"),
    ("POST", "/api/webhook-deliveries/{delivery}/redeliver", "write"),
    ("DELETE", "/api/webhooks/{webhook}", "write"),
]
BODIES = {
    "/api/webhooks": {"url": HOOK, "events": ["*"]},
    "/api/webhooks/{webhook}": {"active": True},
    "/api/webhooks/{webhook}/redeliver": {"since": "2026-01-01T00:00:00Z"},
}


async def call(
    client: httpx.AsyncClient, method: str, path: str, ids: dict[str, str], prefix: str = "", **more: Any
) -> int:
    body = BODIES.get(path) if method in {"POST", "PUT"} else None
    answer = await client.request(method, prefix + path.format(**ids), json=body, **more)
    return answer.status_code


async def test_who_may_do_what(app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver) -> None:
    made = await make(admin, url=receiver.url(), events=["app.installed"])
    tested = (await admin.post(f"/api/webhooks/{made['id']}/test")).json()
    ids = {"webhook": made["id"], "delivery": tested["id"]}
    unknown = {"webhook": "wh_" + "a" * 26, "delivery": "whd_" + "a" * 26}
    odd = {"webhook": "x", "delivery": made["id"]}
    async with app.client() as client:
        headers = await headers_of(client, await make_user(app.database))
        keys = {
            scope: bearer((await make_key(client, headers, scopes=[f"{scope}"]))["key"])
            for scope in ("webhooks:read", "webhooks:write", "apps:read")
        }
        members = [await headers_of(client, await make_member(app.database)) for _ in range(2)]
        theirs = await client.post("/panel/api/webhooks", json={"url": HOOK, "events": ["*"]}, headers=members[0])
        foreign = {"webhook": theirs.json()["id"], "delivery": tested["id"]}
        for method, path, needs in CALLS:
            where = f"{method} {path}"
            assert await call(client, method, path, ids) == 401, where
            assert await call(client, method, path, ids, headers=keys["apps:read"]) == 403, where
            other = "read" if needs == "write" else "write"
            assert await call(client, method, path, ids, headers=keys[f"webhooks:{other}"]) == 403, where
            if "{" in path:
                for wrong in (unknown, odd):
                    assert await call(admin, method, path, wrong) == 404, where
                # Another tenant's, and the instance's own, are as unknown as what never was.
                for those in (foreign, ids):
                    assert await call(client, method, path, those, "/panel", headers=members[1]) == 404, where
            if method != "DELETE":
                assert await call(client, method, path, ids, headers=keys[f"webhooks:{needs}"]) < 300, where
        own = await client.get("/panel/api/webhooks", headers=members[1])
        assert own.json() == []


async def test_who_may_only_look_sees_where_it_leads_and_no_more(
    app: RunningApp, admin: httpx.AsyncClient, owner: httpx.AsyncClient
) -> None:
    """The path of such an address is a password at most services; a guest from a panel may lead none elsewhere."""
    url = "https://hooks.slack.example/services/T0/B0/canary-in-the-path?key=canary-in-the-query"
    mine, theirs = await make(admin, url=url), await make(owner, "/panel", url=url)
    async with app.client() as client:
        key = await make_key(client, await headers_of(client, await make_user(app.database)), scopes=["webhooks:read"])
        body = {"name": "x", "permissions": ["webhooks:read"]}
        panel_key = (await owner.post("/panel/api/api-keys", json=body)).json()
        for prefix, made, reads in (("", mine, key), ("/panel", theirs, panel_key)):
            one = await client.get(f"{prefix}/api/webhooks/{made['id']}", headers=bearer(reads["key"]))
            every = await client.get(f"{prefix}/api/webhooks", headers=bearer(reads["key"]))
            assert one.json()["url"] == "https://hooks.slack.example/…"
            assert one.json() in every.json()
            assert "canary" not in every.text
    assert (await admin.get(f"/api/webhooks/{mine['id']}")).json()["url"] == url
    scopes = frozenset({"webhooks:read", "webhooks:write"})
    person = Principal(realm="instance", user_id="usr_x", client="x", scopes=scopes)
    guest = msgspec.structs.replace(person, panel_user="usr_p")
    assert (shown_to(person), shown_to(guest)) == (WebhookOut.of, WebhookOut.masked)


async def test_row_security_is_the_second_wall(app: RunningApp, owner: httpx.AsyncClient) -> None:
    made = await make(owner, "/panel")
    for table in ("webhooks", "webhook_secrets", "webhook_lanes"):
        column = "id" if table == "webhooks" else "webhook_id"
        query = text(f"SELECT count(*) FROM {table} WHERE {column} = :id")
        async with app.database.begin(tenant="ten_other") as session:
            assert (await session.execute(query, {"id": made["id"]})).scalar_one() == 0
        async with app.database.begin() as session:
            await session.execute(text("SELECT set_config('app.worker', 'on', true)"))
            assert (await session.execute(query, {"id": made["id"]})).scalar_one() == 1


async def test_a_key_bound_to_apps_hears_of_nothing(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await make(admin)
    async with app.client() as client:
        headers = await headers_of(client, await make_user(app.database))
        key = await make_key(client, headers, scopes=["*"], resources=["app_" + "a" * 26])
        client.headers.update(bearer(key["key"]))
        assert (await client.get("/api/webhooks")).json() == []
        assert (await client.get(f"/api/webhooks/{made['id']}")).status_code == 404
        refused = await client.post("/api/webhooks", json={"url": HOOK, "events": ["*"]})
        assert (refused.status_code, refused.json()["code"]) == (403, "key_bound")


async def test_there_is_an_end_to_webhooks(admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_WEBHOOKS", 1)
    await admin.post("/api/webhooks", json={"url": HOOK, "events": ["*"]})
    answer = await admin.post("/api/webhooks", json={"url": HOOK, "events": ["*"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "webhook_limit_reached")


async def test_secrets_are_sealed_and_sealed_anew(
    app: RunningApp, admin: httpx.AsyncClient, keyring: Keyring, tmp_path: Path
) -> None:
    made = await make(admin)
    secret = base64.b64decode(made["secret"].removeprefix("whsec_"))
    query = text("SELECT id, sealed FROM webhook_secrets WHERE webhook_id = :id")
    newer = keyring.rotated()
    async with app.database.begin() as session:
        row = (await session.execute(query, {"id": made["id"]})).one()
        assert secret not in row.sealed
        assert await service.reseal(session, newer) >= 1
        resealed = (await session.execute(query, {"id": made["id"]})).one()
        assert newer.open(resealed.sealed, context=service.place(row.id)) == secret
        assert newer.current.encode() in resealed.sealed
        # Back again: the app of this module knows the older key only.
        restored = text("UPDATE webhook_secrets SET sealed = :sealed WHERE id = :id")
        await session.execute(restored, {"id": row.id, "sealed": row.sealed})
        await session.execute(text("DELETE FROM webhook_secrets WHERE id <> :id"), {"id": row.id})


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_tests_are_counted_by_themselves(settings: Settings, prefix: str) -> None:
    """Each makes this server speak to somebody: they have a limit of their own, as logins have."""
    strict = _Paths(gate_config(settings).strict)
    realm: Realm = "panel" if prefix else "instance"
    bucket = strict.find(realm, "/api/webhooks/wh_a/test")
    assert bucket is not None
    assert bucket.name == "webhook_test"
    assert strict.find(realm, "/api/webhooks/wh_a/rotate-secret") is None


async def test_old_deliveries_are_forgotten(app: RunningApp, admin: httpx.AsyncClient, receiver: Receiver) -> None:
    made = await make(admin, url=receiver.url())
    old, young = [(await admin.post(f"/api/webhooks/{made['id']}/test")).json()["id"] for _ in range(2)]
    async with app.database.begin() as session:
        await session.execute(
            text("UPDATE webhook_deliveries SET created_at = now() - interval '31 days' WHERE id = :id"), {"id": old}
        )
        job_id = await enqueue(session, prune)
    state = await wait_for(app.database, job_id, 15)
    assert state is not None
    assert state.status == "completed"
    listed = await admin.get(f"/api/webhooks/{made['id']}/deliveries")
    assert [row["id"] for row in listed.json()] == [young]
