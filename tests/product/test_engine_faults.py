"""An engine that is killed, frozen or restarted at each call that an operation makes of it: once it is back the app is
whole in its old or its new state, and nothing is left over.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from tests.components import DockerEngine, require, wait_for
from tests.factories.apps import unique
from tests.product.engine_line import EngineLine, When
from tests.product.scene import CAMPAIGN, SAMPLE, Scene, points, scene

pytestmark = [pytest.mark.torture, pytest.mark.timeout(14400), pytest.mark.component("docker")]

FaultName = Literal["killed", "frozen", "restarted"]
Step = tuple[int, When]
WHENS: tuple[When, When] = ("before", "after")
GONE_SECONDS = 1.0
FROZEN_SECONDS = 6.0
"""Longer than a quick call waits, shorter than one that makes the engine work."""


class Trouble:
    """One fault of the engine, and its end a moment later."""

    def __init__(self, engine: DockerEngine, name: FaultName) -> None:
        self._engine = engine
        self._name = name
        self._mending: threading.Thread | None = None

    def __call__(self) -> None:
        match self._name:
            case "killed":
                self._engine.kill()
                self._mend(GONE_SECONDS, self._engine.start)
            case "frozen":
                self._engine.freeze()
                self._mend(FROZEN_SECONDS, self._engine.thaw)
            case "restarted":
                self._engine.end()
                self._mend(0, self._engine.start)

    def _mend(self, seconds: float, mend: Callable[[], None]) -> None:
        def work() -> None:
            time.sleep(seconds)
            mend()

        self._mending = threading.Thread(target=work)
        self._mending.start()

    def wait(self) -> bool:
        """Wait until the engine is back; false when nothing has happened to it."""
        if self._mending is None:
            return False
        self._mending.join()
        return True


def steps(calls: int) -> Iterator[Step]:
    """Before and after each of so many calls, in no order and again and again: a full campaign leaves none out."""
    every: list[Step] = [(number, when) for number in range(calls) for when in WHENS]
    while True:
        random.shuffle(every)
        yield from every


class Stage:
    def __init__(self, found: Scene, line: EngineLine, *, live_restore: bool) -> None:
        self.scene = found
        self.line = line
        self._live_restore = live_restore

    def broken(self, name: FaultName, step: Step, app_id: str | None, operation: Callable[[], str]) -> None:
        """Carry an operation out (which gives the job's id) while the engine has trouble at one of its calls.

        `app_id` is the app that was there before and has to run afterwards.
        """
        trouble = Trouble(self.scene.engine, name)
        number, when = step
        self.line.arm(number, when, trouble)
        try:
            job_id = operation()
            job = self.scene.job(job_id)
        finally:
            self.line.disarm()
            happened = trouble.wait()
        call = self.line.calls[number] if number < len(self.line.calls) else "none"
        what = f"{name} {when} {number} ({call})" if happened else "nothing"
        print(f"{what}: {job['kind']} {job['status']} {job['error'] or ''}")
        if happened and app_id is not None and not self._live_restore:
            self.scene.revive(app_id)


LIVE_RESTORE = {"containers-end-with-the-engine": False, "containers-live-on": True}
"""The first is an engine's default, and what CI breaks; a campaign breaks both."""


@pytest.fixture(scope="module", params=list(LIVE_RESTORE)[: None if CAMPAIGN else 1])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    for name in ("docker", "docker-registry"):
        require(name)
    folder = tmp_path_factory.mktemp("faults")
    lines: list[EngineLine] = []

    def through(engine: DockerEngine) -> str:
        line = EngineLine(engine.folder / "line.sock", engine.socket)
        line.start()
        lines.append(line)
        return line.host

    try:
        with scene(folder, through=through, live_restore=LIVE_RESTORE[request.param]) as found:
            yield Stage(found, lines[0], live_restore=LIVE_RESTORE[request.param])
    finally:
        for line in lines:
            line.stop()


@pytest.fixture(params=["killed"] if SAMPLE else ["killed", "frozen", "restarted"])
def fault(request: pytest.FixtureRequest) -> FaultName:
    name: FaultName = request.param
    return name


def steps_of(stage: Stage, operation: Callable[[], str]) -> Iterator[Step]:
    """The steps of an operation when nothing breaks it."""
    stage.line.count()
    job = stage.scene.job(operation())
    assert job["status"] == "completed", job
    print(f"{job['kind']}: {len(stage.line.calls)} calls")
    return steps(len(stage.line.calls))


def test_install(stage: Stage, fault: FaultName) -> None:
    found = stage.scene
    made: list[str] = []

    def install() -> str:
        app = found.ask("POST", "/api/apps", found.wish())
        made.append(app["id"])
        return str(app["job_id"])

    found.forget_image("1.0")
    install_steps = steps_of(stage, install)
    found.remove(made[-1])
    for _ in range(points()):
        found.forget_image("1.0")
        stage.broken(fault, next(install_steps), None, install)
        app = found.settled(made[-1])
        assert app is not None
        if app["status"] == "failed":
            wait_for(lambda: found.left_over(made[-1]) == [], seconds=60, what="nothing of it")
            found.ask("POST", f"/api/apps/{made[-1]}/start")
        elif app["status"] != "running":
            found.revive(made[-1])
        found.whole(made[-1], version="1.0", word="fresh")
        found.remove(made[-1])
        found.nothing_left()


def test_update_and_rollback(stage: Stage, fault: FaultName) -> None:
    found = stage.scene
    app_id = found.install()["id"]
    path = f"/api/apps/{app_id}"

    def update(version: str) -> str:
        return str(found.ask("POST", f"{path}/update", {"version": version})["job_id"])

    def rollback() -> str:
        return str(found.ask("POST", f"{path}/rollback")["job_id"])

    found.forget_image("2.0")
    update_steps = steps_of(stage, lambda: update("2.0"))
    rollback_steps = steps_of(stage, rollback)
    for _ in range(points()):
        word = found.fresh_word(app_id)
        found.forget_image("2.0")
        stage.broken(fault, next(update_steps), app_id, lambda: update("2.0"))
        version = found.running(app_id)["version"]
        found.whole(app_id, version=version, word=word if version == "1.0" else f"2:{word}")
        if version == "1.0":
            assert found.job(update("2.0"))["status"] == "completed"
            found.whole(app_id, version="2.0", word=f"2:{word}")
        later = found.fresh_word(app_id, before="2:")
        stage.broken(fault, next(rollback_steps), app_id, rollback)
        version = found.running(app_id)["version"]
        found.whole(app_id, version=version, word=word if version == "1.0" else f"2:{later}")
        if version == "2.0":
            assert found.job(rollback())["status"] == "completed"
            found.whole(app_id, version="1.0", word=word)
    found.remove(app_id)


def test_clone_and_uninstall(stage: Stage, fault: FaultName) -> None:
    found = stage.scene
    app_id = found.install()["id"]
    made: list[str] = []

    def clone() -> str:
        copy = found.ask("POST", f"/api/apps/{app_id}/clone", {"name": unique("copy")})
        made.append(copy["id"])
        return str(copy["job_id"])

    def uninstall() -> str:
        answer = found.http.delete(f"/api/apps/{made[-1]}?purge=true")
        assert answer.status_code in {200, 204}, answer.text
        return next(str(one["id"]) for one in found.http.get(f"/api/jobs?subject={made[-1]}").json())

    clone_steps = steps_of(stage, clone)
    uninstall_steps = steps_of(stage, uninstall)
    for _ in range(points()):
        word = found.fresh_word(app_id)
        stage.broken(fault, next(clone_steps), app_id, clone)
        found.whole(app_id, version="1.0", word=word)
        copy = found.settled(made[-1])
        if copy is not None and copy["status"] == "running":
            found.whole(made[-1], version="1.0", word=word)
        stage.broken(fault, next(uninstall_steps), app_id, uninstall)
        assert found.settled(made[-1]) is None
        found.gone(made[-1])
    found.remove(app_id)
