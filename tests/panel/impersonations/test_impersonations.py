"""A member asks for a session on an instance: who gets one, what it takes, and what is written down of it."""

import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pyotp
import pytest
from sqlalchemy import text

from quazzar.core.db import Database
from quazzar.link.impersonation import MOST_REASON, open_impersonation
from quazzar.link.messages import Deed, Deeds, LinkProblem, Noted, pack, unpack_from_instance
from quazzar.panel.accounts.schemas import PanelMeOut
from quazzar.panel.fleet.authority import Authority
from quazzar.panel.impersonations import noting
from quazzar.panel.impersonations.noting import note
from quazzar.panel.impersonations.service import _name
from tests.conftest import PASSWORD, RunningApp
from tests.factories.accounts import MadeUser, bearer, headers_of, log_in, make_colleague, make_member
from tests.factories.panel import make_instance

API = "/panel/api"
Headers = dict[str, str]


class Person:
    """A member with the second factor on, whose code is older than five minutes."""

    def __init__(self, user: MadeUser, headers: Headers, secret: str) -> None:
        self.user = user
        self.headers = headers
        self.secret = secret

    def code(self, steps: int = 0) -> str:
        return pyotp.TOTP(self.secret).at(int(time.time()) + 30 * steps)


@pytest.fixture(autouse=True)
async def no_guesses(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("DELETE FROM login_attempts"))


@pytest.fixture(scope="module")
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture(scope="module")
async def authority(app: RunningApp) -> Authority:
    found: Authority = await app.asgi.app.state.fleet.authority()
    return found


async def person(client: httpx.AsyncClient, database: Database, user: MadeUser) -> Person:
    headers = await headers_of(client, user)
    made = await client.post(f"{API}/auth/totp/enable", json={"password": PASSWORD}, headers=headers)
    secret = made.json()["secret"]
    confirmed = await client.post(f"{API}/auth/totp/verify", json={"code": pyotp.TOTP(secret).now()}, headers=headers)
    assert confirmed.status_code == 200, confirmed.text
    one = Person(user, headers, secret)
    await later(database, one)
    return one


async def later(database: Database, one: Person) -> None:
    """As if six minutes had passed since the last code."""
    async with database.begin(user=one.user.id) as session:
        await session.execute(text("UPDATE users SET totp_last_step = NULL WHERE id = :id"), {"id": one.user.id})
        await session.execute(
            text("UPDATE sessions SET totp_at = totp_at - interval '6 minutes' WHERE user_id = :id"),
            {"id": one.user.id},
        )


@pytest.fixture
async def ada(client: httpx.AsyncClient, database: Database) -> Person:
    return await person(client, database, await make_member(database))


@pytest.fixture
async def instance(database: Database, ada: Person) -> str:
    assert ada.user.tenant_id is not None
    return await make_instance(database, ada.user.tenant_id, name="berlin-1", url="https://os.example.com/q/")


async def ask(client: httpx.AsyncClient, who: Headers, instance_id: str, **body: Any) -> httpx.Response:
    return await client.post(
        f"{API}/fleet/instances/{instance_id}/impersonate", json={"reason": "Ticket 7"} | body, headers=who
    )


async def records(database: Database, one: Person, action: str = "impersonation.%") -> list[Any]:
    async with database.begin(tenant=one.user.tenant_id) as session:
        query = text(
            "SELECT action, actor_kind, actor_id, subject, outcome, after FROM audit_records WHERE tenant_id = :id"
            " AND (action LIKE :action OR action IN ('user.step_up', 'call.refuse')) ORDER BY number"
        )
        return list((await session.execute(query, {"id": one.user.tenant_id, "action": action})).all())


# --- the token ---


