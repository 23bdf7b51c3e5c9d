"""A Compose file becomes an app: whole or not at all, and without showing what is secret in it."""

import socket
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.secret import MASK
from tests.conftest import RunningApp
from tests.factories.apps import audited, begin_install, engine_of, events_of, key_client, unique, until

BLOG = """\
services:
  db:
    image: mariadb:11.4
    environment:
      MARIADB_ROOT_PASSWORD: canary-in-the-file
      MARIADB_DATABASE: ${DB_NAME:-blog}
    volumes: [db:/var/lib/mysql]
  blog:
    image: wordpress:6.7
    depends_on: [db]
    ports: ["80"]
    environment:
      - WORDPRESS_DB_PASSWORD=canary-in-the-file
      - SESSION_SECRET=canary-of-the-session
      - API_TOKEN=${API_TOKEN:?give one}
      - MOTTO=hello
    secrets: [salt]
secrets:
  salt: {content: canary-of-the-salt}
volumes: {db: {}}
"""
CANARIES = ("canary-in-the-file", "canary-of-the-session", "canary-of-the-salt", "canary-in-env")

REFUSED = {
    "privileged: true": "services.web.privileged",
    "network_mode: host": "services.web.network_mode",
    "pid: host": "services.web.pid",
    "ipc: host": "services.web.ipc",
    "devices: [/dev/kvm]": "services.web.devices",
    "volumes: ['/:/host']": "services.web.volumes.0",
    "volumes: ['/var/run/docker.sock:/s']": "services.web.volumes.0",
    "env_file: ../../etc/passwd": "services.web.env_file",
    "label_file: x": "services.web.label_file",
    "extends: {file: a.yaml, service: b}": "services.web.extends",
    "build: {context: .}": "services.web.build",
    "develop: {watch: [{path: x, action: sync}]}": "services.web.develop",
    "cap_add: [SYS_ADMIN]": "services.web.cap_add.0",
    "security_opt: [seccomp:unconfined]": "services.web.security_opt.0",
    "sysctls: {net.core.somaxconn: 1}": "services.web.sysctls",
    "cgroup_parent: x": "services.web.cgroup_parent",
    "runtime: nvidia": "services.web.runtime",
    "labels: {io.quazzar.app: app_x}": "services.web.labels.io.quazzar.app",
    "nonsense: 1": "services.web.nonsense",
}


async def bring(client: httpx.AsyncClient, compose: str, query: str = "", **body: Any) -> httpx.Response:
    return await client.post(f"/api/apps/import{query}", json={"name": unique("im"), "compose": compose} | body)


async def test_a_file_becomes_an_app(app: RunningApp, admin: httpx.AsyncClient) -> None:
    answer = await bring(admin, BLOG, env={"API_TOKEN": "canary-in-env", "UNUSED": "x"})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/api/apps/{made['id']}"
    assert (made["status"], made["template"], made["version"]) == ("installing", None, None)
    running = await until(admin, made["id"], "running")
    config = running["config"]
    port = config.pop("blog_80_port", None) or next(value for value in config.values() if isinstance(value, int))
    assert running["ports"] == [{"service": "blog", "container_port": 80, "host_port": port, "protocol": "tcp"}]
    assert running["urls"] == [f"http://localhost:{port}"]
    assert {name for name, value in config.items() if value == MASK} >= {
        "API_TOKEN", "MARIADB_ROOT_PASSWORD", "WORDPRESS_DB_PASSWORD", "SESSION_SECRET", "secret_salt",
    }  # fmt: skip
    engine = engine_of(app)
    blog, db = engine.container(made["id"], "blog").service, engine.container(made["id"], "db").service
    assert blog.environment == {
        "WORDPRESS_DB_PASSWORD": "canary-in-the-file",
        "SESSION_SECRET": "canary-of-the-session",
        "API_TOKEN": "canary-in-env",
        "MOTTO": "hello",
    }
    assert db.environment == {"MARIADB_ROOT_PASSWORD": "canary-in-the-file", "MARIADB_DATABASE": "blog"}
    assert [one.content for one in blog.files] == ["canary-of-the-salt"]
    assert [name for name, _ in await events_of(app, made["id"])] == ["app.installed"]
    assert (await events_of(app, made["id"]))[0][1]["template"] is None
    assert [(action, kind) for action, kind, _ in await audited(app, made["id"])] == [("app.import", "user")]
    async with app.database.begin() as session:
        row = (await session.execute(text("SELECT * FROM apps WHERE id = :id"), {"id": made["id"]})).mappings().one()
        told = [str(value) for value in row.values()]
        for table in ("jobs", "job_logs", "audit_records", "events"):
            told += [
                str(value) for value in (await session.execute(text(f"SELECT to_jsonb(t) FROM {table} t"))).scalars()
            ]
    told += [(await admin.get(path)).text for path in (f"/api/apps/{made['id']}", "/api/apps", "/api/audit")]
    for canary in CANARIES:
        assert not [place for place in told if canary in place], canary
    assert (await admin.delete(f"/api/apps/{made['id']}?purge=true")).status_code == 204


