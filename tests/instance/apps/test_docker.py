"""Apps on a real engine, through a real process and real HTTP: the whole life, and the engine's worst days."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from websockets.sync.client import connect

from tests.components import DockerEngine, docker_engine, require, wait_for
from tests.factories.apps import TRANSITIONAL, unique
from tests.product.process import Product, product

pytestmark = [pytest.mark.component("docker"), pytest.mark.timeout(300)]

SOON = 20
"""Seconds in which an event of the engine shows; the full pass comes after thirty."""

CRASHER = """\
x-quazzar: {slug: SLUG, version: "1", title: Crasher}
services:
  web:
    image: busybox:1.37
    command: ["sh", "-c", "echo first; echo second >&2; sleep 3600"]
    restart: "no"
    stop_grace_period: 1s
    volumes: ["data:/data"]
volumes: {data: {}}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    require("docker")
    with docker_engine(tmp_path_factory.mktemp("engine")) as found:
        found.import_busybox("busybox:1.37")
        yield found


class Host:
    """The product on a real engine, with its logged-in admin."""

    def __init__(self, one: Product, engine: DockerEngine) -> None:
        self.product = one
        self.engine = engine
        one.start()
        one.setup()
        self.client = httpx.Client(base_url=one.url, timeout=60)
        self.log_in()

    def log_in(self) -> None:
        self.client.headers.update(self.product.authorized(self.product.login()["access_token"]))

    def install(self, template: str = "hello", **body: Any) -> dict[str, Any]:
        answer = self.client.post("/api/apps", json={"template": template, "name": unique("app")} | body)
        assert answer.status_code == 201, answer.text
        return self.until(answer.json()["id"], "running")

    def show(self, app_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/api/apps/{app_id}")
        assert answer.status_code == 200, answer.text
        app: dict[str, Any] = answer.json()
        return app

    def until(self, app_id: str, *statuses: str, seconds: float = 60, reason: str = "") -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            app = self.show(app_id)
            fits = app["status"] in statuses if statuses else app["status"] not in TRANSITIONAL
            if fits and reason in (app["status_reason"] or ""):
                return app
            assert time.monotonic() < end, f"{app['status']}: {app['status_reason']}\n{self.product.tail()}"
            time.sleep(0.05)

    def page(self, app: dict[str, Any]) -> str:
        port = app["ports"][0]["host_port"]
        return httpx.get(f"http://{self.engine.address}:{port}/", timeout=5).raise_for_status().text

    def containers(self, app_id: str) -> list[dict[str, Any]]:
        return self.objects("containers/json", app_id, all="1")

    def objects(self, kind: str, app_id: str, **params: str) -> list[dict[str, Any]]:
        filters = json.dumps({"label": [f"io.quazzar.app={app_id}"]})
        found = self.engine.ok("GET", f"/{kind}", params={"filters": filters} | params)
        rows: list[dict[str, Any]] = found["Volumes"] or [] if kind == "volumes" else found
        return rows

    def left_over(self, app_id: str) -> list[dict[str, Any]]:
        return [*self.containers(app_id), *self.objects("networks", app_id), *self.objects("volumes", app_id)]

    def crasher(self) -> str:
        slug = unique("crasher")
        answer = self.client.post("/api/templates", json={"compose": CRASHER.replace("SLUG", slug)})
        assert answer.status_code == 201, answer.text
        return slug


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, engine: DockerEngine) -> Iterator[Host]:
    with product(
        tmp_path_factory.mktemp("product") / "data",
        QUAZZAR_RUNTIME_DRIVER="docker",
        QUAZZAR_RUNTIME_DOCKER_HOST=engine.host,
    ) as one:
        found = Host(one, engine)
        yield found
        found.client.close()


