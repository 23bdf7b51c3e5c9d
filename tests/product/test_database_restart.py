"""PostgreSQL dies under load: fast 503s in the gap, quick recovery, and no acknowledged write is lost."""

import contextlib
import statistics
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.components import wait_for
from tests.product.process import Product, product


def kill_database(one: Product) -> None:
    """`kill -9` of the embedded postmaster, until the supervisor has started the next: up to then some of its lines
    may be taken for alive.
    """
    file = next(one.data_dir.glob("postgres/**/postmaster.pid"))
    killed = file.read_text().split()[0]
    psutil.Process(int(killed)).kill()

    def is_another_there() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return file.read_text().split()[:1] not in ([], [killed])
        return False

    wait_for(is_another_there, seconds=60, what="the next database")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["instance"])
def test_the_database_dies_under_load(mode: str, tmp_path: Path) -> None:
    with product(tmp_path / "data", mode=mode) as one:
        one.start()
        one.setup()
        headers = one.authorized(one.login()["access_token"])
        acknowledged: list[str] = []
        answers: list[tuple[float, float, int, str | None]] = []
        stop = threading.Event()

        def write(worker: int) -> None:
            number = 0
            with httpx.Client(base_url=one.url, timeout=10, headers=headers) as client:
                while not stop.is_set():
                    number += 1
                    began = time.monotonic()
                    body = {"name": f"key-{worker}-{number}", "scopes": ["apps:read"]}
                    answer = client.post("/api/auth/api-keys", json=body)
                    at = time.monotonic()
                    answers.append((at, at - began, answer.status_code, answer.headers.get("retry-after")))
                    if answer.status_code == 201:
                        acknowledged.append(answer.json()["id"])
                        client.delete(f"/api/auth/api-keys/{answer.json()['id']}") if number % 2 else None
                    time.sleep(0.01)

        def read() -> None:
            with httpx.Client(base_url=one.url, timeout=10, headers=headers) as client:
                while not stop.is_set():
                    began = time.monotonic()
                    answer = client.get("/api/apps")
                    at = time.monotonic()
                    answers.append((at, at - began, answer.status_code, answer.headers.get("retry-after")))
                    time.sleep(0.005)

        threads = [threading.Thread(target=write, args=(0,)), *(threading.Thread(target=read) for _ in range(3))]
        for thread in threads:
            thread.start()
        refused = []
        for _ in range(3):
            time.sleep(1)
            kill_database(one)
            one.wait_ready(60)
            ready = time.monotonic()

            def asked_since(ready: float = ready) -> list[int]:
                return [status for at, seconds, status, _ in list(answers) if at - seconds > ready]

            wait_for(lambda: len([status for status in asked_since() if status < 300]) > 100, what="success")
            refused.append(len([status for status in asked_since() if status >= 500]))
            assert refused[-1] < 50, "few ask in vain once the database is back"
        stop.set()
        for thread in threads:
            thread.join()
        gap = [entry for entry in answers if entry[2] >= 500]
        assert all(status == 503 and retry is not None for _, _, status, retry in gap), {entry[2] for entry in gap}
        assert statistics.median(seconds for _, seconds, _, _ in gap) < 3 if gap else True
        print(f"{len(answers)} requests, {len(gap)} of them 503, {max(refused)} at most after readiness")
        assert one.http.get("/api/auth/me", headers=headers).status_code == 200
        assert acknowledged