async def test_secrets_of_one_name_and_other_values_stay_apart(app: RunningApp, admin: httpx.AsyncClient) -> None:
    file = """\
services:
  a: {image: x, environment: {PASSWORD: "first$$1", KEY: 12345}}
  b: {image: x, environment: ["PASSWORD=second", "EMPTY_SECRET=", "TOKEN=a-${WHO:-me}"]}
"""
    made = (await bring(admin, file)).json()
    running = await until(admin, made["id"], "running")
    assert {"PASSWORD", "b_PASSWORD", "KEY"} <= set(running["config"])
    engine = engine_of(app)
    assert engine.container(made["id"], "a").service.environment == {"PASSWORD": "first$1", "KEY": "12345"}
    assert engine.container(made["id"], "b").service.environment == {
        "PASSWORD": "second",
        "EMPTY_SECRET": "",
        "TOKEN": "a-me",
    }


@pytest.mark.parametrize("line", REFUSED)
@pytest.mark.parametrize("query", ["", "?dry_run=true"])
async def test_s12_s13_what_is_refused_is_told_by_its_line(
    app: RunningApp, admin: httpx.AsyncClient, line: str, query: str
) -> None:
    calls, name = len(engine_of(app).calls), unique("im")
    answer = await bring(admin, f"services:\n  web:\n    image: x\n    {line}\n", query, name=name)
    assert (answer.status_code, answer.json()["code"]) == (422, "compose_invalid")
    assert [(place, "(line 4)" in said) for place, said in answer.json()["details"].items()] == [(REFUSED[line], True)]
    assert (await admin.get(f"/api/apps?q={name}")).json() == []
    assert not any(step.startswith("create") for step in engine_of(app).calls[calls:])


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("include: [x.yaml]\nservices: {a: {image: x}}", "include"),
        ("services: {a: {image: x}}\nvolumes: {d: {driver_opts: {type: none, o: bind, device: /}}}", "volumes.d"),
        ("services: {a: {image: x}}\nvolumes: {d: {driver: nfs}}", "volumes.d.driver"),
        ("services: {a: {image: x}}\nvolumes: {d: {external: true}}", "volumes.d.external"),
        ("services: {a: {image: x}}\nconfigs: {c: {file: /etc/shadow}}", "configs.c.file"),
        ("services: {a: {image: x}}\nsecrets: {c: {file: /etc/shadow}}", "secrets.c.file"),
        ("services: {a: !include x}", "services.a"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nservices: {a: {image: *b}}", "a"),
        ("services: {a: {image: '${NOPE}'}}", "services.a.image"),
        ("just text", "compose"),
        ("services: {a: {image: '--privileged'}}", "services.a.image"),
        ("services: {a: {image: 'x; id'}}", "services.a.image"),
    ],
)
async def test_files_that_are_no_app(admin: httpx.AsyncClient, file: str, place: str) -> None:
    answer = await bring(admin, file)
    assert (answer.status_code, answer.json()["code"]) == (422, "compose_invalid"), answer.text
    assert any(one.startswith(place) for one in answer.json()["details"]), answer.text


