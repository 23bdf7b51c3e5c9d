"""Apps over HTTP: who may, what is refused and why, and what an answer shows."""

import asyncio
import re
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.secret import MASK
from quazzar.instance.apps import answers
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_one,
    add_template,
    begin_install,
    engine_of,
    install,
    job_of,
    key_client,
    operate,
    show,
    unique,
    until,
    web_file,
)

MISSING = "app_" + "2" * 26
CALLS = [
    ("GET", "/api/apps", "apps:read"),
    ("POST", "/api/apps", "apps:deploy"),
    ("POST", "/api/apps/import", "apps:write"),
    ("POST", "/api/apps/adopt", "*"),
    ("GET", f"/api/apps/{MISSING}", "apps:read"),
    ("DELETE", f"/api/apps/{MISSING}", "apps:write"),
    ("POST", f"/api/apps/{MISSING}/undelete", "apps:write"),
    ("POST", f"/api/apps/{MISSING}/start", "apps:operate"),
    ("POST", f"/api/apps/{MISSING}/stop", "apps:operate"),
    ("POST", f"/api/apps/{MISSING}/restart", "apps:operate"),
    ("GET", f"/api/apps/{MISSING}/export", "apps:read"),
    ("GET", f"/api/apps/{MISSING}/logs", "apps:read"),
    ("GET", f"/api/apps/{MISSING}/stats", "apps:read"),
    ("GET", f"/api/apps/{MISSING}/events", "apps:read"),
]


@pytest.mark.parametrize(("method", "path", "scope"), CALLS)
async def test_who_may(
    app: RunningApp, app_client: httpx.AsyncClient, admin: httpx.AsyncClient, method: str, path: str, scope: str
) -> None:
    anonymous = await app_client.request(method, path)
    assert (anonymous.status_code, anonymous.json()["code"]) == (401, "unauthorized")
    fine = {"apps:read", "apps:deploy", "apps:operate", "templates:write"} - {scope}
    async with key_client(app, admin, sorted(fine)) as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    async with key_client(app, admin, [scope]) as client:
        assert (await client.request(method, path)).status_code not in {401, 403}


@pytest.mark.parametrize("app_id", [MISSING, "x", "app_x", "-v", "a;id", "a" * 300, "%C2%85", "app_" + "A" * 26])
async def test_unknown_apps_are_404(admin: httpx.AsyncClient, app_id: str) -> None:
    for method, path, _ in CALLS[4:]:
        answer = await admin.request(method, path.replace(MISSING, app_id))
        assert (answer.status_code, answer.json()["code"]) == (404, "app_not_found"), path


async def test_a_service_without_a_health_check_is_waited_for_until_it_runs(admin: httpx.AsyncClient) -> None:
    text = web_file(unique("web")).replace("condition: service_started", "condition: service_healthy")
    made = await add_template(admin, text)
    assert made["notes"] == [
        "services.web.depends_on waits until db runs, where its image has no health check either (line 14)"
    ]
    app = await install(admin, made["slug"], config={"admin_password": SECRET})
    assert {one["name"]: one["status"] for one in app["services"]} == {"web": "running", "db": "running"}


