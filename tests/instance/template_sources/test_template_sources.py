"""Template sources from a real server: signed, pinned, and hostile in every way that a server can be."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quazzar.instance.template_sources import jobs
from quazzar.settings import Settings
from tests.conftest import RunningApp, make_settings
from tests.factories.apps import add_template, audited, install, job_of, key_client, one_file, unique, until


class Catalogue:
    """A server whose files tests write."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.key = Ed25519PrivateKey.generate()
        catalogue = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = catalogue.files.get(self.path)
                if body is not None and body.startswith(b"redirect "):
                    self.send_response(302)
                    self.send_header("Location", body.split()[1].decode())
                    body = b""
                else:
                    self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/index.json"
        self.thread = threading.Thread(target=self.server.serve_forever)

    @property
    def public_key(self) -> str:
        return base64.b64encode(self.key.public_key().public_bytes_raw()).decode()

    def write(self, serial: int, *texts: str, lie: str | None = None) -> str:
        """An index of templates with its signature; gives its digest. `lie` is a slug whose digest is wrong."""
        entries = []
        for text in texts:
            slug = text.partition("slug: ")[2].split()[0]
            self.files[f"/{slug}.yaml"] = text.encode()
            digest = hashlib.sha256(b"" if slug == lie else text.encode()).hexdigest()
            entries.append({"slug": slug, "url": f"{slug}.yaml", "sha256": digest})
        return self.sign(json.dumps({"serial": serial, "templates": entries}).encode())

    def sign(self, body: bytes) -> str:
        self.files["/index.json"] = body
        self.files["/index.json.sig"] = base64.b64encode(self.key.sign(body)) + b"\n"
        return "sha256:" + hashlib.sha256(body).hexdigest()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(tmp_path_factory.mktemp("data"), QUAZZAR_WEBHOOKS_ALLOW_NETWORKS="127.0.0.0/8")


@pytest.fixture
def catalogue() -> Iterator[Catalogue]:
    with serving() as found:
        yield found


@contextlib.contextmanager
def serving() -> Iterator[Catalogue]:
    found = Catalogue()
    found.thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    found.thread.join()


async def add(client: httpx.AsyncClient, catalogue: Catalogue, **body: Any) -> dict[str, Any]:
    if not body:
        body = {"public_key": catalogue.public_key}
    sent = {"name": unique("src"), "url": catalogue.url} | body
    answer = await client.post("/api/template-sources", json=sent)
    assert answer.status_code == 201, answer.text
    return await ended(client, answer.json())


async def sync(client: httpx.AsyncClient, source: dict[str, Any], **body: Any) -> dict[str, Any]:
    answer = await client.post(f"/api/template-sources/{source['id']}/sync", json=body or None)
    assert answer.status_code == 200, answer.text
    return await ended(client, answer.json())


async def ended(client: httpx.AsyncClient, source: dict[str, Any]) -> dict[str, Any]:
    job = await job_of(client, source["job_id"], seconds=60)
    found: dict[str, Any] = (await client.get(f"/api/template-sources/{source['id']}")).json()
    assert (job["error"] or None) == found["error"], job
    return found


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/api/template-sources", "templates:read"),
        ("POST", "/api/template-sources", "templates:write"),
        ("GET", "/api/template-sources/tsrc_x", "templates:read"),
        ("POST", "/api/template-sources/tsrc_x/sync", "templates:write"),
        ("DELETE", "/api/template-sources/tsrc_x", "templates:write"),
    ],
)
async def test_who_may(
    app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient, method: str, path: str, scope: str
) -> None:
    assert (await app_client.request(method, path)).status_code == 401
    async with key_client(app, admin, ["settings:write", "apps:write"]) as client:
        assert (await client.request(method, path)).status_code == 403
    async with key_client(app, admin, [scope]) as client:
        assert (await client.request(method, path)).status_code not in {401, 403}


