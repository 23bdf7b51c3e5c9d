"""The second factor: enabling, logging in with it, and every way to get around it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pyotp
import pytest
import time_machine
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from quazzar.accounts import totp
from quazzar.accounts.service import reseal
from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.db import Database
from quazzar.core.tokens import INSTANCE_STEP, PANEL_STEP, Tokens
from tests.conftest import PASSWORD, RunningApp
from tests.factories.accounts import MadeUser, bearer, headers_of, log_in, make_key, make_user


@pytest.fixture(autouse=True)
async def no_guesses(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("DELETE FROM login_attempts"))


@pytest.fixture
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


class Person:
    """A user with the second factor on."""

    def __init__(self, user: MadeUser, headers: dict[str, str], secret: str, codes: list[str]) -> None:
        self.user = user
        self.headers = headers
        self.secret = secret
        self.codes = codes

    def code(self, steps: int = 0) -> str:
        return pyotp.TOTP(self.secret).at(int(time.time()) + 30 * steps)


@pytest.fixture
async def user(database: Database) -> MadeUser:
    return await make_user(database)


@pytest.fixture
async def person(client: httpx.AsyncClient, user: MadeUser, database: Database) -> Person:
    headers = await headers_of(client, user)
    made = await client.post("/api/auth/totp/enable", json={"password": PASSWORD}, headers=headers)
    secret = made.json()["secret"]
    answer = await verify(client, {"code": pyotp.TOTP(secret).now()}, headers)
    assert answer.status_code == 200, answer.text
    await forget_step(database, user)
    return Person(user, headers, secret, answer.json()["recovery_codes"])


async def forget_step(database: Database, user: MadeUser) -> None:
    """As if some minutes had passed since the last code."""
    async with database.begin() as session:
        await session.execute(text("UPDATE users SET totp_last_step = NULL WHERE id = :id"), {"id": user.id})


async def verify(client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    return await client.post("/api/auth/totp/verify", json=body, headers=headers or {})


async def first_step(client: httpx.AsyncClient, user: MadeUser) -> str:
    body = await log_in(client, user)
    assert body.keys() == {"totp_required", "temp_token"}
    assert body["totp_required"] is True
    token: str = body["temp_token"]
    return token


# --- enabling ---


async def test_enabling(client: httpx.AsyncClient, user: MadeUser, database: Database) -> None:
    other, headers = await headers_of(client, user), await headers_of(client, user)
    answer = await client.post("/api/auth/totp/enable", json={"password": PASSWORD}, headers=headers)
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"secret", "otpauth_url", "qr_svg"}
    assert len(body["secret"]) == 32
    assert body["otpauth_url"].startswith(f"otpauth://totp/Quazzar:{user.name}?secret={body['secret']}")
    assert body["qr_svg"].startswith("<svg")
    assert "script" not in body["qr_svg"]
    # Off until verified.
    assert (await log_in(client, user)).keys() > {"access_token"}
    assert (await client.get("/api/auth/me", headers=headers)).json()["totp_enabled"] is False
    confirmed = await verify(client, {"code": pyotp.TOTP(body["secret"]).now()}, headers)
    assert confirmed.status_code == 200
    assert confirmed.json()["totp_enabled"] is True
    codes = confirmed.json()["recovery_codes"]
    assert len(set(codes)) == 10
    assert (await client.get("/api/auth/me", headers=headers)).json()["totp_enabled"] is True
    assert (await client.get("/api/auth/me", headers=other)).status_code == 401
    # Neither the secret nor a code lies in the database as it is.
    async with database.begin() as session:
        dump = "SELECT CAST(u AS text) FROM users u WHERE id = :id"
        row = (await session.execute(text(dump), {"id": user.id})).scalar_one()
        hashes = (await session.execute(text("SELECT encode(code_hash, 'escape') FROM recovery_codes"))).scalars().all()
    assert body["secret"] not in row
    assert body["secret"].encode().hex() not in row
    assert not {code.replace("-", "") for code in codes} & set(hashes)


async def test_enabling_needs_the_password(client: httpx.AsyncClient, user: MadeUser) -> None:
    headers = await headers_of(client, user)
    for body, status in (({"password": "wrong"}, 403), ({}, 422), ({"password": ""}, 422)):
        answer = await client.post("/api/auth/totp/enable", json=body, headers=headers)
        assert answer.status_code == status


async def test_confirming_needs_a_right_code(client: httpx.AsyncClient, user: MadeUser) -> None:
    headers = await headers_of(client, user)
    answer = await verify(client, {"code": "123456"}, headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "totp_not_pending")
    secret = (await client.post("/api/auth/totp/enable", json={"password": PASSWORD}, headers=headers)).json()["secret"]
    right = pyotp.TOTP(secret).now()
    wrong = f"{(int(right) + 1) % 10**6:06}"
    answer = await verify(client, {"code": wrong}, headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "totp_code_wrong")
    assert (await log_in(client, user)).keys() > {"access_token"}
    # A second start replaces the secret that was not confirmed.
    other = (await client.post("/api/auth/totp/enable", json={"password": PASSWORD}, headers=headers)).json()["secret"]
    assert other != secret
    assert (await verify(client, {"code": pyotp.TOTP(secret).now()}, headers)).status_code == 403
    assert (await verify(client, {"code": pyotp.TOTP(other).now()}, headers)).status_code == 200


async def test_it_is_not_replaced_while_it_is_on(client: httpx.AsyncClient, person: Person) -> None:
    answer = await client.post("/api/auth/totp/enable", json={"password": PASSWORD}, headers=person.headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "totp_already_enabled")
    again = await verify(client, {"code": person.code()}, person.headers)
    assert (again.status_code, again.json()["code"]) == (409, "totp_already_enabled")


async def test_keys_have_no_second_factor(client: httpx.AsyncClient, user: MadeUser) -> None:
    key = bearer((await make_key(client, await headers_of(client, user)))["key"])
    for path, body in (
        ("enable", {"password": PASSWORD}),
        ("disable", {"password": PASSWORD, "code": "123456"}),
        ("verify", {"code": "123456"}),
    ):
        answer = await client.post(f"/api/auth/totp/{path}", json=body, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (403, "session_required")


# --- logging in ---


async def test_the_second_step(client: httpx.AsyncClient, person: Person) -> None:
    token = await first_step(client, person.user)
    assert (await client.get("/api/auth/me", headers=bearer(token))).status_code == 401
    answer = await verify(client, {"temp_token": token, "code": person.code()})
    assert answer.status_code == 200
    assert answer.json().keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (await client.get("/api/auth/me", headers=bearer(answer.json()["access_token"]))).status_code == 200


@pytest.mark.parametrize("steps", [-1, 0, 1])
async def test_codes_of_the_neighbouring_steps_count(client: httpx.AsyncClient, person: Person, steps: int) -> None:
    # In the middle of a step, which does not end then before the code is judged.
    with time_machine.travel(time.time() // 30 * 30 + 10, tick=True):
        token = await first_step(client, person.user)
        assert (await verify(client, {"temp_token": token, "code": person.code(steps)})).status_code == 200


@pytest.mark.parametrize("steps", [-3, 3, -100, 100])
async def test_codes_further_away_do_not(client: httpx.AsyncClient, person: Person, steps: int) -> None:
    token = await first_step(client, person.user)
    assert (await verify(client, {"temp_token": token, "code": person.code(steps)})).status_code == 401


async def test_s20_a_code_works_once(client: httpx.AsyncClient, person: Person) -> None:
    code = person.code()
    first, second = await first_step(client, person.user), await first_step(client, person.user)
    assert (await verify(client, {"temp_token": first, "code": code})).status_code == 200
    again = await verify(client, {"temp_token": second, "code": code})
    assert (again.status_code, again.json()["code"]) == (401, "unauthorized")
    # Nor does one of an earlier step, nor the temporary token a second time.
    assert (await verify(client, {"temp_token": second, "code": person.code(-1)})).status_code == 401
    assert (await verify(client, {"temp_token": first, "code": person.codes[0]})).status_code == 401
    assert (await verify(client, {"temp_token": second, "code": person.codes[0]})).status_code == 200


async def test_s20_of_parallel_uses_of_one_code_one_wins(client: httpx.AsyncClient, person: Person) -> None:
    tokens = [await first_step(client, person.user) for _ in range(5)]
    code = person.code()
    answers = await asyncio.gather(*(verify(client, {"temp_token": token, "code": code}) for token in tokens))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401, 401]


async def test_s20_of_parallel_uses_of_one_temporary_token_one_wins(client: httpx.AsyncClient, person: Person) -> None:
    token = await first_step(client, person.user)
    codes = [person.code(), *person.codes[:3]]
    answers = await asyncio.gather(*(verify(client, {"temp_token": token, "code": code}) for code in codes))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]
    # The recovery codes of those that lost are still good.
    left = 0
    for code in person.codes[:3]:
        token = await first_step(client, person.user)
        left += (await verify(client, {"temp_token": token, "code": code})).status_code == 200
    assert left >= 2


async def test_s20_after_five_wrong_codes_the_temporary_token_is_dead(
    client: httpx.AsyncClient, person: Person
) -> None:
    token = await first_step(client, person.user)
    for _ in range(5):
        assert (await verify(client, {"temp_token": token, "code": person.code(50)})).status_code == 401
    answer = await verify(client, {"temp_token": token, "code": person.code()})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_s20_of_many_guesses_from_everywhere_ten_are_judged(app: RunningApp, person: Person) -> None:
    async with app.client() as client:
        tokens = [await first_step(client, person.user) for _ in range(40)]
    judged: list[str] = []
    original = totp.accepted_step

    def judge(*args: Any, **options: Any) -> int | None:
        judged.append(args[1])
        return original(*args, **options)

    async def guess(number: int) -> int:
        async with app.client(f"198.51.{number % 100}.{number % 250}") as client:
            token = tokens[number % len(tokens)]
            answer = await verify(client, {"temp_token": token, "code": person.code(40 + number)})
            return int(answer.status_code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(totp, "accepted_step", judge)
        statuses = await asyncio.gather(*(guess(number) for number in range(150)))
    assert len(judged) == 10
    assert set(statuses) == {401, 429}
    # The owner's live session goes on; codes are judged again when the window is over.
    async with app.client() as client:
        assert (await client.get("/api/auth/me", headers=person.headers)).status_code == 200
        token = await first_step(client, person.user)
        refused = await verify(client, {"temp_token": token, "code": person.code()})
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 900
        async with app.database.begin() as session:
            await session.execute(text("UPDATE login_attempts SET started_at = started_at - interval '15 minutes'"))
        token = await first_step(client, person.user)
        assert (await verify(client, {"temp_token": token, "code": person.code()})).status_code == 200


async def test_recovery_codes_work_once_in_any_spelling(client: httpx.AsyncClient, person: Person) -> None:
    for code in (person.codes[0], person.codes[1].upper(), person.codes[2].replace("-", "")):
        token = await first_step(client, person.user)
        assert (await verify(client, {"temp_token": token, "code": code})).status_code == 200
        token = await first_step(client, person.user)
        assert (await verify(client, {"temp_token": token, "code": code})).status_code == 401


async def test_recovery_codes_are_of_one_user(client: httpx.AsyncClient, person: Person, database: Database) -> None:
    stranger = await make_user(database)
    headers = await headers_of(client, stranger)
    made = await client.post("/api/auth/totp/enable", json={"password": PASSWORD}, headers=headers)
    await verify(client, {"code": pyotp.TOTP(made.json()["secret"]).now()}, headers)
    token = await first_step(client, stranger)
    assert (await verify(client, {"temp_token": token, "code": person.codes[0]})).status_code == 401


@pytest.mark.parametrize(
    "code", ["12345\u0666", "१२३४५६", " 123456", "123456 ", "0x1234", "1e5000", "a" * 16, "-12345"]
)
async def test_codes_that_are_none(client: httpx.AsyncClient, person: Person, code: str) -> None:
    token = await first_step(client, person.user)
    assert (await verify(client, {"temp_token": token, "code": code})).status_code == 401


@pytest.mark.parametrize(
    "body", [{}, {"code": 123456}, {"code": "12345"}, {"code": "1" * 33}, {"code": "123456", "x": 1}]
)
async def test_bodies_that_do_not_validate(client: httpx.AsyncClient, person: Person, body: dict[str, Any]) -> None:
    token = await first_step(client, person.user)
    assert (await verify(client, {"temp_token": token} | body)).status_code == 422


async def test_s17_temporary_tokens_that_are_none(client: httpx.AsyncClient, person: Person, keyring: Keyring) -> None:
    tokens = Tokens(keyring)
    good = await first_step(client, person.user)
    sid = tokens.verify(INSTANCE_STEP, good.encode()).sid
    bad = [
        "x",
        person.headers["Authorization"].partition(" ")[2],
        tokens.sign(PANEL_STEP, subject=person.user.id, session_id=sid, seconds=60),
        tokens.sign(INSTANCE_STEP, subject="usr_x", session_id=sid, seconds=60),
        tokens.sign(INSTANCE_STEP, subject=person.user.id, session_id="pwd_x", seconds=60),
        tokens.sign(INSTANCE_STEP, subject=person.user.id, session_id=sid, seconds=-60),
    ]
    for token in bad:
        assert (await verify(client, {"temp_token": token, "code": person.code()})).status_code == 401
    expired = await verify(client, {"temp_token": bad[-1], "code": person.code()})
    assert expired.json()["code"] == "token_expired"
    assert (await verify(client, {"temp_token": good, "code": person.code()})).status_code == 200


async def test_changing_the_password_ends_half_done_logins(client: httpx.AsyncClient, person: Person) -> None:
    token = await first_step(client, person.user)
    body = {"current_password": PASSWORD, "new_password": "entirely new words"}
    assert (await client.post("/api/auth/change-password", json=body, headers=person.headers)).status_code == 204
    assert (await verify(client, {"temp_token": token, "code": person.code()})).status_code == 401


# --- disabling ---


async def test_disabling_needs_password_and_code(client: httpx.AsyncClient, person: Person) -> None:
    async def disable(**body: str) -> httpx.Response:
        return await client.post("/api/auth/totp/disable", json=body, headers=person.headers)

    wrong = await disable(password="wrong", code=person.code())
    assert (wrong.status_code, wrong.json()["code"]) == (403, "password_wrong")
    wrong = await disable(password=PASSWORD, code=person.code(30))
    assert (wrong.status_code, wrong.json()["code"]) == (403, "totp_code_wrong")
    assert (await disable(password=PASSWORD)).status_code == 422
    assert (await client.get("/api/auth/me", headers=person.headers)).json()["totp_enabled"] is True
    done = await disable(password=PASSWORD, code=person.code())
    assert (done.status_code, done.content) == (204, b"")
    assert (await client.get("/api/auth/me", headers=person.headers)).json()["totp_enabled"] is False
    assert (await log_in(client, person.user)).keys() > {"access_token"}
    again = await disable(password=PASSWORD, code=person.codes[0])
    assert (again.status_code, again.json()["code"]) == (409, "totp_not_enabled")


# --- secrets at rest ---


async def test_a_sealed_secret_belongs_to_its_user(
    client: httpx.AsyncClient, person: Person, database: Database
) -> None:
    thief = await make_user(database)
    async with database.begin() as session:
        await session.execute(
            text(
                "UPDATE users SET totp_secret = (SELECT totp_secret FROM users WHERE id = :victim),"
                " totp_enabled_at = now() WHERE id = :thief"
            ),
            {"victim": person.user.id, "thief": thief.id},
        )
    token = await first_step(client, thief)
    answer = await verify(client, {"temp_token": token, "code": person.code()})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"


async def test_reseal_moves_every_secret_to_the_current_key(
    client: httpx.AsyncClient, person: Person, database: Database, keyring: Keyring
) -> None:
    sealed = text("SELECT totp_secret FROM users WHERE id = :id")
    await drop_foreign(database, keyring)
    rotated = keyring.rotated()
    async with database.begin() as session:
        assert await reseal(session, rotated) >= 1
        value = (await session.execute(sealed, {"id": person.user.id})).scalar_one()
    only_new = Keyring({rotated.current: rotated._keys[rotated.current]})
    context = f"users.totp_secret:{person.user.id}"
    assert only_new.open(value, context=context).decode() == person.secret
    with pytest.raises(SealBroken):
        keyring.open(value, context=context)
    async with database.begin() as session:
        with pytest.raises(SealBroken):
            await reseal(session, keyring)
        await reseal(session, Keyring({key_id: rotated._keys[key_id] for key_id in reversed(rotated.key_ids)}))


async def drop_foreign(database: Database, keyring: Keyring) -> None:
    """Take out what other tests sealed for somebody else on purpose."""
    async with database.begin() as session:
        rows = (await session.execute(text("SELECT id, totp_secret FROM users WHERE totp_secret IS NOT NULL"))).all()
        for row in rows:
            try:
                keyring.open(row.totp_secret, context=f"users.totp_secret:{row.id}")
            except SealBroken:
                await session.execute(text("DELETE FROM users WHERE id = :id"), {"id": row.id})


# --- the arithmetic ---


def test_the_vectors_of_rfc_6238() -> None:
    # Appendix B, SHA-1, the last six of its eight digits.
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    for now, code in ((59, "287082"), (1111111109, "081804"), (1234567890, "005924"), (20000000000, "353130")):
        assert totp.accepted_step(secret, code, now, after=None) == now // 30


@given(st.text(max_size=20))
def test_any_text_is_refused_unless_it_is_the_code(code: str) -> None:
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    now = 1_700_000_000
    near = {pyotp.TOTP(secret).at(now + 30 * offset) for offset in (-1, 0, 1)}
    assert (totp.accepted_step(secret, code, now, after=None) is not None) == (code in near)


@given(st.integers(1, 2**40), st.integers(-3, 3))
def test_a_step_is_never_accepted_twice_or_backwards(now: int, offset: int) -> None:
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    now = max(now, 300)
    code = pyotp.HOTP(secret).at(now // 30 + offset)
    step = totp.accepted_step(secret, code, now, after=None)
    if step is not None:
        after = totp.accepted_step(secret, code, now, after=step)
        assert after is None or after > step


def test_recovery_codes_have_eighty_bits_and_are_bound_to_the_user() -> None:
    codes = totp.new_recovery_codes()
    assert all(len(code.replace("-", "")) == 16 for code in codes)
    assert totp.recovery_digest("usr_a", codes[0]) != totp.recovery_digest("usr_b", codes[0])
    assert totp.recovery_digest("usr_a", "123456") is None
