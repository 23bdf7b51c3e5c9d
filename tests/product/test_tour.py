"""The tours of the README and of the page on panels, run to the letter against a product with a real engine."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.components import DockerEngine, docker_engine, require
from tests.product.process import ROOT, Product, product

TOUR = re.compile(r"^```sh tour\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.component("docker")
def test_the_tours(tmp_path: Path) -> None:
    require("docker")
    scripts = [script for page in ("README.md", "docs/panel.md") for script in TOUR.findall((ROOT / page).read_text())]
    assert len(scripts) == 2
    with (
        docker_engine(tmp_path) as engine,
        product(tmp_path / "data", QUAZZAR_RUNTIME_DRIVER="docker", QUAZZAR_RUNTIME_DOCKER_HOST=engine.host) as one,
    ):
        engine.import_busybox("busybox:1.37")
        one.start()
        printed = [_run(script, one, engine) for script in scripts]
        assert '"username":"ada"' in printed[0]
        assert "<html" in printed[0].lower()
        assert '"cpu_percent"' in printed[0]
        assert '"status":"online"' in printed[1]
        assert '"email":"bob@example.com"' in printed[1]
        assert "a kettle of" not in one.log.read_text()


def _run(script: str, product: Product, engine: DockerEngine) -> str:
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=os.environ | {"QUAZZAR": product.url, "APP_HOST": engine.address},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stderr + run.stdout + product.tail()
    return run.stdout