async def test_a_signed_source_from_its_making_to_its_end(
    app: RunningApp, admin: httpx.AsyncClient, catalogue: Catalogue
) -> None:
    first, second = unique("first"), unique("second")
    catalogue.write(1, one_file(first), one_file(second))
    source = await add(admin, catalogue)
    assert (source["serial"], source["error"], source["problems"]) == (1, None, {})
    shown = (await admin.get(f"/api/templates/{first}")).json()
    assert shown["source"] == source["id"]
    assert first in [one["slug"] for one in (await admin.get(f"/api/templates?q={first}")).json()]
    for refused in (
        await admin.delete(f"/api/templates/{first}"),
        await admin.put(f"/api/templates/{first}", json={"compose": one_file(first)}),
    ):
        assert (refused.status_code, refused.json()["code"]) == (409, "template_of_source")
    installed = await install(admin, first)

    catalogue.write(2, one_file(first).replace('version: "1"', 'version: "2"'))
    assert (await sync(admin, source))["serial"] == 2
    newer = (await admin.get(f"/api/templates/{first}")).json()
    assert (newer["id"], newer["versions"]) == (shown["id"], ["2", "1"])
    assert (await admin.get(f"/api/templates/{second}")).status_code == 404

    catalogue.write(1, one_file(second))
    replayed = await sync(admin, source)
    assert replayed["serial"] == 2
    assert "older than 2" in replayed["error"]
    assert (await admin.get(f"/api/templates/{second}")).status_code == 404

    assert (await admin.delete(f"/api/template-sources/{source['id']}")).status_code == 204
    assert (await admin.get(f"/api/templates/{first}")).status_code == 404
    assert (await admin.get(f"/api/apps/{installed['id']}")).json()["status"] == "running"
    actions = [action for action, _, _ in await audited(app, source["id"])]
    assert actions == [f"template_source.{verb}" for verb in ("create", "sync", "sync", "delete")]


async def test_a_pinned_source_changes_only_with_its_digest(admin: httpx.AsyncClient, catalogue: Catalogue) -> None:
    slug = unique("pinned")
    source = await add(admin, catalogue, digest=catalogue.write(1, one_file(slug)))
    assert source["error"] is None
    digest = catalogue.write(2, one_file(slug).replace('version: "1"', 'version: "2"'))
    refused = await sync(admin, source)
    assert digest in refused["error"]
    assert (await admin.get(f"/api/templates/{slug}")).json()["version"] == "1"
    assert (await sync(admin, source, digest=digest))["error"] is None
    assert (await admin.get(f"/api/templates/{slug}")).json()["version"] == "2"


async def test_what_another_source_has_under_its_slug_is_no_version_of_an_app(
    admin: httpx.AsyncClient, catalogue: Catalogue
) -> None:
    slug, second = unique("taken"), {"version": "2"}
    newer = one_file(slug).replace('version: "1"', 'version: "2"')
    catalogue.write(1, one_file(slug))
    source = await add(admin, catalogue)
    app = await install(admin, slug)
    path = f"/api/apps/{app['id']}"

    async def newest() -> Any:
        return ((await admin.post(f"{path}/check-updates")).json()["available_update"] or {}).get("version")

    with serving() as other:
        other.write(1, newer)
        theirs = await add(admin, other)
        assert theirs["problems"] == {slug: "Another template has this slug"}
        assert (await admin.delete(f"/api/template-sources/{source['id']}")).status_code == 204
        await sync(admin, theirs)
        assert (await admin.get(f"/api/templates/{slug}")).json()["source"] == theirs["id"]
        assert await newest() is None
        refused = await admin.post(f"{path}/update", json=second)
        assert (refused.status_code, refused.json()["details"].keys()) == (422, {"version"})
        held = await admin.patch(path, json={"auto_update": {"hold_version": "2"}})
        assert (held.status_code, held.json()["details"].keys()) == (422, {"auto_update.hold_version"})
        assert (await admin.delete(f"/api/template-sources/{theirs['id']}")).status_code == 204

    # Its own source is known again by its key, wherever it lives by now.
    catalogue.write(2, newer)
    await add(admin, catalogue)
    assert await newest() == "2"
    assert (await admin.post(f"{path}/update", json=second)).status_code == 200
    assert (await until(admin, app["id"], "running"))["version"] == "2"


