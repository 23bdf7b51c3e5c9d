"""Private registries over HTTP: who may, what is refused, what pulls get, and that no password is ever seen again."""

import asyncio
import base64
import secrets
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.crypto import Keyring, SealBroken
from quazzar.instance.apps.runtimes.base import RuntimeFailure
from quazzar.instance.registries import service
from quazzar.instance.registries.hosts import registry_host
from tests.conftest import RunningApp
from tests.factories.apps import (
    add_template,
    audited,
    begin_install,
    engine_of,
    events_of,
    job_of,
    key_client,
    one_file,
    unique,
    until,
)

CANARY = "canary-of-a-registry-9f2"


def host() -> str:
    return f"{unique('r')}.example.com"


async def make(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/api/registries", json={"host": host(), "username": "bob", "password": CANARY} | body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/api/registries/{answer.json()['id']}"
    made: dict[str, Any] = answer.json()
    return made


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/api/registries", "settings:read"),
        ("POST", "/api/registries", "settings:write"),
        ("GET", "/api/registries/reg_x", "settings:read"),
        ("PATCH", "/api/registries/reg_x", "settings:write"),
        ("DELETE", "/api/registries/reg_x", "settings:write"),
    ],
)
async def test_who_may(
    app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient, method: str, path: str, scope: str
) -> None:
    anonymous = await app_client.request(method, path)
    assert (anonymous.status_code, anonymous.json()["code"]) == (401, "unauthorized")
    others = [one for one in ("settings:read", "apps:write", "templates:write") if one != scope]
    async with key_client(app, admin, others) as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    async with key_client(app, admin, [scope]) as client:
        answer = await client.request(method, path)
        assert answer.status_code not in {401, 403}


async def test_a_login_from_its_making_to_its_end(app: RunningApp, admin: httpx.AsyncClient) -> None:
    name = host()
    made = await make(admin, host=name.upper())
    assert made.keys() == {"id", "host", "username", "created_at", "updated_at"}
    assert (made["host"], made["username"]) == (name, "bob")
    path = f"/api/registries/{made['id']}"
    assert (await admin.get(path)).json() == made
    assert (await admin.get("/api/registries")).json()[0] == made

    twice = await admin.post("/api/registries", json={"host": name, "username": "eve", "password": "x"})
    assert (twice.status_code, twice.json()["code"]) == (409, "registry_exists")
    assert list(twice.json()["details"]) == ["host"]

    assert (await admin.patch(path, json={})).json() == made
    assert (await admin.patch(path, json={"username": "bob"})).json() == made
    changed = (await admin.patch(path, json={"username": "alice", "password": CANARY + "2"})).json()
    assert changed == made | {"username": "alice", "updated_at": changed["updated_at"]}
    assert changed["updated_at"] > made["updated_at"]
    assert (await admin.delete(path)).status_code == 204
    for gone in (await admin.get(path), await admin.delete(path), await admin.patch(path, json={"username": "x"})):
        assert (gone.status_code, gone.json()["code"]) == (404, "registry_not_found")
    assert await audited(app, made["id"]) == [
        ("registry.create", "user", {"host": name, "username": "bob"}),
        ("registry.update", "user", {"host": name, "username": "alice", "password_changed": True}),
        ("registry.delete", "user", None),
    ]
    assert await events_of(app, made["id"]) == []


async def test_everything_that_is_wrong_is_told_at_once(admin: httpx.AsyncClient) -> None:
    body = {"host": "", "username": "a:b", "password": "", "url": "https://x.example", "realm": 1}
    answer = await admin.post("/api/registries", json=body)
    assert answer.status_code == 422
    assert answer.json()["details"].keys() == body.keys()
    assert (await admin.post("/api/registries", json={})).json()["details"].keys() == {"host", "username", "password"}
    long = {"host": host(), "username": "x" * 257, "password": CANARY * 400}
    refused = await admin.post("/api/registries", json=long)
    assert refused.json()["details"].keys() == {"username", "password"}
    assert CANARY not in refused.text


