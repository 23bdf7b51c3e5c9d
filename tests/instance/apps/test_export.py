"""An export is plain Compose for everybody, secrets and data for who may see them, and each such look is recorded."""

import asyncio
import contextlib
import io
import tarfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import yaml

from quazzar.core.downloads import CutOff
from quazzar.instance.apps import exporting
from quazzar.instance.apps.locks import app_lock
from quazzar.instance.apps.runtimes.base import VOLUME_ROOT, RuntimeFailure
from quazzar.instance.apps.runtimes.memory import MemoryEngine
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_template,
    audited,
    begin_install,
    engine_of,
    install,
    key_client,
    runtime_of,
    unique,
    until,
    web_file,
)


@pytest.fixture
async def engine(app: RunningApp) -> AsyncIterator[MemoryEngine]:
    found = engine_of(app)
    yield found
    found.come_back()


@pytest.fixture(scope="module")
async def web(admin: httpx.AsyncClient) -> str:
    return str((await add_template(admin, web_file(unique("web"))))["slug"])


async def made(admin: httpx.AsyncClient, web: str) -> dict[str, Any]:
    return await install(admin, web, config={"admin_password": SECRET, "motto": "mi$ne"})


def tar_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        root = tarfile.TarInfo(VOLUME_ROOT)
        root.type, root.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(root)
        for name, content in files.items():
            one = tarfile.TarInfo(f"{VOLUME_ROOT}/{name}")
            one.size = len(content)
            tar.addfile(one, io.BytesIO(content))
    return buffer.getvalue()


async def export(client: httpx.AsyncClient, app: dict[str, Any], query: str = "") -> httpx.Response:
    return await client.get(f"/api/apps/{app['id']}/export{query}")


