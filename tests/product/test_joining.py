"""Joining a panel, leaving it and joining it again over the API and real TLS: who may, what is refused and why, and a
proxy that is the only way out.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text

from quazzar.link.tokens import parse_token
from tests.factories.apps import key_client
from tests.factories.halves import Halves, until
from tests.product.process import free_port

LINK = "/api/panel-link"


@pytest.fixture
async def admin(halves: Halves) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that belongs to no panel."""
    async with halves.app.client(headers=halves.admin) as client:
        await client.delete(LINK)
        yield client


async def new_token(halves: Halves, **other: Any) -> str:
    """With something else in it where given."""
    answer = await halves.http.post("/panel/api/fleet/tokens", json={"name": "x"}, headers=halves.owner)
    token = parse_token(answer.json()["token"])
    return msgspec.structs.replace(token, **other).encode()


async def is_connected(halves: Halves) -> None:
    async def connected() -> bool:
        return bool((await halves.http.get("/api/auth/cp-status")).json()["connected"])

    await until(connected)


async def test_joining_leaving_and_joining_again(halves: Halves, admin: httpx.AsyncClient) -> None:
    none = await admin.get(LINK)
    assert (none.status_code, none.json()["code"]) == (404, "not_linked")
    answer = await admin.post(LINK, json={"token": await new_token(halves)})
    assert (answer.status_code, answer.headers["location"]) == (201, LINK)
    made = answer.json()
    await is_connected(halves)
    shown = (await admin.get(LINK)).json()
    assert shown == made | {"connected": True, "error": None}
    again = await admin.post(LINK, json={"token": await new_token(halves)})
    assert (again.status_code, again.json()["code"]) == (409, "already_linked")
    assert (await admin.delete(LINK)).status_code == 204
    assert (await admin.delete(LINK)).json()["code"] == "not_linked"
    path = f"/panel/api/fleet/instances/{made['instance_id']}"
    left = (await halves.http.get(path, headers=halves.owner)).json()
    assert (left["status"], left["status_reason"]) == ("revoked", "It has left the panel")
    async with halves.app.database.begin() as session:
        query = text(
            "SELECT action FROM audit_records WHERE realm = 'instance' AND actor_kind = 'user'"
            " AND action LIKE 'panel_link.%' AND subject = :id ORDER BY number"
        )
        actions = (await session.execute(query, {"id": made["instance_id"]})).scalars().all()
    assert actions[-2:] == ["panel_link.create", "panel_link.delete"]
    # Its key is known: with a new token it is a member once more.
    back = await admin.post(LINK, json={"token": await new_token(halves)})
    assert back.status_code == 201, back.text
    await is_connected(halves)


async def test_who_may(halves: Halves, admin: httpx.AsyncClient) -> None:
    body = {"token": await new_token(halves)}
    calls: list[tuple[str, Any]] = [("POST", body), ("PATCH", {"impersonation": False}), ("DELETE", None)]
    async with halves.app.client() as anonymous, key_client(halves.app, admin, ["settings:read"]) as reader:
        for method, data in calls:
            assert (await anonymous.request(method, LINK, json=data)).status_code == 401
            assert (await reader.request(method, LINK, json=data)).json()["code"] == "scope_missing"
        assert (await anonymous.get(LINK)).status_code == 401
        assert (await reader.get(LINK)).json()["code"] == "not_linked"
        # Whoever is the owner of its panel is nobody on it.
        assert (await anonymous.post(LINK, json=body, headers=halves.owner)).status_code == 401
    assert (await admin.get(LINK)).status_code == 404


async def test_why_it_can_not_join(halves: Halves, admin: httpx.AsyncClient) -> None:
    for body, fields in (
        ({}, {"token"}),
        ({"token": 1, "panel_url": "x"}, {"token", "panel_url"}),
        ({"token": "qze_x"}, {"token"}),
        ({"token": (await new_token(halves))[:-1] + "!"}, {"token"}),
    ):
        answer = await admin.post(LINK, json=body)
        assert (answer.status_code, answer.json()["details"].keys()) == (422, fields)
    for other, code in (
        ({"port": free_port()}, "panel_unreachable"),
        ({"host": "no host"}, "panel_unreachable"),
        ({"fingerprint": bytes(32)}, "panel_not_trusted"),
        ({"secret": bytes(32)}, "panel_refused"),
    ):
        answer = await admin.post(LINK, json={"token": await new_token(halves, **other)})
        assert (answer.status_code, answer.json()["code"]) == (409, code)
    assert (await admin.get(LINK)).json()["code"] == "not_linked"


class Proxy:
    """Leads to the panel whatever it is asked for, to who has the password."""

    def __init__(self, behind: int) -> None:
        self.asked: list[str] = []
        self._behind = behind

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if "Proxy-Authorization: Basic YWRhOnNlY3JldA==\r\n" not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        self.asked.append(head.partition(" HTTP/")[0])
        inner, outer = await asyncio.open_connection("127.0.0.1", self._behind)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            await asyncio.gather(_copy(reader, outer), _copy(inner, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def test_a_proxy_that_is_the_only_way_out(
    halves: Halves, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joining goes by it as the line does; what lies between sees neither token nor certificate."""
    proxy = Proxy(halves.fleet.port)
    async with proxy.serving() as port:
        for address, code in (
            (f"http://127.0.0.1:{port}", "panel_unreachable"),
            ("socks5://127.0.0.1:1", "panel_unreachable"),
            ("no address", "panel_unreachable"),
        ):
            monkeypatch.setenv("https_proxy", address)
            answer = await admin.post(LINK, json={"token": await new_token(halves, host="panel.invalid")})
            assert (answer.status_code, answer.json()["code"]) == (409, code)
        monkeypatch.setenv("https_proxy", f"http://ada:secret@127.0.0.1:{port}")
        answer = await admin.post(LINK, json={"token": await new_token(halves, host="panel.invalid")})
        assert answer.status_code == 201, answer.text
        await is_connected(halves)
        assert proxy.asked == [f"CONNECT panel.invalid:{halves.fleet.port}"] * 3
        assert (await admin.delete(LINK)).status_code == 204
