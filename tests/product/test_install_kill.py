"""`kill -9` of our process in the middle of installs: each ends whole or not at all, and nothing else is left."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.components import DockerEngine, docker_engine, require
from tests.product.process import Product, product
from tests.product.test_kill import ROUNDS, killed_during, posting

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600), pytest.mark.component("docker")]

TRANSITIONAL = {"installing", "starting", "stopping", "restarting", "updating", "uninstalling"}


def settled(one: Product, headers: dict[str, str], app_id: str, seconds: float = 60) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while True:
        app: dict[str, Any] = one.http.get(f"/api/apps/{app_id}", headers=headers).json()
        if app["status"] not in TRANSITIONAL:
            return app
        assert time.monotonic() < end, f"still {app['status']}: {app['status_reason']}\n{one.tail()}"
        time.sleep(0.1)


def objects(engine: DockerEngine, app_id: str) -> list[str]:
    """Everything on the engine that carries the app's label."""
    label = f'{{"label":["io.quazzar.app={app_id}"]}}'
    found = [
        f"container {item['Id']}"
        for item in engine.ok("GET", "/containers/json", params={"all": "1", "filters": label})
    ]
    found += [f"network {item['Name']}" for item in engine.ok("GET", "/networks", params={"filters": label})]
    volumes = engine.ok("GET", "/volumes", params={"filters": label})["Volumes"] or []
    return found + [f"volume {item['Name']}" for item in volumes]


def test_killed_during_install(tmp_path: Path) -> None:
    require("docker")
    with (
        docker_engine(tmp_path) as engine,
        product(tmp_path / "data", QUAZZAR_RUNTIME_DRIVER="docker", QUAZZAR_RUNTIME_DOCKER_HOST=engine.host) as one,
    ):
        engine.import_busybox("busybox:1.37")
        one.start()
        one.setup()
        headers = one.authorized(one.login()["access_token"])
        acknowledged = finished = 0
        for number in range(ROUNDS):
            body = {"template": "hello", "name": f"hello-{number}"}
            answer = killed_during(
                one,
                posting("/api/apps", body, headers),
                within=random.choice([0.05, 0.3, 1.0]),
            )
            one.start()
            headers = one.authorized(one.login()["access_token"])
            found = [
                app
                for app in one.http.get("/api/apps?limit=200", headers=headers).json()
                if app["name"] == body["name"]
            ]
            if answer is not None and answer.status_code == 201:
                acknowledged += 1
                assert found, "an acknowledged install is gone"
            for listed in found:
                app = settled(one, headers, listed["id"])
                assert app["status"] == "running", f"{app['status']}: {app['status_reason']}"
                assert len([item for item in objects(engine, app["id"]) if item.startswith("container")]) == 1
                finished += 1
                assert one.http.delete(f"/api/apps/{app['id']}", headers=headers).status_code == 204
                assert objects(engine, app["id"]) == []
        every = engine.ok("GET", "/containers/json", params={"all": "1"})
        assert every == [], "containers are left over"
        print(f"install: {ROUNDS} kills, {acknowledged} acknowledged before, {finished} finished after")
