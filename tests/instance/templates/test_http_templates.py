"""Templates over HTTP: the packaged catalogue, own templates, versions, and every way to be refused."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.instance.templates.catalogue import catalogue, packaged_id
from tests.conftest import RunningApp
from tests.factories.apps import add_template, key_client, unique, web_file

YAML = {"Content-Type": "application/yaml"}


async def slugs(client: httpx.AsyncClient, query: str = "") -> list[str]:
    found: list[str] = []
    path = f"/api/templates?limit=200{query}"
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    found += [one["slug"] for one in answer.json()]
    return found


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/api/templates", "templates:read"),
        ("GET", "/api/templates/hello", "templates:read"),
        ("POST", "/api/templates", "templates:write"),
        ("PUT", "/api/templates/hello", "templates:write"),
        ("DELETE", "/api/templates/hello", "templates:write"),
    ],
)
async def test_who_may(
    app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient, method: str, path: str, scope: str
) -> None:
    anonymous = await app_client.request(method, path)
    assert (anonymous.status_code, anonymous.json()["code"]) == (401, "unauthorized")
    others = [one for one in ("templates:read", "templates:write", "apps:write") if one != scope]
    async with key_client(app, admin, others) as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    async with key_client(app, admin, [scope]) as client:
        answer = await client.request(method, path)
        assert answer.status_code not in {401, 403}


async def test_every_packaged_template_parses_and_can_be_read(admin: httpx.AsyncClient) -> None:
    assert "hello" in catalogue()
    for slug, packaged in catalogue().items():
        answer = await admin.get(f"/api/templates/{slug}")
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["id"] == packaged.id == packaged_id(slug)
        assert body["source"] == "packaged"
        assert body["versions"] == [body["version"]]
        assert (await admin.get(f"/api/templates/{packaged.id}")).json() == body
        assert body in [
            one | {key: body[key] for key in ("compose", "versions", "notes", "first_steps")}
            for one in (await admin.get("/api/templates?limit=200")).json()
        ]


async def test_own_template_by_json_and_by_yaml(admin: httpx.AsyncClient) -> None:
    for headers in ({}, YAML, {"Content-Type": "application/yaml; charset=utf-8"}):
        slug = unique("web")
        text = web_file(slug)
        content: dict[str, Any] = {"content": text, "headers": headers} if headers else {"json": {"compose": text}}
        answer = await admin.post("/api/templates", **content)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert answer.headers["location"] == f"/api/templates/{made['id']}"
        assert made["id"].startswith("tpl_")
        assert made["source"] == "own"
        assert made["compose"] == text
        assert made["services"] == ["web", "db"]
        assert made["volumes"] == ["data", "db"]
        assert made["web"] == {"service": "web", "port": 80}
        assert made["needs"] == {"memory_bytes": None, "disk_bytes": None}
        fields = {field["name"]: field for field in made["fields"]}
        assert list(fields) == ["http_port", "admin_password", "db_password", "motto"]
        assert fields["http_port"] | {"default": "auto", "type": "port", "label": "Port"} == fields["http_port"]
        assert fields["admin_password"]["required"] is True
        assert fields["admin_password"]["secret"] is True
        assert fields["admin_password"]["min_length"] == 12
        assert fields["db_password"]["generated"] == 24
        assert (await admin.get(f"/api/templates/{slug}")).json() == made
        assert (await admin.get(f"/api/templates/{made['id']}")).json() == made
        assert slug in await slugs(admin)


async def test_a_slug_is_there_once(admin: httpx.AsyncClient) -> None:
    slug = unique("web")
    await add_template(admin, web_file(slug))
    for taken in (slug, "hello"):
        answer = await admin.post("/api/templates", json={"compose": web_file(taken)})
        assert (answer.status_code, answer.json()["code"]) == (409, "template_exists")


async def test_put_adds_and_replaces_versions(admin: httpx.AsyncClient) -> None:
    slug = unique("web")
    made = await add_template(admin, web_file(slug, version="1.0"))
    added = await admin.put(f"/api/templates/{slug}", json={"compose": web_file(slug, version="2.0", title="Second")})
    assert added.status_code == 200, added.text
    assert added.json()["versions"] == ["2.0", "1.0"]
    replaced = await admin.put(
        f"/api/templates/{made['id']}", content=web_file(slug, version="1.0", title="First again"), headers=YAML
    )
    assert (replaced.json()["version"], replaced.json()["title"]) == ("1.0", "First again")
    assert replaced.json()["versions"] == ["2.0", "1.0"], "a replaced version keeps its place"
    newest = (await admin.get(f"/api/templates/{slug}")).json()
    assert (newest["version"], newest["title"]) == ("2.0", "Second")
    old = (await admin.get(f"/api/templates/{slug}?version=1.0")).json()
    assert (old["version"], old["title"]) == ("1.0", "First again")
    missing = await admin.get(f"/api/templates/{slug}?version=3.0")
    assert (missing.status_code, missing.json()["code"]) == (404, "template_version_not_found")
    other = await admin.put(f"/api/templates/{slug}", json={"compose": web_file(unique("web"))})
    assert (other.status_code, list(other.json()["details"])) == (422, ["x-quazzar.slug"])


async def test_packaged_templates_are_read_only(admin: httpx.AsyncClient) -> None:
    for answer in (
        await admin.delete("/api/templates/hello"),
        await admin.delete(f"/api/templates/{packaged_id('hello')}"),
        await admin.put("/api/templates/hello", json={"compose": web_file("hello")}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "template_packaged")


async def test_delete(admin: httpx.AsyncClient) -> None:
    slug = unique("web")
    made = await add_template(admin, web_file(slug))
    await admin.put(f"/api/templates/{slug}", json={"compose": web_file(slug, version="2.0")})
    answer = await admin.delete(f"/api/templates/{made['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in (slug, made["id"]):
        assert (await admin.get(f"/api/templates/{path}")).status_code == 404
        assert (await admin.delete(f"/api/templates/{path}")).json()["code"] == "template_not_found"
    assert slug not in await slugs(admin)


@pytest.mark.parametrize(
    "ref", ["nothing-here", "tpl_nothing", "A", "-v", "..%2f..", "a" * 200, "a;id", "a'b", "%C2%85"]
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_unknown_templates(admin: httpx.AsyncClient, method: str, ref: str) -> None:
    body: dict[str, Any] = {"json": {"compose": web_file("x")}} if method == "PUT" else {}
    answer = await admin.request(method, f"/api/templates/{ref}", **body)
    assert answer.status_code == 404, answer.text
    assert answer.json()["code"] in {"template_not_found", "not_found"}


async def test_problems_of_a_file_come_all_at_once_with_their_lines(admin: httpx.AsyncClient) -> None:
    text = web_file(unique("web")) + "secrets: {k: {file: /etc/shadow}}\n"
    text = text.replace('    restart: "no"\n', "    privileged: true\n    network_mode: host\n")
    answer = await admin.post("/api/templates", json={"compose": text})
    assert (answer.status_code, answer.json()["code"]) == (422, "template_invalid")
    details = answer.json()["details"]
    lines = text.splitlines()
    for key, word in (("services.web.privileged", "privileged"), ("services.web.network_mode", "network_mode")):
        number = next(index for index, line in enumerate(lines, 1) if word in line)
        assert f"(line {number})" in details[key]
    assert any(key.startswith("secrets.k") for key in details)


@pytest.mark.parametrize(
    "driver", ["{driver_opts: {type: none, o: bind, device: /}}", "{driver: nfs}", "{external: true}"]
)
async def test_s12_one_validator_for_create_and_replace(admin: httpx.AsyncClient, driver: str) -> None:
    slug = unique("web")
    await add_template(admin, web_file(slug))
    bad = web_file(slug, version="2.0").replace("volumes: {data: {}", f"volumes: {{data: {driver}")
    for answer in (
        await admin.put(f"/api/templates/{slug}", json={"compose": bad}),
        await admin.post("/api/templates", json={"compose": bad.replace(slug, unique("web"))}),
    ):
        assert answer.status_code == 422, answer.text
        assert any(
            key.startswith("volumes.data") and "(line " in text for key, text in answer.json()["details"].items()
        )
    assert (await admin.get(f"/api/templates/{slug}")).json()["versions"] == ["1.0"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"[]", {"Content-Type": "application/json"}, 400),
        (b"{", {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "application/json"}, 422),
        (b'{"compose": 1}', {"Content-Type": "application/json"}, 422),
        (b'{"compose": "x", "trusted": true}', {"Content-Type": "application/json"}, 422),
        (b"a: 1", {"Content-Type": "text/plain"}, 400),
        (b"a: 1", {"Content-Type": "application/x-yaml"}, 400),
        (b"", YAML, 422),
        (b"\xff\xfe", YAML, 422),
        (b"a: &a [*a]", YAML, 422),
        (b"!!python/object/apply:os.system [id]", YAML, 422),
    ],
)
async def test_bodies_that_are_no_template(
    admin: httpx.AsyncClient, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await admin.post("/api/templates", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) >= {"error", "code", "request_id"}


async def test_pages_filters_and_order(admin: httpx.AsyncClient) -> None:
    for index in range(5):
        await add_template(admin, web_file(unique(f"page{index}"), title=f"Quokka {index}"))
    everything = await slugs(admin)
    assert everything == sorted(everything)
    found: list[str] = []
    path = "/api/templates?limit=2"
    while path:
        answer = await admin.get(path)
        assert len(answer.json()) <= 2
        found += [one["slug"] for one in answer.json()]
        link = answer.headers.get("link")
        path = link[1 : link.index(">")] if link else ""
    assert found == everything
    assert len(await slugs(admin, "&q=QUOKKA")) == 5
    assert await slugs(admin, "&q=quokka%203") == [slug for slug in everything if slug.startswith("page3-")]
    assert "hello" in await slugs(admin, "&category=examples")
    assert "hello" not in await slugs(admin, "&category=tests")
    for query in ("limit=0", "limit=201", "limit=x", "cursor=%00", "cursor=zzz", "q=", "q=%00", "category=%0a"):
        answer = await admin.get(f"/api/templates?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), query


async def test_an_own_template_hides_a_packaged_one_of_its_slug(app: RunningApp, admin: httpx.AsyncClient) -> None:
    """A later release may bring a slug that somebody has already taken."""
    slug = unique("web")
    made = await add_template(admin, web_file(slug))
    async with app.database.begin() as session:
        await session.execute(text("UPDATE templates SET slug = 'hello' WHERE id = :id"), {"id": made["id"]})
        await session.execute(
            text(
                "UPDATE template_versions SET definition = replace(definition::text, :slug, 'hello')::json"
                " WHERE template_id = :id"
            ),
            {"id": made["id"], "slug": slug},
        )
    try:
        assert (await slugs(admin)).count("hello") == 1
        assert (await admin.get("/api/templates/hello")).json()["source"] == "own"
        assert (await admin.get("/api/templates?q=small%20page")).json() == []
    finally:
        assert (await admin.delete("/api/templates/hello")).status_code == 204
    assert (await admin.get("/api/templates/hello")).json()["source"] == "packaged"