async def test_all_problems_are_told_at_once(admin: httpx.AsyncClient) -> None:
    file = "services:\n  web:\n    image: ${IMAGE}\n    privileged: true\n    pid: host\n    nonsense: 1\n"
    details = (await bring(admin, file, env={"BAD": "x" * 40_000})).json()["details"]
    assert set(details) == {
        "services.web.image", "services.web.privileged", "services.web.pid", "services.web.nonsense", "env.BAD"
    }  # fmt: skip
    wrong = await bring(admin, "x", name="A b", env={"A": 1}, nope=True)
    assert (wrong.status_code, set(wrong.json()["details"])) == (422, {"name", "env.A", "nope"})


@pytest.mark.parametrize("env", [{}, {"COMPOSE_PROJECT_NAME": "shop"}])
async def test_the_project_of_a_file_is_the_app(app: RunningApp, admin: httpx.AsyncClient, env: dict[str, str]) -> None:
    file = "services: {a: {image: x, environment: {PROJECT: '${COMPOSE_PROJECT_NAME}'}}}"
    made = (await bring(admin, file, env=env)).json()
    running = await until(admin, made["id"], "running")
    expected = env.get("COMPOSE_PROJECT_NAME", made["name"])
    assert engine_of(app).container(made["id"], "a").service.environment == {"PROJECT": expected}
    # What came with the request may be a secret.
    assert running["config"] == {"COMPOSE_PROJECT_NAME": MASK if env else made["name"]}


async def test_what_is_done_in_another_way_is_told_in_the_job_too(admin: httpx.AsyncClient) -> None:
    file = "services: {a: {image: x, pull_policy: always, platform: linux/amd64}}"
    notes = (await bring(admin, file, "?dry_run=true")).json()["notes"]
    assert len(notes) == 2
    made = (await bring(admin, file)).json()
    await until(admin, made["id"], "running")
    logged = [line["line"] for line in (await admin.get(f"/api/jobs/{made['job_id']}/logs")).json()]
    assert [line for line in logged if line in notes] == notes


async def test_a_value_of_env_that_does_not_fit_its_place(admin: httpx.AsyncClient) -> None:
    answer = await bring(admin, "services: {a: {image: x, ports: ['${PORT}:80']}}", env={"PORT": "canary"})
    assert answer.status_code == 422, answer.text
    assert "canary" not in answer.text
    assert answer.json()["details"]


async def test_a_dry_run_and_what_is_taken(app: RunningApp, admin: httpx.AsyncClient) -> None:
    other = await begin_install(admin)
    port = other["config"]["http_port"]
    file = f"services: {{a: {{image: 'x:1', ports: ['{port}:80'], mem_limit: 64m}}}}"
    planned = (await bring(admin, file, "?dry_run=true", name=other["name"])).json()
    assert set(planned["refusals"]) == {"name", "ports"}
    assert (planned["template"], planned["images"], planned["memory_limit_bytes"]) == (None, ["x:1"], 64 * 2**20)
    taken = await bring(admin, file)
    assert (taken.status_code, taken.json()["code"]) == (409, "port_taken")
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        port = foreign.getsockname()[1]
        file = f"services: {{a: {{image: x, ports: ['{port}:80', '{port}:53/udp']}}}}"
        planned = (await bring(admin, file, "?dry_run=true")).json()
        assert planned["refusals"] == {"ports": f"Port {port} is in use by another program"}
    assert (await bring(admin, file, "?dry_run=true")).json()["refusals"] == {}
    named = await bring(admin, "services: {a: {image: x}}", name=other["name"])
    assert (named.status_code, named.json()["code"]) == (409, "app_name_taken")
    async with key_client(app, admin, ["apps:write"], resources=[other["id"]]) as client:
        assert (await bring(client, "services: {a: {image: x}}")).status_code == 403
    await until(admin, other["id"], "running")
