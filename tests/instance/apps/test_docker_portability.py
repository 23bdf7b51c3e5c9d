"""In and out of the platform on a real engine, with the real Compose on the other side."""

import contextlib
import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.components import DockerEngine, docker_engine, program, require, wait_for
from tests.factories.apps import unique
from tests.instance.apps.test_docker import SOON, Host, open_terminal, read_until
from tests.product.process import free_port, product

pytestmark = [pytest.mark.slow, pytest.mark.component("docker"), pytest.mark.timeout(300)]

SECRET = 'it\'s $ecret ${not} \\ "x"'

SHOP = """\
x-quazzar:
  slug: SLUG
  version: "1"
  title: Shop
  fields:
    - {name: http_port, label: Port, type: port, default: auto}
    - {name: db_password, type: password, required: true}
    - {name: token, type: password, generated: 24}
    - {name: motto, type: string, default: "it's $5"}
  web: {service: web, port: 80}
services:
  web:
    image: busybox:1.37
    command: ["sh", "-c", "cat /etc/shop.conf /run/secrets/* > /data/page; env >> /data/page; exec httpd -f -h /data"]
    environment: {PASSWORD: "${db_password}", TOKEN: "${token}", MOTTO: "${motto}", HOME_IS: "$$HOME"}
    ports: ["${http_port}:80"]
    volumes: ["data:/data"]
    configs: [{source: conf, target: /etc/shop.conf}]
    secrets: [password]
    depends_on: {db: {condition: service_healthy}}
    stop_grace_period: 1s
  db:
    image: with-data:1
    command: ["sh", "-c", "[ -e $$W ] || cat /proc/sys/kernel/random/uuid > $$W; touch /tmp/ok; exec sleep 3600"]
    environment: {W: /declared/word}
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/ok"], interval: 1s, retries: 20}
    mem_limit: 32m
    stop_grace_period: 1s
volumes: {data: {}}
configs: {conf: {content: "motto=${motto} $${kept}\\n"}}
secrets: {password: {content: "${db_password}"}}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    require("docker")
    with docker_engine(tmp_path_factory.mktemp("engine")) as found:
        found.import_busybox("busybox:1.37")
        found.import_busybox("with-data:1", changes=["VOLUME /declared"])
        yield found


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


def shop(host: Host) -> dict[str, Any]:
    slug = unique("shop")
    answer = host.client.post("/api/templates", json={"compose": SHOP.replace("SLUG", slug)})
    assert answer.status_code == 201, answer.text
    return host.install(slug, config={"db_password": SECRET})


def told(host: Host, port: int) -> dict[str, str]:
    """What the shop's page says, by name; it has been started just now."""
    lines: list[str] = []

    def look() -> bool:
        try:
            answer = httpx.get(f"http://{host.engine.address}:{port}/page", timeout=5)
        except httpx.TransportError:
            return False
        lines[:] = answer.text.splitlines()
        return answer.status_code == 200

    wait_for(look, what="the page")
    wanted = ("PASSWORD=", "TOKEN=", "MOTTO=", "HOME_IS=", "motto=")
    return {line.partition("=")[0]: line for line in lines if line.startswith(wanted) or line == SECRET}


