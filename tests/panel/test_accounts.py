"""Registration, login and profile of the panel; what it has in common with the instance is tested there."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx
import pyotp
import pytest
from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.tokens import INSTANCE_ACCESS, PANEL_ACCESS, Tokens
from tests.conftest import PASSWORD, RunningApp
from tests.factories.accounts import MadeUser, bearer, headers_of, log_in, make_key, make_member, make_user

AUTH = "/panel/api/auth"


@pytest.fixture
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture
async def member(database: Database) -> MadeUser:
    return await make_member(database)


def new_person(**changes: Any) -> dict[str, Any]:
    return {
        "email": f"{uuid.uuid4().hex}@example.com",
        "password": PASSWORD,
        "name": "Ada Lovelace",
        "organization": "Engines",
    } | changes


async def me(client: httpx.AsyncClient, headers: dict[str, str]) -> httpx.Response:
    return await client.get(f"{AUTH}/me", headers=headers)


# --- registration ---


async def test_registering_makes_a_tenant_with_its_owner(client: httpx.AsyncClient) -> None:
    body = new_person()
    answer = await client.post(f"{AUTH}/register", json=body)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{AUTH}/me"
    made = answer.json()
    assert made.keys() == {"user", "tenant"}
    assert made["user"]["id"].startswith("usr_")
    assert made["tenant"].keys() == {"id", "name", "kind", "parent_id", "parent_access", "created_at"}
    assert made["tenant"]["name"] == "Engines"
    login = await client.post(f"{AUTH}/login", json={"email": body["email"], "password": PASSWORD})
    found = (await me(client, bearer(login.json()["access_token"]))).json()
    assert found.keys() == {"user", "tenant", "role", "permissions"}
    assert found["tenant"] == made["tenant"]
    assert found["user"] | {"last_login_at": None} == made["user"]
    assert (found["role"], found["permissions"]) == ("owner", ["*"])


async def test_an_address_in_use_gets_the_same_answer_and_nothing_is_made(
    client: httpx.AsyncClient, member: MadeUser, database: Database
) -> None:
    fresh = await client.post(f"{AUTH}/register", json=new_person())
    for spelling in (member.name, member.name.upper()):
        used = await client.post(
            f"{AUTH}/register", json=new_person(email=spelling, password="other words entirely", name="Eve")
        )
        assert used.status_code == fresh.status_code == 201
        assert used.headers.keys() == fresh.headers.keys()
        assert used.headers["content-length"] == str(len(used.content))
        body = used.json()
        for part in ("user", "tenant"):
            assert body[part].keys() == fresh.json()[part].keys()
            assert {type(value) for value in body[part].values()} == {
                type(value) for value in fresh.json()[part].values()
            }
            assert len(body[part]["id"]) == len(fresh.json()[part]["id"])
            assert datetime.fromisoformat(body[part]["created_at"]).microsecond >= 0
        assert body["user"]["email"] == member.name
        assert body["user"]["id"] != member.id
        # Nothing of it is there, and the owner's login is what it was.
        async with database.begin(tenant=body["tenant"]["id"]) as session:
            assert (await session.execute(text("SELECT count(*) FROM tenants"))).scalar_one() == 0
        assert (
            await client.post(f"{AUTH}/login", json={"email": member.name, "password": "other words entirely"})
        ).status_code == 401
    await log_in(client, member)


async def test_of_parallel_registrations_of_one_address_one_wins(client: httpx.AsyncClient, database: Database) -> None:
    body = new_person()
    answers = await asyncio.gather(*(client.post(f"{AUTH}/register", json=body) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    login = await client.post(f"{AUTH}/login", json={"email": body["email"], "password": PASSWORD})
    user_id = (await me(client, bearer(login.json()["access_token"]))).json()["user"]["id"]
    assert [answer.json()["user"]["id"] for answer in answers].count(user_id) == 1
    async with database.begin(user=user_id) as session:
        assert (await session.execute(text("SELECT count(*) FROM tenants"))).scalar_one() == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"email": "ada"}, "email"),
        ({"email": "ada@example"}, "email"),
        ({"email": "@example.com"}, "email"),
        ({"email": "a b@example.com"}, "email"),
        ({"email": "ada@example.com\n"}, "email"),
        ({"email": "ada@-example.com"}, "email"),
        ({"email": "ada@exa_mple.com"}, "email"),
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"email": ["ada@example.com"]}, "email"),
        ({"password": "short"}, "password"),
        ({"password": "password1234"}, "password"),
        ({"password": "Ada-Lovelace!"}, "password"),
        ({"name": ""}, "name"),
        ({"name": "a\u0000b"}, "name"),
        ({"organization": "x" * 201}, "organization"),
        ({"organization": None}, "organization"),
        ({"tenant_id": "ten_x"}, "tenant_id"),
        ({"role": "owner"}, "role"),
        ({"id": "usr_x"}, "id"),
        ({"realm": "instance"}, "realm"),
    ],
    ids=str,
)
async def test_s30_what_is_wrong_is_named(client: httpx.AsyncClient, change: dict[str, Any], field: str) -> None:
    if change.get("password") == "Ada-Lovelace!":
        change["name"] = "Ada-Lovelace"
    answer = await client.post(f"{AUTH}/register", json=new_person(**change))
    if "\u0000" in str(change.get("name")):
        assert answer.status_code == 400  # never read at all
        return
    assert answer.status_code == 422
    assert answer.json()["details"].keys() == {field}


async def test_an_idempotency_key_registers_once(client: httpx.AsyncClient) -> None:
    body, headers = new_person(), {"Idempotency-Key": uuid.uuid4().hex}
    first = await client.post(f"{AUTH}/register", json=body, headers=headers)
    second = await client.post(f"{AUTH}/register", json=body, headers=headers)
    assert (first.status_code, first.content) == (second.status_code, second.content)


async def test_without_a_mail_server_the_operator_is_told(
    client: httpx.AsyncClient, member: MadeUser, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    for email in (member.name, "nobody@example.com"):
        answer = await client.post(f"{AUTH}/forgot-password", json={"email": email})
        assert (answer.status_code, answer.content) == (204, b"")
    told = ""
    async with asyncio.timeout(20):
        while "quazzar admin reset-link" not in told:
            await asyncio.sleep(0.05)
            told += capfd.readouterr().out
    assert member.id in told
    assert member.name not in told
    headers = bearer((await log_in(client, member))["access_token"])
    answer = await client.post(f"{AUTH}/verify-email", json={}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "mail_not_configured")
    link = await client.post(f"{AUTH}/verify-email", json={"token": "qzv_" + "a" * 43}, headers=headers)
    assert (link.status_code, link.json()["code"]) == (401, "link_not_valid")


# --- login and sessions ---


async def test_login_takes_the_address_in_any_case(client: httpx.AsyncClient, member: MadeUser) -> None:
    answer = await client.post(f"{AUTH}/login", json={"email": member.name.upper(), "password": PASSWORD})
    assert answer.status_code == 200
    assert answer.json().keys() == {"access_token", "refresh_token", "token_type", "expires_in"}


async def test_s21_unknown_address_and_wrong_password_are_the_same_answer(
    client: httpx.AsyncClient, member: MadeUser
) -> None:
    bodies = []
    for email in (member.name, "nobody@example.com", "no address at all"):
        answer = await client.post(f"{AUTH}/login", json={"email": email, "password": "wrong"})
        assert answer.status_code == 401
        bodies.append({key: value for key, value in answer.json().items() if key != "request_id"})
    assert bodies[0] == bodies[1] == bodies[2]


async def test_the_realms_know_nothing_of_each_other(client: httpx.AsyncClient, database: Database) -> None:
    member, user = await make_member(database), await make_user(database)
    panel, instance = await log_in(client, member), await log_in(client, user)
    key = await make_key(client, bearer(instance["access_token"]))
    assert (await client.get("/api/auth/me", headers=bearer(panel["access_token"]))).status_code == 401
    assert (await me(client, bearer(instance["access_token"]))).status_code == 401
    assert (await me(client, bearer(key["key"]))).status_code == 401
    for path, token in ((f"{AUTH}/refresh", instance), ("/api/auth/refresh", panel)):
        answer = await client.post(path, json={"refresh_token": token["refresh_token"]})
        assert answer.status_code == 401
    login = await client.post("/api/auth/login", json={"username": member.name, "password": PASSWORD})
    assert login.status_code == 401
    assert (await client.post(f"{AUTH}/login", json={"email": user.name, "password": PASSWORD})).status_code == 401


async def test_a_token_for_another_tenant_is_none(
    client: httpx.AsyncClient, database: Database, keyring: Keyring
) -> None:
    tokens = Tokens(keyring)
    member, other = await make_member(database), await make_member(database)
    claims = tokens.verify(PANEL_ACCESS, (await log_in(client, member))["access_token"].encode())
    assert claims.tid == member.tenant_id
    known: dict[str, Any] = {"subject": member.id, "session_id": claims.sid, "seconds": 60}
    assert (await me(client, bearer(tokens.sign(PANEL_ACCESS, **known, tenant_id=member.tenant_id)))).status_code == 200
    for tenant_id in (other.tenant_id, "ten_x", "", None):
        token = tokens.sign(PANEL_ACCESS, **known, tenant_id=tenant_id)
        assert (await me(client, bearer(token))).status_code == 401
    wrong = tokens.sign(INSTANCE_ACCESS, **known, tenant_id=member.tenant_id)
    assert (await me(client, bearer(wrong))).status_code == 401


async def test_who_leaves_the_tenant_is_out(client: httpx.AsyncClient, member: MadeUser, database: Database) -> None:
    pair = await log_in(client, member)
    headers = bearer(pair["access_token"])
    assert (await me(client, headers)).status_code == 200
    async with database.begin(tenant=member.tenant_id) as session:
        await session.execute(text("DELETE FROM memberships WHERE user_id = :id"), {"id": member.id})
        await session.execute(text("SELECT pg_notify('auth', :id)"), {"id": member.id})
    async with asyncio.timeout(20):
        while (await me(client, headers)).status_code != 401:
            await asyncio.sleep(0.01)
    refreshed = await client.post(f"{AUTH}/refresh", json={"refresh_token": pair["refresh_token"]})
    assert refreshed.status_code == 401
    login = await client.post(f"{AUTH}/login", json={"email": member.name, "password": PASSWORD})
    assert (login.status_code, login.json()["code"]) == (403, "no_tenant")


async def test_refresh_rotates_and_reuse_ends_the_session(client: httpx.AsyncClient, member: MadeUser) -> None:
    first = await log_in(client, member)
    second = await client.post(f"{AUTH}/refresh", json={"refresh_token": first["refresh_token"]})
    assert second.status_code == 200
    headers = bearer(second.json()["access_token"])
    assert (await me(client, headers)).json()["tenant"]["id"] == member.tenant_id
    again = await client.post(f"{AUTH}/refresh", json={"refresh_token": first["refresh_token"]})
    assert again.status_code == 401
    assert (await me(client, headers)).status_code == 401


async def test_sessions_and_logout(client: httpx.AsyncClient, member: MadeUser, database: Database) -> None:
    other, own = await headers_of(client, member), await headers_of(client, member)
    stranger = await headers_of(client, await make_member(database))
    theirs = (await client.get(f"{AUTH}/sessions", headers=stranger)).json()[0]["id"]
    listed = (await client.get(f"{AUTH}/sessions", headers=own)).json()
    assert [session["current"] for session in listed] == [True, False]
    assert (await client.delete(f"{AUTH}/sessions/{theirs}", headers=own)).status_code == 404
    assert (await client.delete(f"{AUTH}/sessions/{listed[1]['id']}", headers=own)).status_code == 204
    assert (await me(client, other)).status_code == 401
    assert (await client.post(f"{AUTH}/logout", headers=own)).status_code == 204
    assert (await me(client, own)).status_code == 401
    assert (await me(client, stranger)).status_code == 200


async def test_changing_the_password(client: httpx.AsyncClient, member: MadeUser) -> None:
    other, own = await headers_of(client, member), await headers_of(client, member)
    path = f"{AUTH}/change-password"
    wrong = await client.post(
        path, json={"current_password": "wrong", "new_password": "entirely new words"}, headers=own
    )
    assert (wrong.status_code, wrong.json()["code"]) == (403, "password_wrong")
    local_part = member.name.partition("@")[0]
    named = await client.post(path, json={"current_password": PASSWORD, "new_password": local_part}, headers=own)
    assert named.status_code == 422
    done = await client.post(
        path, json={"current_password": PASSWORD, "new_password": "entirely new words"}, headers=own
    )
    assert done.status_code == 204
    assert (await me(client, other)).status_code == 401
    assert (await me(client, own)).status_code == 200
    await log_in(client, member, "entirely new words")


async def test_the_second_factor(client: httpx.AsyncClient, member: MadeUser) -> None:
    headers = await headers_of(client, member)
    made = await client.post(f"{AUTH}/totp/enable", json={"password": PASSWORD}, headers=headers)
    assert "Quazzar%20Control%20Panel:" in made.json()["otpauth_url"]
    secret = made.json()["secret"]
    done = await client.post(f"{AUTH}/totp/verify", json={"code": pyotp.TOTP(secret).now()}, headers=headers)
    assert done.status_code == 200
    assert (await me(client, headers)).json()["user"]["totp_enabled"] is True
    codes = done.json()["recovery_codes"]
    first = await log_in(client, member)
    body = {"temp_token": first["temp_token"], "code": codes[0]}
    assert (await client.post("/api/auth/totp/verify", json=body)).status_code == 401
    pair = await client.post(f"{AUTH}/totp/verify", json=body)
    assert pair.status_code == 200
    assert (await me(client, bearer(pair.json()["access_token"]))).status_code == 200
    off = await client.post(f"{AUTH}/totp/disable", json={"password": PASSWORD, "code": codes[1]}, headers=headers)
    assert off.status_code == 204


# --- profile ---


async def test_the_profile(client: httpx.AsyncClient, member: MadeUser) -> None:
    headers = await headers_of(client, member)
    before = (await me(client, headers)).json()
    answer = await client.put(f"{AUTH}/profile", json={"name": "Grace", "timezone": "Europe/Berlin"}, headers=headers)
    assert answer.status_code == 200
    changed = answer.json()
    assert changed["user"] == before["user"] | {"name": "Grace", "timezone": "Europe/Berlin"}
    assert (await me(client, headers)).json() == changed
    only_name = await client.put(f"{AUTH}/profile", json={"name": "Ada"}, headers=headers)
    assert only_name.json()["user"]["timezone"] == "Europe/Berlin"
    assert (await client.put(f"{AUTH}/profile", json={}, headers=headers)).json() == only_name.json()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"timezone": "Europe/Nowhere"}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"timezone": "/etc/localtime"}, "timezone"),
        ({"timezone": "Europe"}, "timezone"),
        ({"timezone": ""}, "timezone"),
        ({"email": "other@example.com"}, "email"),
        ({"role": "owner"}, "role"),
        ({"tenant_id": "ten_x"}, "tenant_id"),
        ({"id": "usr_x"}, "id"),
    ],
    ids=str,
)
async def test_s30_what_the_profile_does_not_take(
    client: httpx.AsyncClient, member: MadeUser, body: dict[str, Any], field: str
) -> None:
    headers = await headers_of(client, member)
    before = (await me(client, headers)).json()
    answer = await client.put(f"{AUTH}/profile", json=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["details"].keys() == {field}
    assert (await me(client, headers)).json() == before


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/auth/me", None),
        ("PUT", "/auth/profile", {"name": "x"}),
        ("POST", "/auth/logout", None),
        ("GET", "/auth/sessions", None),
        ("DELETE", "/auth/sessions/ses_x", None),
        ("POST", "/auth/change-password", {"current_password": PASSWORD, "new_password": PASSWORD + "2"}),
        ("POST", "/auth/totp/enable", {"password": PASSWORD}),
        ("POST", "/auth/totp/disable", {"password": PASSWORD, "code": "123456"}),
        ("POST", "/auth/totp/verify", {"code": "123456"}),
        ("GET", "/tenants", None),
    ],
)
async def test_nobody_comes_in_without_a_login(client: httpx.AsyncClient, method: str, path: str, body: Any) -> None:
    for headers in ({}, bearer("x"), bearer("qzr_" + "0" * 42)):
        answer = await client.request(method, f"/panel/api{path}", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
