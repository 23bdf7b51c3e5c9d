"""What goes wrong with updates on a real engine: images that are not there, registries that break off, disks that are
full, people who cancel or ask for two things at once. The app runs on, or runs again, as it was.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.components import wait_for
from tests.factories.apps import unique
from tests.product.scene import Scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.component("docker"),
    pytest.mark.component("docker-registry"),
    pytest.mark.timeout(600),
]


class Before:
    """An app of 1.0 with data, as it was before something went wrong."""

    def __init__(self, stage: Scene) -> None:
        self.stage = stage
        self.id: str = stage.install()["id"]
        self.path = f"/api/apps/{self.id}"
        self.word = stage.fresh_word(self.id)
        self.containers = self._containers()

    def _containers(self) -> set[str]:
        return {one["Id"] for one in self.stage.containers(self.id).values()}

    def update(self, version: str = "2.0") -> str:
        return str(self.stage.ask("POST", f"{self.path}/update", {"version": version})["job_id"])

    def fails(self) -> str:
        """Let the update fail, and give its reason."""
        job = self.stage.job(self.update())
        assert job["status"] == "failed", job
        return str(job["error"])

    def is_untouched(self) -> None:
        """The very same containers run."""
        self.is_whole()
        assert self._containers() == self.containers

    def is_whole(self) -> None:
        self.stage.whole(self.id, version="1.0", word=self.word)

    def can_be_updated(self) -> None:
        assert self.stage.job(self.update())["status"] == "completed"
        self.stage.whole(self.id, version="2.0", word=f"2:{self.word}")


@pytest.fixture
def before(stage: Scene) -> Iterator[Before]:
    stage.forget_image("2.0")
    found = Before(stage)
    yield found
    stage.line.fault = None
    stage.remove(found.id)


def test_a_tag_that_is_not_there(stage: Scene, before: Before) -> None:
    text = stage.text("3.0", "")
    assert stage.http.put(f"/api/templates/{stage.slug}", json={"compose": text}).status_code == 200
    plan = stage.ask("POST", f"{before.path}/update?dry_run=true", {"version": "3.0"})
    assert plan["refusals"].keys() == {f"images.{stage.host}/web:3.0"}
    job = stage.job(before.update("3.0"))
    assert (job["status"], job["error"]) == (
        "failed",
        f"The registry {stage.host} has no image {stage.host}/web:3.0, or none that can be seen without a login",
    )
    before.is_untouched()


def test_a_dry_run_knows_what_the_registry_has(stage: Scene, before: Before) -> None:
    plan = stage.ask("POST", f"{before.path}/update?dry_run=true", {"version": "2.0"})
    changes = {one["image"]: one for one in plan["image_changes"]}
    assert changes[f"{stage.host}/web:2.0"]["digest"] == stage.digest("2.0")
    assert changes[f"{stage.host}/db:1"]["digest"] == changes[f"{stage.host}/db:1"]["former_digest"]
    assert plan["recreated"] == ["web"]
    before.is_untouched()
    before.can_be_updated()


def test_a_pull_that_is_broken_off(stage: Scene, before: Before) -> None:
    stage.line.fault = "drop"
    assert before.fails() == f"The registry {stage.host} broke off its answer"
    before.is_untouched()
    stage.line.fault = None
    before.can_be_updated()


def test_cancelled_in_a_pull_and_the_engine_pulls_no_more(stage: Scene, before: Before) -> None:
    stage.line.fault, layers = "stall", stage.line.layers
    job_id = before.update()
    wait_for(lambda: stage.line.layers > layers, seconds=60, what="the layer")
    assert stage.http.post(f"/api/jobs/{job_id}/cancel").status_code == 200
    assert stage.job(job_id)["status"] == "cancelled"
    app = stage.show(before.id)
    assert app is not None
    assert app["status"] == "running", "the job has ended when the work has"
    before.is_untouched()
    stage.line.fault = None
    before.can_be_updated()


@pytest.mark.parametrize("step", ["Saving", "Waiting"])
def test_cancelled_later_it_goes_back_first(stage: Scene, before: Before, step: str) -> None:
    job_id = before.update()
    end = time.monotonic() + 60
    while step not in (stage.http.get(f"/api/jobs/{job_id}").json()["step"] or ""):
        assert time.monotonic() < end
        if stage.http.get(f"/api/jobs/{job_id}").json()["status"] not in {"queued", "running"}:
            break
    stage.http.post(f"/api/jobs/{job_id}/cancel")
    job = stage.job(job_id)
    app = stage.show(before.id)
    assert app is not None
    assert app["status"] == "running"
    if job["status"] == "cancelled":
        before.is_whole()
    else:  # it came too late
        stage.whole(before.id, version="2.0", word=f"2:{before.word}")


def test_two_at_once_and_one_is_taken(stage: Scene, before: Before) -> None:
    asked = [
        ("POST", "/update", {"version": "2.0"}),
        ("PATCH", "", {"config": {"motto": "two"}}),
        ("POST", "/stop", None),
    ]
    answers: list[httpx.Response] = []
    start = threading.Barrier(len(asked) * 4)

    def ask(method: str, suffix: str, body: Any) -> None:
        with httpx.Client(base_url=stage.product.url, timeout=60, headers=stage.http.headers) as client:
            start.wait()
            answers.append(client.request(method, before.path + suffix, json=body))

    threads = [threading.Thread(target=ask, args=one) for one in asked * 4]
    # Whichever is taken does not end before all others have been refused.
    stage.engine.freeze()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stage.engine.thaw()
    codes = sorted(one.status_code for one in answers)
    assert codes == [200, *[409] * 11], [one.text for one in answers]
    assert {one.json()["code"] for one in answers if one.status_code == 409} == {"app_busy"}
    app = stage.settled(before.id)
    assert app is not None
    if app["status"] == "stopped":
        stage.ask("POST", f"{before.path}/start")
    version = stage.running(before.id)["version"]
    stage.whole(before.id, version=version, word=before.word if version == "1.0" else f"2:{before.word}")


@contextlib.contextmanager
def asked_before(stage: Scene, before: Before) -> Iterator[str]:
    """An update that is accepted, and does not get on within the block."""
    stage.engine.freeze()
    try:
        yield before.update()
    finally:
        stage.engine.thaw()


def test_a_disk_without_room_is_told_before_anything_is_done(stage: Scene, before: Before) -> None:
    with stage.full_disk(but_bytes=1024**3):
        plan = stage.ask("POST", f"{before.path}/update?dry_run=true", {"version": "2.0"})
        assert plan["refusals"].keys() == {"disk_bytes"}
        refused = stage.http.post(f"{before.path}/update", json={"version": "2.0"})
        assert (refused.status_code, refused.json()["code"]) == (409, "does_not_fit")
        assert refused.json()["details"] == plan["refusals"]
        before.is_untouched()
    before.can_be_updated()


def test_a_disk_that_fills_in_a_pull(stage: Scene, before: Before) -> None:
    with contextlib.ExitStack() as block:
        with asked_before(stage, before) as job_id:
            block.enter_context(stage.full_disk(but_bytes=1024 * 1024))
        job = stage.job(job_id)
        assert job["status"] == "failed"
        assert job["error"].startswith(f"The disk of the engine is full (image {stage.host}/web@sha256:")
        before.is_untouched()
    before.can_be_updated()


def test_a_disk_that_fills_in_the_copy_of_the_data(stage: Scene, before: Before) -> None:
    volume = stage.engine.folder / "data" / "volumes" / f"{before.id}_data" / "_data"
    (volume / "large").write_bytes(bytes(24 * 1024 * 1024))
    with contextlib.ExitStack() as block:
        with asked_before(stage, before) as job_id:
            block.enter_context(stage.full_disk(but_bytes=16 * 1024 * 1024))
        job = stage.job(job_id)
        assert (job["status"], job["error"]) == ("failed", "The disk of the engine is full")
        before.is_whole()
    before.can_be_updated()


@pytest.fixture
def imported(stage: Scene) -> Iterator[str]:
    """The path of an app that comes from no template: only its image can be newer."""
    compose = f"services: {{web: {{image: '{stage.host}/db:1', command: [sleep, '100000']}}}}"
    made = stage.ask("POST", "/api/apps/import", {"name": unique("im"), "compose": compose})
    app_id = stage.running(made["id"])["id"]
    yield f"/api/apps/{app_id}"
    stage.line.fault = None
    stage.remove(app_id)


def test_a_tag_that_moves_is_found_and_taken(stage: Scene, imported: str) -> None:
    assert stage.ask("POST", f"{imported}/check-updates")["available_update"] is None
    stage.engine.publish(f"{stage.images.name}/db:1")
    found = stage.ask("POST", f"{imported}/check-updates")
    [image] = found["available_update"]["images"]
    assert image["image"] == f"{stage.host}/db:1"
    assert stage.job(stage.ask("POST", f"{imported}/update", {})["job_id"])["status"] == "completed"
    app = stage.running(found["id"])
    assert (app["services"][0]["image_digest"], app["update_available"]) == (image["digest"], False)
    assert stage.ask("POST", f"{imported}/check-updates")["available_update"] is None


def test_a_registry_that_wants_no_questions_is_left_alone(stage: Scene, imported: str) -> None:
    stage.line.fault = "busy"
    shown = stage.ask("POST", f"{imported}/check-updates")
    image = f"(image {stage.host}/db:1)"
    assert shown["update_check"]["error"] == f"The registry takes no more pulls from this address right now {image}"
    stage.line.fault = None
    again = stage.ask("POST", f"{imported}/check-updates")
    assert "left alone until" in again["update_check"]["error"]