def compose(engine: DockerEngine, folder: Path, *arguments: str) -> str:
    command = [program("docker-compose"), "--project-directory", str(folder), *arguments]
    environment = {"DOCKER_HOST": engine.host, "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def word_of(engine: DockerEngine, container: str) -> bytes:
    got = engine.request("GET", f"/containers/{container}/archive", params={"path": "/declared/word"})
    with tarfile.open(fileobj=io.BytesIO(got.body)) as tar:
        found = tar.extractfile("word")
        assert found is not None
        return found.read()


def test_an_exported_app_comes_in_again_with_everything(host: Host) -> None:
    app = shop(host)
    port = app["ports"][0]["host_port"]
    before = told(host, port)
    assert (before["MOTTO"], before["HOME_IS"]) == ("MOTTO=it's $5", "HOME_IS=$HOME")
    assert before["motto"] == "motto=it's $5 ${kept}"
    text = host.client.get(f"/api/apps/{app['id']}/export").text
    assert host.client.delete(f"/api/apps/{app['id']}?purge=true").status_code == 204
    made = host.client.post("/api/apps/import", json={"name": app["name"], "compose": text})
    assert made.status_code == 201, made.text
    running = host.until(made.json()["id"], "running")
    assert running["ports"] == app["ports"]
    assert told(host, port) == before
    assert host.client.delete(f"/api/apps/{running['id']}?purge=true").status_code == 204
    assert host.left_over(running["id"]) == []


@pytest.mark.component("docker-compose")
def test_compose_takes_an_export_as_it_is(host: Host, tmp_path: Path) -> None:
    engine, app = host.engine, shop(host)
    port = app["ports"][0]["host_port"]
    before = told(host, port)
    (tmp_path / "compose.yaml").write_text(host.client.get(f"/api/apps/{app['id']}/export").text)
    assert host.client.delete(f"/api/apps/{app['id']}?purge=true").status_code == 204
    compose(engine, tmp_path, "up", "-d", "--quiet-pull")
    assert told(host, port) == before
    inspected = engine.ok("GET", f"/containers/{app['name']}-db-1/json")["HostConfig"]
    assert (inspected["Memory"], inspected["RestartPolicy"]["Name"]) == (32 * 2**20, "unless-stopped")
    compose(engine, tmp_path, "down", "-v", "-t", "1")


@pytest.mark.component("docker-compose")
def test_compose_restores_an_archive_with_its_data(host: Host, tmp_path: Path) -> None:
    engine, app = host.engine, shop(host)
    name, port = app["name"], app["ports"][0]["host_port"]
    before = told(host, port)
    word = word_of(engine, f"{name}-db-1")
    host.client.post(f"/api/apps/{app['id']}/stop")
    host.until(app["id"], "stopped")
    with host.client.stream("GET", f"/api/apps/{app['id']}/export?data=true") as answer:
        assert answer.status_code == 200
        (tmp_path / "app.tar").write_bytes(answer.read())
    assert host.client.delete(f"/api/apps/{app['id']}?purge=true").status_code == 204
    with tarfile.open(tmp_path / "app.tar") as tar:
        tar.extractall(tmp_path, filter="tar")
    folder = tmp_path / name
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    compose(engine, folder, "create")
    for volume in (folder / "volumes").iterdir():
        # As docs/apps.md says it: a container that mounts the volume takes what is in the folder.
        body = {"Image": "busybox:1.37", "Cmd": ["none"], "HostConfig": {"Binds": [f"{name}_{volume.name}:/to"]}}
        door = engine.ok("POST", "/containers/create", body=body)["Id"]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(volume, ".")
        engine.ok("PUT", f"/containers/{door}/archive", params={"path": "/to"}, body=buffer.getvalue())
        engine.ok("DELETE", f"/containers/{door}")
    compose(engine, folder, "up", "-d")
    assert told(host, port) == before
    assert word_of(engine, f"{name}-db-1") == word, "also what an image declares as its data"
    compose(engine, folder, "down", "-v", "-t", "1")


def doors(host: Host, app_id: str) -> int:
    return sum("io.quazzar.door" in one["Labels"] for one in host.containers(app_id))


BIG = """\
services:
  web:
    image: busybox:1.37
    command: ["sh", "-c", "dd if=/dev/zero of=/data/big bs=1M count=400 2>/dev/null; touch /tmp/ok; exec sleep 3600"]
    volumes: ["data:/data"]
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/ok"], interval: 1s, retries: 60}
    stop_grace_period: 1s
volumes: {data: {}}
"""


@contextlib.contextmanager
def export_of(host: Host, app_id: str) -> Iterator[Iterator[bytes]]:
    with host.client.stream("GET", f"/api/apps/{app_id}/export?data=true") as answer:
        assert answer.status_code == 200
        yield answer.iter_raw(2**20)


def rss_bytes(host: Host) -> int:
    assert host.product.process is not None
    status = Path(f"/proc/{host.product.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def test_a_large_export_takes_no_memory_and_ends_with_its_caller(host: Host) -> None:
    made = host.client.post("/api/apps/import", json={"name": unique("big"), "compose": BIG}).json()
    app_id = host.until(made["id"], "running")["id"]
    wait_for(lambda: host.show(app_id)["services"][0]["health"] == "healthy", seconds=60)
    before = rss_bytes(host)
    size, most = 0, 0
    with export_of(host, app_id) as pieces:
        for piece in pieces:
            size += len(piece)
            most = max(most, rss_bytes(host))
    assert size > 400 * 2**20
    assert most - before < 64 * 2**20
    wait_for(lambda: doors(host, app_id) == 0, what="the end of the export")
    # Who leaves in its middle ends it; who waits keeps it, and memory with it.
    with export_of(host, app_id) as pieces:
        assert next(pieces)
        wait_for(lambda: doors(host, app_id) == 1, what="the export")
        time.sleep(1)
        assert rss_bytes(host) - before < 64 * 2**20
        assert host.show(app_id)["status"] == "running"
    wait_for(lambda: doors(host, app_id) == 0, what="the end of the export")
    # An operation is not kept waiting by one: it goes first, and the archive is cut off.
    with export_of(host, app_id) as pieces:
        assert next(pieces)
        assert host.client.delete(f"/api/apps/{app_id}?purge=true").status_code == 204
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    assert host.left_over(app_id) == []
    # All of which is nobody's fault.
    wait_for(lambda: "A download was cut off" in host.product.log.read_text(), what="the line in the log")
    assert "An answer broke off" not in host.product.log.read_text()


# Adoption

STALL = """\
services:
  web:
    image: busybox:1.37
    command: ["sh", "-c", "echo up $$MOTTO; httpd -h /data; exec sleep 3600"]
    environment: {MOTTO: "${MOTTO}", DB_PASSWORD: "canary-of-the-stall"}
    ports: ["PORT:80"]
    volumes: ["pages:/data"]
    depends_on: {db: {condition: service_healthy}}
    restart: unless-stopped
    stop_grace_period: 1s
    labels: {team: shop}
  db:
    image: with-data:1
    command: ["sh", "-c", "[ -e $$W ] || cat /proc/sys/kernel/random/uuid > $$W; touch /tmp/ok; exec sleep 3600"]
    environment: {W: /declared/word}
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/ok"], interval: 1s, retries: 20}
    stop_grace_period: 1s
    networks: {default: {aliases: [database]}}
volumes: {pages: {}}
"""


def stall(engine: DockerEngine, folder: Path, name: str, port: int) -> None:
    (folder / "compose.yaml").write_text(STALL.replace("PORT", str(port)))
    (folder / ".env").write_text(f"MOTTO=mine\nCOMPOSE_PROJECT_NAME={name}\n")
    compose(engine, folder, "up", "-d", "--wait")
    write_page(engine, f"{name}-web-1", b"the page")


def write_page(engine: DockerEngine, container: str, content: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("index.html")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    engine.ok("PUT", f"/containers/{container}/archive", params={"path": "/data"}, body=buffer.getvalue())


def project_of(engine: DockerEngine, name: str) -> dict[str, dict[str, Any]]:
    """Containers of a Compose project by service, as the engine tells them."""
    filters = json.dumps({"label": [f"com.docker.compose.project={name}"]})
    found = engine.ok("GET", "/containers/json", params={"all": "1", "filters": filters})
    inspected = [engine.ok("GET", f"/containers/{one['Id']}/json") for one in found]
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in inspected}


def lives(found: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str, int]]:
    return {name: (one["Id"], one["State"]["StartedAt"], one["RestartCount"]) for name, one in found.items()}


def page(host: Host, port: int) -> str:
    """What is served once somebody listens: a container runs before its program does."""
    answers: list[httpx.Response] = []

    def look() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answers.append(httpx.get(f"http://{host.engine.address}:{port}/", timeout=5))
        return bool(answers)

    wait_for(look, what="the page")
    return answers[0].raise_for_status().text


@pytest.mark.component("docker-compose")
def test_the_life_of_an_adopted_project(host: Host, tmp_path: Path) -> None:
    engine, name, port = host.engine, unique("stall"), free_port()
    neighbour = unique("other")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    stall(engine, tmp_path / "a", name, port)
    stall(engine, tmp_path / "b", neighbour, free_port())
    beside = lives(project_of(engine, neighbour))
    before, word = lives(project_of(engine, name)), word_of(engine, f"{name}-db-1")

    answer = host.client.post("/api/apps/adopt", json={"project": name})
    assert answer.status_code == 201, answer.text
    app = answer.json()
    app_id = app["id"]
    assert "canary-of-the-stall" not in answer.text
    assert (app["name"], app["status"], app["template"], app["job_id"]) == (name, "running", None, None)
    assert [(one["name"], one["status"]) for one in app["services"]] == [("db", "running"), ("web", "running")]
    assert app["ports"] == [{"service": "web", "container_port": 80, "host_port": port, "protocol": "tcp"}]
    assert {one["name"][:9] for one in app["volumes"]} == {"pages", "image-db-"}
    assert app["config"]["DB_PASSWORD"] == "********"
    assert lives(project_of(engine, name)) == before, "nothing was touched"
    again = host.client.post("/api/apps/adopt", json={"project": name})
    assert (again.status_code, again.json()["code"]) == (409, "project_adopted")

    # It is an app like any other.
    logs = host.client.get(f"/api/apps/{app_id}/logs").json()
    assert "up mine" in [one["line"] for one in logs]
    assert {one["name"] for one in host.client.get(f"/api/apps/{app_id}/stats").json()["services"]} == {"db", "web"}
    with open_terminal(host, app_id, service="web", command=["cat", "/data/index.html"], tty="false") as socket:
        assert b"the page" in read_until(socket, b"the page")
    for verb, status in (("stop", "stopped"), ("start", "running"), ("restart", "running")):
        assert host.client.post(f"/api/apps/{app_id}/{verb}").status_code == 200
        host.until(app_id, status)
    after = project_of(engine, name)
    assert {one["Id"] for one in after.values()} == {one[0] for one in before.values()}, "the same containers"
    assert page(host, port) == "the page"

    # Seen when something happens behind our back, and by the next process too.
    engine.ok("POST", f"/containers/{name}-web-1/kill", params={"signal": "KILL"})
    crashed = host.until(app_id, "crashed", "running")
    assert crashed["services"][0]["name"] == "db"
    engine.ok("POST", f"/containers/{name}-db-1/stop", params={"t": "0"})
    host.until(app_id, "unhealthy", "crashed", seconds=SOON)
    host.product.kill()
    host.product.start()
    host.log_in()
    assert {one["name"] for one in host.show(app_id)["services"]} == {"db", "web"}
    host.client.post(f"/api/apps/{app_id}/start")
    host.until(app_id, "running")
    assert {one["Id"] for one in project_of(engine, name).values()} == {one[0] for one in before.values()}

    # A change makes what it concerns anew, in our own form, over the same data.
    kept = project_of(engine, name)["db"]["Id"]
    changed = host.client.patch(f"/api/apps/{app_id}", json={"config": {"DB_PASSWORD": "another-canary"}})
    assert changed.status_code == 200, changed.text
    host.until(app_id, "running")
    assert project_of(engine, name).keys() == {"db"}
    ours = {one["Labels"]["io.quazzar.service"]: one for one in host.containers(app_id)}
    assert ours.keys() == {"web"}
    assert engine.ok("GET", f"/containers/{kept}/json")["State"]["Running"]
    assert page(host, port) == "the page"
    everything = {"config": {}, "resources": {"memory_bytes": 64 * 2**20}}
    host.client.patch(f"/api/apps/{app_id}", json=everything)
    host.until(app_id, "running")
    assert project_of(engine, name) == {}
    assert word_of(engine, f"{name}-db-1") == word, "also what was nameless"
    assert page(host, port) == "the page"
    compose(engine, tmp_path / "a", "down", "-v")
    assert host.show(app_id)["status"] == "running", "no longer Compose's"
    assert page(host, port) == "the page"

    # To the trash and back, then for good: with all that is its own, and nothing else.
    assert host.client.delete(f"/api/apps/{app_id}").status_code == 204
    assert host.client.post(f"/api/apps/{app_id}/undelete").status_code == 200
    host.until(app_id, "running")
    assert page(host, port) == "the page"
    assert host.client.delete(f"/api/apps/{app_id}?purge=true").status_code == 204
    volumes = [one["Name"] for one in engine.ok("GET", "/volumes")["Volumes"] or []]
    assert f"{name}_pages" not in volumes
    assert f"{neighbour}_pages" in volumes
    assert not [one for one in engine.ok("GET", "/networks") if one["Name"].startswith(f"{name}_")]
    assert lives(project_of(engine, neighbour)) == beside
    compose(engine, tmp_path / "b", "down", "-v", "-t", "1")


class Made:
    """Containers such as Compose makes them, each with something of its own; all are removed at the end."""

    def __init__(self, engine: DockerEngine) -> None:
        self.engine = engine
        self.project = unique("made")
        self.containers: list[str] = []
        self.network = self._network("default", self.project)

    def _network(self, short: str, project: str) -> str:
        labels = {"com.docker.compose.project": project, "com.docker.compose.network": short}
        body = {"Name": f"{project}_{short}", "Labels": labels}
        return str(self.engine.ok("POST", "/networks/create", body=body)["Id"])

    def volume(self, short: str, project: str | None = None, **options: str) -> str:
        project = project or self.project
        labels = {"com.docker.compose.project": project, "com.docker.compose.volume": short}
        body = {"Name": f"{project}_{short}", "Labels": labels, "DriverOpts": options}
        return str(self.engine.ok("POST", "/volumes/create", body=body)["Name"])

    def run(self, service: str, host: dict[str, Any] | None = None, **config: Any) -> str:
        labels = {"com.docker.compose.project": self.project, "com.docker.compose.service": service}
        labels |= config.pop("Labels", {})
        name = config.pop("name", f"{self.project}-{service}-1")
        settings = {"NetworkMode": f"{self.project}_default", **(host or {})}
        networks: dict[str, Any] = {settings["NetworkMode"]: {}} if settings["NetworkMode"].endswith("_default") else {}
        body = {
            "Image": "busybox:1.37",
            "Cmd": ["sleep", "3600"],
            "Labels": labels,
            "HostConfig": settings,
            "NetworkingConfig": {"EndpointsConfig": networks},
            **config,
        }
        made = self.engine.ok("POST", "/containers/create", params={"name": name}, body=body)["Id"]
        self.containers.append(made)
        return str(made)

    def clear(self) -> None:
        for one in self.containers:
            self.engine.request("DELETE", f"/containers/{one}", params={"force": "1", "v": "1"})
        self.engine.request("DELETE", f"/networks/{self.network}")


@pytest.fixture
def made(engine: DockerEngine) -> Iterator[Made]:
    found = Made(engine)
    yield found
    found.clear()


def test_what_an_app_may_not_have_is_told_by_container_and_nothing_is_changed(
    host: Host, made: Made, tmp_path: Path
) -> None:
    engine, project = host.engine, made.project
    hidden = made.volume("hidden", type="none", o="bind", device=str(tmp_path))
    foreign = made.volume("data", project=unique("elsewhere"))
    plain = engine.ok("POST", "/volumes/create", body={"Name": unique("plain")})["Name"]
    shared = made.volume("shared")
    outside = engine.ok("POST", "/containers/create", body={
        "Image": "busybox:1.37", "Cmd": ["sleep", "1"], "HostConfig": {"Binds": [f"{shared}:/s"]},
    })["Id"]  # fmt: skip
    made.containers.append(outside)
    made.run("bind", {"Binds": [f"{tmp_path}:/x"]})
    made.run("socket", {"Binds": [f"{engine.socket}:/var/run/docker.sock"]})
    made.run("rights", {"Privileged": True, "PidMode": "host", "IpcMode": "host", "NetworkMode": "host"})
    sysctls = {"net.core.somaxconn": "9"}
    made.run("caps", {"CapAdd": ["SYS_ADMIN"], "SecurityOpt": ["seccomp=unconfined"], "Sysctls": sysctls})
    device = {"PathOnHost": "/dev/zero", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}
    made.run("device", {"Devices": [device]})
    made.run("volumes", {"Binds": [f"{hidden}:/a", f"{foreign}:/b", f"{plain}:/c", f"{shared}:/d"]})
    made.run("more", {"OomScoreAdj": -5, "ExtraHosts": ["a:1.2.3.4"], "CgroupParent": "/x"})
    made.run("quiet", {"LogConfig": {"Type": "none"}})
    made.run("again")
    made.run("again", name=f"{project}-again-2")
    made.run("once", Labels={"com.docker.compose.oneoff": "True"})
    made.run("tty", Tty=True, OpenStdin=True)
    answer = host.client.post("/api/apps/adopt", json={"project": project})
    assert (answer.status_code, answer.json()["code"]) == (422, "project_invalid"), answer.text
    details = answer.json()["details"]
    expected = {
        "bind-1.volumes.0.type": "bind mounts are refused",
        "socket-1.volumes.0.type": "refused",
        "rights-1.privileged": "every right of the host",
        "rights-1.pid": "processes",
        "rights-1.ipc": "memory",
        "rights-1.network_mode": "networks of its own",
        "caps-1.cap_add.0": "cap_add is refused",
        "caps-1.security_opt.0": "no-new-privileges",
        "caps-1.sysctls": "kernel",
        "device-1.devices": "devices of the host",
        "more-1.oom_score_adj": "end other programs first",
        "more-1.extra_hosts": "not supported",
        "more-1.cgroup_parent": "limits",
        "quiet-1.logging": "can't be read",
        "again-2": "the same service",
        "once-1": "docker compose run",
        "tty-1.tty": "not supported",
        "tty-1.stdin_open": "not supported",
    }
    for where, said in expected.items():
        assert said in details.pop(f"containers.{project}-{where}"), where
    assert "any folder of the host" in details.pop("volumes.hidden.driver_opts")
    assert "only has volumes of its own" in details.pop(f"volumes.{foreign}.external")
    assert "only has volumes of its own" in details.pop(f"volumes.{plain}.external")
    assert "is not of this project" in details.pop(f"volumes.{shared}")
    more = {key: said for key, said in details.items() if not key.startswith(f"containers.{project}-rights-1.")}
    assert more == {}
    assert "(line" not in answer.text
    assert host.client.get("/api/apps", params={"q": project}).json() == []
    assert len(project_of(engine, project)) > 5
    for name in (hidden, foreign, plain):
        for one in made.containers:
            engine.request("DELETE", f"/containers/{one}", params={"force": "1"})
        engine.ok("DELETE", f"/volumes/{name}")
    engine.ok("DELETE", f"/volumes/{shared}")


def test_what_an_administrator_trusts_is_adopted(host: Host, made: Made, tmp_path: Path) -> None:
    shared = Path("/srv") / unique("qz")
    shared.mkdir(parents=True)
    try:
        (shared / "word").write_text("of the host")
        made.run("web", {"Binds": [f"{shared}:/x:ro"]}, Cmd=["sh", "-c", "cat /x/word; exec sleep 3600"])
        host.engine.ok("POST", f"/containers/{made.containers[0]}/start")
        body = {"project": made.project, "name": unique("trusted"), "trusted": True}
        answer = host.client.post("/api/apps/adopt", json=body)
        assert answer.status_code == 201, answer.text
        app_id = answer.json()["id"]
        assert answer.json()["name"] == body["name"]
        host.client.patch(f"/api/apps/{app_id}", json={"resources": {"pids": 50}})
        host.until(app_id, "running")
        [ours] = host.containers(app_id)
        assert [(one["Type"], one["Source"], one["RW"]) for one in ours["Mounts"]] == [("bind", str(shared), False)]
        assert host.client.delete(f"/api/apps/{app_id}?purge=true").status_code == 204
        assert (shared / "word").exists()
    finally:
        shutil.rmtree(shared)


def test_others_on_its_network_keep_a_project_what_it_is(host: Host, made: Made) -> None:
    engine = host.engine
    data = made.volume("data")
    ours = made.run("web", {"Binds": [f"{data}:/data"]})
    engine.ok("POST", f"/containers/{ours}/start")
    guest = engine.ok("POST", "/containers/create", body={"Image": "busybox:1.37", "Cmd": ["sleep", "3600"]})["Id"]
    made.containers.append(guest)
    engine.ok("POST", f"/networks/{made.network}/connect", body={"Container": guest})
    engine.ok("POST", f"/containers/{guest}/start")
    answer = host.client.post("/api/apps/adopt", json={"project": made.project})
    assert answer.json()["details"].keys() == {"networks.default"}
    engine.ok("POST", f"/networks/{made.network}/disconnect", body={"Container": guest})
    asked = [host.client.build_request("POST", "/api/apps/adopt", json={"project": made.project}) for _ in range(4)]
    with ThreadPoolExecutor(4) as several:
        answers = list(several.map(host.client.send, asked))
    assert sorted(one.status_code for one in answers) == [201, 409, 409, 409], [one.text for one in answers]
    assert {one.json().get("code") for one in answers} == {None, "project_adopted"}
    app_id = next(one.json()["id"] for one in answers if one.status_code == 201)
    # What Compose takes down shows as it is, and what it makes anew is its own.
    engine.ok("DELETE", f"/containers/{ours}", params={"force": "1"})
    host.until(app_id, "crashed", seconds=SOON, reason="removed")
    other = made.run("web", {"Binds": [f"{data}:/data"]})
    engine.ok("POST", f"/containers/{other}/start")
    assert host.show(app_id)["services"][0]["status"] == "missing"
    assert host.client.delete(f"/api/apps/{app_id}?purge=true").status_code == 204
    assert engine.ok("GET", f"/containers/{other}/json")["State"]["Running"], "never touched"
    assert engine.ok("GET", f"/volumes/{data}")["Name"] == data
    engine.ok("DELETE", f"/containers/{other}", params={"force": "1"})
    engine.ok("DELETE", f"/volumes/{data}")


def test_an_adopted_project_that_stands_still(host: Host, made: Made) -> None:
    volume = made.volume("data")
    ports: dict[str, Any] = {"PortBindings": {"80/tcp": [{}]}}
    stopped = made.run("web", {"Binds": [f"{volume}:/data"], **ports}, ExposedPorts={"80/tcp": {}})
    host.engine.ok("POST", f"/containers/{stopped}/start")
    host.engine.ok("POST", f"/containers/{stopped}/stop", params={"t": "0"})
    answer = host.client.post("/api/apps/adopt", json={"project": made.project})
    assert answer.status_code == 201, answer.text
    app = answer.json()
    assert (app["status"], app["services"][0]["status"]) == ("stopped", "exited")
    host.client.post(f"/api/apps/{app['id']}/start")
    running = host.until(app["id"], "running")
    found = host.engine.ok("GET", f"/containers/{stopped}/json")["NetworkSettings"]["Ports"]["80/tcp"]
    assert [one["host_port"] for one in running["ports"]] == [int(found[0]["HostPort"])], "the engine's own choice"
    copy = host.client.post(f"/api/apps/{app['id']}/clone", json={"name": unique("copy")})
    assert copy.status_code == 201, copy.text
    host.until(copy.json()["id"], "running")
    host.until(app["id"], "running")
    assert host.objects("volumes", copy.json()["id"])
    exported = host.client.get(f"/api/apps/{app['id']}/export?data=true")
    with tarfile.open(fileobj=io.BytesIO(exported.content)) as tar:
        assert f"{app['name']}/volumes/data" in tar.getnames()
    for app_id in (app["id"], copy.json()["id"]):
        assert host.client.delete(f"/api/apps/{app_id}?purge=true").status_code == 204
    assert volume not in [one["Name"] for one in host.engine.ok("GET", "/volumes")["Volumes"] or []]


def test_a_container_on_the_engines_own_bridge_gets_a_network_of_its_own(host: Host, made: Made) -> None:
    host.engine.ok("DELETE", f"/networks/{made.network}")
    container = made.run("web", {"NetworkMode": "default"}, StopSignal="SIGKILL")
    host.engine.ok("POST", f"/containers/{container}/start")
    answer = host.client.post("/api/apps/adopt", json={"project": made.project})
    assert answer.status_code == 201, answer.text
    app = answer.json()
    assert (app["status"], host.containers(app["id"])) == ("running", []), "as it stands"
    assert host.engine.ok("GET", f"/containers/{container}/json")["State"]["Running"]
    assert host.client.post(f"/api/apps/{app['id']}/restart").json()["status"] == "restarting"
    host.until(app["id"], "running")
    (own,) = host.containers(app["id"])
    assert list(own["NetworkSettings"]["Networks"]) == [f"{app['id']}_default"]
    assert host.client.delete(f"/api/apps/{app['id']}?purge=true").status_code == 204