async def test_a_token_for_this_instance_and_where_to_take_it(
    client: httpx.AsyncClient, ada: Person, instance: str, authority: Authority, database: Database
) -> None:
    answer = await ask(client, ada.headers, instance, code=ada.code())
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {"url", "token", "expires_at"}
    url = urlsplit(body["url"])
    assert (url.scheme, url.netloc, url.path) == ("https", "os.example.com", "/q/api/cp/session")
    assert parse_qs(url.query) == {"token": [body["token"]]}
    key, now = authority.signing_public_key, datetime.now(UTC)
    claims = open_impersonation(body["token"], key, instance_id=instance, now=now)
    assert (claims.sub, claims.act.sub, claims.tid) == (ada.user.id, ada.user.id, ada.user.tenant_id)
    assert (claims.act.name, claims.reason) == (f"Ada <{ada.user.name}>", "Ticket 7")
    left = (datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert 50 < left <= 60
    ((action, kind, actor, subject, outcome, after),) = await records(database, ada)
    assert (action, kind, actor, subject, outcome) == ("impersonation.create", "user", ada.user.id, instance, "done")
    assert after == {"impersonation_id": claims.jti, "name": "berlin-1", "reason": "Ticket 7"}
    events = (await client.get(f"{API}/events?subject={instance}", headers=ada.headers)).json()
    assert [event["type"] for event in events] == ["instance.impersonated"]
    assert events[0]["data"]["reason"] == "Ticket 7"
    assert body["token"] not in str(events)
    shown = (await client.get(f"{API}/fleet/instances/{instance}", headers=ada.headers)).json()
    assert shown["url"] == "https://os.example.com/q/"


async def test_nobody_calls_themselves_somebody_else(
    client: httpx.AsyncClient, ada: Person, instance: str, authority: Authority
) -> None:
    """However long a name is, the address stands behind it whole."""
    name = "Root <root@corp.example>\u202e" + " " * 175
    assert (await client.put(f"{API}/auth/profile", json={"name": name}, headers=ada.headers)).status_code == 200
    answer = await ask(client, ada.headers, instance, code=ada.code())
    key, now = authority.signing_public_key, datetime.now(UTC)
    shown = open_impersonation(answer.json()["token"], key, instance_id=instance, now=now).act.name
    assert shown.endswith(f" <{ada.user.name}>")
    assert "\u202e" not in shown
    assert _name(called("x" * 200, f"{'a' * 64}@{'b.' * 90}example.com")).endswith(".example.com>")
    assert len(_name(called("x" * 200, f"{'a' * 64}@{'b.' * 90}example.com"))) == MOST_REASON


def called(name: str, email: str) -> PanelMeOut:
    user: dict[str, Any] = {
        "id": "usr_x",
        "timezone": "UTC",
        "created_at": "2026-01-01T00:00:00Z",
        "last_login_at": None,
    }
    user |= {"email": email, "name": name, "totp_enabled": True, "email_verified": True}
    tenant: dict[str, Any] = {
        "id": "ten_x",
        "name": "x",
        "kind": "standard",
        "parent_id": None,
        "parent_access": "none",
    }
    tenant |= {"created_at": "2026-01-01T00:00:00Z"}
    return msgspec.convert({"user": user, "tenant": tenant, "role": "owner", "permissions": ["*"]}, PanelMeOut)


async def test_a_code_stands_for_five_minutes_in_its_session_alone(
    client: httpx.AsyncClient, ada: Person, instance: str, database: Database
) -> None:
    async def code_of(headers: Headers, **body: Any) -> str | None:
        answer = await ask(client, headers, instance, **body)
        return None if answer.status_code == 200 else f"{answer.status_code} {answer.json()['code']}"

    assert await code_of(ada.headers) == "403 totp_required"
    assert await code_of(ada.headers, code="000000") == "403 totp_code_wrong"
    code = ada.code()
    assert await code_of(ada.headers, code=code) is None
    assert await code_of(ada.headers) is None
    # The same code again is no fresh one, and the answer to it is not that the last one still stands.
    assert await code_of(ada.headers, code=code) == "403 totp_code_wrong"
    await later(database, ada)
    assert await code_of(ada.headers) == "403 totp_required"
    # Another session has shown none but the one that it was opened with.
    step = (await log_in(client, ada.user))["temp_token"]
    pair = await client.post(f"{API}/auth/totp/verify", json={"temp_token": step, "code": ada.code()})
    other = bearer(pair.json()["access_token"])
    assert await code_of(other) is None
    assert await code_of(ada.headers) == "403 totp_required"
    refused = [entry for entry in await records(database, ada) if entry.outcome == "refused"]
    assert {"user.step_up", "call.refuse"} == {entry.action for entry in refused}
    assert {entry.after["code"] for entry in refused if entry.action == "call.refuse"} == {
        "totp_required",
        "totp_code_wrong",
    }


async def test_codes_can_not_be_guessed(client: httpx.AsyncClient, ada: Person, instance: str) -> None:
    statuses = [(await ask(client, ada.headers, instance, code=f"{n:06}")).status_code for n in range(12)]
    assert statuses == [403] * 10 + [429] * 2
    assert (await ask(client, ada.headers, instance, code=ada.code())).status_code == 429


async def test_without_a_second_factor_there_is_none(client: httpx.AsyncClient, database: Database) -> None:
    user = await make_member(database)
    assert user.tenant_id is not None
    instance = await make_instance(database, user.tenant_id, url="https://os.example.com")
    for body in ({}, {"code": "123456"}):
        answer = await ask(client, await headers_of(client, user), instance, **body)
        assert (answer.status_code, answer.json()["code"]) == (403, "totp_setup_required")


async def test_by_role(client: httpx.AsyncClient, database: Database, ada: Person, instance: str) -> None:
    assert ada.user.tenant_id is not None
    expected = {"owner": 200, "admin": 200, "operator": 403, "viewer": 403, "billing": 403}
    for role, status in expected.items():
        member = await person(client, database, await make_colleague(database, ada.user.tenant_id, role))
        answer = await ask(client, member.headers, instance, code=member.code())
        assert answer.status_code == status, role
        if status == 403:
            assert answer.json()["code"] == "scope_missing"
    assert (await ask(client, {}, instance)).status_code == 401


async def test_other_tenants_and_what_lies_out_of_reach_are_not_there(
    client: httpx.AsyncClient, database: Database, ada: Person, instance: str
) -> None:
    eve = await person(client, database, await make_member(database))
    unknown = "inst_" + "a" * 26
    answers = [await ask(client, eve.headers, one, code=eve.code()) for one in (instance, unknown, "x")]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(404, "instance_not_found")}
    # No code was used up by that.
    assert eve.user.tenant_id is not None
    own = await make_instance(database, eve.user.tenant_id, url="https://eve.example.com")
    assert (await ask(client, eve.headers, own, code=eve.code())).status_code == 200
    assert ada.user.tenant_id is not None
    bound = await person(client, database, await make_colleague(database, ada.user.tenant_id, "admin"))
    other = await make_instance(database, ada.user.tenant_id, url="https://other.example.com")
    async with database.begin(tenant=ada.user.tenant_id) as session:
        values = {"ids": [other], "user": bound.user.id}
        await session.execute(text("UPDATE memberships SET resources = :ids WHERE user_id = :user"), values)
        await app_forgets(client, session, bound)
    assert (await ask(client, bound.headers, instance, code=bound.code())).status_code == 404
    assert (await ask(client, bound.headers, other, code=bound.code())).status_code == 200


