"""`kill -9` of our process at random points of everything that is done to an app: it is whole in its old or its new
state afterwards, and nothing is left over.
"""

import contextlib
import random
import time
from collections.abc import Iterator
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


def killed_at(stage: Scene, method: str, path: str, body: Any, moment: float) -> httpx.Response | None:
    """Ask for something, and kill our process `moment` seconds later; gives the answer when there was one."""
    answers: list[httpx.Response] = []
    began = time.monotonic()
    with contextlib.suppress(httpx.TransportError):
        timeout = httpx.Timeout(60, read=max(moment, 0.001))
        answers.append(stage.http.request(method, path, json=body, timeout=timeout))
    time.sleep(max(0.0, began + moment - time.monotonic()))
    stage.product.kill()
    stage.come_back()
    return answers[0] if answers else None


def length_of(stage: Scene, method: str, path: str, body: Any, app_id: str | None = None) -> float:
    """How long an operation takes that nobody breaks, until the app has settled."""
    began = time.monotonic()
    answer = stage.http.request(method, path, json=body)
    assert answer.status_code in {200, 201, 204}, answer.text
    target = app_id or answer.json()["id"]
    stage.settled(target)
    return time.monotonic() - began


def moments(length: float, count: int) -> list[float]:
    """Upper ends of the stretches in which the process is killed: all over the operation, most of them inside."""
    return [length * random.uniform(0.02, 1.1) for _ in range(count)]


def back_to_first(stage: Scene, app_id: str) -> None:
    app = stage.running(app_id)
    if app["version"] != "1.0":
        stage.ask("POST", f"/api/apps/{app_id}/update", {"version": "1.0"})
        assert stage.running(app_id)["version"] == "1.0"


def test_killed_during_an_install(stage: Scene) -> None:
    length = length_of(stage, "POST", "/api/apps", stage.wish())
    [first] = stage.http.get("/api/apps").json()
    stage.remove(first["id"])
    went = {"made": 0, "not asked": 0}
    for moment in moments(length, points()):
        wish = stage.wish()
        if random.random() < 0.5:
            stage.forget_image("1.0")
        answer = killed_at(stage, "POST", "/api/apps", wish, moment)
        found = [one for one in stage.http.get("/api/apps").json() if one["name"] == wish["name"]]
        assert found or answer is None or answer.status_code != 201, "an acknowledged install is gone"
        for one in found:
            stage.whole(one["id"], version="1.0", word="fresh")
            stage.remove(one["id"])
        stage.nothing_left()
        went["made" if found else "not asked"] += 1
    print(f"install: {points()} kills within {length:.1f} s: {went}")


def test_killed_during_an_update(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}/update"
    length = length_of(stage, "POST", path, {"version": "2.0"}, app_id)
    went = dict.fromkeys(("1.0", "2.0"), 0)
    for moment in moments(length, points()):
        back_to_first(stage, app_id)
        word = stage.fresh_word(app_id)
        if random.random() < 0.5:
            stage.forget_image("2.0")
        killed_at(stage, "POST", path, {"version": "2.0"}, moment)
        app = stage.running(app_id)
        went[app["version"]] += 1
        stage.whole(app_id, version=app["version"], word=word if app["version"] == "1.0" else f"2:{word}")
    print(f"update: {points()} kills within {length:.1f} s, ended in {went}")
    stage.remove(app_id)


def test_killed_during_a_rollback(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}/rollback"
    length = 0.0
    went = dict.fromkeys(("1.0", "2.0"), 0)
    for number in range(points() + 1):
        back_to_first(stage, app_id)
        word = stage.fresh_word(app_id)
        stage.ask("POST", f"/api/apps/{app_id}/update", {"version": "2.0"})
        assert stage.running(app_id)["version"] == "2.0"
        later = stage.fresh_word(app_id, before="2:")
        if number == 0:
            length = length_of(stage, "POST", path, None, app_id)
        else:
            killed_at(stage, "POST", path, None, length * random.uniform(0.02, 1.1))
            went[stage.running(app_id)["version"]] += 1
        app = stage.running(app_id)
        stage.whole(app_id, version=app["version"], word=word if app["version"] == "1.0" else f"2:{later}")
    print(f"rollback: {points()} kills within {length:.1f} s, ended in {went}")
    stage.remove(app_id)


