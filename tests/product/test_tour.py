"""The README's tour, run to the letter against a product with a real engine."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.components import docker_engine, require
from tests.product.process import ROOT, product

TOUR = re.compile(r"^```sh tour\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.component("docker")
def test_the_readme_tour(tmp_path: Path) -> None:
    require("docker")
    scripts = TOUR.findall((ROOT / "README.md").read_text())
    assert len(scripts) == 1
    with (
        docker_engine(tmp_path) as engine,
        product(tmp_path / "data", QUAZZAR_RUNTIME_DRIVER="docker", QUAZZAR_RUNTIME_DOCKER_HOST=engine.host) as one,
    ):
        engine.import_busybox("busybox:1.37")
        one.start()
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", scripts[0]],
            env=os.environ | {"QUAZZAR": one.url, "APP_HOST": engine.address},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert run.returncode == 0, run.stderr + run.stdout + one.tail()
        assert '"username":"ada"' in run.stdout
        assert "<html" in run.stdout.lower()
        assert '"cpu_percent"' in run.stdout
        assert "a kettle of stars" not in one.log.read_text()