async def test_bad_templates_are_left_out_by_name(admin: httpx.AsyncClient, catalogue: Catalogue) -> None:
    good, lied, bad, bomb, taken = (unique(one) for one in ("good", "lied", "bad", "bomb", "taken"))
    await add_template(admin, one_file(taken))
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    texts = [
        one_file(good),
        one_file(lied),
        one_file(bad) + "    privileged: true\n",
        one_file(bomb) + laughs,
        one_file(taken),
        one_file("hello"),
    ]
    catalogue.write(1, *texts, lie=lied)
    source = await add(admin, catalogue)
    assert source["error"] is None
    assert source["problems"].keys() == {lied, bad, bomb, taken, "hello"}
    assert "privileged" in source["problems"][bad]
    assert (await admin.get(f"/api/templates/{good}")).json()["source"] == source["id"]
    assert (await admin.get(f"/api/templates/{taken}")).json()["source"] == "own"
    assert (await admin.get("/api/templates/hello")).json()["source"] == "packaged"


async def test_hostile_servers_change_nothing(
    admin: httpx.AsyncClient, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    slug = unique("kept")
    catalogue.write(5, one_file(slug))
    source = await add(admin, catalogue)
    whole = dict(catalogue.files)
    good = catalogue.files["/index.json"]

    async def refused(part: str) -> None:
        found = await sync(admin, source)
        assert part in found["error"], found
        assert found["serial"] == 5
        assert (await admin.get(f"/api/templates/{slug}")).json()["source"] == source["id"]
        catalogue.files = dict(whole)

    catalogue.files["/index.json"] = good.replace(b'"serial": 5', b'"serial": 6')
    await refused("signature")
    catalogue.files["/index.json.sig"] = b"!"
    await refused("signature")
    del catalogue.files["/index.json.sig"]
    await refused("404")
    catalogue.sign(b'{"serial": 9, "templates": "x"}')
    await refused("can't be read")
    catalogue.sign(b"[" * 100_000)
    await refused("can't be read")
    catalogue.sign(b"x" * (jobs.INDEX_BYTES + 1))
    await refused("larger than")
    catalogue.files["/index.json"] = b"redirect http://169.254.169.254/"
    await refused("302")
    del catalogue.files[f"/{slug}.yaml"]
    await refused("404")
    catalogue.files[f"/{slug}.yaml"] = b"x" * (jobs.TEMPLATE_BYTES + 1)
    await refused("larger than")
    for url in ("file:///etc/passwd", "http://169.254.169.254/latest", "http://10.0.0.1/"):
        entry = {"slug": slug, "url": url, "sha256": "0" * 64}
        catalogue.sign(json.dumps({"serial": 6, "templates": [entry]}).encode())
        await refused("address")
    assert (await sync(admin, source))["error"] is None


async def test_what_is_wrong_with_a_source_is_told_at_once(admin: httpx.AsyncClient, catalogue: Catalogue) -> None:
    name = {"name": unique("src")}
    for url in ("http://10.0.0.1/x", "https://[::ffff:169.254.169.254]/", "https://0x7f.1/", "ftp://example.com/"):
        answer = await admin.post("/api/template-sources", json=name | {"url": url})
        assert (answer.status_code, set(answer.json()["details"])) == (422, {"url", "public_key"}), url
    both = name | {"url": catalogue.url, "public_key": catalogue.public_key, "digest": "sha256:" + "0" * 64}
    for body in (both, both | {"digest": None, "public_key": "eA=="}, both | {"digest": "x", "public_key": None}):
        assert (await admin.post("/api/template-sources", json=body)).status_code == 422
    catalogue.write(1)
    made = await add(admin, catalogue)
    again = {"name": made["name"], "url": catalogue.url, "public_key": catalogue.public_key}
    assert (await admin.post("/api/template-sources", json=again)).status_code == 409
    assert (await admin.get("/api/template-sources/tsrc_x")).json()["code"] == "template_source_not_found"