async def test_install_to_uninstall(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    name = unique("cloud")
    answer = await admin.post(
        "/api/apps",
        json={
            "template": slug,
            "name": name,
            "config": {"admin_password": SECRET, "motto": "hi"},
            "resources": {"memory_bytes": 64 * 1024 * 1024, "cpus": 0.5, "pids": 99},
            "domain": "cloud.example.com",
        },
    )
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/api/apps/{made['id']}"
    assert re.fullmatch(r"app_[a-z2-7]{26}", made["id"])
    assert made["status"] == "installing"
    assert made["job_id"].startswith("job_")
    assert made["template"] == slug
    assert made["version"] == "1.0"
    assert made["domain"] == "cloud.example.com"
    running = await until(admin, made["id"], "running")
    port = running["config"]["http_port"]
    assert 20_000 <= port <= 29_999
    assert running["config"] == {
        "http_port": port, "admin_password": MASK, "db_password": MASK, "motto": "hi"
    }  # fmt: skip
    assert running["ports"] == [{"service": "web", "container_port": 80, "host_port": port, "protocol": "tcp"}]
    assert running["urls"] == [f"http://localhost:{port}"]
    assert running["volumes"] == [{"name": "data", "size_bytes": None}, {"name": "db", "size_bytes": None}]
    assert [(one["name"], one["status"]) for one in running["services"]] == [("db", "running"), ("web", "running")]
    assert all(one["image_digest"].startswith("sha256:") for one in running["services"])
    assert running["resources"] == {"memory_bytes": 64 * 1024 * 1024, "cpus": 0.5, "pids": 99}
    assert running["update_available"] is False
    service = engine_of(app).container(made["id"], "web").service
    assert service.environment["ADMIN"] == SECRET
    assert re.fullmatch(r"[A-Za-z0-9]{24}", service.environment["DB"])
    assert service.resources.memory_bytes == 64 * 1024 * 1024
    assert (service.resources.cpus, service.resources.pids) == (0.5, 99)
    job = await job_of(admin, made["job_id"])
    assert (job["kind"], job["status"], job["subject"]) == ("apps.install", "completed", made["id"])
    listed = next(one for one in (await admin.get("/api/apps")).json() if one["id"] == made["id"])
    assert listed == {key: running[key] for key in listed}
    gone = await admin.delete(f"/api/apps/{made['id']}?purge=true")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await admin.get(f"/api/apps/{made['id']}")).status_code == 404
    assert [one for one in engine_of(app).containers if one.app_id == made["id"]] == []
    assert made["id"] not in engine_of(app).volumes
    async with app.database.begin() as session:
        held = await session.execute(text("SELECT count(*) FROM app_ports WHERE host_port = :port"), {"port": port})
        assert held.scalar_one() == 0


async def test_secrets_are_sealed_at_rest_and_nowhere_to_be_seen(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    canary = "canary-5f1c-of-a-secret"
    made = await install(admin, slug, config={"admin_password": canary})
    generated = engine_of(app).container(made["id"], "web").service.environment["DB"]
    async with app.database.begin() as session:
        row = (await session.execute(text("SELECT * FROM apps WHERE id = :id"), {"id": made["id"]})).mappings().one()
        lines = (await session.execute(text("SELECT line FROM job_logs"))).scalars().all()
        jobs = (await session.execute(text("SELECT args::text, step, error FROM jobs"))).all()
    for place in (*(str(value) for value in row.values()), *lines, str(jobs)):
        assert canary not in place
        assert generated not in place
    for path in ("/api/apps", f"/api/apps/{made['id']}", f"/api/jobs/{made['job_id']}", "/api/apps?q=app"):
        answer = await admin.get(path)
        assert canary not in answer.text
        assert generated not in answer.text


async def test_keep_data(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    made = await install(admin, slug, config={"admin_password": SECRET})
    assert (await admin.delete(f"/api/apps/{made['id']}?keep_data=true")).status_code == 204
    assert engine_of(app).volumes[made["id"]] == {"data", "db"}
    assert [one for one in engine_of(app).containers if one.app_id == made["id"]] == []


@pytest.mark.parametrize("name", ["a;id", "$(id)", "a`id`", "-v", "a\nb", "A", "ä", "", "a" * 64, "a-", "a_b", "a.b"])
async def test_s01_names(app: RunningApp, admin: httpx.AsyncClient, name: str) -> None:
    calls = len(engine_of(app).calls)
    answer = await admin.post("/api/apps", json={"template": "hello", "name": name})
    assert (answer.status_code, list(answer.json()["details"])) == (422, ["name"])
    assert not any(step.startswith("create") for step in engine_of(app).calls[calls:])


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ({}, {"template", "name"}),
        ({"template": "nope", "name": "x"}, {"template"}),
        ({"template": "x;id", "name": "x"}, {"template"}),
        ({"template": "hello", "name": "x", "version": "9.9"}, {"version"}),
        ({"template": "hello", "name": "x", "version": "a b"}, {"version"}),
        (
            {"template": "hello", "name": "x", "config": {"nope": 1, "http_port": 0}},
            {"config.nope", "config.http_port"},
        ),
        ({"template": "hello", "name": "x", "config": {"greeting": ["x"]}}, {"config.greeting"}),
        ({"template": "hello", "name": "x", "config": {"greeting": "<script>"}}, {"config.greeting"}),
        ({"template": "hello", "name": "x", "config": []}, {"config"}),
        ({"template": "hello", "name": "x", "resources": {"memory_bytes": 1}}, {"resources.memory_bytes"}),
        ({"template": "hello", "name": "x", "resources": {"cpus": 0, "pids": 0}}, {"resources.cpus", "resources.pids"}),
        ({"template": "hello", "name": "x", "resources": {"gpu": 1}}, {"resources.gpu"}),
        ({"template": "hello", "name": "x", "domain": "-x"}, {"domain"}),
        ({"template": "hello", "name": "x", "domain": "http://x.example.com"}, {"domain"}),
        (
            {
                "template": "hello",
                "name": "x",
                "id": "app_1",
                "status": "running",
                "created_at": "2026-01-01T00:00:00Z",
            },
            {"id", "status", "created_at"},
        ),
    ],
)
async def test_bodies_that_do_not_validate(admin: httpx.AsyncClient, body: dict[str, Any], details: set[str]) -> None:
    for path in ("/api/apps", "/api/apps?dry_run=true"):
        answer = await admin.post(path, json=body)
        assert answer.status_code == 422, answer.text
        assert set(answer.json()["details"]) == details


