"""`Idempotency-Key` on a real endpoint: the first answer again, sealed, and never a second change."""

import asyncio
import uuid
from typing import Any

import httpx
from sqlalchemy import text

from tests.conftest import PASSWORD, RunningApp


def body(name: str) -> dict[str, Any]:
    return {"name": name, "scopes": ["apps:read"]}


async def test_the_first_answer_comes_again_byte_for_byte(admin: httpx.AsyncClient, app: RunningApp) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = await admin.post("/api/auth/api-keys", json=body("a"), headers=headers)
    again = await admin.post("/api/auth/api-keys", json=body("a"), headers=headers)
    assert first.status_code == again.status_code == 201
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.headers.get("location") == first.headers.get("location")
    assert again.headers["content-type"] == first.headers["content-type"]
    keys = (await admin.get("/api/auth/api-keys")).json()
    assert [key["name"] for key in keys].count("a") == 1
    # It holds a secret, so it is kept sealed.
    async with app.database.begin() as session:
        kept = (await session.execute(text("SELECT answer FROM idempotent_answers"))).scalars().all()
    assert kept
    assert all(first.json()["key"].encode() not in answer for answer in kept)


async def test_another_body_is_refused(admin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    assert (await admin.post("/api/auth/api-keys", json=body("b"), headers=headers)).status_code == 201
    answer = await admin.post("/api/auth/api-keys", json=body("c"), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


async def test_twenty_at_once_make_one_thing(admin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    answers = await asyncio.gather(
        *(admin.post("/api/auth/api-keys", json=body("d"), headers=headers) for _ in range(20))
    )
    made = [answer for answer in answers if answer.status_code == 201]
    assert made
    assert len({answer.content for answer in made}) == 1
    for answer in answers:
        if answer.status_code != 201:
            assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_progress")
    keys = (await admin.get("/api/auth/api-keys")).json()
    assert [key["name"] for key in keys].count("d") == 1


async def test_an_error_is_not_kept(admin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    assert (await admin.post("/api/auth/api-keys", json={"name": "e"}, headers=headers)).status_code == 422
    assert (await admin.post("/api/auth/api-keys", json=body("e"), headers=headers)).status_code == 201


async def test_keys_of_two_callers_do_not_meet(admin: httpx.AsyncClient, app: RunningApp) -> None:
    made = await admin.post("/api/auth/api-keys", json={"name": "f", "scopes": ["*"]})
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    compose = {"template": "hello", "name": "twice"}
    first = await admin.post("/api/apps", json=compose, headers=headers)
    async with app.client(headers={"Authorization": f"Bearer {made.json()['key']}"}) as other:
        second = await other.post("/api/apps", json=compose, headers=headers)
    assert first.status_code == 201
    assert (second.status_code, second.json()["code"]) == (409, "app_name_taken")


async def test_a_key_that_can_not_be_one(admin: httpx.AsyncClient) -> None:
    for key in ("", "a b", "x" * 201):
        answer = await admin.post("/api/auth/api-keys", json=body("g"), headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), key
    assert PASSWORD not in answer.text


async def test_answers_are_forgotten_after_a_day(admin: httpx.AsyncClient, app: RunningApp) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = await admin.post("/api/auth/api-keys", json=body("h"), headers=headers)
    async with app.database.begin() as session:
        await session.execute(text("UPDATE idempotent_answers SET created_at = now() - interval '25 hours'"))
    again = await admin.post("/api/auth/api-keys", json=body("h"), headers=headers)
    assert again.status_code == 201
    assert again.json()["id"] != first.json()["id"]