async def app_forgets(client: httpx.AsyncClient, session: Any, one: Person) -> None:
    transport: Any = client._transport
    await transport.app.app.state.authenticator.drop_with(session, one.user.id)


async def test_where_nobody_knows_the_way_there_is_no_token(
    client: httpx.AsyncClient, ada: Person, database: Database
) -> None:
    assert ada.user.tenant_id is not None
    silent = await make_instance(database, ada.user.tenant_id)
    code = ada.code()
    answer = await ask(client, ada.headers, silent, code=code)
    assert (answer.status_code, answer.json()["code"]) == (409, "instance_url_unknown")
    gone = await make_instance(database, ada.user.tenant_id, url="https://os.example.com")
    await client.delete(f"{API}/fleet/instances/{gone}", headers=ada.headers)
    answer = await ask(client, ada.headers, gone, code=code)
    assert (answer.status_code, answer.json()["code"]) == (409, "instance_revoked")
    assert await records(database, ada) == []
    # The code was not used up for nothing.
    fine = await make_instance(database, ada.user.tenant_id, url="https://os.example.com")
    assert (await ask(client, ada.headers, fine, code=code)).status_code == 200


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"reason": ""}, {"reason"}),
        ({"reason": "   "}, {"reason"}),
        ({"reason": "a\nb"}, {"reason"}),
        ({"reason": "x" * 301}, {"reason"}),
        ({"reason": 7, "code": 123456}, {"reason", "code"}),
        ({"code": "12345", "user_id": "usr_x", "aud": "x"}, {"code", "user_id", "aud"}),
    ],
)
async def test_all_that_is_wrong_is_said_at_once(
    client: httpx.AsyncClient, ada: Person, instance: str, body: dict[str, Any], fields: set[str]
) -> None:
    answer = await ask(client, ada.headers, instance, **body)
    assert answer.status_code == 422
    assert answer.json()["details"].keys() == fields
    bare = await client.post(f"{API}/fleet/instances/{instance}/impersonate", json={}, headers=ada.headers)
    assert bare.json()["details"] == {"reason": "Reason is required"}


