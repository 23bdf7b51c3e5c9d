"""What goes wrong with installs on a real engine: ports that are taken, disks that fill, people who cancel. Nothing is
left over, the reason is told, and once it is gone the same app is installed after all.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.components import wait_for
from tests.product.process import free_port
from tests.product.scene import Scene

pytestmark = [
    pytest.mark.component("docker"),
    pytest.mark.component("docker-registry"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


def begun(stage: Scene, **config: Any) -> dict[str, Any]:
    return stage.ask("POST", "/api/apps", stage.wish() | {"config": config})


def failed(stage: Scene, app: dict[str, Any], *, as_: str = "failed") -> str:
    """Wait until the install has failed without a trace, and give its reason."""
    job = stage.job(app["job_id"])
    assert job["status"] == as_, job
    found = stage.settled(app["id"])
    assert found is not None
    assert found["status"] == "failed"
    assert stage.left_over(app["id"]) == []
    return str(found["status_reason"])


def can_be_started(stage: Scene, app: dict[str, Any]) -> None:
    stage.ask("POST", f"/api/apps/{app['id']}/start")
    stage.whole(app["id"], version="1.0", word="fresh")
    stage.remove(app["id"])
    stage.nothing_left()


@contextlib.contextmanager
def listening(stage: Scene) -> Iterator[int]:
    """A program beside the engine holds a port; gives that."""
    port = free_port()
    listen = f"import socket, time; s = socket.create_server(('', {port})); print(flush=True); time.sleep(1000)"
    program = subprocess.Popen(stage.engine.namespace.command(sys.executable, "-c", listen), stdout=subprocess.PIPE)
    try:
        assert program.stdout is not None
        program.stdout.readline()
        yield port
    finally:
        program.kill()
        program.communicate()


def test_a_port_that_another_program_has(stage: Scene) -> None:
    with listening(stage) as port:
        app = begun(stage, http_port=port)
        assert failed(stage, app) == f"Port {port} is already in use"
    can_be_started(stage, app)


def test_a_disk_that_fills_in_the_pull(stage: Scene) -> None:
    stage.forget_image("1.0")
    with contextlib.ExitStack() as block:
        stage.engine.freeze()
        try:
            app = begun(stage)
            block.enter_context(stage.full_disk(but_bytes=1024 * 1024))
        finally:
            stage.engine.thaw()
        assert failed(stage, app).startswith(f"The disk of the engine is full (image {stage.host}/web")
    can_be_started(stage, app)


def test_cancelled_in_the_pull_it_ends_when_the_work_has(stage: Scene) -> None:
    stage.forget_image("1.0")
    stage.line.fault, layers = "stall", stage.line.layers
    try:
        app = begun(stage)
        wait_for(lambda: stage.line.layers > layers, seconds=60, what="the layer")
        assert stage.http.post(f"/api/jobs/{app['job_id']}/cancel").status_code == 200
        assert failed(stage, app, as_="cancelled") == "The operation was cancelled"
    finally:
        stage.line.fault = None
    can_be_started(stage, app)