async def test_required_fields_of_a_template(admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    answer = await admin.post(
        "/api/apps", json={"template": slug, "name": unique(), "config": {"motto": "x" * 41, "http_port": "80"}}
    )
    assert answer.status_code == 422
    assert set(answer.json()["details"]) == {"config.admin_password", "config.motto", "config.http_port"}
    short = await admin.post("/api/apps", json={"template": slug, "name": unique(), "config": {"admin_password": "x"}})
    assert set(short.json()["details"]) == {"config.admin_password"}


async def test_a_name_is_there_once_also_when_asked_for_at_once(admin: httpx.AsyncClient) -> None:
    name = unique("race")
    answers = await asyncio.gather(
        *(admin.post("/api/apps", json={"template": "hello", "name": name}) for _ in range(8))
    )
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [201] + [409] * 7, [answer.text for answer in answers]
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"app_name_taken"}
    made = next(answer.json() for answer in answers if answer.status_code == 201)
    await until(admin, made["id"], "running")


async def test_ports_are_never_shared(app: RunningApp, admin: httpx.AsyncClient) -> None:
    apps = await asyncio.gather(*(begin_install(admin) for _ in range(6)))
    ports = [one["config"]["http_port"] for one in apps]
    assert len(set(ports)) == len(ports)
    for path in ("/api/apps", "/api/apps?dry_run=true"):
        body = {"template": "hello", "name": unique(), "config": {"http_port": ports[0]}}
        answer = await admin.post(path, json=body)
        if "dry_run" in path:
            assert answer.status_code == 200
            assert "held by another app" in answer.json()["refusals"]["config.http_port"]
        else:
            assert (answer.status_code, answer.json()["code"]) == (409, "port_taken")
            assert "config.http_port" in answer.json()["details"]
    own = await admin.post(
        "/api/apps",
        json={"template": "hello", "name": unique(), "config": {"http_port": app.settings.server.port}},
    )
    assert (own.status_code, own.json()["code"]) == (409, "port_taken")
    for one in apps:
        await until(admin, one["id"], "running")
    await operate(admin, apps[0]["id"], "stop", "stopped")
    again = await operate(admin, apps[0]["id"], "start", "running")
    assert again["config"]["http_port"] == ports[0], "a port is kept"