def test_the_whole_life_of_an_app(host: Host) -> None:
    app = host.install(config={"greeting": "Hello from a test"})
    assert "<h1>Hello from a test</h1>" in host.page(app)
    assert app["services"][0]["health"] == "healthy"
    assert app["services"][0]["image_digest"].startswith("sha256:")
    [container] = host.containers(app["id"])
    path = f"/api/apps/{app['id']}"
    wait_for(lambda: host.client.get(f"{path}/logs?q=RESPONSE").json(), what="what it has answered")
    logs = host.client.get(f"{path}/logs?q=RESPONSE").json()
    assert {one["service"] for one in logs} == {"web"}
    stats = host.client.get(f"{path}/stats").json()
    assert stats["pids"] >= 1
    assert stats["memory_limit_bytes"] == 64 * 1024 * 1024
    assert host.client.post(f"{path}/stop").json()["status"] == "stopping"
    stopped = host.until(app["id"], "stopped")
    assert stopped["ports"] == app["ports"]
    with pytest.raises(httpx.TransportError):
        host.page(app)
    assert host.client.get(f"{path}/stats").json()["services"] == []
    host.client.post(f"{path}/start")
    started = host.until(app["id"], "running")
    assert started["ports"] == app["ports"]
    assert "Hello from a test" in host.page(started)
    host.client.post(f"{path}/restart")
    host.until(app["id"], "running")
    assert [one["Id"] for one in host.containers(app["id"])] == [container["Id"]], "the same container all along"
    assert host.client.delete(path).status_code == 204
    assert host.left_over(app["id"]) == []


def test_behind_our_back(host: Host) -> None:
    app = host.install(host.crasher())
    [container] = host.containers(app["id"])
    host.engine.ok("POST", f"/containers/{container['Id']}/kill")
    crashed = host.until(app["id"], "crashed", seconds=SOON)
    assert crashed["status_reason"] == 'Service "web" ended (exit code 137)'
    host.engine.ok("POST", f"/containers/{container['Id']}/start")
    host.until(app["id"], "running", seconds=SOON)
    host.engine.ok("POST", f"/containers/{container['Id']}/stop", params={"t": "0"})
    stopped = host.until(app["id"], "stopped", seconds=SOON)
    assert "outside" in stopped["status_reason"]
    host.engine.ok("DELETE", f"/containers/{container['Id']}", params={"force": "1"})
    host.until(app["id"], "crashed", seconds=SOON)
    host.client.post(f"/api/apps/{app['id']}/start")
    host.until(app["id"], "running")
    assert host.client.delete(f"/api/apps/{app['id']}?purge=true").status_code == 204
    assert host.left_over(app["id"]) == []


@pytest.mark.slow
def test_keep_data(host: Host) -> None:
    app = host.install(host.crasher())
    assert host.client.delete(f"/api/apps/{app['id']}?keep_data=true").status_code == 204
    assert host.containers(app["id"]) == []
    assert len(host.objects("volumes", app["id"])) == 1


@pytest.mark.slow
def test_foreign_objects_are_left_alone(host: Host) -> None:
    """S-34: nothing that we do removes what is not ours."""
    engine = host.engine
    foreign = engine.ok("POST", "/containers/create", body={"Image": "busybox:1.37", "Cmd": ["sleep", "3600"]})["Id"]
    engine.ok("POST", f"/containers/{foreign}/start")
    volume = engine.ok("POST", "/volumes/create", body={"Name": unique("foreign")})["Name"]
    network = engine.ok("POST", "/networks/create", body={"Name": unique("foreign")})["Id"]
    app = host.install(host.crasher())
    host.client.post(f"/api/apps/{app['id']}/stop")
    host.until(app["id"], "stopped")
    host.client.delete(f"/api/apps/{app['id']}")
    failed = host.client.post("/api/apps", json={"template": "hello", "name": unique("x")}).json()
    host.until(failed["id"], "running")
    host.client.delete(f"/api/apps/{failed['id']}")
    assert engine.ok("GET", f"/containers/{foreign}/json")["State"]["Running"]
    assert engine.ok("GET", f"/volumes/{volume}")["Name"] == volume
    assert engine.ok("GET", f"/networks/{network}")["Id"] == network
    engine.ok("DELETE", f"/containers/{foreign}", params={"force": "1"})


def test_an_image_that_does_not_exist(host: Host) -> None:
    slug = unique("none")
    text = CRASHER.replace("SLUG", slug).replace("busybox:1.37", "127.0.0.1:9/none:1")
    assert host.client.post("/api/templates", json={"compose": text}).status_code == 201
    app = host.client.post("/api/apps", json={"template": slug, "name": unique("none")}).json()
    failed = host.until(app["id"], "failed")
    assert failed["status_reason"]
    assert host.left_over(app["id"]) == []
    assert host.client.delete(f"/api/apps/{app['id']}").status_code == 204


