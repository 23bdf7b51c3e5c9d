"""The feed: who sees what, paging, and streams that miss nothing whoever writes, comes, goes or dawdles."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text

from quazzar.core import sse
from quazzar.core.auth import Realm
from quazzar.core.db import Database
from quazzar.core.records import Caller, Event, publish
from quazzar.core.sse import encoded, streams_of
from quazzar.events import feed as feed_module
from quazzar.events.feed import Feed
from quazzar.events.schemas import Wanted
from quazzar.events.service import follow, prune_events
from quazzar.events.store import Scope
from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, make_user
from tests.factories.apps import key_client

MINE = "app_" + "a" * 26


class Rang(Event):
    type = "bell.rang"
    number: int


async def ring(
    database: Database, number: int = 0, *, realm: Realm = "instance", tenant: str | None = None, subject: str = "app_1"
) -> str:
    async with database.begin(tenant=tenant) as session:
        session.info["caller"] = Caller(kind="system", realm=realm, tenant_id=tenant)
        return publish(session, Rang(number=number), subject=subject)


class Stream:
    """An open stream over ASGI, read event by event: httpx's own transport gathers an answer whole."""

    def __init__(self, app: RunningApp, path: str, headers: dict[str, str]) -> None:
        self._app = app
        self._path, _, self._query = path.partition("?")
        self._headers = headers
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._asked = False
        self.status = 0

    async def __aenter__(self) -> "Stream":
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": self._query.encode(),
            "headers": [(b"host", b"localhost")]
            + [(name.lower().encode(), value.encode()) for name, value in self._headers.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("localhost", 80),
        }
        self._task = asyncio.create_task(self._app.asgi(scope, self._receive, self._send))
        async with asyncio.timeout(10):
            await self._opened.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._gone.set()
        assert self._task is not None
        async with asyncio.timeout(10):
            await asyncio.gather(self._task, return_exceptions=True)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self._opened.set()
            self._chunks.put_nowait(message.get("body", b""))
            if not message.get("more_body"):
                self._chunks.put_nowait(None)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Until the stream ends."""
        while (chunk := await self._chunks.get()) is not None:
            for block in chunk.decode().split("\n\n"):
                fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
                if fields:
                    event = msgspec.json.decode(fields["data"])
                    assert event["id"] == fields["id"]
                    yield event

    async def take(self, count: int, seconds: float = 15) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(seconds):
            async for event in self.events():
                found.append(event)
                if len(found) == count:
                    break
        return found

    async def ended(self, seconds: float = 10) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for _ in self.events():
                    pass
                return True
        return False


def stream(app: RunningApp, client: httpx.AsyncClient, path: str, **headers: str) -> Stream:
    return Stream(app, path, {"Authorization": client.headers["Authorization"]} | headers)


async def ids(client: httpx.AsyncClient, path: str) -> list[str]:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return [each["id"] for each in answer.json()]


async def test_an_event_is_shown(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await ring(app.database, 7)
    shown = (await admin.get("/api/events?limit=1")).json()[0]
    assert shown.pop("created_at").endswith("Z")
    assert shown == {"id": made, "type": "bell.rang", "subject": "app_1", "data": {"number": 7}}


async def test_newest_first_filtered_and_paged(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = [await ring(app.database, number, subject=f"app_p{number % 2}") for number in range(5)]
    made.reverse()
    assert await ids(admin, "/api/events?type=bell.rang&limit=5") == made
    assert await ids(admin, "/api/events?type=bell.*,app.installed&limit=5") == made
    assert await ids(admin, "/api/events?subject=app_p1") == made[1::2]
    assert await ids(admin, "/api/events?type=bell.rung") == []
    first = (await admin.get("/api/events?subject=app_p0&limit=1")).json()[0]
    since = first["created_at"]
    assert await ids(admin, f"/api/events?since={since}") == made[:1]
    assert await ids(admin, "/api/events?since=2999-01-01T00:00:00Z") == []
    seen: list[str] = []
    address: str | None = "/api/events?limit=2&type=bell.rang&since=2020-01-01T00:00:00%2B01:00"
    while address is not None:
        answer = await admin.get(address)
        seen += [each["id"] for each in answer.json()]
        address = answer.links["next"]["url"] if "next" in answer.links else None
    assert seen[:5] == made
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    "query",
    ["limit=0", "type=x", "type=.x", "type=a.b,", "type=A.b", "subject=a%20b", "cursor=YWJj", "since=x",
     "since=2026-01-01T00:00:00", "since=1", "since=0001-01-01T00:00:00%2B12:00",
     "since=9999-12-31T23:59:59-12:00", "follow=perhaps"],
)  # fmt: skip
async def test_wrong_parameters_are_refused(admin: httpx.AsyncClient, query: str) -> None:
    answer = await admin.get(f"/api/events?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
    assert set(answer.json()["details"]) == {query.partition("=")[0]}


async def test_what_can_not_be_resumed_from_is_refused(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/api/events?follow=true", headers={"Last-Event-ID": "7"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize("query", ["", "?follow=true"])
async def test_who_may(
    app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient, owner: httpx.AsyncClient, query: str
) -> None:
    for path in ("/api/events", "/panel/api/events"):
        answer = await app_client.get(f"{path}{query}")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        answer = await app_client.get(f"{path}{query}", headers={"Authorization": "Bearer nonsense"})
        assert answer.status_code == 401
    assert (await admin.get(f"/panel/api/events{query}")).status_code == 401
    assert (await owner.get(f"/api/events{query}")).status_code == 401
    async with key_client(app, admin, ["apps:read"]) as client:
        answer = await client.get(f"/api/events{query}")
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


async def test_each_sees_its_own(app: RunningApp, admin: httpx.AsyncClient, owner: httpx.AsyncClient) -> None:
    tenant = (await owner.get("/panel/api/tenants")).json()[0]["id"]
    of_instance = await ring(app.database)
    of_tenant = await ring(app.database, realm="panel", tenant=tenant)
    of_other = await ring(app.database, realm="panel", tenant="ten_other")
    of_panel = await ring(app.database, realm="panel")
    for client, path, mine in ((admin, "/api/events", of_instance), (owner, "/panel/api/events", of_tenant)):
        seen = await ids(client, f"{path}?type=bell.rang&limit=200")
        assert mine in seen
        assert {of_instance, of_tenant, of_other, of_panel} & set(seen) == {mine}
        async with stream(app, client, f"{path}?follow=true&since=2020-01-01T00:00:00Z&type=bell.rang") as opened:
            old = [event["id"] for event in await opened.take(len(seen))]
            assert old == seen[::-1]
            await ring(app.database, realm="panel", tenant="ten_other")
            await ring(app.database, realm="panel")
            again = [
                await ring(app.database, 1), await ring(app.database, 1, realm="panel", tenant=tenant)
            ]  # fmt: skip
            assert (await opened.take(1))[0]["id"] == again[0 if client is admin else 1]


async def test_a_bound_key_sees_its_apps_and_no_logins(app: RunningApp, admin: httpx.AsyncClient) -> None:
    mine = await ring(app.database, subject=MINE)
    await ring(app.database, subject="app_other")
    async with key_client(app, admin, ["jobs:read"], resources=[MINE]) as client:
        assert await ids(client, "/api/events") == [mine]
        assert await ids(client, "/api/events?subject=app_other") == []
        async with stream(app, client, "/api/events?follow=true") as opened:
            await ring(app.database, subject="app_other")
            later = await ring(app.database, subject=MINE)
            assert (await opened.take(1))[0]["id"] == later


async def test_events_of_logins_are_for_who_reads_the_audit_log(app: RunningApp, admin: httpx.AsyncClient) -> None:
    assert await ids(admin, "/api/events?type=auth.*")
    async with key_client(app, admin, ["jobs:read"]) as client:
        everything = (await client.get("/api/events?limit=200")).json()
        assert everything
        assert not [each for each in everything if each["type"].startswith("auth.")]
        for query in ("type=auth.login", "type=auth.*", "type=auth.login&follow=true"):
            answer = await client.get(f"/api/events?{query}")
            assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    async with key_client(app, admin, ["jobs:read", "audit:read"]) as client:
        assert await ids(client, "/api/events?type=auth.login")


async def test_following_resumes_without_a_gap_while_many_write(app: RunningApp, admin: httpx.AsyncClient) -> None:
    """Streams that break again and again see every event once, in the order of the list."""
    writing = asyncio.Event()

    async def write(writer: int) -> None:
        for number in range(60):
            async with app.database.begin() as session:
                publish(session, Rang(number=writer * 1000 + number), subject="app_gap")
                await asyncio.sleep(0.001 * (number % 5))

    path = "/api/events?follow=true&subject=app_gap"
    seen: list[str] = []
    start = await ring(app.database, subject="app_gap")

    async def read() -> None:
        last = start
        while not (writing.is_set() and len(seen) >= 240):
            async with stream(app, admin, path, **{"Last-Event-ID": last}) as opened:
                for event in await opened.take(min(17, 240 - len(seen))):
                    seen.append(event["id"])
                    last = event["id"]

    reader = asyncio.create_task(read())
    await asyncio.gather(*(write(writer) for writer in range(4)))
    writing.set()
    async with asyncio.timeout(30):
        await reader
    async with app.database.begin() as session:
        sql = "SELECT id FROM events WHERE subject = 'app_gap' AND id <> :start ORDER BY position"
        written = (await session.execute(text(sql), {"start": start})).scalars().all()
    assert len(written) == 240
    assert seen == list(written)


async def test_resuming_from_an_event_that_is_gone(app: RunningApp, admin: httpx.AsyncClient) -> None:
    first = await ring(app.database, 1, subject="app_gone")
    second = await ring(app.database, 2, subject="app_gone")
    async with app.database.begin() as session:
        await session.execute(text("DELETE FROM events WHERE id = :id"), {"id": first})
    path = "/api/events?follow=true&subject=app_gone"
    async with stream(app, admin, path, **{"Last-Event-ID": first}) as opened:
        assert (await opened.take(1))[0]["id"] == second
    async with stream(app, admin, path, **{"Last-Event-ID": "evt_" + "z" * 26}) as opened:
        third = await ring(app.database, 3, subject="app_gone")
        assert (await opened.take(1))[0]["id"] == third


async def test_a_revoked_credential_ends_the_stream_in_five_seconds(app: RunningApp, admin: httpx.AsyncClient) -> None:
    async with app.client() as client:
        user = await make_user(app.database)
        client.headers.update(await headers_of(client, user))
        async with stream(app, client, "/api/events?follow=true&subject=x") as opened:
            assert (await client.post("/api/auth/logout")).status_code == 204
            # It is asked for again so soon; how long this machine takes then is not the stream's fault.
            assert sse.CHECK_SECONDS < 5
            assert await opened.ended(20.0)


async def test_a_slow_reader_is_dropped_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MOST_WAITING", 10)
    feed = Feed(database)
    scope, wanted = Scope(realm="instance"), Wanted(subject="app_slow")
    slow, quick = await feed.join(scope, wanted), await feed.join(scope, wanted)
    made = []
    for number in range(30):
        made.append(await ring(database, number, subject="app_slow"))
        await feed.read()
        event = await quick.next()
        assert event is not None
        assert event.id == made[-1]
    assert await slow.next() is None
    feed.leave(slow, scope)
    feed.leave(quick, scope)


async def test_a_dropped_reader_resumes_without_a_gap(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MOST_WAITING", 5)
    feed = Feed(database)
    scope, wanted = Scope(realm="instance"), Wanted(subject="app_drop")
    made = [await ring(database, number, subject="app_drop") for number in range(3)]
    first = follow(feed, scope, wanted, position=0)
    seen = [(await anext(first)).id for _ in range(3)]
    coming = asyncio.ensure_future(anext(first))
    async with asyncio.timeout(20):
        while not feed._followers:
            await asyncio.sleep(0.01)
    made += [await ring(database, number, subject="app_drop") for number in range(20)]
    await feed.read()
    with contextlib.suppress(StopAsyncIteration):
        seen.append((await coming).id)
        async for event in first:
            seen.append(event.id)
    assert len(seen) < len(made)
    async with database.begin() as session:
        sql = text("SELECT position FROM events WHERE id = :id")
        position = (await session.execute(sql, {"id": seen[-1]})).scalar_one()
    again = follow(feed, scope, wanted, position=position)
    seen += [(await anext(again)).id for _ in range(len(made) - len(seen))]
    assert seen == made
    await again.aclose()  # type: ignore[attr-defined]


async def test_without_followers_nothing_is_read(database: Database) -> None:
    feed = Feed(database)
    scope = Scope(realm="instance")
    follower = await feed.join(scope, Wanted())
    feed.leave(follower, scope)
    await feed.read()
    late = await ring(database)
    follower = await feed.join(scope, Wanted())
    made = await ring(database)
    await feed.read()
    event = await follower.next()
    assert event is not None
    assert event.id == made != late


async def test_a_thousand_followers_are_cheap(app: RunningApp, admin: httpx.AsyncClient) -> None:
    """Through the gate and the whole app; what sockets cost beside that, the kernel pays."""
    rss_before = _rss_bytes()
    async with contextlib.AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(stream(app, admin, "/api/events?follow=true&subject=app_many"))
            for _ in range(1000)
        ]
        made = [await ring(app.database, number, subject="app_many") for number in range(3)]
        for one in opened:
            assert [event["id"] for event in await one.take(3, 60)] == made
        used = _rss_bytes() - rss_before
        assert streams_of(app.asgi.app.state).open >= 1000
    assert used < 100 * 1024 * 1024, f"{used / 2**20:.0f} MiB"


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_silence_is_broken_and_draining_ends_streams(app: RunningApp, database: Database) -> None:
    feed, state = Feed(database), app.asgi.app.state
    events = follow(feed, Scope(realm="instance"), Wanted(subject="none"), position=None)
    streams = streams_of(state)
    chunks = encoded(events, streams, heartbeat_seconds=0.05)
    async with asyncio.timeout(20):
        assert [(await anext(chunks)).startswith(b":") for _ in range(3)] == [True] * 3
    await chunks.aclose()  # type: ignore[attr-defined]
    assert not feed._followers


async def test_old_events_are_forgotten(database: Database) -> None:
    old, young = await ring(database), await ring(database)
    async with database.begin() as session:
        sql = "UPDATE events SET created_at = now() - interval '91 days' WHERE id = :id"
        await session.execute(text(sql), {"id": old})
    await prune_events(database)
    async with database.begin() as session:
        left = set((await session.execute(text("SELECT id FROM events"))).scalars())
    assert old not in left
    assert young in left


async def test_one_client_does_not_take_all_connections(
    app: RunningApp, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream holds one for as long as its reader likes, and counts as one request only."""
    path = "/api/events?follow=true"
    monkeypatch.setattr(sse, "MOST_OF_ONE", 2)
    async with stream(app, admin, path), stream(app, admin, path):
        refused = await admin.get(path)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
        assert int(refused.headers["retry-after"]) > 0
        assert (await admin.get("/api/events")).status_code == 200
        async with key_client(app, admin, ["jobs:read"]) as other, stream(app, other, path) as open_to_others:
            assert open_to_others.status == 200
    async with stream(app, admin, path) as again:
        assert again.status == 200
