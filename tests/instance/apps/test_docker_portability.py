"""In and out of the platform on a real engine, with the real Compose on the other side."""

import contextlib
import io
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.components import DockerEngine, docker_engine, program, require, wait_for
from tests.factories.apps import unique
from tests.instance.apps.test_docker import Host
from tests.product.process import product

pytestmark = [pytest.mark.component("docker"), pytest.mark.timeout(300)]

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