def followed(host: Host, path: str, seen: list[Any], event: str) -> threading.Thread:
    def read() -> None:
        with host.client.stream("GET", path, timeout=60) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            kind = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                if line.startswith("data: "):
                    assert kind == event
                    seen.append(json.loads(line.removeprefix("data: ")))
                    if len(seen) >= 3:
                        return

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_followed_logs_and_stats(host: Host) -> None:
    app = host.install()
    lines: list[Any] = []
    stats: list[Any] = []
    threads = [
        followed(host, f"/api/apps/{app['id']}/logs?follow=true&q=response", lines, "line"),
        followed(host, f"/api/apps/{app['id']}/stats?follow=true", stats, "stats"),
    ]
    end = time.monotonic() + 30
    while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
        host.page(app)
        time.sleep(0.2)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert all("response" in one["line"] for one in lines)
    assert len(stats) == 3
    host.client.delete(f"/api/apps/{app['id']}")


@contextmanager
def engine_trouble(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    begin()
    try:
        yield
    finally:
        end()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["frozen", "killed"])
def test_an_engine_in_trouble(host: Host, trouble: str) -> None:
    """Frozen or gone: reads work, what needs it says so, operations wait and go on without a restart of ours."""
    engine = host.engine
    app = host.install()
    begin, end = (engine.freeze, engine.thaw) if trouble == "frozen" else (engine.kill, engine.start)
    with engine_trouble(begin, end):
        # Who asked the engine would wait for it for four seconds, each time.
        began = time.monotonic()
        for _ in range(10):
            assert host.show(app["id"])["status"] == "running"
            assert host.client.get("/api/apps").status_code == 200
        assert time.monotonic() - began < 20
        for path in ("logs", "stats"):
            answer = host.client.get(f"/api/apps/{app['id']}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (503, "runtime_unavailable"), path
            assert "retry-after" in answer.headers
        stopping = host.client.post(f"/api/apps/{app['id']}/stop")
        assert (stopping.status_code, stopping.json()["status"]) == (200, "stopping")
        installing = host.client.post("/api/apps", json={"template": "hello", "name": unique("late")})
        assert installing.status_code == 201
        host.until(app["id"], "stopping", reason="container engine", seconds=40)
    host.until(app["id"], "stopped")
    late = host.until(installing.json()["id"], "running")
    assert late["status_reason"] is None
    assert "<h1>" in host.page(late)
    for app_id in (app["id"], late["id"]):
        assert host.client.delete(f"/api/apps/{app_id}").status_code == 204
        assert host.left_over(app_id) == []


@pytest.mark.slow
def test_a_restart_of_ours_takes_running_apps_back_untouched(host: Host) -> None:
    app = host.install()
    [before] = host.containers(app["id"])
    host.product.kill()
    assert "<h1>" in host.page(app), "apps run on without us"
    host.product.start()
    host.log_in()
    after = host.show(app["id"])
    assert (after["status"], after["status_since"]) == ("running", app["status_since"])
    [now] = host.containers(app["id"])
    assert (now["Id"], now["Created"]) == (before["Id"], before["Created"])
    inspected = host.engine.ok("GET", f"/containers/{now['Id']}/json")
    assert inspected["RestartCount"] == 0
    assert host.client.delete(f"/api/apps/{app['id']}").status_code == 204


@pytest.mark.slow
def test_killed_in_the_middle_of_an_install(host: Host) -> None:
    for _ in range(3):
        app = host.client.post("/api/apps", json={"template": "hello", "name": unique("killed")}).json()
        host.product.kill()
        host.product.start()
        host.log_in()
        running = host.until(app["id"], "running")
        assert len(host.containers(app["id"])) == 1
        assert "<h1>" in host.page(running)
        assert host.client.delete(f"/api/apps/{app['id']}").status_code == 204
        assert host.left_over(app["id"]) == []


@pytest.mark.slow
def test_many_at_once(host: Host) -> None:
    made = [host.client.post("/api/apps", json={"template": "hello", "name": unique("many")}).json() for _ in range(8)]
    ports = set()
    for one in made:
        running = host.until(one["id"], "running")
        ports.add(running["ports"][0]["host_port"])
        assert "<h1>" in host.page(running)
    assert len(ports) == len(made)
    for one in made:
        assert host.client.delete(f"/api/apps/{one['id']}").status_code == 204


def open_terminal(host: Host, app_id: str, **query: Any) -> Any:
    url = host.product.url.replace("http", "ws", 1) + f"/api/apps/{app_id}/exec?" + urlencode(query, doseq=True)
    return connect(url, additional_headers={"Authorization": host.client.headers["Authorization"]})


def read_until(socket: Any, text: bytes) -> bytes:
    output = b""
    while text not in output:
        piece = socket.recv(timeout=30)
        output += piece if isinstance(piece, bytes) else b""
    return output


def processes(host: Host, app_id: str) -> str:
    [container] = host.containers(app_id)
    return str(host.engine.ok("GET", f"/containers/{container['Id']}/top")["Processes"])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["closed", "dropped", "killed"])