async def test_a_registry_may_be_given_by_its_url(admin: httpx.AsyncClient) -> None:
    name, login = host(), {"username": "bob", "password": CANARY}
    for url in (f"https://{name}:5000/", f"{name}:5001", f"HTTPS://{name}:5002/v2/"):
        made = await admin.post("/api/registries", json=login | {"url": url})
        assert made.status_code == 201, made.text
        assert made.json()["host"].startswith(f"{name}:500")
        assert made.json()["host"] in url
    hub = await admin.post("/api/registries", json=login | {"url": "https://index.docker.io/v1/"})
    assert (hub.status_code, hub.json()["host"]) == (201, "docker.io")
    assert (await admin.delete(hub.headers["location"])).status_code == 204
    for url in (
        "r; id",
        "https://user:x@example.com",
        "https://example.com/team",
        "https://169.254.169.254/",
        "file:///etc",
    ):
        refused = await admin.post("/api/registries", json=login | {"url": url})
        assert (refused.status_code, list(refused.json()["details"])) == (422, ["url"]), url
    both = await admin.post("/api/registries", json=login | {"host": name, "url": name})
    assert both.json()["details"] == {"url": "Url can't go together with host"}


@pytest.mark.parametrize(
    "name",
    [
        "r; id", "$(id)", "-v", "a b.example.com", "https://registry.example.com", "registry.example.com/team", "nginx",
        "example.com:", "example.com:0", "example.com:65536", "example.com:123456", ".example.com", "a..b", "a_b.com",
        "user@example.com", "169.254.169.254", "[fe80::1]:5000", "[::ffff:169.254.169.254]", "0.0.0.0", "224.0.0.1:80",
        "0177.0.0.1:5000", "0x7f.1", "2130706433:5000", "127.1:5000", "[::1", "::1", "bücher.example", "a\n.co",
        "example.com\x00", "x" * 256,
    ],
)  # fmt: skip
async def test_s02_what_is_no_registry_is_refused(admin: httpx.AsyncClient, name: str) -> None:
    answer = await admin.post("/api/registries", json={"host": name, "username": "bob", "password": CANARY})
    assert answer.status_code in {400, 422}, answer.text
    if answer.status_code == 422:
        assert list(answer.json()["details"]) == ["host"]
    assert CANARY not in answer.text


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Registry.Example.com:5000", "registry.example.com:5000"),
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("localhost", "localhost"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("10.0.0.7", "10.0.0.7"),
        ("[::1]:5000", "[::1]:5000"),
        ("[2001:db8::1]", "[2001:db8::1]"),
        ("nas:5000", "nas:5000"),
        ("4.example.com", "4.example.com"),
    ],
)
def test_names_of_registries(name: str, kept: str) -> None:
    assert registry_host(name) == kept


async def test_two_at_once_make_one(admin: httpx.AsyncClient) -> None:
    body = {"host": host(), "username": "bob", "password": CANARY}
    answers = await asyncio.gather(*(admin.post("/api/registries", json=body) for _ in range(6)))
    assert sorted(one.status_code for one in answers) == [201] + [409] * 5


async def test_pages(admin: httpx.AsyncClient) -> None:
    made = [(await make(admin))["id"] for _ in range(3)]
    first = await admin.get("/api/registries?limit=2")
    assert [one["id"] for one in first.json()] == made[:0:-1]
    following = await admin.get(first.links["next"]["url"])
    assert following.json()[0]["id"] == made[0]
    assert (await admin.get("/api/registries?cursor=nonsense")).status_code == 400


