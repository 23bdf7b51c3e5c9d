"""A panel's user on an instance: how they come in, what their cookie is good for, what is denied, and how it ends."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, insert, text
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from quazzar.accounts.roles import SCOPES
from quazzar.core.auth import RESERVED_SCOPES, Guard
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.core.jobs import JobRun, Resources
from quazzar.instance.enrolment.keys import signing_request
from quazzar.instance.enrolment.models import PanelLink
from quazzar.instance.impersonation.jobs import end_impersonation
from quazzar.instance.impersonation.telling import noted, untold
from quazzar.instance.orders.clock import PanelClock
from quazzar.link.impersonation import Impersonation, new_impersonation, sign_impersonation
from quazzar.link.messages import Noted
from quazzar.panel.fleet.authority import Authority, read_request
from tests.conftest import RunningApp
from tests.core.servers import serving
from tests.factories.accounts import headers_of, make_user
from tests.factories.apps import SECRET, add_one, add_template, install, key_client, one_file, unique, web_file
from tests.test_architecture import PUBLIC, operations

KEY = Ed25519PrivateKey.generate()
INSTANCE = new_id("inst")
TENANT = new_id("ten")
ADA = "usr_" + "a" * 26
SAME = {"Sec-Fetch-Site": "same-origin"}
EXCHANGE = "/api/cp/session"

DENIED = {
    "GET /api/auth/sessions",
    "DELETE /api/auth/sessions/{session_id}",
    "POST /api/auth/change-password",
    "POST /api/auth/totp/enable",
    "POST /api/auth/totp/disable",
    "GET /api/auth/api-keys",
    "GET /api/auth/api-keys/{key_id}",
    "POST /api/auth/api-keys",
    "DELETE /api/auth/api-keys/{key_id}",
    "POST /api/apps/adopt",
    "POST /api/registries",
    "PATCH /api/registries/{registry_id}",
    "DELETE /api/registries/{registry_id}",
    "POST /api/webhooks",
    "PUT /api/webhooks/{webhook_id}",
    "POST /api/webhooks/{webhook_id}/rotate-secret",
    "POST /api/panel-link",
    "PATCH /api/panel-link",
    "DELETE /api/panel-link",
}
"""What is not for a panel's user: credentials, the second factor, API keys, secrets, who comes in, and what others run
on the machine.
"""

ALLOWED = {
    "POST /api/auth/logout",
    "POST /api/apps",
    "POST /api/apps/import",
    "POST /api/apps/{app_id}/check-updates",
    "PATCH /api/apps/{app_id}",
    "DELETE /api/apps/{app_id}",
    "POST /api/apps/{app_id}/start",
    "POST /api/apps/{app_id}/stop",
    "POST /api/apps/{app_id}/restart",
    "POST /api/apps/{app_id}/update",
    "POST /api/apps/{app_id}/rollback",
    "POST /api/apps/{app_id}/clone",
    "POST /api/apps/{app_id}/undelete",
    "POST /api/templates",
    "PUT /api/templates/{template_ref}",
    "DELETE /api/templates/{template_ref}",
    "POST /api/template-sources",
    "DELETE /api/template-sources/{source_id}",
    "POST /api/template-sources/{source_id}/sync",
    "POST /api/jobs/{job_id}/cancel",
    "POST /api/jobs/{job_id}/retry",
    "DELETE /api/webhooks/{webhook_id}",
    "POST /api/webhooks/{webhook_id}/test",
    "POST /api/webhooks/{webhook_id}/redeliver",
    "POST /api/webhook-deliveries/{delivery_id}/redeliver",
}
"""What else changes something. An operation that is in neither list has to be put into one by hand: may somebody who
comes from the panel for a quarter of an hour do that? Where not, its guard is `reserved`, or of a reserved scope.
"""


def claims(**values: Any) -> Impersonation:
    made = new_impersonation(
        impersonation_id=new_id("imp"),
        instance_id=INSTANCE,
        tenant_id=TENANT,
        user_id=ADA,
        name="Ada <ada@example.com>",
        reason="Ticket 7",
    )
    return msgspec.structs.replace(made, **values)


def token(**values: Any) -> str:
    return sign_impersonation(claims(**values), KEY)


@pytest.fixture(scope="module")
async def authority(app: RunningApp) -> Authority:
    found: Authority = await app.asgi.app.state.fleet.authority()
    return found


@pytest.fixture(autouse=True)
async def linked(admin: httpx.AsyncClient, database: Database, authority: Authority) -> None:
    """To a panel whose key we have, and that is never dialled."""
    del admin  # there is an admin, who is not the guest
    request = read_request(signing_request(ec.generate_private_key(ec.SECP256R1())))
    values = {
        "id": 1,
        "instance_id": INSTANCE,
        "panel_url": "http://localhost",
        "host": "127.0.0.1",
        "port": 1,
        "ca_certificate": authority.pem,
        "certificate": authority.issue_client(request, instance_id=INSTANCE, tenant_id=TENANT).certificate,
        "signing_key": KEY.public_key().public_bytes_raw(),
    }
    async with database.begin() as session:
        await session.execute(delete(PanelLink))
        await session.execute(insert(PanelLink).values(**values))


@pytest.fixture
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture
async def guest(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A browser in a session of a panel's user, on a page of this server."""
    answer = await client.get(EXCHANGE, params={"token": token()})
    assert (answer.status_code, answer.content) == (303, b"")
    client.headers.update(SAME)
    return client


