"""`GET /metrics` on its own loopback port: off unless it is asked for, and a port in use is said in one sentence."""

import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.product.process import free_port, product


def test_metrics_are_served_on_a_port_of_their_own(tmp_path: Path) -> None:
    port = free_port()
    with product(tmp_path / "data", QUAZZAR_METRICS_PORT=str(port)) as one:
        one.start()
        one.setup()
        headers = one.authorized(one.login()["access_token"])
        assert one.http.get("/api/apps", headers=headers).status_code == 200
        assert one.http.get("/metrics", headers=headers).status_code == 404
        deadline = time.monotonic() + 60
        while True:
            shown = httpx.get(f"http://127.0.0.1:{port}/metrics")
            assert shown.status_code == 200
            if 'quazzar_webhook_deliveries{status="pending"} 0.0' in shown.text:
                break
            assert time.monotonic() < deadline, shown.text
            time.sleep(0.1)
        lines = shown.text.splitlines()
        assert any(line.startswith('quazzar_build_info{mode="all"') for line in lines)
        assert any(line.startswith('quazzar_http_requests_total{method="POST",status="201"}') for line in lines)
        assert any(line.startswith("process_resident_memory_bytes") for line in lines)
        assert "admin" not in shown.text
        assert one.stop() == 0


@pytest.mark.slow
def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with product(tmp_path / "data", QUAZZAR_METRICS_PORT=str(port)) as one:
            one.start(wait=False)
            assert one.process is not None
            assert one.process.wait(120) == 1
            assert f"Port {port} of metrics.port can't be listened on" in one.tail()
            assert "Traceback" not in one.tail()
