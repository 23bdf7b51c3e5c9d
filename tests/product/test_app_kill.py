"""`kill -9` of our process at random points of everything that is done to an app: it is whole in its old or its new
state afterwards, and nothing is left over.
"""

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.components import require
from tests.factories.apps import unique
from tests.product.scene import Scene, points, scene

pytestmark = [pytest.mark.torture, pytest.mark.timeout(14400), pytest.mark.component("docker")]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    for name in ("docker", "docker-registry"):
        require(name)
    with scene(tmp_path_factory.mktemp("kill")) as found:
        yield found


@dataclass
class Kill:
    answer: httpx.Response | None
    asked_at: datetime
    at: datetime

    def was_late(self, stage: Scene, app_id: str) -> bool:
        """Whether what was asked for of the app had ended before our process was killed."""
        asked = f"subject = '{app_id}' AND created_at >= '{self.asked_at.isoformat()}'"
        found = stage.rows(f"SELECT finished_at FROM jobs WHERE {asked} ORDER BY created_at LIMIT 1")
        return any(ended is not None and ended < self.at for (ended,) in found)


@dataclass
class Kills:
    """Random points all over an operation, whose length is known better with each: the machine may be busier, or less
    so, than when it was measured. About every fifth kill comes too late.
    """

    seconds: float
    late: int = 0

    def moment(self) -> float:
        return self.seconds * random.uniform(0.02, 1.1)

    def add(self, *, late: bool) -> None:
        self.seconds *= 0.9 if late else 1.03
        self.late += late

    def __str__(self) -> str:
        return f"{points()} kills within {self.seconds:.1f} s, {self.late} of them after the end"


def killed_at(stage: Scene, method: str, path: str, body: Any, moment: float) -> Kill:
    """Ask for something, and kill our process `moment` seconds later."""
    answers: list[httpx.Response] = []
    asked_at, began = datetime.now(UTC), time.monotonic()
    with contextlib.suppress(httpx.TransportError):
        timeout = httpx.Timeout(60, read=max(moment, 0.001))
        answers.append(stage.http.request(method, path, json=body, timeout=timeout))
    time.sleep(max(0.0, began + moment - time.monotonic()))
    at = datetime.now(UTC)
    stage.product.kill()
    stage.come_back()
    return Kill(answers[0] if answers else None, asked_at, at)


def length_of(stage: Scene, method: str, path: str, body: Any, app_id: str | None = None) -> float:
    """How long an operation takes that nobody breaks, until the app has settled."""
    began = time.monotonic()
    answer = stage.http.request(method, path, json=body)
    assert answer.status_code in {200, 201, 204}, answer.text
    target = app_id or answer.json()["id"]
    stage.settled(target)
    return time.monotonic() - began


def back_to_first(stage: Scene, app_id: str) -> None:
    app = stage.running(app_id)
    if app["version"] != "1.0":
        stage.ask("POST", f"/api/apps/{app_id}/update", {"version": "1.0"})
        assert stage.running(app_id)["version"] == "1.0"


def test_killed_during_an_install(stage: Scene) -> None:
    kills = Kills(length_of(stage, "POST", "/api/apps", stage.wish()))
    [first] = stage.http.get("/api/apps").json()
    stage.remove(first["id"])
    went = {"made": 0, "not asked": 0}
    for _ in range(points()):
        wish = stage.wish()
        if random.random() < 0.5:
            stage.forget_image("1.0")
        kill = killed_at(stage, "POST", "/api/apps", wish, kills.moment())
        found = [one for one in stage.http.get("/api/apps").json() if one["name"] == wish["name"]]
        assert found or kill.answer is None or kill.answer.status_code != 201, "an acknowledged install is gone"
        for one in found:
            kills.add(late=kill.was_late(stage, one["id"]))
            stage.whole(one["id"], version="1.0", word="fresh")
            stage.remove(one["id"])
        stage.nothing_left()
        went["made" if found else "not asked"] += 1
    print(f"install: {kills}: {went}")


def test_killed_during_an_update(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}/update"
    kills = Kills(length_of(stage, "POST", path, {"version": "2.0"}, app_id))
    went = dict.fromkeys(("1.0", "2.0"), 0)
    for _ in range(points()):
        back_to_first(stage, app_id)
        word = stage.fresh_word(app_id)
        if random.random() < 0.5:
            stage.forget_image("2.0")
        kill = killed_at(stage, "POST", path, {"version": "2.0"}, kills.moment())
        app = stage.running(app_id)
        went[app["version"]] += 1
        kills.add(late=kill.was_late(stage, app_id))
        stage.whole(app_id, version=app["version"], word=word if app["version"] == "1.0" else f"2:{word}")
    print(f"update: {kills}, ended in {went}")
    stage.remove(app_id)