async def session_of(guest: httpx.AsyncClient, admin: httpx.AsyncClient) -> dict[str, Any]:
    """The guest's own session as the admin sees it."""
    del guest
    listed = (await admin.get("/api/auth/sessions")).json()
    return dict(next(one for one in listed if "impersonation" in one))


async def logged(database: Database, session_id: str) -> list[Any]:
    async with database.begin() as session:
        query = text(
            "SELECT action, actor_kind, actor_id, subject, outcome, after FROM audit_records"
            " WHERE impersonation = :id ORDER BY number"
        )
        return list((await session.execute(query, {"id": session_id})).all())


# --- coming in ---


async def test_a_token_becomes_a_session_by_cookie(
    client: httpx.AsyncClient, admin: httpx.AsyncClient, database: Database
) -> None:
    text_of_token = token()
    answer = await client.get(EXCHANGE, params={"token": text_of_token}, headers={"User-Agent": "Firefox"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/api/docs"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    cookie = answer.headers["set-cookie"]
    assert re.fullmatch(r"quazzar_session=qzg_[\w-]{43}; Max-Age=900; Path=/; HttpOnly; SameSite=Strict", cookie), (
        cookie
    )
    me = (await client.get("/api/auth/me")).json()
    assert (me["id"], me["username"], me["role"]) == (ADA, "Ada <ada@example.com>", "admin")
    assert set(me["scopes"]) == SCOPES - RESERVED_SCOPES
    assert me["impersonation"] == {"user_id": ADA, "name": "Ada <ada@example.com>", "reason": "Ticket 7"}
    shown = await session_of(client, admin)
    assert (shown["impersonation"], shown["user_agent"], shown["ip"]) == (me["impersonation"], "Firefox", "127.0.0.1")
    assert shown["current"] is False
    (begun,) = await logged(database, shown["id"])
    assert (begun.action, begun.actor_kind, begun.actor_id, begun.subject) == (
        "impersonation.begin",
        "panel",
        ADA,
        shown["id"],
    )
    assert begun.after["reason"] == "Ticket 7"
    events = (await admin.get(f"/api/events?subject={shown['id']}")).json()
    assert [event["type"] for event in events] == ["auth.impersonation_started"]
    everything = str([await dump(database, name) for name in ("audit_records", "events", "impersonations", "jobs")])
    assert text_of_token not in everything
    assert cookie.partition(";")[0].partition("=")[2] not in everything


async def dump(database: Database, table: str) -> list[str]:
    async with database.begin() as session:
        return list((await session.execute(text(f"SELECT CAST(t AS text) FROM {table} t"))).scalars())


async def test_s16_a_token_works_once_however_many_try_at_once(app: RunningApp, client: httpx.AsyncClient) -> None:
    one = token()
    answers = await asyncio.gather(*(client.get(EXCHANGE, params={"token": one}) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [303] + [401] * 19
    again = await client.get(EXCHANGE, params={"token": one}, headers={"Cookie": ""})
    assert (again.status_code, again.json()["code"]) == (401, "token_used")
    assert again.headers["referrer-policy"] == "no-referrer"
    async with app.database.begin() as session:
        query = text("SELECT after FROM audit_records WHERE action = 'impersonation.begin' AND outcome = 'refused'")
        refused = (await session.execute(query)).scalars().all()
    assert [one["code"] for one in refused][-20:] == ["token_used"] * 20


async def test_what_is_no_token_of_this_panel_for_this_server(client: httpx.AsyncClient, database: Database) -> None:
    stranger = sign_impersonation(claims(), Ed25519PrivateKey.generate())
    for bad in (stranger, token(aud=new_id("inst")), token(tid=new_id("ten")), "x", "a.b.c", token() + "x"):
        answer = await client.get(EXCHANGE, params={"token": bad})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "set-cookie" not in answer.headers
    old = await client.get(EXCHANGE, params={"token": token(iat=1_700_000_000, nbf=1_700_000_000, exp=1_700_000_060)})
    assert (old.status_code, old.json()["code"]) == (401, "token_expired")
    for query in ("", "?token=", "?token=" + "x" * 5000):
        assert (await client.get(EXCHANGE + query)).status_code == 400
    async with database.begin() as session:
        await session.execute(text("UPDATE panel_link SET left_at = now()"))
    assert (await client.get(EXCHANGE, params={"token": token()})).status_code == 401
    async with database.begin() as session:
        await session.execute(text("DELETE FROM panel_link"))
    assert (await client.get(EXCHANGE, params={"token": token()})).status_code == 401


async def test_it_is_the_panels_clock_that_counts_where_it_is_known(client: httpx.AsyncClient, app: RunningApp) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    seconds = int(tomorrow.timestamp())
    of_tomorrow = token(iat=seconds, nbf=seconds, exp=seconds + 60)
    assert (await client.get(EXCHANGE, params={"token": of_tomorrow})).status_code == 401
    line = app.asgi.app.state.panel_line
    line.clock = PanelClock(format_datetime(tomorrow, usegmt=True))
    try:
        old = await client.get(EXCHANGE, params={"token": token()})
        assert (old.status_code, old.json()["code"]) == (401, "token_expired")
        assert (await client.get(EXCHANGE, params={"token": of_tomorrow})).status_code == 303
    finally:
        line.clock = PanelClock(None)


async def test_s16_nowhere_else_does_a_token_in_an_address_count(client: httpx.AsyncClient) -> None:
    one = token()
    for path in ("/api/auth/me", "/api/apps", "/panel/api/auth/me"):
        answer = await client.get(path, params={"token": one, "access_token": one})
        assert answer.status_code == 401
    for method in ("POST", "PUT", "DELETE"):
        assert (await client.request(method, EXCHANGE, params={"token": one})).status_code == 405
    assert (await client.get("/panel/api/cp/session", params={"token": one})).status_code == 404
    bearer = await client.get("/api/auth/me", headers={"Authorization": f"Bearer {one}"})
    assert bearer.status_code == 401
    # None of that has used it up.
    assert (await client.get(EXCHANGE, params={"token": one})).status_code == 303


async def test_over_tls_the_cookie_is_for_tls_alone(client: httpx.AsyncClient, app: RunningApp) -> None:
    state = app.asgi.app.state
    before = state.settings
    server = msgspec.structs.replace(before.server, public_url="https://os.example.com")
    state.settings = msgspec.structs.replace(before, server=server)
    try:
        answer = await client.get(EXCHANGE, params={"token": token()})
    finally:
        state.settings = before
    assert re.fullmatch(r"__Host-quazzar_session=qzg_[\w-]{43}; .*; Secure", answer.headers["set-cookie"])
    value = answer.headers["set-cookie"].partition(";")[0]
    assert (await client.get("/api/auth/me", headers={"Cookie": value})).json()["id"] == ADA


# --- the cookie ---


async def test_the_cookie_is_no_bearer_token_and_nothing_for_the_panel(
    guest: httpx.AsyncClient, app: RunningApp
) -> None:
    value = guest.cookies["quazzar_session"]
    async with app.client() as other:
        for scheme in ("Bearer", "Cookie", "cookie:"):
            answer = await other.get("/api/auth/me", headers={"Authorization": f"{scheme} {value}"})
            assert answer.status_code == 401, scheme
        assert (await other.get("/api/auth/me", params={"token": value})).status_code == 401
        assert (await other.post("/api/auth/refresh", json={"refresh_token": value})).status_code == 401
    assert (await guest.get("/panel/api/auth/me")).status_code == 401


async def test_no_other_site_acts_in_the_session(guest: httpx.AsyncClient, app: RunningApp) -> None:
    cookie = {"Cookie": f"quazzar_session={guest.cookies['quazzar_session']}"}
    async with app.client() as browser:
        for signs in (
            {},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:8081"},
            {"Origin": "http://localhost:8081"},
            {"Origin": "null"},
            {"Origin": "http://evil.example.com", "Content-Type": "text/plain"},
        ):
            for method, path in (("POST", "/api/auth/logout"), ("DELETE", "/api/apps/x"), ("PATCH", "/api/apps/x")):
                answer = await browser.request(method, path, headers=cookie | signs)
                assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin_refused"), signs
        # A preflight is never told that cookies may come along.
        ask = {"Origin": "http://evil.example.com", "Access-Control-Request-Method": "POST"}
        preflight = await browser.options("/api/auth/logout", headers=cookie | ask)
        assert not {"access-control-allow-origin", "access-control-allow-credentials"} & preflight.headers.keys()
        own = await browser.post("/api/apps/x/stop", headers=cookie | {"Origin": "http://localhost"})
        assert own.json()["code"] == "app_not_found"
    assert (await guest.get("/api/auth/me")).status_code == 200


async def test_a_stolen_cookie_opens_nothing_elsewhere(guest: httpx.AsyncClient, app: RunningApp) -> None:
    """What serves on other ports of the same host is sent the cookie, too."""
    cookie = {"Cookie": f"quazzar_session={guest.cookies['quazzar_session']}"} | SAME
    for address in ("192.0.2.99", "::1", "172.17.0.2"):
        async with app.client(address) as thief:
            assert (await thief.get("/api/auth/me", headers=cookie)).status_code == 401
            assert (await thief.get("/api/auth/me", headers=cookie)).status_code == 401
    assert (await guest.get("/api/auth/me")).status_code == 200


@pytest.mark.parametrize("cookie", ["qzg_" + "A" * 43, "qzg_x", "", "x" * 4000, "qzr_" + "A" * 42, "\xe4"])
async def test_made_up_cookies_are_nothing(client: httpx.AsyncClient, cookie: str) -> None:
    headers = [(b"cookie", b"quazzar_session=" + cookie.encode("latin-1"))]
    answer = await client.get("/api/auth/me", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


# --- what is not for guests ---


def test_every_operation_that_changes_something_is_allowed_or_denied_by_name() -> None:
    denied, allowed = set(), set()
    for name, handler in operations("instance"):
        if name in PUBLIC["instance"]:
            continue
        (guard,) = (guard for guard in handler.resolve_guards() if isinstance(guard, Guard))
        if guard.reserved:
            denied.add(name)
        elif not name.startswith("GET "):
            allowed.add(name)
    assert denied == DENIED
    assert allowed == ALLOWED


async def test_what_is_denied_is_refused_and_recorded(
    guest: httpx.AsyncClient, admin: httpx.AsyncClient, database: Database
) -> None:
    for name in sorted(DENIED):
        method, _, path = name.partition(" ")
        answer = await guest.request(method, re.sub(r"\{\w+\}", "x_" + "a" * 26, path), content=b"{}")
        assert (answer.status_code, answer.json()["code"]) == (403, "impersonation_denied"), name
    shown = await session_of(guest, admin)
    refused = [row for row in await logged(database, shown["id"]) if row.action == "call.refuse"]
    assert refused
    assert {(row.actor_kind, row.actor_id, row.outcome) for row in refused} == {("panel", ADA, "refused")}


async def test_what_needs_no_guard_is_no_way_around(guest: httpx.AsyncClient) -> None:
    confirm = await guest.post("/api/auth/totp/verify", json={"code": "123456"})
    assert (confirm.status_code, confirm.json()["code"]) == (403, "impersonation_denied")
    nested = await guest.get(EXCHANGE, params={"token": token()})
    assert (nested.status_code, nested.json()["code"]) == (403, "impersonation_denied")


async def test_a_guest_opens_neither_the_machine_nor_what_apps_keep_secret(
    guest: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    slug = unique()
    for path, body in (
        ("/api/templates", {"compose": one_file(slug), "trusted": True}),
        ("/api/apps/import", {"name": slug, "compose": one_file(slug), "trusted": True}),
    ):
        answer = await guest.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing"), path
    template = await add_template(admin, web_file(unique()))
    made = await install(admin, template["id"], config={"admin_password": SECRET})
    for query in ("secrets=true", "data=true"):
        answer = await guest.get(f"/api/apps/{made['id']}/export?{query}")
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing"), query
    plain = await guest.get(f"/api/apps/{made['id']}/export")
    assert plain.status_code == 200
    assert SECRET not in plain.text
    assert SECRET in (await admin.get(f"/api/apps/{made['id']}/export?secrets=true")).text


async def test_a_reserved_guard_lets_the_servers_own_people_in(
    app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient, database: Database
) -> None:
    link_of = (await admin.get("/api/panel-link")).json()
    assert link_of["impersonation"] is True
    viewer = await headers_of(client, await make_user(database, role="viewer"))
    assert (await client.patch("/api/panel-link", json={}, headers=viewer)).json()["code"] == "scope_missing"
    assert (await client.patch("/api/panel-link", json={})).status_code == 401
    # Whom a server obeys is not for keys of some scopes, nor for those of some apps.
    made = await install(admin, await add_one(admin))
    for scopes, bound in (["settings:read", "settings:write"], None), (["*"], [made["id"]]):
        async with key_client(app, admin, scopes, resources=bound) as key:
            assert (await key.get("/api/panel-link")).status_code == 200
            refused = [
                await key.patch("/api/panel-link", json={"impersonation": True}),
                await key.delete("/api/panel-link"),
                await key.post("/api/panel-link", json={"token": "qze_x"}),
            ]
            assert {answer.status_code for answer in refused} == {403}
    wrong = await admin.patch("/api/panel-link", json={"impersonation": "no", "panel_url": "x"})
    assert (wrong.status_code, wrong.json()["details"].keys()) == (422, {"impersonation", "panel_url"})


# --- acting ---


async def test_what_a_guest_does_is_recorded_as_theirs_and_told_to_the_panel(
    guest: httpx.AsyncClient, admin: httpx.AsyncClient, database: Database
) -> None:
    made = await install(admin, await add_one(admin))
    stopped = await guest.post(f"/api/apps/{made['id']}/stop")
    assert stopped.status_code == 200, stopped.text
    shown = await session_of(guest, admin)
    acts = await logged(database, shown["id"])
    assert [(row.action, row.actor_kind, row.actor_id, row.subject) for row in acts] == [
        ("impersonation.begin", "panel", ADA, shown["id"]),
        ("app.stop", "panel", ADA, made["id"]),
    ]
    listed = (await admin.get("/api/audit?actor=panel&action=app.stop")).json()
    assert listed[0]["actor"] == {"kind": "panel", "id": ADA}
    assert listed[0]["impersonation"] == shown["id"]
    assert "impersonation" not in (await admin.get("/api/audit?action=app.install")).json()[0]
    exported = (await admin.get("/api/audit/export?action=app.stop")).text
    assert exported.splitlines()[0].endswith(",impersonation")
    assert f",{shown['id']}" in exported
    assert (await admin.get("/api/audit/verify")).json()["valid"] is True
    jti = acts[0].after["impersonation_id"]
    (told,) = [message for message in await untold(database, INSTANCE) if message.impersonation_id == jti]
    assert [(deed.action, deed.by_guest) for deed in told.deeds] == [("impersonation.begin", True), ("app.stop", True)]
    # Until the panel has noted them, they are told again.
    assert await of(database, jti) == told.deeds
    await noted(database, Noted(impersonation_id=jti, number=told.deeds[0].number))
    assert [deed.action for deed in await of(database, jti)] == ["app.stop"]
    await noted(database, Noted(impersonation_id=jti, number=told.deeds[1].number))
    # An answer that comes late takes nothing back.
    await noted(database, Noted(impersonation_id=jti, number=told.deeds[0].number))
    assert await of(database, jti) == []
    assert (await admin.delete(f"/api/auth/sessions/{shown['id']}")).status_code == 204
    assert [(deed.action, deed.by_guest) for deed in await of(database, jti)] == [("impersonation.end", False)]
    # Another panel hears nothing of what was done for this one.
    assert await untold(database, new_id("inst")) == []


async def of(database: Database, jti: str) -> list[Any]:
    found = [message for message in await untold(database, INSTANCE) if message.impersonation_id == jti]
    return list(found[0].deeds) if found else []


async def test_a_record_can_not_be_taken_out_of_a_session(
    guest: httpx.AsyncClient, admin: httpx.AsyncClient, database_urls: Any
) -> None:
    import asyncpg  # noqa: PLC0415 - as the owner of the tables, whom the triggers bind unless they are off

    shown = await session_of(guest, admin)
    owner = await asyncpg.connect(database_urls.owner)
    try:
        await owner.execute("ALTER TABLE audit_records DISABLE TRIGGER USER")
        await owner.execute("UPDATE audit_records SET impersonation = NULL WHERE impersonation = $1", shown["id"])
        assert (await admin.get("/api/audit/verify")).json()["valid"] is False
        query = "UPDATE audit_records SET impersonation = $1 WHERE subject = $1 AND action = 'impersonation.begin'"
        await owner.execute(query, shown["id"])
        assert (await admin.get("/api/audit/verify")).json()["valid"] is True
    finally:
        await owner.execute("ALTER TABLE audit_records ENABLE TRIGGER USER")
        await owner.close()


# --- the end ---


async def by_logout(guest: httpx.AsyncClient, admin: httpx.AsyncClient, session_id: str) -> None:
    del admin, session_id
    assert (await guest.post("/api/auth/logout")).status_code == 204


async def by_an_admin(guest: httpx.AsyncClient, admin: httpx.AsyncClient, session_id: str) -> None:
    del guest
    assert (await admin.delete(f"/api/auth/sessions/{session_id}")).status_code == 204


async def by_the_switch(guest: httpx.AsyncClient, admin: httpx.AsyncClient, session_id: str) -> None:
    del guest, session_id
    answer = await admin.patch("/api/panel-link", json={"impersonation": False})
    assert (answer.status_code, answer.json()["impersonation"]) == (200, False)


async def by_leaving_the_panel(guest: httpx.AsyncClient, admin: httpx.AsyncClient, session_id: str) -> None:
    del guest, session_id
    assert (await admin.delete("/api/panel-link")).status_code == 204


@pytest.mark.parametrize(
    ("end", "how", "kind"),
    [
        (by_logout, "left", "panel"),
        (by_an_admin, "revoked", "user"),
        (by_the_switch, "refused", "user"),
        (by_leaving_the_panel, "unlinked", "user"),
    ],
)
async def test_every_end_is_at_once_and_recorded(
    guest: httpx.AsyncClient,
    admin: httpx.AsyncClient,
    database: Database,
    end: Callable[..., Any],
    how: str,
    kind: str,
) -> None:
    shown = await session_of(guest, admin)
    assert (await guest.get("/api/auth/me")).status_code == 200
    await end(guest, admin, shown["id"])
    assert (await guest.get("/api/auth/me")).status_code == 401
    assert all(one["id"] != shown["id"] for one in (await admin.get("/api/auth/sessions")).json())
    last = (await logged(database, shown["id"]))[-1]
    assert (last.action, last.actor_kind, last.after) == ("impersonation.end", kind, {"how": how})
    events = (await admin.get(f"/api/events?subject={shown['id']}&type=auth.impersonation_ended")).json()
    assert [event["data"]["how"] for event in events] == [how]
    again = await admin.delete(f"/api/auth/sessions/{shown['id']}")
    assert (again.status_code, again.json()["code"]) == (404, "session_not_found")


async def test_its_time_is_over_after_a_quarter_of_an_hour(
    guest: httpx.AsyncClient, admin: httpx.AsyncClient, database: Database
) -> None:
    shown = await session_of(guest, admin)
    async with database.begin() as session:
        query = text("SELECT extract(epoch FROM expires_at - created_at) FROM impersonations WHERE id = :id")
        assert 895 < float((await session.execute(query, shown)).scalar_one()) < 905
        query = text("SELECT args->>'session_id' FROM jobs WHERE kind = 'impersonations.end' AND subject = :id")
        assert (await session.execute(query, shown)).scalar_one() == shown["id"]
        await session.execute(text("UPDATE impersonations SET expires_at = now() WHERE id = :id"), shown)
    authenticator = guest._transport.app.app.state.authenticator  # type: ignore[attr-defined]
    authenticator.drop(shown["id"])
    assert (await guest.get("/api/auth/me")).status_code == 401
    run = JobRun(job_id=new_id("job"), kind="impersonations.end", attempt=1, database=database, resources=Resources())
    for _ in range(2):
        await end_impersonation(run, session_id=shown["id"])
    ends = [row for row in await logged(database, shown["id"]) if row.action == "impersonation.end"]
    assert [(row.actor_kind, row.after) for row in ends] == [("job", {"how": "expired"})]


async def test_a_server_that_lets_nobody_in(
    client: httpx.AsyncClient, admin: httpx.AsyncClient, database: Database
) -> None:
    await admin.patch("/api/panel-link", json={"impersonation": False})
    one = token()
    for _ in range(2):
        answer = await client.get(EXCHANGE, params={"token": one})
        assert (answer.status_code, answer.json()["code"]) == (403, "impersonation_refused")
        assert answer.headers["referrer-policy"] == "no-referrer"
    changes = (await admin.get("/api/audit?action=panel_link.update")).json()
    assert (changes[0]["before"], changes[0]["after"]) == ({"impersonation": True}, {"impersonation": False})
    async with database.begin() as session:
        query = text(
            "SELECT after->>'code' FROM audit_records WHERE action = 'impersonation.begin' ORDER BY number DESC"
        )
        assert (await session.execute(query)).scalars().first() == "impersonation_refused"
    await admin.patch("/api/panel-link", json={"impersonation": True})
    assert (await client.get(EXCHANGE, params={"token": one})).status_code == 303


async def test_only_admins_see_and_end_sessions_of_guests(
    guest: httpx.AsyncClient, admin: httpx.AsyncClient, app: RunningApp, database: Database
) -> None:
    shown = await session_of(guest, admin)
    async with app.client() as client:
        for role in ("operator", "viewer"):
            headers = await headers_of(client, await make_user(database, role=role))
            listed = (await client.get("/api/auth/sessions", headers=headers)).json()
            assert ["impersonation" in one for one in listed] == [False]
            answer = await client.delete(f"/api/auth/sessions/{shown['id']}", headers=headers)
            assert answer.status_code == 404
        second = await headers_of(client, await make_user(database))
        pages = (await client.get("/api/auth/sessions?limit=1", headers=second)).json()
        pages += (await client.get("/api/auth/sessions?limit=200", headers=second)).json()
        assert shown["id"] in {one["id"] for one in pages}
        # A key is nobody who has sessions.
        async with key_client(app, admin, ["*"]) as by_key:
            assert (await by_key.get("/api/auth/sessions")).status_code == 403
        assert (await client.delete(f"/api/auth/sessions/{shown['id']}", headers=second)).status_code == 204
    assert (await guest.get("/api/auth/me")).status_code == 401


async def test_sessions_of_both_kinds_come_in_pages(
    app: RunningApp, admin: httpx.AsyncClient, database: Database
) -> None:
    async with app.client() as client:
        user = await make_user(database)
        mine = [await headers_of(client, user)]
        for _ in range(3):
            async with app.client() as browser:
                assert (await browser.get(EXCHANGE, params={"token": token()})).status_code == 303
            mine.append(await headers_of(client, user))
        whole = [one["id"] for one in (await client.get("/api/auth/sessions?limit=200", headers=mine[0])).json()]
        assert whole == sorted(whole, reverse=True)
        found: list[str] = []
        path: str | None = "/api/auth/sessions?limit=2"
        while path is not None:
            answer = await client.get(path, headers=mine[0])
            found += [one["id"] for one in answer.json()]
            match = re.search(r"<([^>]+)>", answer.headers.get("link", ""))
            path = match[1] if match else None
        assert found == whole


# --- over a real server ---


@pytest.fixture(scope="module")
async def port(app: RunningApp) -> AsyncIterator[int]:
    async with serving(app.asgi) as port:
        yield port


async def test_s15_a_terminal_by_cookie_is_for_pages_of_this_server_and_ends_with_the_session(
    port: int, admin: httpx.AsyncClient, database: Database
) -> None:
    made = await install(admin, await add_one(admin))
    async with httpx.AsyncClient(base_url=f"http://localhost:{port}") as browser:
        await browser.get(EXCHANGE, params={"token": token()})
        cookie = f"quazzar_session={browser.cookies['quazzar_session']}"
    url = f"ws://localhost:{port}/api/apps/{made['id']}/exec"
    for origin in (None, "http://evil.example.com", f"http://localhost:{port + 1}"):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url, additional_headers={"Cookie": cookie}, origin=origin, compression=None):  # type: ignore[arg-type]
                pass
        assert refused.value.response.status_code == 403
    own: Any = f"http://localhost:{port}"
    async with connect(url, additional_headers={"Cookie": cookie}, origin=own, compression=None) as terminal:
        assert b"started" in str(await terminal.recv()).encode()
        shown = await session_of(admin, admin)
        assert (await admin.delete(f"/api/auth/sessions/{shown['id']}")).status_code == 204
        async with asyncio.timeout(20):
            await terminal.wait_closed()
        assert terminal.close_code == 4401
    async with asyncio.timeout(20):
        while [row.action for row in await logged(database, shown["id"])][-1] != "app.exec_end":
            await asyncio.sleep(0.05)
    kinds = {row.actor_kind for row in await logged(database, shown["id"]) if row.action.startswith("app.exec")}
    assert kinds == {"panel"}


async def test_a_stream_by_cookie_ends_with_the_session(port: int, admin: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=f"http://localhost:{port}", timeout=30) as browser:
        await browser.get(EXCHANGE, params={"token": token()})
        async with browser.stream("GET", "/api/events?follow=true") as stream:
            assert stream.status_code == 200
            lines = stream.aiter_lines()
            assert await anext(lines) == ": open"
            shown = await session_of(browser, admin)
            await admin.delete(f"/api/auth/sessions/{shown['id']}")
            async with asyncio.timeout(20):
                async for _ in lines:
                    pass
