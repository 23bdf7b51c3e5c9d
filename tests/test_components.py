"""The real servers of the tests: one that breaks down by itself says why, at once and at the end of the run."""

import signal
from pathlib import Path

import pytest

from tests import components
from tests.components import docker_engine, wait_for
from tests.conftest import pytest_runtest_setup


def test_who_needs_what_is_not_here_is_skipped_and_fails_where_nothing_may_be_missing(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "_PATH", str(tmp_path))
    monkeypatch.delenv("QUAZZAR_REQUIRE_COMPONENTS", raising=False)
    for name in components.COMPONENTS:
        request.node.add_marker(pytest.mark.component(name), append=False)
        with pytest.raises(pytest.skip.Exception, match=f"^{name}: "):
            pytest_runtest_setup(request.node)
    monkeypatch.setenv("QUAZZAR_REQUIRE_COMPONENTS", "1")
    with pytest.raises(pytest.fail.Exception, match="not found"):
        pytest_runtest_setup(request.node)


@pytest.mark.component("docker")
def test_an_engine_that_ends_by_itself_leaves_its_last_words(tmp_path: Path) -> None:
    running = docker_engine(tmp_path)
    engine = running.__enter__()
    try:
        assert engine.last_words() is None
        process = engine._dockerd
        assert process is not None
        # A Go program answers this signal with what each of its routines does, and ends.
        process.send_signal(signal.SIGABRT)
        wait_for(lambda: process.poll() is not None, what="the end of the engine")
        with pytest.raises(RuntimeError, match="goroutine"):
            engine.ok("GET", "/_ping")
    finally:
        with pytest.raises(pytest.fail.Exception, match="dockerd ended by itself"):
            running.__exit__(None, None, None)
    assert "dockerd" in {file.stem for file in tmp_path.glob("*.log")}


@pytest.mark.component("docker")
def test_an_engine_that_a_test_kills_has_none(tmp_path: Path) -> None:
    with docker_engine(tmp_path) as engine:
        engine.kill()
        assert engine.last_words() is None
        engine.start()
        assert engine.request("GET", "/_ping").status == 200