def test_killed_during_a_rollback(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}/rollback"
    kills = Kills(0)
    went = dict.fromkeys(("1.0", "2.0"), 0)
    for number in range(points() + 1):
        back_to_first(stage, app_id)
        word = stage.fresh_word(app_id)
        stage.ask("POST", f"/api/apps/{app_id}/update", {"version": "2.0"})
        assert stage.running(app_id)["version"] == "2.0"
        later = stage.fresh_word(app_id, before="2:")
        if number == 0:
            kills.seconds = length_of(stage, "POST", path, None, app_id)
        else:
            kill = killed_at(stage, "POST", path, None, kills.moment())
            went[stage.running(app_id)["version"]] += 1
            kills.add(late=kill.was_late(stage, app_id))
        app = stage.running(app_id)
        stage.whole(app_id, version=app["version"], word=word if app["version"] == "1.0" else f"2:{later}")
    print(f"rollback: {kills}, ended in {went}")
    stage.remove(app_id)


def test_killed_during_a_patch(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}"
    kills = Kills(length_of(stage, "PATCH", path, {"config": {"motto": "first"}}, app_id))
    former, went = "first", {"old": 0, "new": 0}
    for _ in range(points()):
        motto = unique("m")
        word = stage.fresh_word(app_id)
        # With a generated secret made anew: it must be the same in the row and in the container.
        kill = killed_at(stage, "PATCH", path, {"config": {"motto": motto, "token": None}}, kills.moment())
        app = stage.whole(app_id, version="1.0", word=word)
        shown = app["config"]["motto"]
        assert shown in {former, motto}
        assert stage.page(app) == f"1.0 {shown}"
        went["new" if shown == motto else "old"] += 1
        kills.add(late=kill.was_late(stage, app_id))
        former = shown
    print(f"patch: {kills}, ended in {went}")
    stage.remove(app_id)


def test_killed_during_a_clone(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}/clone"
    kills = Kills(length_of(stage, "POST", path, {"name": unique("copy")}))
    for one in stage.http.get("/api/apps?q=copy-").json():
        stage.remove(one["id"])
    went = {"made": 0, "not asked": 0}
    for _ in range(points()):
        word, name = stage.fresh_word(app_id), unique("copy")
        kill = killed_at(stage, "POST", path, {"name": name}, kills.moment())
        found = [one for one in stage.http.get(f"/api/apps?q={name}").json() if one["name"] == name]
        assert found or kill.answer is None or kill.answer.status_code != 201, "an acknowledged clone is gone"
        for one in found:
            kills.add(late=kill.was_late(stage, one["id"]))
            stage.whole(one["id"], version="1.0", word=word)
            stage.remove(one["id"])
        went["made" if found else "not asked"] += 1
        stage.whole(app_id, version="1.0", word=word)
    print(f"clone: {kills}: {went}")
    stage.remove(app_id)


def trashed(stage: Scene) -> set[str]:
    return {one["id"] for one in stage.http.get("/api/apps?trashed=true&limit=200").json()}


def test_killed_during_trash_and_undelete(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}"
    began = time.monotonic()
    assert stage.http.delete(path).status_code == 204
    there = Kills(time.monotonic() - began)
    back = Kills(length_of(stage, "POST", f"{path}/undelete", None, app_id))
    went = {"in the trash": 0, "there": 0}
    for number in range(points()):
        word = stage.fresh_word(app_id)
        if number % 2 == 0:
            kills, kill = there, killed_at(stage, "DELETE", path, None, there.moment())
        else:
            assert stage.http.delete(path).status_code == 204
            kills, kill = back, killed_at(stage, "POST", f"{path}/undelete", None, back.moment())
        app = stage.settled(app_id)
        kills.add(late=kill.was_late(stage, app_id))
        if app is None:
            assert app_id in trashed(stage)
            assert stage.objects("containers/json", app_id, all="1") == []
            assert stage.objects("networks", app_id) == []
            assert stage.rows(f"SELECT host_port FROM app_ports WHERE app_id = '{app_id}'") == []
            stage.ask("POST", f"{path}/undelete")
        went["in the trash" if app is None else "there"] += 1
        assert app_id not in trashed(stage)
        stage.whole(app_id, version="1.0", word=word)
    late = there.late + back.late
    print(f"trash and undelete: {points()} kills, {late} of them after the end, ended {went}")
    stage.remove(app_id)


def test_killed_during_an_uninstall(stage: Scene) -> None:
    went = {"gone": 0, "not asked": 0}
    app_id = stage.install()["id"]
    began = time.monotonic()
    stage.remove(app_id)
    kills = Kills(time.monotonic() - began)
    for _ in range(points()):
        app_id = stage.install()["id"]
        word = stage.fresh_word(app_id)
        kill = killed_at(stage, "DELETE", f"/api/apps/{app_id}?purge=true", None, kills.moment())
        app = stage.settled(app_id)
        kills.add(late=kill.was_late(stage, app_id))
        went["gone" if app is None else "not asked"] += 1
        if app is None:
            stage.gone(app_id)
            assert app_id not in trashed(stage)
            assert stage.rows(f"SELECT host_port FROM app_ports WHERE app_id = '{app_id}'") == []
        else:
            stage.whole(app_id, version="1.0", word=word)
            stage.remove(app_id)
    print(f"uninstall: {kills}: {went}")