async def test_a_key_that_is_bound_to_apps_sees_none(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await make(admin)
    installed = await until(admin, (await begin_install(admin))["id"], "running")
    async with key_client(app, admin, ["settings:read", "settings:write"], resources=[installed["id"]]) as client:
        assert (await client.get("/api/registries")).json() == []
        assert (await client.get(f"/api/registries/{made['id']}")).status_code == 404
        assert (await client.delete(f"/api/registries/{made['id']}")).status_code == 404
        body = {"host": host(), "username": "bob", "password": CANARY}
        refused = await client.post("/api/registries", json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "key_bound")


async def test_pulls_log_in_and_nothing_shows_the_password(
    app: RunningApp, admin: httpx.AsyncClient, capfd: pytest.CaptureFixture[str]
) -> None:
    name = host()
    image = f"{name}/team/app:1"
    engine_of(app).private_images[image] = ("bob", CANARY)
    slug = unique("private")
    await add_template(admin, one_file(slug).replace("nginx:1.27", image))

    installed = await begin_install(admin, slug)
    failed = await until(admin, installed["id"], "failed")
    assert failed["status_reason"] == f"The registry {name} asks for a login"
    job = await job_of(admin, installed["job_id"])
    assert (job["status"], job["error"]) == ("failed", failed["status_reason"])

    registry = await make(admin, host=name, password="wrong-" + CANARY)
    assert (await admin.post(f"/api/apps/{installed['id']}/start")).json()["status"] == "installing"
    assert name in (await until(admin, installed["id"], "failed"))["status_reason"]

    await admin.patch(f"/api/registries/{registry['id']}", json={"password": CANARY})
    again = (await admin.post(f"/api/apps/{installed['id']}/start")).json()
    await until(admin, installed["id"], "running")

    seen = capfd.readouterr()
    texts = [seen.out, seen.err]
    for path in (
        f"/api/apps/{installed['id']}",
        f"/api/jobs/{installed['job_id']}/logs",
        f"/api/jobs/{again['job_id']}/logs",
        f"/api/jobs/{again['job_id']}",
        "/api/registries?limit=200",
        "/api/audit?limit=200",
        "/api/events?limit=200",
    ):
        answer = await admin.get(path)
        assert answer.status_code == 200, path
        texts.append(answer.text)
    async with app.database.begin() as session:
        for table in ("registries", "audit_records", "events", "jobs", "job_lines", "idempotency"):
            found = await session.execute(text("SELECT to_regclass(:name)"), {"name": table})
            if found.scalar_one() is not None:
                rows = await session.execute(text(f"SELECT t::text FROM {table} t"))
                texts += [str(row[0]) for row in rows]
    assert len(texts) > 10
    assert not any(CANARY in one or CANARY.encode().hex() in one for one in texts)
    assert not any(base64.b64encode(CANARY.encode()).decode().rstrip("=")[:-1] in one for one in texts)


async def test_a_login_is_bound_to_its_place_and_follows_the_key(
    app: RunningApp, admin: httpx.AsyncClient, keyring: Keyring
) -> None:
    made = await make(admin)
    image = f"{made['host']}/x:1"
    rotated = keyring.rotated()
    async with app.database.begin() as session:
        login = (await service.logins_for(session, keyring, [image, "nginx:1"]))[made["host"]]
        assert (login.username, login.password.reveal()) == ("bob", CANARY)
        assert await service.reseal(session, rotated) >= 1
        assert (await service.logins_for(session, rotated, [image])).keys() == {made["host"]}
        with pytest.raises(SealBroken):
            await service.reseal(session, Keyring({"other": secrets.token_bytes(32)}))
        with pytest.raises(RuntimeFailure, match=f"password of the registry {made['host']} was sealed with a key"):
            await service.logins_for(session, keyring, [image])
        # The same bytes under another name are of no use to its owner.
        moved = {"host": host(), "id": made["id"]}
        await session.execute(text("UPDATE registries SET host = :host WHERE id = :id"), moved)
        with pytest.raises(RuntimeFailure):
            await service.logins_for(session, rotated, [f"{moved['host']}/x"])
        await session.rollback()


async def test_a_password_whose_key_is_lost_fails_the_job_by_name(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await make(admin)
    async with app.database.begin() as session:
        query = text("UPDATE registries SET sealed = :sealed WHERE id = :id")
        await session.execute(query, {"sealed": secrets.token_bytes(80), "id": made["id"]})
    slug = unique("lost")
    await add_template(admin, one_file(slug).replace("nginx:1.27", f"{made['host']}/app:1"))
    failed = await until(admin, (await begin_install(admin, slug))["id"], "failed")
    assert made["host"] in failed["status_reason"]
    assert "enter it again" in failed["status_reason"]
    assert (await admin.delete(f"/api/registries/{made['id']}")).status_code == 204


async def test_s03_a_hostile_row_is_still_deleted(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await make(admin)
    async with app.database.begin() as session:
        query = text("UPDATE registries SET host = '-v/:/h;$(id)', username = '`id`' WHERE id = :id")
        await session.execute(query, {"id": made["id"]})
    assert (await admin.get(f"/api/registries/{made['id']}")).json()["host"] == "-v/:/h;$(id)"
    assert (await admin.delete(f"/api/registries/{made['id']}")).status_code == 204
