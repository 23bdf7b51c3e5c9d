"""Apps of several services on a real engine: in the right order, among themselves, and never in each other's way."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.components import DockerEngine, docker_engine, require
from tests.factories.apps import unique
from tests.instance.apps.test_docker import Host
from tests.product.process import product

pytestmark = [pytest.mark.slow, pytest.mark.component("docker"), pytest.mark.timeout(300)]

SHOP = """\
x-quazzar:
  slug: SLUG
  version: "1"
  title: Shop
  fields:
    - {name: http_port, label: Port, type: port, default: auto}
    - {name: motto, type: string, default: none}
  web: {service: web, port: 80}
services:
  web:
    image: busybox:1.37
    command: ["sh", "-c", "wget -qO /data/page http://db:8080/who; exec httpd -f -h /data"]
    ports: ["${http_port}:80"]
    volumes: ["data:/data"]
    depends_on: {db: {condition: service_healthy}, migrate: {condition: service_completed_successfully}}
    healthcheck: {test: ["CMD", "wget", "-qO", "/dev/null", "http://127.0.0.1/page"], interval: 1s, retries: 30}
    stop_grace_period: 1s
  migrate:
    image: busybox:1.37
    command: ["sh", "-c", "wget -qO- http://db:8080/who"]
    restart: "no"
    depends_on: {db: {condition: service_healthy}}
  db:
    image: busybox:1.37
    command: ["sh", "-c", "echo ${motto} > /data/who; sleep 1; touch /tmp/ok; exec httpd -f -p 8080 -h /data"]
    volumes: ["db:/data"]
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/ok"], interval: 1s, retries: 30}
    stop_grace_period: 1s
volumes: {data: {}, db: {}}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    require("docker")
    with docker_engine(tmp_path_factory.mktemp("engine")) as found:
        found.import_busybox("busybox:1.37")
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


def containers(host: Host, app: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        one["Labels"]["io.quazzar.service"]: host.engine.ok("GET", f"/containers/{one['Id']}/json")
        for one in host.containers(app["id"])
    }


def address_of(container: dict[str, Any]) -> str:
    [network] = container["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


def run(host: Host, container: dict[str, Any], *command: str) -> int:
    """The exit code of a command in a container."""
    made = host.engine.ok("POST", f"/containers/{container['Id']}/exec", body={"Cmd": list(command)})
    host.engine.ok("POST", f"/exec/{made['Id']}/start", body={"Detach": True})
    end = time.monotonic() + 60
    while (found := host.engine.ok("GET", f"/exec/{made['Id']}/json"))["Running"]:
        assert time.monotonic() < end, command
        time.sleep(0.05)
    return int(found["ExitCode"])


def said(host: Host, app: dict[str, Any]) -> str:
    port = app["ports"][0]["host_port"]
    return httpx.get(f"http://{host.engine.address}:{port}/page", timeout=5).raise_for_status().text.strip()


def test_two_apps_of_one_template(host: Host) -> None:
    """The same names in both: each finds its own, and neither reaches the other."""
    slug = unique("shop")
    assert host.client.post("/api/templates", json={"compose": SHOP.replace("SLUG", slug)}).status_code == 201
    one, other = (host.install(slug, config={"motto": motto}) for motto in ("first", "second"))
    assert [said(host, app) for app in (one, other)] == ["first", "second"]
    assert one["ports"][0]["host_port"] != other["ports"][0]["host_port"]
    ours, theirs = containers(host, one), containers(host, other)
    assert ours.keys() == theirs.keys() == {"web", "db", "migrate"}
    assert not {found["Name"] for found in ours.values()} & {found["Name"] for found in theirs.values()}

    # In the order of what they wait for.
    database, migrate, web = ours["db"]["State"], ours["migrate"]["State"], ours["web"]["State"]
    assert (migrate["Status"], migrate["ExitCode"], ours["migrate"]["RestartCount"]) == ("exited", 0, 0)
    # An engine may note the start of what is over at once a moment after its end.
    assert database["StartedAt"] < migrate["StartedAt"] < web["StartedAt"]
    assert migrate["FinishedAt"] <= web["StartedAt"]

    # By address there is no way from one to the other, on any port; within an app there is.
    wget = ("timeout", "3", "wget", "-qO", "/dev/null")
    patient = ("timeout", "30", *wget[2:])
    assert run(host, ours["web"], *patient, f"http://{address_of(ours['db'])}:8080/who") == 0
    assert run(host, ours["web"], *wget, f"http://{address_of(theirs['db'])}:8080/who") != 0
    assert run(host, theirs["db"], *wget, f"http://{address_of(ours['web'])}:80/page") != 0
    assert run(host, ours["web"], "timeout", "3", "wget", "-qO", "/dev/null", f"http://{other['name']}-db-1:8080") != 0

    # Ports are kept over everything that is done to an app, and by the next process.
    kept = one["ports"]
    for call, body in (
        ("stop", None),
        ("start", None),
        ("restart", None),
        ("patch", {"config": {"motto": "third"}}),
        ("patch", {"resources": {"memory_bytes": 32 * 2**20}}),
    ):
        path = f"/api/apps/{one['id']}"
        answer = host.client.patch(path, json=body) if body else host.client.post(f"{path}/{call}")
        assert answer.status_code == 200, answer.text
        one = host.until(one["id"], "stopped" if call == "stop" else "running")
        assert one["ports"] == kept
    assert said(host, one) == "third"
    host.product.kill()
    host.product.start()
    host.log_in()
    assert host.show(one["id"])["ports"] == kept
    for app in (one, other):
        assert host.client.delete(f"/api/apps/{app['id']}?purge=true").status_code == 204
        assert host.left_over(app["id"]) == []


def test_a_dependency_that_never_gets_well_fails_the_install_and_says_so(host: Host) -> None:
    slug = unique("shop")
    text = SHOP.replace("SLUG", slug).replace("touch /tmp/ok; ", "").replace("retries: 30", "retries: 2")
    assert host.client.post("/api/templates", json={"compose": text}).status_code == 201
    app = host.client.post("/api/apps", json={"template": slug, "name": unique("app")}).json()
    failed = host.until(app["id"], "failed")
    assert "“db” is unhealthy" in failed["status_reason"]
    assert host.left_over(app["id"]) == []
    job = host.client.get(f"/api/jobs/{app['job_id']}").json()
    assert (job["status"], job["error"]) == ("failed", failed["status_reason"])
    assert host.client.delete(f"/api/apps/{app['id']}").status_code == 204


def test_a_foreign_container_with_the_name_of_ours_is_left_alone(host: Host) -> None:
    name = unique("app")
    body = {"Image": "busybox:1.37", "Cmd": ["sleep", "3600"]}
    foreign = host.engine.ok("POST", "/containers/create", params={"name": f"{name}-web-1"}, body=body)["Id"]
    app = host.install(name=name)
    [ours] = host.containers(app["id"])
    assert ours["Names"] == [f"/{app['id']}-web-1"]
    assert host.client.delete(f"/api/apps/{app['id']}?purge=true").status_code == 204
    assert host.engine.ok("GET", f"/containers/{foreign}/json")["Name"] == f"/{name}-web-1"
    host.engine.ok("DELETE", f"/containers/{foreign}", params={"force": "1"})