def test_a_terminal_leaves_nothing_running(host: Host, way: str) -> None:
    """Closed, dropped, or our process killed: what it started ends, and its end is recorded."""
    app = host.install(host.crasher())
    with open_terminal(host, app["id"], cols=111, rows=33) as socket:
        exec_id = json.loads(socket.recv(timeout=30))["exec_id"]
        socket.send(b"stty size; sleep 98765 & sleep 98766\n")
        assert b"33 111" in read_until(socket, b"33 111")
        wait_for(lambda: "98765" in processes(host, app["id"]) and "98766" in processes(host, app["id"]))
        match way:
            case "dropped":
                socket.socket.shutdown(SHUT_RDWR)
            case "killed":
                host.product.kill()
                host.product.start()
                host.log_in()
            case _:
                pass
    wait_for(lambda: "9876" not in processes(host, app["id"]), seconds=40, what="the end of the processes")

    def end() -> dict[str, Any] | None:
        records = host.client.get("/api/audit", params={"subject": app["id"]}).json()
        ends = [one["after"] for one in records if one["action"] == "app.exec_end"]
        return next((one for one in ends if one["exec_id"] == exec_id), None)

    wait_for(end, seconds=40, what="the record of the end")
    assert (end() or {})["reason"] == ("interrupted" if way == "killed" else "disconnected")
    assert host.client.delete(f"/api/apps/{app['id']}").status_code == 204


