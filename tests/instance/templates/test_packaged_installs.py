"""Every packaged template is installed on a real engine, with stand-ins for its images, and taken away again.

By default a few of them, in CI a third, with quicker health checks; the full campaign (`make torture`) installs all of
them as they are, with the pauses that they have.
"""

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from quazzar.instance.templates import compose
from quazzar.instance.templates.compose import Template, parse_template
from tests.components import DockerEngine, docker_engine, require
from tests.instance.templates import stand_in
from tests.instance.templates.writing import minimal_config, spec_of
from tests.product.process import Product, product

pytestmark = [pytest.mark.torture, pytest.mark.component("docker"), pytest.mark.timeout(1800)]

FULL = os.environ.get("QUAZZAR_TORTURE") == "full"
FILES = sorted((Path(compose.__file__).parent / "packaged").glob("*.yaml"))
SAMPLE = {"hello", "adguard-home", "gitea", "nextcloud", "redis", "syncthing"}
THIRD = {file.stem for file in FILES[::3]} if os.environ.get("CI") else set()
CHOSEN = [file for file in FILES if FULL or file.stem in SAMPLE | THIRD]
AT_ONCE = 4
ENDED = {"running", "failed", "crashed", "stopped", "unhealthy"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    require("docker")
    with docker_engine(tmp_path_factory.mktemp("engine")) as found:
        ports: dict[str, set[int]] = {}
        for file in CHOSEN:
            template = parse_template(file.read_bytes())
            for service in spec_of(template, **minimal_config(template)).services:
                ports.setdefault(service.image, set()).update(stand_in.ports_of(service))
        for image, listened in ports.items():
            found.import_busybox(image, changes=stand_in.changes(listened), files=stand_in.files())
        yield found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, engine: DockerEngine) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("product") / "data"
    settings = {"QUAZZAR_RUNTIME_DRIVER": "docker", "QUAZZAR_RUNTIME_DOCKER_HOST": engine.host}
    with product(folder, mode="instance", **settings) as found:
        found.start()
        found.setup()
        found.http.headers.update(found.authorized(found.login()["access_token"]))
        yield found


def test_each_can_be_installed_used_and_taken_away(one: Product, engine: DockerEngine) -> None:
    with ThreadPoolExecutor(AT_ONCE) as several:
        told = dict(zip(CHOSEN, several.map(lambda file: _trouble(one, engine, file), CHOSEN), strict=True))
    assert {file.stem: trouble for file, trouble in told.items() if trouble} == {}
    assert engine.ok("GET", "/containers/json", params={"all": "1"}) == []
    assert engine.ok("GET", "/volumes")["Volumes"] in (None, [])


def _trouble(one: Product, engine: DockerEngine, file: Path) -> str | None:
    """One life of an app; gives what went wrong, so that one bad template hides no other."""
    try:
        _live(one, engine, file)
    except (AssertionError, httpx.HTTPError) as error:
        return f"{error!r}"
    return None


def _live(one: Product, engine: DockerEngine, file: Path) -> None:
    template = parse_template(file.read_bytes())
    slug = template.slug if FULL else _quicker(one, file)
    body = {"template": slug, "name": f"my-{template.slug}", "config": minimal_config(template)}
    answer = one.http.post("/api/apps", json=body)
    assert answer.status_code == 201, answer.text
    app = _ended(one, answer.json()["id"])
    assert app["status"] == "running", f"{app['status']}: {app['status_reason']}\n{_logs(one, app)}"
    assert {found["name"]: found["health"] for found in app["services"]} == dict.fromkeys(template.services, "healthy")
    _check_ports(engine, template, app)
    held = engine.ok("GET", "/volumes", params={"filters": f'{{"label":["io.quazzar.app={app["id"]}"]}}'})["Volumes"]
    services = spec_of(template, **minimal_config(template)).services
    files = sum(service.read_only and bool(service.files) for service in services)
    assert len(held or []) == len(template.volumes) + files, (
        "the template's, and one for files where the root is sealed"
    )
    assert one.http.delete(f"/api/apps/{app['id']}?purge=true").status_code == 204


def _quicker(one: Product, file: Path) -> str:
    """The same template under another name, whose health is asked for each second."""
    text = re.sub(r"interval: \d+s", "interval: 1s", file.read_text())
    text = text.replace(f"slug: {file.stem}\n", f"slug: quick-{file.stem}\n", 1)
    answer = one.http.post("/api/templates", json={"compose": text})
    assert answer.status_code == 201, answer.text
    return f"quick-{file.stem}"


def _ended(one: Product, app_id: str) -> dict[str, Any]:
    end = time.monotonic() + 300
    while True:
        app: dict[str, Any] = one.http.get(f"/api/apps/{app_id}").json()
        if app["status"] in ENDED:
            return app
        assert time.monotonic() < end, f"still {app['status']}: {app['status_reason']}"
        time.sleep(0.2)


def _logs(one: Product, app: dict[str, Any]) -> str:
    answer = one.http.get(f"/api/apps/{app['id']}/logs?tail=20")
    return "\n".join(line["line"] for line in answer.json()) if answer.status_code == 200 else ""


def _check_ports(engine: DockerEngine, template: Template, app: dict[str, Any]) -> None:
    for port in app["ports"]:
        if port["protocol"] == "tcp":
            answer = httpx.get(f"http://{engine.address}:{port['host_port']}/", timeout=10)
            assert answer.status_code == 200, port
    if template.web is not None:
        [url] = app["urls"]
        web = [
            port["host_port"]
            for port in app["ports"]
            if (port["service"], port["container_port"]) == (template.web.service, template.web.port)
        ]
        assert int(url.rpartition(":")[2].rstrip("/")) in web
