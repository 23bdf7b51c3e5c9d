"""Pulls through the whole product, from a real registry that asks for a login, over lines that break."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.components import DockerEngine, FaultyLine, Registry, docker_engine, faulty_line, registry, require, wait_for
from tests.factories.apps import TRANSITIONAL, unique
from tests.product.process import Product, product

pytestmark = [
    pytest.mark.slow,
    pytest.mark.component("docker"),
    pytest.mark.component("docker-registry"),
    pytest.mark.timeout(300),
]

USERS = {"bob": "$2b$04$8Rnx2jpj3CG1em0w9DppjusmoJiP8p4vvgaHuXYqF0js2kB0fkHya"}
PASSWORD = "secret-of-bob"


class Host:
    """The product on a real engine beside a private registry, which it reaches over a line that tests break."""

    def __init__(self, one: Product, engine: DockerEngine, private: Registry, line: FaultyLine) -> None:
        self.product = one
        self.engine = engine
        self.private = private
        self.line = line
        one.start()
        one.setup()
        self.client = httpx.Client(base_url=one.url, timeout=60)
        self.log_in()

    def log_in(self) -> None:
        self.client.headers.update(self.product.authorized(self.product.login()["access_token"]))

    def fresh(self, *, size: int = 200_000) -> str:
        """An image of `size` bytes and busybox that the registry has and the engine has nothing of."""
        path = f"team/app:{unique('v')}"
        self.engine.publish(f"{self.private.name}/{path}", username="bob", password=PASSWORD, size=size)
        return f"{self.line.name}/{path}"

    def begin(self, image: str) -> dict[str, Any]:
        head = f'x-quazzar: {{slug: {unique("private")}, version: "1", title: Private}}'
        text = f'{head}\nservices: {{web: {{image: "{image}"}}}}'
        template = self.client.post("/api/templates", json={"compose": text})
        assert template.status_code == 201, template.text
        answer = self.client.post("/api/apps", json={"template": template.json()["slug"], "name": unique("app")})
        assert answer.status_code == 201, answer.text
        app: dict[str, Any] = answer.json()
        return app

    def end(self, app: dict[str, Any]) -> dict[str, Any]:
        """The app once nothing is going on with it any more."""

        def settled() -> bool:
            app.update(self.client.get(f"/api/apps/{app['id']}").json())
            return app["status"] not in TRANSITIONAL

        wait_for(settled, seconds=90, what="the end of an install")
        return app

    def forget(self, app: dict[str, Any]) -> None:
        """The app is deleted, and nothing of it is left."""
        assert self.client.delete(f"/api/apps/{app['id']}", params={"purge": "true"}).status_code == 204
        filters = json.dumps({"label": [f"io.quazzar.app={app['id']}"]})
        assert self.engine.ok("GET", "/containers/json", params={"all": "1", "filters": filters}) == []

    @contextmanager
    def login(self, password: str = PASSWORD) -> Iterator[None]:
        body = {"host": self.line.name, "username": "bob", "password": password}
        made = self.client.post("/api/registries", json=body)
        assert made.status_code == 201, made.text
        try:
            yield
        finally:
            assert self.client.delete(f"/api/registries/{made.json()['id']}").status_code == 204


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    require("docker")
    folder = tmp_path_factory.mktemp("private")
    # An engine tries a broken layer again after a while, five times unless it is told otherwise.
    with (
        docker_engine(folder / "engine", "--max-download-attempts=1") as engine,
        registry(folder, engine, users=USERS) as private,
        faulty_line(engine, private) as line,
        product(folder / "data", QUAZZAR_RUNTIME_DRIVER="docker", QUAZZAR_RUNTIME_DOCKER_HOST=engine.host) as one,
    ):
        found = Host(one, engine, private, line)
        yield found
        found.client.close()


@pytest.fixture(autouse=True)
def whole_line(host: Host) -> Iterator[None]:
    yield
    host.line.fault = None


def test_an_install_needs_the_right_login(host: Host) -> None:
    image = host.fresh()
    app = host.end(host.begin(image))
    assert (app["status"], app["status_reason"]) == (
        "failed",
        f"The registry {host.line.name} asks for a login, and none is stored",
    )
    with host.login("wrong-canary"):
        host.client.post(f"/api/apps/{app['id']}/start")
        host.end(app)
        assert app["status_reason"] == f"The registry {host.line.name} refused the login that is stored for it"
        assert host.client.get(f"/api/jobs/{app['job_id']}").json()["error"] == app["status_reason"]
    with host.login():
        host.client.post(f"/api/apps/{app['id']}/start")
        assert host.end(app)["status"] == "running"
        assert app["services"][0]["image_digest"].startswith("sha256:")
        absent = host.end(host.begin(image + "-absent"))
        seen = "or none that can be seen with the login that is stored for it"
        assert absent["status_reason"] == f"The registry {host.line.name} has no image {image}-absent, {seen}"
    for one in (app, absent):
        host.forget(one)
    log = host.product.log.read_text()
    assert "apps.operation_done" in log
    shown = [host.client.get(path).text for path in ("/api/audit?limit=200", "/api/events?limit=200", "/api/jobs")]
    for text in (log, *shown):
        assert PASSWORD not in text
        assert "wrong-canary" not in text


def test_a_registry_that_is_not_there(host: Host) -> None:
    app = host.end(host.begin("127.0.0.1:1/team/app:1"))
    assert (app["status"], app["status_reason"]) == ("failed", "The registry 127.0.0.1:1 is not reachable")
    host.forget(app)


def test_a_line_that_breaks_in_the_middle_of_a_layer(host: Host) -> None:
    with host.login():
        host.line.fault = "drop"
        broken = host.end(host.begin(host.fresh()))
        said = f"The registry {host.line.name} broke off its answer"
        assert (broken["status"], broken["status_reason"]) == ("failed", said)
        host.line.fault = None
        host.client.post(f"/api/apps/{broken['id']}/start")
        assert host.end(broken)["status"] == "running"
        host.forget(broken)


def test_the_job_tells_what_is_pulled_and_how_far_that_is(host: Host) -> None:
    with host.login():
        host.line.fault = "slow"
        image = host.fresh(size=16_000_000)
        app = host.begin(image)
        told: set[float] = set()

        def between() -> bool:
            job = host.client.get(f"/api/jobs/{app['job_id']}").json()
            if job["step"] == f"Pulling {image}" and 0.05 < job["progress"] < 0.6:
                told.add(job["progress"])
            return len(told) >= 3

        wait_for(between, seconds=60, what="a pull that gets on")
        host.line.fault = None
        assert host.end(app)["status"] == "running"
        lines = [one["line"] for one in host.client.get(f"/api/jobs/{app['job_id']}/logs").json()]
        steps = [lines.index(step) for step in (f"Pulling {image}", "Creating web", "Starting web")]
        assert steps == sorted(steps)
        assert host.client.get(f"/api/jobs/{app['job_id']}").json()["progress"] == 1
        host.forget(app)


def test_cancelled_and_killed_while_a_registry_is_silent(host: Host) -> None:
    with host.login():
        host.line.fault, before = "stall", host.line.layers
        app = host.begin(host.fresh())
        wait_for(lambda: host.line.layers > before, seconds=60, what="the layer")
        assert host.client.post(f"/api/jobs/{app['job_id']}/cancel").status_code == 200
        assert host.end(app)["status"] == "failed"
        assert "cancelled" in app["status_reason"]
        host.forget(app)

        before = host.line.layers
        app = host.begin(host.fresh())
        wait_for(lambda: host.line.layers > before, seconds=60, what="the layer")
        host.product.kill()
        host.line.fault = None
        host.product.start()
        host.log_in()
        assert host.end(app)["status"] == "running"
        host.forget(app)