@pytest.mark.slow
def test_a_terminal_carries_much_both_ways(host: Host) -> None:
    app = host.install(host.crasher())
    size = 8 * 1024 * 1024
    sent = bytes(range(256)) * 256
    with open_terminal(host, app["id"], command=["cat"], tty="false") as socket:
        socket.recv(timeout=30)

        def send() -> None:
            for _ in range(size // len(sent)):
                socket.send(sent)
            socket.send('{"type": "eof"}')

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while isinstance(piece := socket.recv(timeout=60), bytes):
            received += piece[1:]
        sender.join(30)
    assert json.loads(piece) == {"type": "exit", "exit_code": 0}
    assert len(received) == size
    assert received[: len(sent)] == sent
    assert host.client.delete(f"/api/apps/{app['id']}").status_code == 204


HOG = """\
x-quazzar: {slug: SLUG, version: "1", title: Hog}
services:
  web:
    image: busybox:1.37
    command: ["sh", "-c", "COMMAND"]
    restart: "no"
    mem_limit: 48m
    pids_limit: 60
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("bomb() { bomb | bomb & }; while true; do bomb; sleep 1; done", ""),
        ("sleep 1; x=0123456789abcdef; while true; do x=$$x$$x; done", "crashed"),
    ],
    ids=["fork-bomb", "memory-hog"],
)
def test_a_hog_leaves_the_api_answering(host: Host, command: str, status: str) -> None:
    slug = unique("hog")
    text = HOG.replace("SLUG", slug).replace("COMMAND", command)
    answer = host.client.post("/api/templates", json={"compose": text})
    assert answer.status_code == 201, answer.text
    app = host.client.post("/api/apps", json={"template": slug, "name": slug}).json()
    path = f"/api/apps/{app['id']}"
    host.until(app["id"], "running", "crashed", "unhealthy")
    if status:
        hurt = host.until(app["id"], status)
        assert hurt["services"][0]["oom_killed"]
        events = [one["data"] for one in host.client.get(f"{path}/events").json() if one["type"] == "app.crashed"]
        assert [(one["oom_killed"], one["exit_code"]) for one in events] == [(True, 137)]
    for _ in range(20):
        assert host.client.get(path).status_code == 200
        assert host.client.get("/api/apps").status_code == 200
    if not status:
        stats = host.client.get(f"{path}/stats").json()
        assert stats["pids"] <= 60
    other = host.install()
    assert "<h1>" in host.page(other)
    for app_id in (app["id"], other["id"]):
        assert host.client.delete(f"/api/apps/{app_id}").status_code == 204
        assert host.left_over(app_id) == []


WELL = """\
x-quazzar: {slug: SLUG, version: "1", title: Well}
services:
  web:
    image: busybox:1.37
    command: ["sh", "-c", "touch /tmp/ok; exec sleep 100000"]
    stop_grace_period: 1s
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/ok"], interval: 1s, timeout: 10s, retries: 1}
"""


@pytest.mark.slow
def test_health_and_restarts_behind_our_back(host: Host) -> None:
    """Seen by the engine's events: far sooner than the full pass of every half minute."""
    slug = unique("well")
    assert host.client.post("/api/templates", json={"compose": WELL.replace("SLUG", slug)}).status_code == 201
    app = host.install(slug)
    [container] = host.containers(app["id"])

    def run(*command: str) -> None:
        made = host.engine.ok("POST", f"/containers/{container['Id']}/exec", body={"Cmd": list(command)})
        host.engine.ok("POST", f"/exec/{made['Id']}/start", body={"Detach": True})

    run("rm", "/tmp/ok")
    ill = host.until(app["id"], "unhealthy", seconds=15)
    assert ill["services"][0]["health"] == "unhealthy"
    run("touch", "/tmp/ok")
    host.until(app["id"], "running", seconds=15)
    before = host.show(app["id"])["services"][0]["started_at"]
    host.engine.ok("POST", f"/containers/{container['Id']}/restart", params={"t": "0"})
    wait_for(lambda: host.show(app["id"])["services"][0]["started_at"] not in {before, None}, seconds=15)
    after = host.until(app["id"], "running", seconds=15)
    assert after["services"][0]["started_at"] > before
    types = [one["type"] for one in host.client.get(f"/api/apps/{app['id']}/events").json()]
    assert "app.unhealthy" in types
    assert host.client.delete(f"/api/apps/{app['id']}").status_code == 204


KEEPER = """\
services:
  web:
    image: busybox:1.37
    command: ["sh", "-c", "cat /data/word; [ -e /data/word ] || echo kept-word > /data/word; sleep 3600"]
    stop_grace_period: 1s
    volumes: ["data:/data"]
volumes: {data: {}}
"""


def said(host: Host, app_id: str) -> list[str]:
    return [one["line"] for one in host.client.get(f"/api/apps/{app_id}/logs").json()]


@pytest.mark.slow
def test_clone_trash_and_back(host: Host) -> None:
    made = host.client.post("/api/apps/import", json={"name": unique("im"), "compose": KEEPER}).json()
    host.until(made["id"], "running")
    copy = host.client.post(f"/api/apps/{made['id']}/clone", json={"name": unique("copy")})
    assert copy.status_code == 201, copy.text
    copy_id = copy.json()["id"]
    host.until(copy_id, "running")
    host.until(made["id"], "running")
    wait_for(lambda: "kept-word" in said(host, copy_id), what="the word")
    path = f"/api/apps/{copy_id}"
    assert host.client.delete(path).status_code == 204
    assert host.containers(copy_id) == []
    assert len(host.objects("volumes", copy_id)) == 1
    assert host.client.post(f"{path}/undelete").status_code == 200
    host.until(copy_id, "running")
    wait_for(lambda: "kept-word" in said(host, copy_id), what="the word")
    for app_id in (copy_id, made["id"]):
        assert host.client.delete(f"/api/apps/{app_id}?purge=true").status_code == 204
        assert host.left_over(app_id) == []
