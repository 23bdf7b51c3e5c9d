"""The audit log: who reads it, what is in it, files of it, and that nothing done to it stays unseen."""

import asyncio
import csv
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest

from quazzar.__main__ import main
from quazzar.audit import export as export_module
from quazzar.audit import verify as verify_module
from quazzar.audit.refusals import MOST_PER_MINUTE, PER_MINUTE, Refusals
from quazzar.audit.verify import verify_chain
from quazzar.core.auth import Realm
from quazzar.core.db import Database
from quazzar.core.postgres import DatabaseUrls
from quazzar.core.records import Caller, audit
from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, make_user
from tests.factories.apps import key_client, unique

MINE, OTHER = "app_" + "a" * 26, "app_" + "b" * 26


async def record(database: Database, action: str = "thing.make", *, tenant: str | None = None, **values: Any) -> None:
    realm: Realm = "instance" if tenant is None else "panel"
    caller = Caller(kind="user", id="usr_x", realm=realm, tenant_id=tenant, address="192.0.2.1", request_id="=1+1")
    async with database.begin(tenant=tenant) as session:
        audit(session, action, caller=caller, **values)


async def listed(client: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


@pytest.mark.parametrize("path", ["", "/export", "/verify"])
async def test_who_may(
    app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient, owner: httpx.AsyncClient, path: str
) -> None:
    for base in ("/api/audit", "/panel/api/audit"):
        answer = await app_client.get(f"{base}{path}")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert (await admin.get(f"/panel/api/audit{path}")).status_code == 401
    assert (await owner.get(f"/api/audit{path}")).status_code == 401
    assert (await admin.get(f"/api/audit{path}")).status_code == 200
    assert (await owner.get(f"/panel/api/audit{path}")).status_code == 200
    async with key_client(app, admin, ["jobs:read", "system:read"]) as client:
        answer = await client.get(f"/api/audit{path}")
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    async with key_client(app, admin, ["audit:read"]) as client:
        assert (await client.get(f"/api/audit{path}")).status_code == 200
    operator = await make_user(app.database, role="operator")
    headers = await headers_of(app_client, operator)
    assert (await app_client.get(f"/api/audit{path}", headers=headers)).status_code == 403


async def test_a_change_is_shown(app: RunningApp, admin: httpx.AsyncClient) -> None:
    async with key_client(app, admin, ["jobs:read"]):
        shown = (await listed(admin, "/api/audit?action=api_key.create&limit=1"))[0]
    me = (await admin.get("/api/auth/me")).json()["id"]
    assert shown["actor"] == {"kind": "user", "id": me}
    assert (shown["outcome"], shown["address"]) == ("done", "127.0.0.1")
    assert shown["id"].startswith("aud_")
    assert shown["request_id"].startswith("req_")
    assert shown["created_at"].endswith("Z")
    assert shown["after"]["scopes"] == ["jobs:read"]
    assert shown["before"] is None
    assert len(bytes.fromhex(shown["hash"])) == 32
    before = (await listed(admin, "/api/audit?limit=200"))[:2]
    assert before[0]["number"] == before[1]["number"] + 1
    assert before[0]["previous_hash"] == before[1]["hash"]


async def test_filters_and_pages(app: RunningApp, admin: httpx.AsyncClient) -> None:
    for number in range(5):
        await record(
            app.database, f"page.{'ab'[number % 2]}", subject=MINE, outcome="failed" if number == 4 else "done"
        )
    everything = await listed(admin, f"/api/audit?subject={MINE}")
    assert [each["action"] for each in everything] == ["page.a", "page.b", "page.a", "page.b", "page.a"]
    assert await listed(admin, "/api/audit?action=page.b") == everything[1::2]
    assert await listed(admin, f"/api/audit?actor=usr_x&subject={MINE}") == everything
    assert await listed(admin, f"/api/audit?actor=user&subject={MINE}") == everything
    assert await listed(admin, f"/api/audit?actor=system&subject={MINE}") == []
    assert await listed(admin, f"/api/audit?outcome=failed&subject={MINE}") == everything[:1]
    middle = everything[2]["created_at"]
    assert await listed(admin, f"/api/audit?since={middle}&subject={MINE}") == everything[:3]
    assert await listed(admin, f"/api/audit?until={middle}&subject={MINE}") == everything[3:]
    seen: list[dict[str, Any]] = []
    address: str | None = f"/api/audit?limit=2&subject={MINE}"
    while address is not None:
        answer = await admin.get(address)
        seen += answer.json()
        address = answer.links["next"]["url"] if "next" in answer.links else None
    assert seen == everything


@pytest.mark.parametrize(
    "query",
    ["limit=0", "action=A", "subject=a%20b", "actor=%3D", "outcome=good", "since=x", "until=2026-01-01", "cursor=YWJj",
     "cursor=LTE", "since=0001-01-01T00:00:00%2B12:00", "until=9999-12-31T23:59:59-12:00"],
)  # fmt: skip
async def test_wrong_parameters_are_refused(admin: httpx.AsyncClient, query: str) -> None:
    answer = await admin.get(f"/api/audit?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
    assert set(answer.json()["details"]) == {query.partition("=")[0]}


async def test_each_sees_its_own(app: RunningApp, admin: httpx.AsyncClient, owner: httpx.AsyncClient) -> None:
    tenant = (await owner.get("/panel/api/tenants")).json()[0]["id"]
    await record(app.database, "wall.instance")
    await record(app.database, "wall.tenant", tenant=tenant)
    await record(app.database, "wall.other", tenant="ten_other")
    for client, base, own in ((admin, "/api/audit", "wall.instance"), (owner, "/panel/api/audit", "wall.tenant")):
        for action in ("wall.instance", "wall.tenant", "wall.other"):
            found = await listed(client, f"{base}?action={action}")
            assert len(found) == (1 if action == own else 0), action
            lines = (await client.get(f"{base}/export?format=jsonl&action={action}")).text.splitlines()
            assert len(lines) == len(found)
        check = (await client.get(f"{base}/verify")).json()
        assert check["valid"] is True
        assert check["checked"] == (await listed(client, f"{base}?limit=1"))[0]["number"]
    async with key_client(app, admin, ["audit:read"], resources=[MINE]) as client:
        await record(app.database, "wall.bound", subject=MINE)
        await record(app.database, "wall.bound", subject=OTHER)
        assert {each["subject"] for each in await listed(client, "/api/audit")} == {MINE}
        assert OTHER not in (await client.get("/api/audit/export")).text
        assert (await client.get("/api/audit/verify")).status_code == 403


async def test_refused_calls_are_recorded_and_reads_are_not(app: RunningApp, admin: httpx.AsyncClient) -> None:
    async with key_client(app, admin, ["apps:read"]) as client:
        key = (await listed(admin, "/api/audit?action=api_key.create&limit=1"))[0]["subject"]
        assert (await client.post(f"/api/apps/{MINE}/stop")).status_code == 403
        assert (await client.post("/api/auth/change-password", json={})).status_code == 403
        assert (await client.get("/api/jobs")).status_code == 403
        assert (await client.get(f"/api/apps/{MINE}")).status_code == 404
        found = await listed(admin, f"/api/audit?action=call.refuse&actor={key}")
        assert [(each["subject"], each["after"], each["outcome"]) for each in found] == [
            (None, {"operation": "ChangePassword", "code": "session_required"}, "refused"),
            (MINE, {"operation": "StopApp", "code": "scope_missing"}, "refused"),
        ]
        for _ in range(PER_MINUTE + 20):
            assert (await client.post(f"/api/apps/{MINE}/stop")).status_code == 403
        # A minute may end in between.
        assert len(await listed(admin, f"/api/audit?action=call.refuse&actor={key}")) <= 2 * PER_MINUTE + 1


def test_refusals_are_bounded_and_what_is_left_out_is_told() -> None:
    refusals = Refusals()
    assert [refusals.count("a", 60.0) for _ in range(PER_MINUTE + 3)] == [0] * PER_MINUTE + [None] * 3
    assert refusals.count("b", 61.0) == 0
    assert refusals.count("a", 120.0) == 3
    assert refusals.count("a", 121.0) == 0
    counted = [refusals.count(f"client {number}", 180.0) for number in range(2 * MOST_PER_MINUTE)]
    assert counted.count(0) == MOST_PER_MINUTE
    assert counted.count(None) == MOST_PER_MINUTE


async def test_files_of_the_log(app: RunningApp, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "_BATCH", 3)
    texts = ["=cmd|' /C calc'!A1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "  =1", 'plain, "quoted"\nnext', "ünïcode"]
    for value in texts:
        await record(app.database, "file.row", subject=value, after={"text": value})
    answer = await admin.get("/api/audit/export?format=csv&action=file.row")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="audit.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    assert [row["subject"].removeprefix("'") for row in rows] == texts
    for row in rows:
        for cell in row.values():
            assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))
        assert row["request_id"] == "'=1+1"
    assert [int(row["number"]) for row in rows] == sorted(int(row["number"]) for row in rows)
    answer = await admin.get("/api/audit/export?format=jsonl&action=file.row")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [msgspec.json.decode(line) for line in answer.content.splitlines()]
    assert lines == (await listed(admin, "/api/audit?action=file.row"))[::-1]
    assert (await admin.get("/api/audit/export?action=none")).text.count("\r\n") == 1
    assert (await admin.get("/api/audit/export?format=jsonl&action=none")).content == b""
    assert (await admin.get("/api/audit/export?format=xml")).status_code == 400


# --- tampering -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def tamper(database_urls: DatabaseUrls) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """The owner of the tables, with the trigger off: who has the disk can do that much."""
    connection = await asyncpg.connect(database_urls.owner)
    await connection.execute("SELECT set_config('app.worker', 'on', false)")
    await connection.execute("ALTER TABLE audit_records DISABLE TRIGGER audit_records_append_only")
    yield connection
    await connection.execute("ALTER TABLE audit_records ENABLE TRIGGER audit_records_append_only")
    await connection.close()


async def chain(database: Database, length: int = 12) -> str:
    tenant = unique("ten")
    for number in range(length):
        await record(database, "link.add", tenant=tenant, after={"n": number, "b": [1.5, None, "ä"]})
    return f"panel:{tenant}"


_SWAP = (
    "UPDATE audit_records SET number = 2000 - number WHERE chain = $1 AND number IN (7, 8);"
    "UPDATE audit_records SET number = 2000 - number + (CASE number WHEN 1993 THEN 1 ELSE -1 END)"
    " WHERE chain = $1 AND number > 1000"
)
_COPY = (
    "INSERT INTO audit_records SELECT chain, 13, id || 'x', realm, tenant_id, created_at, actor_kind, actor_id,"
    " address, request_id, action, subject, outcome, before, after, previous_hash, hash"
    " FROM audit_records WHERE chain = $1 AND number = 12"
)
CHANGES = {
    "a field": ("UPDATE audit_records SET action = 'link.ad' WHERE chain = $1 AND number = 7", 7),
    "the actor": ("UPDATE audit_records SET actor_id = NULL WHERE chain = $1 AND number = 1", 1),
    "the time": (
        "UPDATE audit_records SET created_at = created_at + interval '1us' WHERE chain = $1 AND number = 7",
        7,
    ),
    "within": ("UPDATE audit_records SET after = jsonb_set(after, '{n}', '70') WHERE chain = $1 AND number = 7", 7),
    "a hash": ("UPDATE audit_records SET hash = sha256('x') WHERE chain = $1 AND number = 7", 7),
    "a link": ("UPDATE audit_records SET previous_hash = sha256('x') WHERE chain = $1 AND number = 7", 7),
    "the last": ("UPDATE audit_records SET outcome = 'failed' WHERE chain = $1 AND number = 12", 12),
    "gone": ("DELETE FROM audit_records WHERE chain = $1 AND number = 7", 8),
    "first gone": ("DELETE FROM audit_records WHERE chain = $1 AND number = 1", 2),
    "swapped": (_SWAP, 7),
    "added": (_COPY, 13),
}


@pytest.mark.parametrize("batch", [5, 500])
@pytest.mark.parametrize("change", CHANGES)
async def test_tampering_is_found_and_named(
    database: Database, tamper: "asyncpg.Connection[Any]", change: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "_BATCH", batch)
    name = await chain(database)
    check = await verify_chain(database, name)
    assert (check.valid, check.checked, check.first_bad, check.problem) == (True, 12, None, None)
    statements, named = CHANGES[change]
    for statement in statements.split(";"):
        await tamper.execute(statement, name)
    check = await verify_chain(database, name)
    row = await tamper.fetchval("SELECT id FROM audit_records WHERE chain = $1 AND number = $2", name, named)
    first_bad = named - 1 if "gone" in change else named
    assert (check.valid, check.first_bad, check.first_bad_number) == (False, row, first_bad)
    assert check.checked == first_bad - 1
    assert check.problem


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("DELETE FROM audit_records WHERE chain = $1 AND number > 9", 10),
        ("DELETE FROM audit_records WHERE chain = $1", 1),
        ("UPDATE audit_heads SET hash = sha256('x') WHERE chain = $1", 12),
        ("UPDATE audit_heads SET number = 13 WHERE chain = $1", 13),
    ],
)
async def test_a_cut_chain_is_found(
    database: Database, tamper: "asyncpg.Connection[Any]", statement: str, number: int
) -> None:
    name = await chain(database)
    await tamper.execute(statement, name)
    check = await verify_chain(database, name)
    assert (check.valid, check.first_bad, check.first_bad_number) == (False, None, number)