# --- what the instance tells ---


def deed(number: int, action: str = "app.stop", **values: Any) -> Deed:
    return Deed(number=number, at=datetime(2026, 1, 31, tzinfo=UTC), action=action, **values)


async def tell(database: Database, one: Person, instance: str, *deeds: Deed, **values: Any) -> Noted:
    message = Deeds(impersonation_id=values["jti"], deeds=list(deeds))
    assert one.user.tenant_id is not None
    async with database.begin(tenant=one.user.tenant_id) as session:
        return await note(session, one.user.tenant_id, instance, message)


async def jti_of(client: httpx.AsyncClient, ada: Person, instance: str, database: Database) -> str:
    assert (await ask(client, ada.headers, instance, code=ada.code())).status_code == 200
    last: str = (await records(database, ada))[-1].after["impersonation_id"]
    return last


async def test_what_was_done_comes_into_the_panels_own_log_once(
    client: httpx.AsyncClient, ada: Person, instance: str, database: Database
) -> None:
    jti = await jti_of(client, ada, instance, database)
    first = (deed(3, "impersonation.begin", subject="ses_x"), deed(5, subject="app_x"))
    assert (await tell(database, ada, instance, *first, jti=jti)).number == 5
    more = (deed(9, "call.refuse", outcome="refused"), deed(11, "impersonation.end", by_guest=False))
    # The answer was lost, so the former ones come again.
    assert (await tell(database, ada, instance, *first, *more, jti=jti)).number == 11
    assert (await tell(database, ada, instance, *first, jti=jti)).number == 5
    rows = await records(database, ada)
    assert [(row.action, row.actor_kind, row.actor_id, row.subject, row.outcome) for row in rows] == [
        ("impersonation.create", "user", ada.user.id, instance, "done"),
        ("impersonation.begin", "user", ada.user.id, instance, "done"),
        ("impersonation.act", "user", ada.user.id, instance, "done"),
        ("impersonation.act", "user", ada.user.id, instance, "refused"),
        ("impersonation.end", "system", None, instance, "done"),
    ]
    acts = [row.after for row in rows][2:4]
    assert [(one["action"], one["subject"], one["number"]) for one in acts] == [
        ("app.stop", "app_x", 5),
        ("call.refuse", None, 9),
    ]


async def test_an_instance_tells_nothing_of_what_was_never_given_to_it(
    client: httpx.AsyncClient, ada: Person, instance: str, database: Database
) -> None:
    jti = await jti_of(client, ada, instance, database)
    assert ada.user.tenant_id is not None
    rogue = await make_instance(database, ada.user.tenant_id)
    assert (await tell(database, ada, rogue, deed(1), jti=jti)).number == 1
    assert (await tell(database, ada, instance, deed(1), jti=f"imp_{uuid.uuid4().hex[:26]}")).number == 1
    assert [row.action for row in await records(database, ada)] == ["impersonation.create"]


async def test_the_log_can_not_be_filled(
    client: httpx.AsyncClient, ada: Person, instance: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noting, "MOST_DEEDS", 5)
    jti = await jti_of(client, ada, instance, database)
    for start in (1, 4, 7):
        await tell(database, ada, instance, *(deed(start + n) for n in range(3)), jti=jti)
    assert len(await records(database, ada)) == 1 + 5


@pytest.mark.parametrize(
    "odd",
    [
        Deeds(impersonation_id="imp_\x00", deeds=[]),
        Deeds(impersonation_id="imp_x", deeds=[deed(1, "app.\x00")]),
        Deeds(impersonation_id="imp_x", deeds=[deed(1, subject="\x00")]),
    ],
)
def test_what_the_log_has_no_place_for_is_no_message(odd: Deeds) -> None:
    """Its line ends as one that can't be understood, and not by a fault of the panel."""
    with pytest.raises(LinkProblem):
        unpack_from_instance(pack(odd))