async def test_a_dry_run_makes_nothing(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    name = unique("dry")
    calls = len(engine_of(app).calls)
    body = {"template": slug, "name": name, "config": {"admin_password": SECRET}, "resources": {"memory_bytes": 2**27}}
    answer = await admin.post("/api/apps?dry_run=true", json=body)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert plan["images"] == ["nginx:1.27", "postgres:17"]
    assert plan["services"] == ["db", "web"], "in the order of their start"
    assert plan["volumes"] == [{"name": "data", "size_bytes": None}, {"name": "db", "size_bytes": None}]
    assert plan["memory_limit_bytes"] == 2 * 2**27
    assert plan["refusals"] == {}
    assert SECRET not in answer.text
    assert [one["name"] for one in (await admin.get(f"/api/apps?q={name}")).json()] == []
    assert not any(step.startswith(("pull", "create")) for step in engine_of(app).calls[calls:])
    async with app.database.begin() as session:
        port = plan["ports"][0]["host_port"]
        held = await session.execute(text("SELECT count(*) FROM app_ports WHERE host_port = :port"), {"port": port})
        assert held.scalar_one() == 0
    existing = await install(admin)
    taken = await admin.post("/api/apps?dry_run=true", json=body | {"name": existing["name"]})
    assert list(taken.json()["refusals"]) == ["name"]


async def test_operations_and_asking_for_what_already_is(admin: httpx.AsyncClient) -> None:
    app = await install(admin)
    for verb, done, transitional in (
        ("start", "running", None),
        ("stop", "stopped", "stopping"),
        ("stop", "stopped", None),
        ("start", "running", "starting"),
        ("restart", "running", "restarting"),
    ):
        before = await show(admin, app["id"])
        answer = await admin.post(f"/api/apps/{app['id']}/{verb}")
        assert answer.status_code == 200, answer.text
        if transitional is None:
            assert answer.json() == before, "nothing is done"
            continue
        assert answer.json()["status"] == transitional
        assert answer.json()["job_id"] != before["job_id"]
        after = await until(admin, app["id"], done)
        assert after["status_reason"] is None
        job = await job_of(admin, after["job_id"])
        assert (job["kind"], job["status"]) == (f"apps.{verb}", "completed")


@pytest.mark.parametrize("verbs", [("stop", "stop"), ("restart", "stop"), ("restart", "restart"), ("stop", "delete")])
async def test_two_operations_at_once_give_one_409(
    app: RunningApp, admin: httpx.AsyncClient, verbs: tuple[str, str]
) -> None:
    made = await install(admin)
    path = f"/api/apps/{made['id']}"
    # Whichever is taken does not end before the other has been refused.
    holds = [engine_of(app).hold(step) for step in ("stop:web", "delete:web")]
    asked = [admin.delete(path) if verb == "delete" else admin.post(f"{path}/{verb}") for verb in verbs]
    answers: list[httpx.Response] = []
    for answering in asyncio.as_completed(asked):
        answers.append(await answering)
        if answers[-1].status_code == 409:
            for _, let_go in holds:
                let_go.set()
    codes = sorted(answer.status_code for answer in answers)
    assert codes in ([200, 409], [204, 409]), [one.text for one in answers]
    assert next(one.json()["code"] for one in answers if one.status_code == 409) == "app_busy"
    if codes[0] == 200:
        await until(admin, made["id"], "stopped", "running")


async def test_while_an_operation_runs_all_others_are_busy(app: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await install(admin)
    arrived, go_on = engine_of(app).hold("stop:web")
    await admin.post(f"/api/apps/{made['id']}/stop")
    await asyncio.wait_for(arrived.wait(), 10)
    for method, path in (("POST", "/start"), ("POST", "/stop"), ("POST", "/restart"), ("DELETE", "")):
        answer = await admin.request(method, f"/api/apps/{made['id']}{path}")
        assert (answer.status_code, answer.json()["code"]) == (409, "app_busy"), path
    go_on.set()
    await until(admin, made["id"], "stopped")


async def test_the_list(admin: httpx.AsyncClient) -> None:
    slug = await add_one(admin)
    made = [await install(admin, slug, name=unique("list")) for _ in range(3)]
    await operate(admin, made[1]["id"], "stop", "stopped")
    everything = (await admin.get("/api/apps?limit=200")).json()
    ids = [one["id"] for one in everything]
    assert ids == sorted(ids, reverse=True), "newest first"
    assert set(everything[0]) == {
        "id", "name", "template", "version", "status", "status_reason", "status_since", "created_at", "job_id",
        "ports", "urls", "update_available",
    }  # fmt: skip

    async def found(query: str) -> list[str]:
        answer = await admin.get(f"/api/apps?{query}")
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()]

    newest = [one["id"] for one in reversed(made)]
    assert await found(f"template={slug}") == newest
    assert await found(f"template={slug}&status=stopped") == [made[1]["id"]]
    assert await found(f"template={slug}&status=stopped&status=running") == newest
    assert await found(f"template={slug}&status=stopped,running") == newest
    assert await found(f"q={made[0]['name'].upper()}") == [made[0]["id"]]
    assert await found(f"q={slug}") == newest
    assert await found("q=%25") == [], "no wildcard"
    assert await found("template=none") == await found("template=tpl_none") == []
    own, packaged = [(await admin.get(f"/api/templates/{one}")).json()["id"] for one in (slug, "hello")]
    assert await found(f"template={own}") == newest
    assert await found(f"template={packaged}") == await found("template=hello")
    pages: list[str] = []
    path = f"/api/apps?limit=2&template={slug}"
    while path:
        answer = await admin.get(path)
        pages += [one["id"] for one in answer.json()]
        link = answer.headers.get("link")
        path = link[1 : link.index(">")] if link else ""
    assert pages == newest
    for query in (
        "limit=0",
        "limit=201",
        "limit=x",
        "status=nope",
        "status=" + ",".join(["running"] * 21),
        "q=",
        "cursor=!",
        "cursor=YQ",
        "template=%0A",
        "trashed=x",
    ):
        answer = await admin.get(f"/api/apps?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), query
        assert set(answer.json()["details"]) == {query.partition("=")[0]}


async def test_a_key_bound_to_an_app_sees_only_it(app: RunningApp, admin: httpx.AsyncClient) -> None:
    mine, other = await install(admin), await install(admin)
    async with key_client(app, admin, ["apps:write", "apps:read"], resources=[mine["id"]]) as client:
        assert [one["id"] for one in (await client.get("/api/apps")).json()] == [mine["id"]]
        assert (await client.get("/api/apps?template=hello&limit=1")).json()[0]["id"] == mine["id"]
        assert (await client.get(f"/api/apps/{mine['id']}")).status_code == 200
        for method, path, _ in CALLS[4:]:
            foreign = await client.request(method, path.replace(MISSING, other["id"]))
            unknown = await client.request(method, path)
            assert foreign.status_code == unknown.status_code == 404
            drop = {"request_id"}
            assert {key: value for key, value in foreign.json().items() if key not in drop} == {
                key: value for key, value in unknown.json().items() if key not in drop
            }
        install_another = await client.post("/api/apps", json={"template": "hello", "name": unique()})
        assert install_another.status_code == 403
        assert (await client.post(f"/api/apps/{mine['id']}/restart")).status_code == 200
        await until(admin, mine["id"], "running")
    assert (await show(admin, other["id"]))["status"] == "running"


async def test_idempotency_key(admin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": unique("key")}
    body = {"template": "hello", "name": unique("once")}
    first = await admin.post("/api/apps", json=body, headers=headers)
    again = await admin.post("/api/apps", json=body, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    await until(admin, first.json()["id"], "running")


async def test_logs(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    made = await install(admin, slug, config={"admin_password": SECRET})
    path = f"/api/apps/{made['id']}/logs"
    assert (await admin.get(path)).json() == []
    engine = engine_of(app)
    engine.write(made["id"], "web", "\n".join(f"web line {number}" for number in range(300)))
    engine.write(made["id"], "db", "Ready <script>", stream="stderr")
    lines = (await admin.get(path)).json()
    assert len(lines) == 200
    assert lines[-1] | {"service": "db", "stream": "stderr", "line": "Ready <script>"} == lines[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", lines[-1]["time"])
    assert len((await admin.get(f"{path}?tail=10000")).json()) == 301
    assert [one["line"] for one in (await admin.get(f"{path}?tail=1&service=web")).json()] == ["web line 299"]
    assert [one["line"] for one in (await admin.get(f"{path}?q=LINE%2029&tail=2")).json()] == [
        "web line 298",
        "web line 299",
    ]
    assert (await admin.get(f"{path}?tail=0")).json() == []
    bare = (await admin.get(f"{path}?timestamps=false&tail=1")).json()
    assert bare == [{"service": "db", "stream": "stderr", "line": "Ready <script>"}]
    since = lines[-1]["time"]
    assert [one["line"] for one in (await admin.get(f"{path}?since={since}")).json()] == ["Ready <script>"]
    assert len((await admin.get(f"{path}?until={since}&tail=1000")).json()) >= 300
    unknown = await admin.get(f"{path}?service=nope")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "service_not_found")
    for query in (
        "tail=-1",
        "tail=10001",
        "tail=x",
        "since=yesterday",
        "until=1",
        "since=2026-01-01T00:00:00",
        "follow=maybe",
        "q=",
        "service=",
    ):
        answer = await admin.get(f"{path}?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), query


async def test_long_lines_make_no_huge_answer(
    app: RunningApp, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MOST_ANSWER_CHARACTERS", 1000)
    made = await install(admin, await add_one(admin))
    engine_of(app).write(made["id"], "web", "\n".join(f"{number:02}" + "x" * 98 for number in range(50)))
    lines = [one["line"][:2] for one in (await admin.get(f"/api/apps/{made['id']}/logs")).json()]
    assert lines == [str(number) for number in range(40, 50)], "the newest ones"
    engine_of(app).write(made["id"], "web", "y" * 5000)
    assert len((await admin.get(f"/api/apps/{made['id']}/logs")).json()) == 1


async def test_stats(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = (await add_template(admin, web_file(unique("web"))))["slug"]
    made = await install(admin, slug, config={"admin_password": SECRET})
    stats = (await admin.get(f"/api/apps/{made['id']}/stats")).json()
    assert {one["name"] for one in stats["services"]} == {"web", "db"}
    for key in ("cpu_percent", "memory_bytes", "network_rx_bytes", "disk_write_bytes", "pids"):
        assert stats[key] == pytest.approx(sum(one[key] for one in stats["services"]))
    await operate(admin, made["id"], "stop", "stopped")
    stopped = (await admin.get(f"/api/apps/{made['id']}/stats")).json()
    assert stopped["services"] == []
    assert stopped["memory_bytes"] == 0


async def test_an_app_outlives_its_template(admin: httpx.AsyncClient) -> None:
    slug = await add_one(admin)
    made = await install(admin, slug)
    assert (await admin.delete(f"/api/templates/{slug}")).status_code == 204
    await operate(admin, made["id"], "stop", "stopped")
    again = await operate(admin, made["id"], "start", "running")
    assert again["template"] == slug
    assert (await admin.delete(f"/api/apps/{made['id']}")).status_code == 204


async def test_a_version_of_a_template_can_be_chosen(app: RunningApp, admin: httpx.AsyncClient) -> None:
    slug = unique("web")
    await add_template(admin, web_file(slug, version="1.0", image="nginx:1.0"))
    await admin.put(f"/api/templates/{slug}", json={"compose": web_file(slug, version="2.0", image="nginx:2.0")})
    config = {"admin_password": SECRET}
    for version, image in ((None, "nginx:2.0"), ("1.0", "nginx:1.0")):
        made = await install(admin, slug, config=config, **({"version": version} if version else {}))
        assert made["version"] == (version or "2.0")
        assert engine_of(app).container(made["id"], "web").service.image == image