@pytest.mark.parametrize("statement", ["DELETE FROM audit_heads", "UPDATE audit_heads SET number = 0"])
async def test_a_chain_without_its_head_is_found(
    database: Database, tamper: "asyncpg.Connection[Any]", statement: str
) -> None:
    name = await chain(database)
    first = await tamper.fetchval("SELECT id FROM audit_records WHERE chain = $1 AND number = 1", name)
    await tamper.execute(f"{statement} WHERE chain = $1", name)
    check = await verify_chain(database, name)
    assert not check.valid
    assert statement.startswith("UPDATE") or check.first_bad == first


async def test_checking_while_others_write(database: Database) -> None:
    name = await chain(database)
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await record(database, "link.add", tenant=name.partition(":")[2])

    writers = [asyncio.create_task(write()) for _ in range(3)]
    try:
        for _ in range(10):
            check = await verify_chain(database, name)
            assert check.valid, check
    finally:
        stop.set()
        await asyncio.gather(*writers)


async def test_the_loop_goes_on_during_a_check(database: Database) -> None:
    name = f"panel:{unique('ten')}"
    async with database.begin(tenant=name.partition(":")[2]) as session:
        caller = Caller(kind="system", realm="panel", tenant_id=name.partition(":")[2])
        for number in range(5000):
            audit(session, "link.add", caller=caller, after={"n": number})
    longest, done = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not done.is_set():
            # What this thread works between two looks, and not how long the machine lets it wait.
            began = time.thread_time()
            await asyncio.sleep(0.005)
            longest = max(longest, time.thread_time() - began)

    watching = asyncio.create_task(watch())
    check = await verify_chain(database, name)
    done.set()
    await watching
    assert (check.valid, check.checked) == (True, 5000)
    assert longest < 0.5


async def test_the_command(
    database: Database,
    database_urls: DatabaseUrls,
    tamper: "asyncpg.Connection[Any]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QUAZZAR_DATABASE_URL", database_urls.owner)
    await tamper.execute("DELETE FROM audit_records")
    await tamper.execute("DELETE FROM audit_heads")
    good, bad = await chain(database), await chain(database)

    async def run() -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["audit", "verify", "--data-dir", str(tmp_path)])
        return code, capsys.readouterr().out

    code, output = await run()
    assert code == 0
    assert f"ok    {good}  12 records" in output
    assert f"ok    {bad}  12 records" in output
    await tamper.execute("UPDATE audit_records SET subject = 'x' WHERE chain = $1 AND number = 3", bad)
    row = await tamper.fetchval("SELECT id FROM audit_records WHERE chain = $1 AND number = 3", bad)
    code, output = await run()
    assert code == 1
    assert f"ok    {good}" in output
    assert f"fail  {bad}  record 3 ({row})" in output
