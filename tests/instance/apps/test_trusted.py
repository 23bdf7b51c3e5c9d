"""Only an administrator opens the host to an app, and only as far as the file says; everybody else stays shut out."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.instance.apps.spec import BindSpec
from tests.conftest import RunningApp
from tests.factories.apps import audited, engine_of, install, key_client, unique, until

MEDIA = """\
x-quazzar: {slug: SLUG, version: "VERSION", title: Media}
services:
  web:
    image: "nginx:1.27"
    volumes: ["/srv/media:/media:ro", "data:/data"]
    devices: [/dev/dri]
volumes: {data: {}}
"""
FILE = "services: {web: {image: 'nginx:1.27', volumes: ['/srv/media:/media']}}"


def media(slug: str, version: str = "1") -> str:
    return MEDIA.replace("SLUG", slug).replace("VERSION", version)


async def add(client: httpx.AsyncClient, compose: str, **more: Any) -> httpx.Response:
    return await client.post("/api/templates", json={"compose": compose} | more)


async def test_only_an_administrator_trusts(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = unique("media")
    body = {"name": unique(), "compose": FILE, "trusted": True}
    async with key_client(app, admin, ["templates:write", "apps:write", "settings:write"]) as client:
        for answer in (
            await add(client, media(slug), trusted=True),
            await client.put(f"/api/templates/{slug}", json={"compose": media(slug), "trusted": True}),
            await client.post("/api/apps/import", json=body),
            await client.post("/api/apps/import?dry_run=true", json=body),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing"), answer.text
        untrusted = await add(client, media(slug))
        assert untrusted.json()["details"].keys() == {"services.web.volumes.0", "services.web.devices"}
        plain = await client.post("/api/templates", content=media(slug), headers={"Content-Type": "application/yaml"})
        assert (plain.status_code, plain.json()["code"]) == (422, "template_invalid"), "YAML says nothing of trust"
    mine = await install(admin, "hello")
    async with key_client(app, admin, ["*"], resources=[mine["id"]]) as client:
        # Its app could be updated to it.
        answer = await add(client, media(slug), trusted=True)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    wrong = await add(admin, media(slug), trusted="yes")
    assert (wrong.status_code, wrong.json()["details"].keys()) == (422, {"trusted"})
    made = (await add(admin, media(slug), trusted=True)).json()
    assert made["trusted"] is True
    assert next(one for one in (await admin.get(f"/api/templates?q={slug}")).json())["trusted"] is True
    assert (await admin.get("/api/templates/hello")).json()["trusted"] is False
    [(action, _, after)] = await audited(app, made["id"])
    assert action == "template.create"
    assert after is not None
    assert after["trusted"] is True


async def test_who_may_install_may_install_what_is_trusted(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = unique("media")
    assert (await add(admin, media(slug), trusted=True)).status_code == 201
    async with key_client(app, admin, ["apps:deploy", "apps:read"]) as client:
        plan = (await client.post("/api/apps?dry_run=true", json={"template": slug, "name": unique()})).json()
        assert plan["host_access"] == [
            "web reads the folder /srv/media of the host as /media",
            "web has the device /dev/dri of the host",
        ]
        made = await install(client, slug)
    service = engine_of(app).container(made["id"], "web").service
    assert service.host.binds == (BindSpec(source="/srv/media", target="/media", read_only=True),)
    records = {action: after for action, _, after in await audited(app, made["id"])}
    assert (records["app.install"] or {})["trusted"] is True
    shared = await admin.post(f"/api/apps/{made['id']}/clone", json={"name": unique()})
    assert (shared.status_code, shared.json()["code"]) == (409, "host_folders_shared")
    exported = (await admin.get(f"/api/apps/{made['id']}/export")).text
    assert "/srv/media:/media:ro" in exported
    again = {"name": unique(), "compose": exported}
    assert (await admin.post("/api/apps/import", json=again)).json()["code"] == "compose_invalid"
    assert (await admin.post("/api/apps/import?dry_run=true", json=again | {"trusted": True})).status_code == 200


async def test_trust_is_of_one_version(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = unique("media")
    assert (await add(admin, media(slug), trusted=True)).status_code == 201
    # Who may write templates, but is no administrator, adds none and leaves none that is trusted.
    async with key_client(app, admin, ["templates:write", "templates:read"]) as client:
        refused = await client.put(f"/api/templates/{slug}", json={"compose": media(slug, "2")})
        assert refused.status_code == 422
        tame = media(slug, "1").replace('"/srv/media:/media:ro", ', "").replace("    devices: [/dev/dri]\n", "")
        assert (await client.put(f"/api/templates/{slug}", json={"compose": tame})).json()["trusted"] is False
    again = await admin.put(f"/api/templates/{slug}", json={"compose": media(slug, "2"), "trusted": True})
    assert (again.status_code, again.json()["trusted"]) == (200, True)


@pytest.mark.parametrize(
    ("volumes", "place"),
    [
        ("{d: {driver_opts: {type: none, o: bind, device: /srv}}}", "volumes.d.driver_opts"),
        ("{d: {driver: nfs}}", "volumes.d.driver"),
        ("{d: {external: true}}", "volumes.d.external"),
    ],
)
@pytest.mark.parametrize("trusted", [False, True])
async def test_s12_a_mount_hides_in_no_volume(
    admin: httpx.AsyncClient, volumes: str, place: str, *, trusted: bool
) -> None:
    slug = unique("s12")
    tame = f'x-quazzar: {{slug: {slug}, version: "1", title: T}}\nservices: {{a: {{image: x}}}}\n'
    assert (await add(admin, tame)).status_code == 201
    for answer in (
        await admin.put(f"/api/templates/{slug}", json={"compose": tame + f"volumes: {volumes}\n", "trusted": trusted}),
        await admin.post(
            "/api/apps/import",
            json={
                "name": unique(),
                "compose": f"services: {{a: {{image: x}}}}\n\nvolumes: {volumes}\n",
                "trusted": trusted,
            },
        ),
    ):
        assert answer.status_code == 422, answer.text
        assert "(line 3)" in answer.json()["details"][place]


async def test_s12_a_change_opens_nothing(app: RunningApp, admin: httpx.AsyncClient) -> None:
    file = 'services: {a: {image: "nginx:1.27", volumes: ["${WHERE}:/x"]}}\nvolumes: {data: {}}'
    body = {"name": unique(), "compose": file, "env": {"WHERE": "data"}}
    made = await until(admin, (await admin.post("/api/apps/import", json=body)).json()["id"], "running")
    for where in ("/srv", "/", "./x", "/var/run/docker.sock", "other"):
        answer = await admin.patch(f"/api/apps/{made['id']}", json={"config": {"WHERE": where}})
        assert (answer.status_code, answer.json()["details"].keys()) == (422, {"config.WHERE"}), where
    async with app.database.begin() as session:
        query = text("SELECT definition->>'trusted' FROM apps WHERE id = :id")
        assert (await session.execute(query, {"id": made["id"]})).scalar_one() == "false"
