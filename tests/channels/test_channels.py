"""Notification channels: what may be one, what signs it, and how a notification arrives over real HTTP and SMTP."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text

from quazzar.app import gate_config
from quazzar.channels import service, store
from quazzar.channels.schemas import Notification
from quazzar.channels.sealing import open_sealed
from quazzar.channels.service import one_line, reseal, tell
from quazzar.channels.store import Scope
from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.settings import Settings
from tests.conftest import RunningApp, make_settings, running_app
from tests.core.test_outbound import ODD, PRIVATE
from tests.factories.accounts import MadeUser, headers_of, make_colleague, make_member
from tests.mail.server import MailBox, mail_server
from tests.webhooks.receiver import Receiver, receiving, response, verify

API = "/panel/api"
CHANNELS = f"{API}/notification-channels"
HOOK = "https://hooks.example.com/a"
Headers = dict[str, str]
NEWS = Notification(type="alert.notification", subject="News", text="Something\nhappened\n", data={"canary": 1})


@pytest.fixture(scope="module")
async def box() -> AsyncIterator[MailBox]:
    box = MailBox()
    async with mail_server(box):
        yield box


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, box: MailBox) -> Settings:
    return make_settings(
        tmp_path_factory.mktemp("data"),
        QUAZZAR_WEBHOOKS_ALLOW_NETWORKS="127.0.0.0/8",
        QUAZZAR_WEBHOOKS_RETRY_SCHEDULE="0,0.1,0.1",
        QUAZZAR_SMTP_HOST="127.0.0.1",
        QUAZZAR_SMTP_PORT=str(box.port),
        QUAZZAR_SMTP_TLS="none",
        QUAZZAR_SMTP_FROM="quazzar@panel.example.com",
    )


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture(scope="module")
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture
async def ada(database: Database) -> MadeUser:
    return await make_member(database)


@pytest.fixture
async def owner(client: httpx.AsyncClient, ada: MadeUser) -> Headers:
    return await headers_of(client, ada)


async def make(client: httpx.AsyncClient, headers: Headers, **body: Any) -> dict[str, Any]:
    whole = {"kind": "webhook", "name": new_id("n")} | body
    if whole["kind"] == "webhook":
        whole = {"url": HOOK} | whole
    answer = await client.post(CHANNELS, json=whole, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{CHANNELS}/{made['id']}"
    return made


async def announce(app: RunningApp, tenant_id: str | None, *ids: str) -> int:
    async with app.database.begin(tenant=tenant_id) as session:
        return await tell(session, Scope("panel", tenant_id), app.settings, NEWS, ids or None)


async def settled(client: httpx.AsyncClient, headers: Headers, count: int = 1) -> list[dict[str, Any]]:
    """The jobs of deliveries once there are so many and all have ended."""
    async with asyncio.timeout(20):
        while True:
            jobs = (await client.get(f"{API}/jobs?kind=channels.deliver", headers=headers)).json()
            if len(jobs) >= count and all(job["status"] not in {"queued", "running"} for job in jobs):
                return list(jobs)
            await asyncio.sleep(0.05)


async def shown(client: httpx.AsyncClient, headers: Headers, channel_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"{CHANNELS}/{channel_id}", headers=headers)).json()
    return found


async def test_create_show_change_delete(
    client: httpx.AsyncClient, ada: MadeUser, owner: Headers, app: RunningApp
) -> None:
    made = await make(client, owner, name="On call")
    secret = made.pop("secret")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert (made["kind"], made["url"], made["to"], made["enabled"]) == ("webhook", HOOK, None, True)
    mail = await make(client, owner, kind="email", name="ops", to=["b@example.com", "a@example.com", "b@example.com"])
    assert (mail.pop("secret"), mail["url"], mail["to"]) == (None, None, ["b@example.com", "a@example.com"])
    listed = await client.get(CHANNELS, headers=owner)
    assert listed.json() == [mail, made]
    path = f"{CHANNELS}/{made['id']}"
    changed = await client.patch(path, json={"url": f"{HOOK}/secret", "enabled": False}, headers=owner)
    assert (changed.status_code, changed.json()["enabled"]) == (200, False)
    assert (await client.patch(path, json={}, headers=owner)).json() == changed.json()
    assert (await shown(client, owner, made["id"])) == changed.json()
    for each in (made, mail):
        assert (await client.delete(f"{CHANNELS}/{each['id']}", headers=owner)).status_code == 204
    assert (await client.get(path, headers=owner)).json()["code"] == "channel_not_found"
    async with app.database.begin(tenant=ada.tenant_id) as session:
        query = text("SELECT action, before, after FROM audit_records WHERE subject = :id ORDER BY number")
        rows = (await session.execute(query, made)).all()
    assert [row[0] for row in rows] == ["channel.create", "channel.update", "channel.delete"]
    # A path of an address is often a secret of its receiver; the signing secret is one anyway.
    assert HOOK not in str(rows)
    assert secret not in str(rows) + listed.text


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"kind", "name"}),
        ({"kind": "pager"}, {"kind", "name"}),
        ({"kind": "webhook"}, {"name", "url"}),
        ({"kind": "email"}, {"name", "to"}),
        ({"kind": "webhook", "name": "x", "url": HOOK, "to": [], "secret": "mine"}, {"to", "secret"}),
        ({"kind": "email", "name": "", "to": ["x", "a@example.com\r\nBcc: b@example.com"]}, {"name", "to.0", "to.1"}),
        ({"kind": "email", "name": "x", "to": [], "url": HOOK, "tenant_id": "x"}, {"to", "url", "tenant_id"}),
        ({"kind": "webhook", "name": "x", "url": "ftp://example.com", "enabled": True}, {"url"}),
        ({"kind": "webhook", "name": "x", "url": 1, "enabled": None}, {"url", "enabled"}),
    ],
    ids=[str(number) for number in range(9)],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, owner: Headers, body: dict[str, Any], fields: set[str]
) -> None:
    answer = await client.post(CHANNELS, json=body, headers=owner)
    assert (answer.status_code, set(answer.json()["details"])) == (422, fields)
    assert (await client.get(CHANNELS, headers=owner)).json() == []


async def test_a_change_fits_the_kind(client: httpx.AsyncClient, owner: Headers) -> None:
    hook, mail = await make(client, owner), await make(client, owner, kind="email", to=["a@example.com"])
    for made, body, fields in (
        (hook, {"to": ["a@example.com"]}, {"to"}),
        (hook, {"url": "https://127.0.0.1/"}, set()),
        (hook, {"url": "gopher://x"}, {"url"}),
        (hook, {"kind": "email"}, {"kind"}),
        (mail, {"url": HOOK}, {"url"}),
        (mail, {"to": []}, {"to"}),
    ):
        answer = await client.patch(f"{CHANNELS}/{made['id']}", json=body, headers=owner)
        assert set(answer.json().get("details", ())) == fields, answer.text
    taken = await client.patch(f"{CHANNELS}/{hook['id']}", json={"name": mail["name"]}, headers=owner)
    assert (taken.status_code, taken.json()["code"], set(taken.json()["details"])) == (
        409,
        "channel_name_taken",
        {"name"},
    )


@contextmanager
def without_networks(app: RunningApp) -> Iterator[None]:
    """As the product is without the setting: only public addresses."""
    policy = app.asgi.app.state.webhooks.http.policy
    allowed, policy._allowed = policy._allowed, ()
    try:
        yield
    finally:
        policy._allowed = allowed


async def test_s31_addresses_inside_are_refused(app: RunningApp, client: httpx.AsyncClient, owner: Headers) -> None:
    made = await make(client, owner)
    assert len(PRIVATE) >= 60
    with without_networks(app):
        for url in [*PRIVATE, *ODD]:
            for method, path, body in (
                ("POST", CHANNELS, {"kind": "webhook", "name": "x", "url": url}),
                ("PATCH", f"{CHANNELS}/{made['id']}", {"url": url}),
            ):
                answer = await client.request(method, path, json=body, headers=owner)
                assert answer.status_code == (400 if "\x00" in url else 422), f"{method} {url!r}: {answer.text}"
                assert set(answer.json().get("details", {"url": ""})) == {"url"}
    assert (await shown(client, owner, made["id"]))["url"] == HOOK


async def test_s31_what_led_inside_meanwhile_is_not_asked(
    app: RunningApp, client: httpx.AsyncClient, ada: MadeUser, owner: Headers, receiver: Receiver
) -> None:
    made = await make(client, owner, url=receiver.url())
    moved = await make(client, owner, url=receiver.url("/moved"))
    receiver.script["/moved"] = [response(302, Location=receiver.url("/inside"))]
    await announce(app, ada.tenant_id, moved["id"])
    (job,) = await settled(client, owner)
    assert (job["status"], job["subject"]) == ("failed", moved["id"])
    assert receiver.of("/inside") == []
    with without_networks(app):
        answer = await client.post(f"{CHANNELS}/{made['id']}/test", headers=owner)
        assert (answer.json()["status"], answer.json()["response_excerpt"]) == ("failed", None)
        await announce(app, ada.tenant_id, made["id"])
        await settled(client, owner, 2)
    assert receiver.of("/hook") == []
    assert (await shown(client, owner, made["id"]))["last_error"] is not None


async def test_a_notification_arrives_signed_and_with_all_its_attempts(
    app: RunningApp, client: httpx.AsyncClient, ada: MadeUser, owner: Headers, receiver: Receiver
) -> None:
    receiver.script["/hook"] = [response(500), response(503), response(204)]
    made = await make(client, owner, url=receiver.url())
    await make(client, owner, url=receiver.url("/off"), enabled=False)
    assert await announce(app, ada.tenant_id) == 1
    (job,) = await settled(client, owner)
    assert (job["status"], job["attempts"], job["error"]) == ("completed", 3, None)
    requests = receiver.of("/hook")
    assert len(requests) == 3
    assert all(verify(made["secret"], request) for request in requests)
    assert len({(request.event_id, request.body) for request in requests}) == 1
    body = msgspec.json.decode(requests[0].body)
    assert body["id"] == requests[0].event_id
    assert body["id"].startswith("ntf_")
    assert (body["type"], body["data"]) == ("alert.notification", {"canary": 1})
    assert requests[0].headers["x-quazzar-event"] == "alert.notification"
    now = await shown(client, owner, made["id"])
    assert (now["last_error"], now["last_delivered_at"] is not None, now["last_failed_at"] is not None) == (
        None,
        True,
        True,
    )
    assert receiver.of("/off") == []


@pytest.mark.parametrize(("answer", "attempts"), [(500, 3), (410, 1)])
async def test_what_never_arrives_is_given_up_and_shown(
    app: RunningApp,
    client: httpx.AsyncClient,
    ada: MadeUser,
    owner: Headers,
    receiver: Receiver,
    answer: int,
    attempts: int,
) -> None:
    receiver.script["/hook"] = [response(answer)]
    made = await make(client, owner, url=receiver.url())
    await announce(app, ada.tenant_id)
    (job,) = await settled(client, owner)
    assert (job["status"], job["attempts"]) == ("failed", attempts)
    now = await shown(client, owner, made["id"])
    assert job["error"] == now["last_error"]
    changed = await client.patch(f"{CHANNELS}/{made['id']}", json={"url": receiver.url("/new")}, headers=owner)
    assert changed.json()["last_error"] is None


async def test_what_waits_for_a_channel_that_is_gone_is_dropped(
    app: RunningApp, client: httpx.AsyncClient, ada: MadeUser, owner: Headers, receiver: Receiver
) -> None:
    gone, off = await make(client, owner, url=receiver.url()), await make(client, owner, url=receiver.url())
    async with app.database.begin(tenant=ada.tenant_id) as session:
        await tell(session, Scope("panel", ada.tenant_id), app.settings, NEWS)
        await store.delete_channel(Scope("panel", ada.tenant_id), session, gone["id"])
        await store.update_channel(Scope("panel", ada.tenant_id), session, off["id"], enabled=False)
    jobs = await settled(client, owner, 2)
    assert [job["status"] for job in jobs] == ["completed", "completed"]
    assert receiver.requests == []


async def test_nothing_sets_out_from_a_transaction_that_fails(
    app: RunningApp, client: httpx.AsyncClient, ada: MadeUser, owner: Headers, box: MailBox
) -> None:
    await make(client, owner)
    await make(client, owner, kind="email", to=[f"{ada.id}@example.com"])

    async def fails() -> None:
        async with app.database.begin(tenant=ada.tenant_id) as session:
            assert await tell(session, Scope("panel", ada.tenant_id), app.settings, NEWS) == 2
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await fails()
    assert (await client.get(f"{API}/jobs", headers=owner)).json() == []
    assert box.of(f"{ada.id}@example.com") == []


async def test_a_mail_arrives(
    app: RunningApp, client: httpx.AsyncClient, ada: MadeUser, owner: Headers, box: MailBox
) -> None:
    to = [f"{new_id('x')}@example.com", f"{new_id('x')}@example.com"]
    await make(client, owner, kind="email", to=to)
    evil = msgspec.structs.replace(NEWS, subject="Disk\r\nBcc: x@example.com\u202e", text="one\ttab\x00\ntwo")
    async with app.database.begin(tenant=ada.tenant_id) as session:
        await tell(session, Scope("panel", ada.tenant_id), app.settings, evil)
    for address in to:
        (mail,) = await box.wait_for(address)
        assert mail.message["subject"] == "Disk Bcc: x@example.com "
        assert mail.text.splitlines() == ["one tab ", "two"]
        assert mail.sender == "quazzar@panel.example.com"


async def test_a_test_says_what_came_back(
    client: httpx.AsyncClient, owner: Headers, receiver: Receiver, box: MailBox
) -> None:
    receiver.script["/hook"] = [response(202, b"thank you"), response(500, b"password=hunter2hunter2")]
    made = await make(client, owner, url=receiver.url(), enabled=False)
    answer = await client.post(f"{CHANNELS}/{made['id']}/test", headers=owner)
    assert answer.status_code == 200, answer.text
    first = answer.json()
    assert (first["status"], first["response_status"], first["response_excerpt"]) == ("delivered", 202, "thank you")
    assert verify(made["secret"], receiver.requests[0])
    assert receiver.requests[0].headers["x-quazzar-event"] == "channel.test"
    second = (await client.post(f"{CHANNELS}/{made['id']}/test", headers=owner)).json()
    assert (second["status"], second["error"]) == ("failed", "The endpoint answered 500")
    assert "hunter2" not in second["response_excerpt"]
    assert (await shown(client, owner, made["id"]))["last_error"] == "The endpoint answered 500"
    address = f"{new_id('x')}@example.com"
    mail = await make(client, owner, kind="email", to=[address])
    assert (await client.post(f"{CHANNELS}/{mail['id']}/test", headers=owner)).json()["status"] == "queued"
    assert "test" in (await box.wait_for(address))[0].message["subject"]
    key = owner | {"Idempotency-Key": new_id("k")}
    answers = [await client.post(f"{CHANNELS}/{made['id']}/test", headers=key) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert len(receiver.requests) == 3


async def test_without_a_mail_server_a_channel_can_be_made_and_its_test_says_so(
    database: Database, keyring: Keyring, tmp_path_factory: pytest.TempPathFactory
) -> None:
    user = await make_member(database)
    async with (
        running_app(make_settings(tmp_path_factory.mktemp("no-mail")), keyring, database) as other,
        other.client() as client,
    ):
        headers = await headers_of(client, user)
        made = await make(client, headers, kind="email", to=["a@example.com"])
        answer = await client.post(f"{CHANNELS}/{made['id']}/test", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "mail_not_configured")
        await announce(other, user.tenant_id)
        now = await shown(client, headers, made["id"])
        assert now["last_error"] == "No mail server is configured: whoever runs this panel sets smtp.host"


async def test_a_new_secret_and_the_one_before_sign_for_a_day(
    app: RunningApp, client: httpx.AsyncClient, ada: MadeUser, owner: Headers, receiver: Receiver
) -> None:
    made = await make(client, owner, url=receiver.url())
    path = f"{CHANNELS}/{made['id']}"
    rotated = await client.post(f"{path}/rotate-secret", headers=owner)
    assert (rotated.status_code, rotated.json()["secret"] != made["secret"]) == (200, True)
    await client.post(f"{path}/test", headers=owner)
    assert all(verify(secret, receiver.requests[-1]) for secret in (made["secret"], rotated.json()["secret"]))
    async with app.database.begin(tenant=ada.tenant_id) as session:
        await session.execute(text("UPDATE notification_channels SET former_until = now() WHERE id = :id"), made)
    await client.post(f"{path}/test", headers=owner)
    assert not verify(made["secret"], receiver.requests[-1])
    assert verify(rotated.json()["secret"], receiver.requests[-1])
    mail = await make(client, owner, kind="email", to=["a@example.com"])
    refused = await client.post(f"{CHANNELS}/{mail['id']}/rotate-secret", headers=owner)
    assert (refused.status_code, refused.json()["code"]) == (409, "channel_has_no_secret")


async def test_secrets_are_sealed_and_resealed(
    app: RunningApp, client: httpx.AsyncClient, ada: MadeUser, owner: Headers, keyring: Keyring, receiver: Receiver
) -> None:
    made = await make(client, owner, url=receiver.url())
    new = (await client.post(f"{CHANNELS}/{made['id']}/rotate-secret", headers=owner)).json()["secret"]
    ring = keyring.rotated()

    async def sealed() -> Any:
        async with app.database.begin(tenant=ada.tenant_id) as session:
            query = text("SELECT sealed, former_sealed FROM notification_channels WHERE id = :id")
            return (await session.execute(query, made)).one()

    for value, secret in zip(await sealed(), (new, made["secret"]), strict=True):
        assert base64.b64decode(secret.removeprefix("whsec_")) not in value
    async with app.database.begin() as session:
        assert await reseal(session, ring) >= 2
    assert all(value[2 : 2 + value[1]].decode() == ring.current for value in await sealed())
    with pytest.raises(SealBroken):
        open_sealed(ring, new_id("chn"), (await sealed())[0])
    async with app.database.begin() as session:
        await reseal(session, Keyring({keyring.current: ring._keys[keyring.current]} | ring._keys))
    assert (await client.post(f"{CHANNELS}/{made['id']}/test", headers=owner)).json()["status"] == "delivered"
    assert verify(new, receiver.requests[-1])


async def test_a_channel_that_rules_name_stays(client: httpx.AsyncClient, owner: Headers) -> None:
    made = await make(client, owner)
    body = {"kind": "absence", "name": "x", "channels": [made["id"]]}
    rule = (await client.post(f"{API}/fleet/alert-rules", json=body, headers=owner)).json()["id"]
    refused = await client.delete(f"{CHANNELS}/{made['id']}", headers=owner)
    assert (refused.status_code, refused.json()["code"]) == (409, "channel_in_use")
    await client.patch(f"{API}/fleet/alert-rules/{rule}", json={"channels": []}, headers=owner)
    assert (await client.delete(f"{CHANNELS}/{made['id']}", headers=owner)).status_code == 204


def calls_about(channel_id: str) -> list[tuple[str, str, Any]]:
    path = f"{CHANNELS}/{channel_id}"
    return [
        ("GET", path, None),
        ("PATCH", path, {"name": new_id("x")}),
        ("POST", f"{path}/test", None),
        ("POST", f"{path}/rotate-secret", None),
        ("DELETE", path, None),
    ]


async def test_foreign_channels_do_not_exist(
    client: httpx.AsyncClient, database: Database, owner: Headers, receiver: Receiver
) -> None:
    made = await make(client, owner, url=receiver.url(), name="same")
    eve = await headers_of(client, await make_member(database))
    for (method, path, body), (_, nowhere, _) in zip(
        calls_about(made["id"]), calls_about("chn_" + "a" * 26), strict=True
    ):
        foreign = await client.request(method, path, json=body, headers=eve)
        unknown = await client.request(method, nowhere, json=body, headers=eve)
        assert foreign.status_code == unknown.status_code == 404, method
        assert foreign.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    assert (await client.get(CHANNELS, headers=eve)).json() == []
    assert receiver.requests == []
    # A name that another tenant uses is free.
    await make(client, eve, name="same")
    again = await client.post(CHANNELS, json={"kind": "webhook", "name": "same", "url": HOOK}, headers=owner)
    assert (again.status_code, again.json()["code"]) == (409, "channel_name_taken")
    async with database.begin(tenant=new_id("ten")) as session:
        assert await store.get_channel(Scope("panel", None), session, made["id"]) is None
        assert (await session.execute(text("SELECT count(*) FROM notification_channels"))).scalar_one() == 0


async def test_who_may(
    client: httpx.AsyncClient, database: Database, ada: MadeUser, owner: Headers, receiver: Receiver
) -> None:
    assert ada.tenant_id is not None
    made = await make(client, owner, url=receiver.url())
    viewer, biller, operator = [
        await headers_of(client, await make_colleague(database, ada.tenant_id, role))
        for role in ("viewer", "billing", "operator")
    ]
    bound = await make_colleague(database, ada.tenant_id, "operator")
    async with database.begin(tenant=ada.tenant_id) as session:
        sql = text("UPDATE memberships SET resources = ARRAY['inst_x'] WHERE user_id = :id")
        await session.execute(sql, {"id": bound.id})
    tied = await headers_of(client, bound)
    calls = [("GET", CHANNELS, None), ("POST", CHANNELS, {"kind": "webhook", "name": "x", "url": HOOK})]
    for method, path, body in [*calls, *calls_about(made["id"])]:
        reads = method == "GET"
        assert (await client.request(method, path, json=body)).status_code == 401
        assert (await client.request(method, path, json=body, headers=biller)).json()["code"] == "scope_missing"
        answer = await client.request(method, path, json=body, headers=viewer)
        assert answer.status_code == (200 if reads else 403)
        answer = await client.request(method, path, json=body, headers=tied)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert (await client.request(method, path, json=body, headers=operator)).status_code < 300


async def test_lists_are_paged_and_bounded(
    client: httpx.AsyncClient, owner: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [(await make(client, owner))["id"] for _ in range(3)]
    first = await client.get(f"{CHANNELS}?limit=2", headers=owner)
    second = await client.get(first.links["next"]["url"], headers=owner)
    assert [each["id"] for each in first.json() + second.json()] == made[::-1]
    monkeypatch.setattr(service, "MOST_CHANNELS", 3)
    answer = await client.post(CHANNELS, json={"kind": "webhook", "name": "x", "url": HOOK}, headers=owner)
    assert (answer.status_code, answer.json()["code"]) == (409, "channel_limit_reached")


async def test_of_several_at_once_no_more_are_made_than_there_may_be(
    client: httpx.AsyncClient, owner: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_CHANNELS", 3)
    bodies = [{"kind": "webhook", "name": str(number), "url": HOOK} for number in range(6)]
    answers = await asyncio.gather(*(client.post(CHANNELS, json=body, headers=owner) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 3
    assert len((await client.get(CHANNELS, headers=owner)).json()) == 3


async def test_the_same_key_makes_one_channel_with_one_secret(client: httpx.AsyncClient, owner: Headers) -> None:
    headers = owner | {"Idempotency-Key": new_id("x")}
    body = {"kind": "webhook", "name": "x", "url": HOOK}
    first, second = [await client.post(CHANNELS, json=body, headers=headers) for _ in range(2)]
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"


def test_tests_have_a_limit_of_their_own(settings: Settings) -> None:
    assert ("panel", "/api/notification-channels/{id}/test") in gate_config(settings).strict


def test_a_line_is_one_line() -> None:
    assert one_line("a\r\nb\u2028c\x7f\u202ed\ud800e", 100) == "a b c d e"
    assert one_line("x" * 300, 10) == "x" * 9 + "…"


async def test_who_may_only_look_sees_where_it_leads_and_no_more(
    database: Database, client: httpx.AsyncClient, ada: MadeUser, owner: Headers
) -> None:
    """The path of such an address is a password at most services."""
    url = "https://hooks.slack.example/services/T0/B0/canary-in-the-path?key=canary-in-the-query"
    made = await make(client, owner, url=url)
    mail = await make(client, owner, kind="email", to=["a@example.com"])
    assert (await shown(client, owner, made["id"]))["url"] == url
    viewer = await headers_of(client, await make_colleague(database, ada.tenant_id or "", "viewer"))
    one, every = await shown(client, viewer, made["id"]), await client.get(CHANNELS, headers=viewer)
    assert one["url"] == "https://hooks.slack.example/…"
    assert every.json() == [await shown(client, viewer, mail["id"]), one]
    assert "canary" not in every.text
    body = {"name": "x", "permissions": ["alerts:read"]}
    key = (await client.post(f"{API}/api-keys", json=body, headers=owner)).json()["key"]
    assert "canary" not in (await client.get(CHANNELS, headers={"Authorization": f"Bearer {key}"})).text


async def test_nobody_fills_mailboxes_by_channels(
    database: Database, keyring: Keyring, box: MailBox, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A tenant may cause so many mails in an hour, an address gets so many from all of them; the rest is not sent."""
    limited = make_settings(
        tmp_path_factory.mktemp("limited"),
        QUAZZAR_SMTP_HOST="127.0.0.1",
        QUAZZAR_SMTP_PORT=str(box.port),
        QUAZZAR_SMTP_TLS="none",
        QUAZZAR_RATE_LIMIT_MAIL="4/day",
        QUAZZAR_RATE_LIMIT_MAIL_ADDRESS="3/day",
    )
    before = dict(database.session_info)
    ada, eve = await make_member(database), await make_member(database)
    victim, other = f"{new_id('x')}@example.com", f"{new_id('x')}@example.com"
    async with running_app(limited, keyring, database) as app, app.client() as client:
        hers, eves = await headers_of(client, ada), await headers_of(client, eve)
        made = await make(client, hers, kind="email", to=[victim])
        path = f"{CHANNELS}/{made['id']}/test"
        assert [(await client.post(path, headers=hers)).status_code for _ in range(3)] == [200, 200, 200]
        refused = await client.post(path, headers=hers)
        assert (refused.status_code, refused.json()["code"]) == (429, "mail_limit_reached")
        assert int(refused.headers["retry-after"]) > 0
        # Another tenant does not get through to the same mailbox, but to the other address of its channel.
        plus = victim.replace("@", "+more@")
        theirs = await make(client, eves, kind="email", to=[plus, other])
        await announce(app, eve.tenant_id)
        told = await shown(client, eves, theirs["id"])
        assert told["last_error"] == "There were as many mails as may be sent in this time; this one is not sent"
        await box.wait_for(other)
        # To who has proved to want them, as a member here, they come however much others send there.
        async with database.begin() as session:
            await session.execute(text("UPDATE users SET email = :to WHERE id = :id"), {"to": victim, "id": eve.id})
        mine = await make(client, eves, kind="email", to=[victim])
        assert (await client.post(f"{CHANNELS}/{mine['id']}/test", headers=eves)).status_code == 429
        async with database.begin() as session:
            await session.execute(text("UPDATE users SET email_verified_at = now() WHERE id = :id"), {"id": eve.id})
        assert (await client.post(f"{CHANNELS}/{mine['id']}/test", headers=eves)).status_code == 200
        # Of her four one was spent on the refused test, so nobody can be invited either.
        invited = await client.post(f"{API}/members", json={"email": "new@example.com", "role": "viewer"}, headers=hers)
        assert (invited.status_code, invited.json()["code"]) == (429, "mail_limit_reached")
        assert len((await client.get(f"{API}/members", headers=hers)).json()) == 1
        assert len(await box.wait_for(victim, 4)) == 4
        assert box.of(plus) == []
    database.session_info.update(before)