def test_killed_during_a_patch(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}"
    length = length_of(stage, "PATCH", path, {"config": {"motto": "first"}}, app_id)
    former, went = "first", {"old": 0, "new": 0}
    for moment in moments(length, points()):
        motto = unique("m")
        word = stage.fresh_word(app_id)
        # With a generated secret made anew: it must be the same in the row and in the container.
        killed_at(stage, "PATCH", path, {"config": {"motto": motto, "token": None}}, moment)
        app = stage.whole(app_id, version="1.0", word=word)
        shown = app["config"]["motto"]
        assert shown in {former, motto}
        assert stage.page(app) == f"1.0 {shown}"
        went["new" if shown == motto else "old"] += 1
        former = shown
    print(f"patch: {points()} kills within {length:.1f} s, ended in {went}")
    stage.remove(app_id)


def test_killed_during_a_clone(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}/clone"
    length = length_of(stage, "POST", path, {"name": unique("copy")})
    for one in stage.http.get("/api/apps?q=copy-").json():
        stage.remove(one["id"])
    went = {"made": 0, "not asked": 0}
    for moment in moments(length, points()):
        word, name = stage.fresh_word(app_id), unique("copy")
        answer = killed_at(stage, "POST", path, {"name": name}, moment)
        found = [one for one in stage.http.get(f"/api/apps?q={name}").json() if one["name"] == name]
        assert found or answer is None or answer.status_code != 201, "an acknowledged clone is gone"
        for one in found:
            stage.whole(one["id"], version="1.0", word=word)
            stage.remove(one["id"])
        went["made" if found else "not asked"] += 1
        stage.whole(app_id, version="1.0", word=word)
    print(f"clone: {points()} kills within {length:.1f} s: {went}")
    stage.remove(app_id)


def trashed(stage: Scene) -> set[str]:
    return {one["id"] for one in stage.http.get("/api/apps?trashed=true&limit=200").json()}


def test_killed_during_trash_and_undelete(stage: Scene) -> None:
    app_id = stage.install()["id"]
    path = f"/api/apps/{app_id}"
    began = time.monotonic()
    assert stage.http.delete(path).status_code == 204
    length = time.monotonic() - began
    back = length_of(stage, "POST", f"{path}/undelete", None, app_id)
    went = {"in the trash": 0, "there": 0}
    for number in range(points()):
        word = stage.fresh_word(app_id)
        if number % 2 == 0:
            killed_at(stage, "DELETE", path, None, length * random.uniform(0.02, 1.1))
        else:
            assert stage.http.delete(path).status_code == 204
            killed_at(stage, "POST", f"{path}/undelete", None, back * random.uniform(0.02, 1.1))
        app = stage.settled(app_id)
        if app is None:
            assert app_id in trashed(stage)
            assert stage.objects("containers/json", app_id, all="1") == []
            assert stage.objects("networks", app_id) == []
            assert stage.rows(f"SELECT host_port FROM app_ports WHERE app_id = '{app_id}'") == []
            stage.ask("POST", f"{path}/undelete")
        went["in the trash" if app is None else "there"] += 1
        assert app_id not in trashed(stage)
        stage.whole(app_id, version="1.0", word=word)
    print(f"trash and undelete: {points()} kills within {length:.1f} and {back:.1f} s, ended {went}")
    stage.remove(app_id)


def test_killed_during_an_uninstall(stage: Scene) -> None:
    went = {"gone": 0, "not asked": 0}
    app_id = stage.install()["id"]
    began = time.monotonic()
    stage.remove(app_id)
    length = time.monotonic() - began
    for moment in moments(length, points()):
        app_id = stage.install()["id"]
        word = stage.fresh_word(app_id)
        killed_at(stage, "DELETE", f"/api/apps/{app_id}?purge=true", None, moment)
        app = stage.settled(app_id)
        went["gone" if app is None else "not asked"] += 1
        if app is None:
            stage.gone(app_id)
            assert app_id not in trashed(stage)
            assert stage.rows(f"SELECT host_port FROM app_ports WHERE app_id = '{app_id}'") == []
        else:
            stage.whole(app_id, version="1.0", word=word)
            stage.remove(app_id)
    print(f"uninstall: {points()} kills within {length:.1f} s: {went}")
