"""`kill -9` at random moments: what was acknowledged is there afterwards, and nothing is half-made."""

import contextlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.product.process import PASSWORD, Product, product

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]

FULL = os.environ.get("QUAZZAR_TORTURE") == "full"
# One round keeps the loop of whoever works on this short; CI makes a few, the full campaign all.
ROUNDS = 50 if FULL else 3 if os.environ.get("CI") else 1


Call = Callable[[httpx.Client], httpx.Response]


def posting(path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Call:
    return lambda client: client.post(path, json=body, headers=headers)


def killed_during(one: Product, call: Call, *, within: float) -> httpx.Response | None:
    """Kill the process at a random moment of `call`; gives the answer when there was one."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=one.url, timeout=10) as client, contextlib.suppress(httpx.TransportError):
            answers.append(call(client))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(random.uniform(0, within))
    one.kill()
    thread.join()
    return answers[0] if answers else None


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that was started once and stopped, before setup."""
    folder = tmp_path_factory.mktemp("pristine") / "data"
    with product(folder) as one:
        one.start()
        one.stop()
    return folder


def copy_of(pristine: Path, tmp_path: Path, name: str) -> Path:
    target = tmp_path / name
    shutil.copytree(pristine, target, symlinks=True)
    for source in (pristine, *pristine.rglob("*")):
        owner = source.lstat()
        os.chown(target / source.relative_to(pristine), owner.st_uid, owner.st_gid, follow_symlinks=False)
    return target


def test_killed_during_setup(pristine: Path, tmp_path: Path) -> None:
    acknowledged = 0
    for number in range(ROUNDS):
        with product(copy_of(pristine, tmp_path, f"setup-{number}")) as one:
            one.start()
            body = {"username": "admin", "password": PASSWORD}
            answer = killed_during(one, posting("/api/auth/setup", body), within=0.15)
            one.start()
            again = one.setup()
            if answer is not None and answer.status_code == 201:
                acknowledged += 1
                assert again.status_code == 409
            assert again.status_code in {201, 409}
            assert one.login()["access_token"]
        shutil.rmtree(tmp_path / f"setup-{number}")
    print(f"setup: {ROUNDS} kills, {acknowledged} acknowledged before")


@pytest.fixture
def running(pristine: Path, tmp_path: Path) -> Any:
    with product(copy_of(pristine, tmp_path, "data")) as one:
        one.start()
        assert one.setup().status_code == 201
        yield one


def test_killed_during_login(running: Product) -> None:
    body = {"username": "admin", "password": PASSWORD}
    acknowledged: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        for _ in range(2):
            acknowledged.append(running.login())
        answer = killed_during(running, posting("/api/auth/login", body), within=0.15)
        if answer is not None and answer.status_code == 200:
            acknowledged.append(answer.json())
        running.start()
        # The newest twenty sessions are kept, by contract.
        for tokens in acknowledged[-15:]:
            me = running.http.get("/api/auth/me", headers=running.authorized(tokens["access_token"]))
            assert me.status_code == 200, me.text


def test_killed_during_refresh(running: Product) -> None:
    tokens = running.login()
    lost = 0
    for _ in range(ROUNDS):
        body = {"refresh_token": tokens["refresh_token"]}
        answer = killed_during(running, posting("/api/auth/refresh", body), within=0.03)
        running.start()
        if answer is not None and answer.status_code == 200:
            tokens = answer.json()
            # What was acknowledged works, and is the one live token of its session.
            answer = running.http.post("/api/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
            assert answer.status_code == 200, answer.text
            tokens = answer.json()
        else:
            # Not acknowledged: the old token still works, or its use was committed and it is refused for good.
            answer = running.http.post("/api/auth/refresh", json=body)
            assert answer.status_code in {200, 401}, answer.text
            if answer.status_code == 401:
                lost += 1
                tokens = running.login()
            else:
                tokens = answer.json()
        me = running.http.get("/api/auth/me", headers=running.authorized(tokens["access_token"]))
        assert me.status_code == 200
    print(f"refresh: {ROUNDS} kills, {lost} times committed without an answer")