async def test_the_file_is_the_app(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    one = await made(admin, web)
    answer = await export(admin, one)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/yaml")
    assert answer.headers["content-disposition"] == f'attachment; filename="{one["name"]}.compose.yaml"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    file = yaml.safe_load(answer.text)
    assert file["name"] == one["name"]
    assert "x-quazzar" not in file
    assert file["volumes"] == {"data": {}, "db": {}}
    assert file["services"]["web"]["ports"] == [f"{one['config']['http_port']}:80"]
    assert file["services"]["web"]["environment"]["MOTTO"] == "mi$$ne"
    before = {name: engine.container(one["id"], name).service for name in ("web", "db")}
    assert file["services"]["web"]["environment"]["DB"] == before["web"].environment["DB"]
    assert (await audited(app, one["id"]))[-1] == ("app.export", "user", {"secrets": True, "data": False})
    # What came out goes in again, and is the same app.
    await admin.delete(f"/api/apps/{one['id']}?purge=true")
    again = await admin.post("/api/apps/import", json={"name": one["name"], "compose": answer.text})
    assert again.status_code == 201, again.text
    running = await until(admin, again.json()["id"], "running")
    assert {name: engine.container(running["id"], name).service for name in ("web", "db")} == before
    assert running["ports"] == one["ports"]
    assert SECRET not in (await admin.get(f"/api/apps/{running['id']}")).text


async def test_secrets_are_for_who_may_see_them(
    app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient, web: str
) -> None:
    one = await made(admin, web)
    records = await audited(app, one["id"])
    assert (await export(app_client, one)).json()["code"] == "unauthorized"
    async with key_client(app, admin, ["apps:operate"]) as client:
        assert (await export(client, one)).json()["code"] == "scope_missing"
    async with key_client(app, admin, ["apps:read"]) as client:
        answer = await export(client, one)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        environment = yaml.safe_load(answer.text)["services"]["web"]["environment"]
        assert environment["ADMIN"] == f"${{admin_password:?is a secret of {one['name']}}}"
        assert environment["DB"].startswith("${db_password:?")
        assert answer.text.startswith("# Left out are the secrets admin_password, db_password;")
        for query in ("?secrets=true", "?data=true", "?data=true&secrets=false"):
            refused = await export(client, one, query)
            assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing"), query
    hidden = await export(admin, one, "?secrets=false")
    assert SECRET not in hidden.text
    assert await audited(app, one["id"]) == records, "nothing secret was read"
    async with key_client(app, admin, ["apps:read", "apps:secrets"], resources=[one["id"]]) as client:
        assert SECRET in (await export(client, one)).text
        other = await install(admin)
        for app_id in (other["id"], "app_" + "2" * 26, "x"):
            assert (await client.get(f"/api/apps/{app_id}/export")).json()["code"] == "app_not_found"
    assert [(action, kind) for action, kind, _ in (await audited(app, one["id"]))[len(records) :]] == [
        ("app.export", "key")
    ]
    wrong = await export(admin, one, "?secrets=maybe&data=x")
    assert wrong.status_code == 400


async def test_a_masked_file_takes_its_secrets_from_env(admin: httpx.AsyncClient, web: str) -> None:
    one = await made(admin, web)
    text = (await export(admin, one, "?secrets=false")).text
    await admin.delete(f"/api/apps/{one['id']}?purge=true")
    body = {"name": one["name"], "compose": text}
    missing = await admin.post("/api/apps/import", json=body)
    assert (missing.status_code, missing.json()["code"]) == (422, "compose_invalid")
    assert any("admin_password has no value" in said for said in missing.json()["details"].values())
    given = await admin.post("/api/apps/import", json=body | {"env": {"admin_password": SECRET, "db_password": "x"}})
    assert given.status_code == 201, given.text
    await until(admin, given.json()["id"], "running")


async def test_with_its_block_it_is_a_template(admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    one = await made(admin, web)
    text = (await export(admin, one, "?extension=true&secrets=false")).text
    assert SECRET not in text
    slug = unique("tpl")
    answer = await admin.post("/api/templates", json={"compose": text.replace(f'slug: "{web}"', f'slug: "{slug}"')})
    assert answer.status_code == 201, answer.text
    fields = {field["name"]: field for field in answer.json()["fields"]}
    assert fields["motto"]["default"] == "mi$ne"
    assert (fields["admin_password"]["required"], fields["db_password"]["generated"]) == (True, 24)
    other = await install(admin, slug, config={"admin_password": SECRET, "http_port": "auto"})
    assert engine.container(other["id"], "web").service.environment["MOTTO"] == "mi$ne"


async def test_with_data(app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str) -> None:
    one = await made(admin, web)
    engine.contents[one["id"], "data"] = tar_of(word=b"kept", large=b"x" * 300_000)
    answer = await export(admin, one, "?data=true")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar")
    assert answer.headers["content-disposition"] == f'attachment; filename="{one["name"]}.tar"'
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        modes = {entry.name: entry.mode for entry in tar}
        root = one["name"]
        assert list(modes) == [
            root, f"{root}/compose.yaml", f"{root}/.env", f"{root}/volumes", f"{root}/volumes/data",
            f"{root}/volumes/data/word", f"{root}/volumes/data/large", f"{root}/volumes/db",
        ]  # fmt: skip
        assert (modes[root], modes[f"{root}/.env"], modes[f"{root}/compose.yaml"]) == (0o700, 0o600, 0o600)
        read = {name: tar.extractfile(name) for name in modes if not tar.getmember(name).isdir()}
        texts = {name.removeprefix(f"{root}/"): file.read() for name, file in read.items() if file}
    assert texts["volumes/data/word"] == b"kept"
    assert texts["volumes/data/large"] == b"x" * 300_000
    assert f"admin_password='{SECRET}'\n".encode() in texts[".env"]
    assert SECRET.encode() not in texts["compose.yaml"]
    assert yaml.safe_load(texts["compose.yaml"])["services"]["web"]["environment"]["ADMIN"] == "${admin_password}"
    assert (await audited(app, one["id"]))[-1] == ("app.export", "user", {"secrets": True, "data": True})
    without = await export(admin, one, "?data=true&secrets=false")
    assert SECRET.encode() not in without.content
    assert b"${admin_password:?" in without.content
    assert (await audited(app, one["id"]))[-1] == ("app.export", "user", {"secrets": False, "data": True})


async def test_when_there_is_no_data_to_be_had(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await made(admin, web)
    engine.go_down()
    assert (await export(admin, one)).status_code == 200, "the file needs no engine"
    away = await export(admin, one, "?data=true")
    assert (away.status_code, away.json()["code"]) == (503, "runtime_unavailable")
    engine.come_back()
    arrived, go_on = engine.hold("stop:web")
    await admin.post(f"/api/apps/{one['id']}/stop")
    await asyncio.wait_for(arrived.wait(), 10)
    busy = await export(admin, one, "?data=true")
    assert (busy.status_code, busy.json()["code"]) == (409, "app_busy")
    go_on.set()
    await until(admin, one["id"], "stopped")
    assert (await export(admin, one, "?data=true")).status_code == 200
    engine.fail("create:db", RuntimeFailure("It can't be made"))
    failed = await begin_install(admin, web, config={"admin_password": SECRET})
    await until(admin, failed["id"], "failed")
    never = await export(admin, failed, "?data=true")
    assert (never.status_code, never.json()["code"]) == (409, "app_not_installed")
    assert (await export(admin, failed)).status_code == 200
    monkeypatch.setattr(app.asgi.app.state, "exports", asyncio.Semaphore(0), raising=False)
    full = await export(admin, one, "?data=true")
    assert (full.status_code, full.json()["code"]) == (503, "exports_busy")
    assert int(full.headers["retry-after"]) > 0
    await admin.delete(f"/api/apps/{one['id']}")
    assert (await export(admin, one)).json()["code"] == "app_not_found", "in the trash"


async def test_however_many_come_at_once_few_are_read_at_once(
    app: RunningApp, admin: httpx.AsyncClient, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were let in while another one was about to begin wait for it."""
    one = await made(admin, web)
    reading = most = 0

    async def slow(*_: Any) -> AsyncIterator[bytes]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0.05)
        yield b"x"
        reading -= 1

    runtime = runtime_of(app)
    folders = runtime.image_folders

    async def asked(spec: Any) -> Any:
        await asyncio.sleep(0.05)
        return await folders(spec)

    monkeypatch.setattr(runtime, "image_folders", asked)
    monkeypatch.setattr(exporting, "archive", slow)
    monkeypatch.setattr(app.asgi.app.state, "exports", asyncio.Semaphore(1), raising=False)
    answers = await asyncio.gather(*(export(admin, one, "?data=true") for _ in range(6)))
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert (most, reading) == (1, 0)
    assert (await export(admin, one, "?data=true")).content == b"x"


async def test_an_operation_that_began_while_an_export_waited_for_its_turn_has_the_data_for_itself(
    app: RunningApp, admin: httpx.AsyncClient, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await made(admin, web)
    runtime = runtime_of(app)
    folders, read = runtime.image_folders, []

    async def noted(app_id: str, volume: str) -> AsyncIterator[bytes]:
        read.append(volume)
        yield b""

    async with contextlib.AsyncExitStack() as stack:

        async def begun(spec: Any) -> Any:
            await stack.enter_async_context(app_lock(one["id"]))
            return await folders(spec)

        monkeypatch.setattr(runtime, "image_folders", begun)
        monkeypatch.setattr(runtime, "read_volume", noted)
        with contextlib.suppress(Exception):  # how a client sees that is its own matter
            await export(admin, one, "?data=true")
        assert read == []
    monkeypatch.undo()
    assert (await export(admin, one, "?data=true")).status_code == 200


async def test_a_volume_that_can_not_be_read_to_its_end_cuts_the_archive_off(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, web: str
) -> None:
    one = await made(admin, web)
    engine.contents[one["id"], "data"] = tar_of(large=b"x" * 300_000)[:200_000]
    got: list[bytes] = []

    async def read() -> None:
        async for chunk in exporting.archive(runtime_of(app), one["id"], "x", {}, ["data"]):
            got.append(chunk)

    with pytest.raises(CutOff):
        await read()
    assert sum(map(len, got)) > 100_000
    engine.contents[one["id"], "data"] = tar_of().replace(b"volume", b"elsewh")
    with pytest.raises(CutOff):
        await read()
