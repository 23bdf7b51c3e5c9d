"""Ways back in and proofs of an address on the panel, by mails that a real server takes."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pyotp
import pytest
from sqlalchemy import event, text

from quazzar.core.db import Database, see_all_tenants
from quazzar.panel.accounts.links import LIFE, MOST
from quazzar.settings import Settings
from tests.conftest import PASSWORD, RunningApp, make_settings, running_app
from tests.factories.accounts import MadeUser, bearer, headers_of, log_in, make_colleague, make_member
from tests.mail.server import MailBox, link_in, mail_server

AUTH = "/panel/api/auth"
NEW = "entirely new words"


@pytest.fixture(scope="module")
async def box() -> AsyncIterator[MailBox]:
    box = MailBox()
    async with mail_server(box):
        yield box


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, box: MailBox) -> Settings:
    return make_settings(
        tmp_path_factory.mktemp("data"),
        QUAZZAR_SMTP_HOST="127.0.0.1",
        QUAZZAR_SMTP_PORT=str(box.port),
        QUAZZAR_SMTP_TLS="none",
        QUAZZAR_SERVER_PUBLIC_URL="https://panel.example.com",
    )


async def forget(client: httpx.AsyncClient, email: str) -> httpx.Response:
    answer = await client.post(f"{AUTH}/forgot-password", json={"email": email})
    assert (answer.status_code, answer.content) == (204, b"")
    return answer


async def reset(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(f"{AUTH}/reset-password", json={"password": NEW} | body)


async def token_for(client: httpx.AsyncClient, box: MailBox, user: MadeUser) -> str:
    seen = len(box.of(user.name))
    await forget(client, user.name)
    return token_in(link_in((await box.wait_for(user.name, seen + 1))[-1]))


def token_in(link: str) -> str:
    """What stands after the `#`, which no browser sends to a server."""
    parts = urlsplit(link)
    assert not parts.query
    return parse_qs(parts.fragment)["token"][0]


async def settled(app: RunningApp) -> None:
    """All jobs that were made have ended."""
    async with asyncio.timeout(30):
        while True:
            async with app.database.begin() as session:
                await see_all_tenants(session)
                waiting = await session.execute(text("SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')"))
                if waiting.scalar_one() == 0:
                    return
            await asyncio.sleep(0.05)


async def logged_in(client: httpx.AsyncClient, headers: dict[str, str]) -> bool:
    return (await client.get(f"{AUTH}/me", headers=headers)).status_code == 200


async def actions(database: Database, user: MadeUser) -> list[str]:
    async with database.begin(tenant=user.tenant_id) as session:
        found = await session.execute(
            text("SELECT action FROM audit_records WHERE tenant_id = :id ORDER BY number"), {"id": user.tenant_id}
        )
        return list(found.scalars())


# --- a new password ---


async def test_a_forgotten_password_is_set_anew(
    client: httpx.AsyncClient, box: MailBox, ada: MadeUser, database: Database
) -> None:
    sessions = [await headers_of(client, ada) for _ in range(2)]
    await forget(client, ada.name.upper())
    (mail,) = await box.wait_for(ada.name)
    link = link_in(mail)
    assert link.startswith("https://panel.example.com/panel/reset-password#token=qzw_")
    assert mail.message["Subject"] == "Set a new password"
    done = await reset(client, token=token_in(link))
    assert (done.status_code, done.content) == (204, b"")
    assert [await logged_in(client, headers) for headers in sessions] == [False, False]
    old = await client.post(f"{AUTH}/login", json={"email": ada.name, "password": PASSWORD})
    assert old.status_code == 401
    headers = bearer((await log_in(client, ada, NEW))["access_token"])
    assert (await client.get(f"{AUTH}/me", headers=headers)).json()["user"]["email_verified"] is True
    told = (await box.wait_for(ada.name, 2))[-1]
    assert told.message["Subject"] == "Your password was changed"
    assert "http" not in told.text
    assert "user.reset_password" in await actions(database, ada)


async def test_s19_a_reset_needs_a_token_that_is_good(
    client: httpx.AsyncClient, box: MailBox, ada: MadeUser, database: Database
) -> None:
    other = await make_member(database)
    used, expired, foreign = (
        await token_for(client, box, ada),
        await token_for(client, box, other),
        await token_for(client, box, ada),
    )
    headers = await headers_of(client, ada)
    await client.post(f"{AUTH}/verify-email", json={}, headers=headers)
    verify = token_in(link_in((await box.wait_for(ada.name, 3))[-1]))
    assert (await reset(client, token=used)).status_code == 204
    async with database.begin() as session:
        await session.execute(text("UPDATE mailed_tokens SET expires_at = now() WHERE user_id = :id"), {"id": other.id})
    bodies: list[dict[str, Any]] = [
        {},
        {"token": "x"},
        {"token": "qzw_" + "a" * 43},
        {"token": used},
        {"token": expired},
        {"token": foreign},  # another link of the one that was used: the password has been set, so it is over
        {"token": verify},
        {"token": (await log_in(client, other))["refresh_token"]},
        {"token": used, "password": "password1234"},  # of a password nothing is told without a good token
    ]
    known = {"X-Request-Id": "same"}
    answers = [
        await client.post(f"{AUTH}/reset-password", json={"password": "some other words"} | body, headers=known)
        for body in bodies
    ]
    assert {(answer.status_code, answer.content) for answer in answers} == {(401, answers[0].content)}
    assert answers[0].json()["code"] == "link_not_valid"
    await log_in(client, ada, NEW)
    await log_in(client, other)
    # An instance has no such way.
    for name in ("forgot-password", "reset-password", "verify-email"):
        assert (await client.post(f"/api/auth/{name}", json={})).status_code == 404


async def test_who_registered_with_anothers_address_keeps_no_way_in(
    client: httpx.AsyncClient, box: MailBox, ada: MadeUser
) -> None:
    """Keys outlive a password: those of before anybody proved to read what is sent to the address do not."""
    headers = await headers_of(client, ada)
    second = (await client.post("/panel/api/tenants", json={"name": "Second"}, headers=headers)).json()["id"]
    body = {"name": "for later", "permissions": ["*"]}
    keys = [(await client.post("/panel/api/api-keys", json=body, headers=headers)).json()["key"]]
    switched = await client.post(f"{AUTH}/switch-tenant", json={"tenant_id": second}, headers=headers)
    there = bearer(switched.json()["access_token"])
    keys.append((await client.post("/panel/api/api-keys", json=body, headers=there)).json()["key"])
    assert [await logged_in(client, bearer(key)) for key in keys] == [True, True]
    assert (await reset(client, token=await token_for(client, box, ada))).status_code == 204
    assert [await logged_in(client, bearer(key)) for key in keys] == [False, False]
    # From then on the address is proved, and the keys are its owner's: they stay.
    mine = bearer((await log_in(client, ada, NEW))["access_token"])
    kept = (await client.post("/panel/api/api-keys", json=body, headers=mine)).json()["key"]
    seen = len(box.of(ada.name))
    await forget(client, ada.name)
    async with asyncio.timeout(20):
        while not (links := [mail for mail in box.of(ada.name)[seen:] if "Set a new" in mail.message["Subject"]]):
            await asyncio.sleep(0.05)
    assert (await reset(client, token=token_in(link_in(links[-1])), password="other new words")).status_code == 204
    assert await logged_in(client, bearer(kept))


async def test_registering_in_anothers_name_does_not_keep_them_out(
    keyring: Any, database_urls: Any, tmp_path: Any, ada: MadeUser
) -> None:
    settings = make_settings(tmp_path, QUAZZAR_RATE_LIMIT_AUTH="3/day")
    database = Database(database_urls.app, pool_size=4)
    async with running_app(settings, keyring, database) as app:
        statuses = []
        for number in range(4):
            async with app.client(f"192.0.2.{number}") as client:
                statuses.append((await client.post(f"{AUTH}/register", json=new_person(email=ada.name))).status_code)
        assert statuses == [201, 201, 201, 429]
        async with app.client("198.51.100.7") as client:
            await log_in(client, ada)
    await database.close()


async def test_a_login_that_is_over_is_no_hindrance(client: httpx.AsyncClient, box: MailBox, ada: MadeUser) -> None:
    """Browsers send what they have."""
    token = await token_for(client, box, ada)
    stale = bearer("x")
    asked = await client.post(f"{AUTH}/forgot-password", json={"email": ada.name}, headers=stale)
    done = await client.post(f"{AUTH}/reset-password", json={"token": token, "password": NEW}, headers=stale)
    assert (asked.status_code, done.status_code) == (204, 204)


async def test_of_many_at_once_one_uses_the_link(client: httpx.AsyncClient, box: MailBox, ada: MadeUser) -> None:
    token = await token_for(client, box, ada)
    words = [f"entirely new words {number}" for number in range(8)]
    answers = await asyncio.gather(*(reset(client, token=token, password=each) for each in words))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [204] + [401] * 7
    await log_in(client, ada, words[statuses.index(204)])


async def test_a_bad_password_does_not_use_the_link_up(client: httpx.AsyncClient, box: MailBox, ada: MadeUser) -> None:
    token = await token_for(client, box, ada)
    for password in ("short", "password1234", ada.name, ada.name.partition("@")[0]):
        refused = await reset(client, token=token, password=password)
        assert (refused.status_code, set(refused.json()["details"])) == (422, {"password"})
    assert (await reset(client, token=token, role="owner")).json()["details"].keys() == {"role"}
    assert (await reset(client, token=token)).status_code == 204


async def test_unknown_addresses_get_the_same_answer_and_no_mail(
    app: RunningApp, client: httpx.AsyncClient, box: MailBox, ada: MadeUser
) -> None:
    known = {"X-Request-Id": "same"}
    stranger = f"{uuid.uuid4().hex}@example.com"
    statements: dict[str, list[str]] = {}
    answers = []
    for email in (stranger, ada.name):
        with statements_of(app.database) as seen:
            answers.append(await client.post(f"{AUTH}/forgot-password", json={"email": email}, headers=known))
        statements[email] = seen
    first, second = answers
    assert (first.status_code, first.content) == (second.status_code, second.content) == (204, b"")
    assert plain(first) == plain(second)
    # What the answer waits for is the same work; what differs is done by a job.
    assert statements[stranger] == statements[ada.name]
    await box.wait_for(ada.name)
    await settled(app)
    assert box.of(stranger) == []


async def test_nobody_fills_anothers_mailbox(
    app: RunningApp, client: httpx.AsyncClient, box: MailBox, ada: MadeUser, database: Database
) -> None:
    for _ in range(MOST + 3):
        await forget(client, ada.name)
        await settled(app)
    mails = await box.wait_for(ada.name, MOST)
    assert len(mails) == MOST
    # The first link is as good as the last: whoever asks again takes nothing from its owner.
    assert (await reset(client, token=token_in(link_in(mails[0])))).status_code == 204
    assert (await reset(client, token=token_in(link_in(mails[1])))).status_code == 401


async def test_the_second_factor_stays(client: httpx.AsyncClient, box: MailBox, ada: MadeUser) -> None:
    headers = await headers_of(client, ada)
    made = await client.post(f"{AUTH}/totp/enable", json={"password": PASSWORD}, headers=headers)
    totp = pyotp.TOTP(made.json()["secret"])
    await client.post(f"{AUTH}/totp/verify", json={"code": totp.now()}, headers=headers)
    half = (await log_in(client, ada))["temp_token"]
    assert (await reset(client, token=await token_for(client, box, ada))).status_code == 204
    # A login that was half done with the old password is over.
    late = await client.post(f"{AUTH}/totp/verify", json={"temp_token": half, "code": totp.now()})
    assert late.status_code == 401
    assert (await log_in(client, ada, NEW)).keys() == {"temp_token", "totp_required"}


async def test_only_its_hash_is_kept(client: httpx.AsyncClient, box: MailBox, ada: MadeUser, app: RunningApp) -> None:
    token = await token_for(client, box, ada)
    await settled(app)
    async with app.database.begin() as session:
        await see_all_tenants(session)
        for table in ("mailed_tokens", "jobs", "job_logs", "audit_records", "events", "pgqueuer"):
            rows = (await session.execute(text(f"SELECT {table}::text FROM {table}"))).scalars().all()
            assert not [row for row in rows if token in row], table
        life = await session.execute(
            text("SELECT expires_at - now() FROM mailed_tokens WHERE user_id = :id"), {"id": ada.id}
        )
        assert life.scalar_one() <= LIFE
    headers = await headers_of(client, ada)
    shown = await client.get("/panel/api/jobs?limit=200", headers=headers)
    assert (shown.status_code, shown.json()) == (200, [])


async def test_what_is_over_is_tidied_away(app: RunningApp, client: httpx.AsyncClient, ada: MadeUser) -> None:
    await forget(client, ada.name)
    await settled(app)
    async with app.database.begin() as session:
        await session.execute(text("UPDATE mailed_tokens SET expires_at = now()"))
    accounts = app.asgi.app.state.accounts
    await accounts.tidy()
    async with app.database.begin() as session:
        assert (await session.execute(text("SELECT count(*) FROM mailed_tokens"))).scalar_one() == 0


# --- registration ---


def new_person(**changes: Any) -> dict[str, Any]:
    return {
        "email": f"{uuid.uuid4().hex}@example.com",
        "password": PASSWORD,
        "name": "Ada Lovelace",
        "organization": "Engines",
    } | changes


async def test_an_address_is_confirmed_after_registration(
    client: httpx.AsyncClient, box: MailBox, database: Database
) -> None:
    body = new_person()
    made = (await client.post(f"{AUTH}/register", json=body)).json()
    assert made["user"]["email_verified"] is False
    (mail,) = await box.wait_for(body["email"])
    link = link_in(mail)
    assert link.startswith("https://panel.example.com/panel/verify-email#token=qzv_")
    login = await client.post(f"{AUTH}/login", json={"email": body["email"], "password": PASSWORD})
    headers = bearer(login.json()["access_token"])
    assert (await client.get(f"{AUTH}/me", headers=headers)).json()["user"]["email_verified"] is False
    done = await client.post(f"{AUTH}/verify-email", json={"token": token_in(link)})
    assert (done.status_code, done.content) == (204, b"")
    assert (await client.get(f"{AUTH}/me", headers=headers)).json()["user"]["email_verified"] is True
    user = MadeUser(made["user"]["id"], body["email"], made["tenant"]["id"])
    assert (await actions(database, user))[-1] == "user.verify_email"
    again = await client.post(f"{AUTH}/verify-email", json={"token": token_in(link)})
    assert (again.status_code, again.json()["code"]) == (401, "link_not_valid")


async def test_another_link_to_confirm(app: RunningApp, client: httpx.AsyncClient, box: MailBox, ada: MadeUser) -> None:
    headers = await headers_of(client, ada)
    for nobody in ({}, bearer("x")):
        answer = await client.post(f"{AUTH}/verify-email", json={}, headers=nobody)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert (await client.post(f"{AUTH}/verify-email", json={}, headers=headers)).status_code == 204
    assert (await client.post(f"{AUTH}/verify-email", headers=headers)).status_code == 204
    mails = await box.wait_for(ada.name, 2)
    reset_token = await token_for(client, box, ada)
    wrong = await client.post(f"{AUTH}/verify-email", json={"token": reset_token})
    assert wrong.status_code == 401
    done = await client.post(f"{AUTH}/verify-email", json={"token": token_in(link_in(mails[0]))})
    assert done.status_code == 204
    seen = len(box.of(ada.name))
    assert (await client.post(f"{AUTH}/verify-email", json={}, headers=headers)).status_code == 204
    await settled(app)
    assert len(box.of(ada.name)) == seen


async def test_registering_an_address_in_use_is_told_to_its_owner_alone(
    app: RunningApp, client: httpx.AsyncClient, box: MailBox, ada: MadeUser
) -> None:
    fresh_body = new_person()
    known = {"X-Request-Id": "same"}
    with statements_of(app.database) as fresh_statements:
        fresh = await client.post(f"{AUTH}/register", json=fresh_body, headers=known)
    with statements_of(app.database) as used_statements:
        used = await client.post(f"{AUTH}/register", json=new_person(email=ada.name), headers=known)
    assert fresh.status_code == used.status_code == 201
    assert plain(fresh).keys() == plain(used).keys()
    assert len(fresh.content) == len(used.content) + len(fresh_body["email"]) - len(ada.name)
    # The same statements in the same order, so that time tells nothing either; only how they end differs.
    assert [ended(one) for one in fresh_statements] == [ended(one) for one in used_statements]
    (mail,) = await box.wait_for(ada.name)
    assert "which has an account already" in " ".join(mail.text.split())
    link = link_in(mail)
    assert "/reset-password#token=qzw_" in link
    await log_in(client, ada)
    assert (await reset(client, token=token_in(link))).status_code == 204
    (welcome,) = await box.wait_for(fresh_body["email"])
    assert "/verify-email#" in link_in(welcome)


# --- invitations ---


async def test_s08_an_invitation_is_mailed_and_shown_to_nobody(
    client: httpx.AsyncClient, box: MailBox, ada: MadeUser, database: Database, app: RunningApp
) -> None:
    owner = await headers_of(client, ada)
    await client.patch(f"/panel/api/tenants/{ada.tenant_id}", json={"name": "Ada\u202e {link}"}, headers=owner)
    email = f"{uuid.uuid4().hex}@example.com"
    answer = await client.post("/panel/api/members", json={"email": email, "role": "viewer"}, headers=owner)
    assert answer.status_code == 201
    assert answer.json()["invitation"] is None
    (mail,) = await box.wait_for(email)
    token = token_in(link_in(mail))
    assert token not in answer.text
    assert mail.message["Subject"] == "You are invited to Ada  {link}"
    await settled(app)
    admin = await headers_of(client, await make_colleague(database, ada.tenant_id or "", "admin"))
    for path in ("members", "jobs", "events", "audit", "jobs?kind=mail.send&limit=200"):
        shown = await client.get(f"/panel/api/{path}", headers=admin)
        assert shown.status_code == 200
        assert token not in shown.text
        assert link_in(mail) not in shown.text
    joined = await client.post(
        "/panel/api/invitations/accept", json={"token": token, "name": "Grace", "password": PASSWORD}
    )
    assert (joined.status_code, joined.json()["role"]) == (200, "viewer")


async def test_an_invitation_that_is_not_made_is_not_mailed(
    app: RunningApp, client: httpx.AsyncClient, box: MailBox, ada: MadeUser
) -> None:
    owner = await headers_of(client, ada)
    email = f"{uuid.uuid4().hex}@example.com"
    refused = await client.post("/panel/api/members", json={"email": email, "role": "sorcerer"}, headers=owner)
    assert refused.status_code == 422
    await settled(app)
    assert box.of(email) == []


async def test_asking_is_limited(keyring: Any, database_urls: Any, tmp_path: Any, box: MailBox) -> None:
    """By the address that asks, and by the one that is asked for."""
    settings = make_settings(tmp_path, QUAZZAR_RATE_LIMIT_AUTH="3/day", QUAZZAR_SMTP_HOST="127.0.0.1")
    database = Database(database_urls.app, pool_size=4)
    async with running_app(settings, keyring, database) as app:
        bodies: dict[str, dict[str, str]] = {
            "forgot-password": {"email": "a@example.com"},
            "reset-password": {"password": NEW},
            "verify-email": {},
        }
        for number, (name, body) in enumerate(bodies.items()):
            async with app.client(f"192.0.2.{number}") as client:
                statuses = [(await client.post(f"{AUTH}/{name}", json=body)).status_code for _ in range(4)]
            assert statuses[3] == 429, name
            assert 429 not in statuses[:3], name
        statuses = []
        for number in range(4):
            async with app.client(f"198.51.100.{number}") as client:
                answer = await client.post(f"{AUTH}/forgot-password", json={"email": "B@example.com"})
                statuses.append(answer.status_code)
        assert statuses == [204, 204, 204, 429]
    await database.close()


def ended(statement: str) -> str:
    """A savepoint is released or rolled back to."""
    return statement.replace("ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT")


def plain(answer: httpx.Response) -> dict[str, str]:
    """The headers but for the counts of the rate limit, and what depends on the body's own text."""
    own = ("x-ratelimit-remaining", "x-ratelimit-reset", "content-length")
    return {name: value for name, value in answer.headers.items() if name not in own}


class statements_of:  # noqa: N801 - reads as a question
    """The statements of the block, as their texts without values, but for what jobs do in the background."""

    def __init__(self, database: Database) -> None:
        self._engine = database.engine.sync_engine
        self._seen: list[str] = []
        self._task = asyncio.current_task()

    def _note(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if asyncio.current_task() is self._task:
            self._seen.append(statement)

    def __enter__(self) -> list[str]:
        event.listen(self._engine, "before_cursor_execute", self._note)
        return self._seen

    def __exit__(self, *_: Any) -> None:
        event.remove(self._engine, "before_cursor_execute", self._note)
