"""The HTTP server over real sockets: deadlines, caps, what two servers could read differently, and its end."""

import asyncio
import contextlib
import json
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from quazzar.core.gate import BodyRule, Gate
from quazzar.core.ratelimit import parse_bucket
from quazzar.core.server import CannotListen, Server, ServerConfig, StartFailed
from tests.core.edge_app import toy_app, toy_gate

MANY = {"instance": parse_bucket("instance", "1000000/minute")}


@contextlib.contextmanager
def serving(gate: Any = None, **config: Any) -> Iterator[Server]:
    """The toy app on a port of its own, in a thread with an event loop of its own."""
    server = Server(
        gate or toy_gate(toy_app(), limits=MANY), "127.0.0.1", 0, config=ServerConfig(**config), signals=False
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(drain_seconds=1) as server:
        yield server


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """One with deadlines that a busy machine may miss: for nothing but the tests of deadlines."""
    gate = toy_gate(toy_app(), limits=MANY, body=BodyRule(seconds=0.4))
    with serving(gate, head_seconds=0.4, keep_alive_seconds=1, write_seconds=0.4, drain_seconds=1) as server:
        yield server


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def dial(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def at_rest(server: Server) -> None:
    """Wait until the server has dealt with all that it was sent: on a busy machine it is silent before, too."""
    gate = server.config.app
    assert isinstance(gate, Gate)

    async def turns() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        while gate.in_flight:
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(turns(), server.servers[0].get_loop()).result(20)


def read_answer(reader: Any) -> Answer | None:
    """The next answer of a connection, None at its end."""
    line = reader.readline()
    if not line:
        return None
    status = int(line.split()[1])
    headers = {}
    while (line := reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(reader.readline(), 16):
            body += reader.read(size)
            reader.readline()
        reader.readline()
    else:
        body = reader.read(int(headers.get("content-length", 0)))
    return Answer(status, headers, body)


def exchange(server: Server, *parts: bytes, pause: float = 0.02) -> tuple[list[Answer], bool]:
    """Send `parts`, then read until the connection ends or is silent for a moment; tells whether it ended."""
    with dial(server) as connection:
        for part in parts:
            connection.sendall(part)
            if len(parts) > 1:
                time.sleep(pause)
        connection.settimeout(0.25)
        received, rested, ended = b"", False, False
        while not ended:
            try:
                data = connection.recv(65536)
                received += data
                ended = not data
            except TimeoutError:
                if rested:
                    break
                at_rest(server)
                connection.settimeout(0.001)  # what it has sent by now is here
                rested = True
            except ConnectionError:
                ended = True
    return parse_all(received), ended


def parse_all(data: bytes) -> list[Answer]:
    import io  # noqa: PLC0415

    reader = io.BytesIO(data)
    answers = []
    while (answer := read_answer(reader)) is not None:
        answers.append(answer)
    return answers


def assert_envelope(answer: Answer, status: int, code: str | None = None) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) <= {"error", "code", "request_id", "details"}
    assert code in (None, body["code"])
    assert body["request_id"] == answer.headers["x-request-id"]
    for name in ("limit", "remaining", "reset"):
        assert answer.headers[f"x-ratelimit-{name}"].isdigit()
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers


OPEN = b"GET /api/open HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = (
    b"PUT /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
)
SIZED = b"PUT /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "


WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAQ==\r\n"
)


# --- ordinary requests ---------------------------------------------------------------------------------------------


def test_an_ordinary_request(server: Server) -> None:
    (answer,), ended = exchange(server, OPEN + b"\r\n")
    assert answer.status == 200
    assert answer.json()["address"] == "127.0.0.1"
    assert "server" not in answer.headers
    assert not ended


def test_a_request_in_single_bytes(server: Server) -> None:
    (answer,), _ = exchange(server, *(bytes([byte]) for byte in OPEN + b"\r\n"), pause=0)
    assert answer.status == 200


def test_bodies(server: Server) -> None:
    (first, second), ended = exchange(
        server, SIZED + b'7\r\n\r\n{"a":1}' + CHUNKED + b'\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n'
    )
    assert (first.json(), second.json(), ended) == ({"size": 7}, {"size": 7}, False)


def test_the_scheme_of_a_target_may_name_this_host(server: Server) -> None:
    (answer,), _ = exchange(server, b"GET http://localhost/api/open HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.status == 200


def test_http_1_0_and_connection_close(server: Server) -> None:
    (answer,), ended = exchange(server, b"GET /api/open HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert (answer.status, answer.headers["connection"], ended) == (200, "close", True)
    (answer,), ended = exchange(server, OPEN + b"Connection: close\r\n\r\n")
    assert (answer.status, ended) == (200, True)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    slow = b"GET /api/slow?seconds=0.1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers, _ = exchange(server, slow + OPEN + b"X-Request-Id: second\r\n\r\n" + OPEN + b"X-Request-Id: third\r\n\r\n")
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.headers["x-request-id"] for answer in answers[1:]] == ["second", "third"]


def test_head_has_no_body_on_the_wire(server: Server) -> None:
    with dial(server) as connection:
        connection.sendall(b"HEAD /api/open HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.1)
        received = connection.recv(65536)
        assert received.endswith(b"\r\n\r\n")
        assert b"content-length: " in received
        connection.sendall(OPEN + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_expect_100_continue(server: Server) -> None:
    expecting = b"Expect: 100-continue\r\n\r\n"
    with dial(server) as connection, connection.makefile("rb") as reader:
        connection.sendall(SIZED + b"2\r\n" + expecting)
        assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        reader.readline()
        connection.sendall(b"{}")
        answer = read_answer(reader)
        assert answer is not None
        assert answer.status == 200
    (answer,), _ = exchange(server, SIZED + b"2000000\r\n" + expecting)
    assert_envelope(answer, 413)


# --- what two servers could read differently -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        SIZED + b"5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
        SIZED + b"2\r\nContent-Length: 2\r\n\r\n{}",
        SIZED + b"2\r\nContent-Length: 3\r\n\r\n{}",
        SIZED + b"2, 2\r\n\r\n{}",
        SIZED + b"+2\r\n\r\n{}",
        SIZED + b"0x2\r\n\r\n{}",
        SIZED + b"-2\r\n\r\n{}",
        SIZED + b"99999999999999999999999\r\n\r\n{}",
        CHUNKED.replace(b"chunked", b"chunked, identity") + b"\r\n0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"identity, chunked") + b"\r\n0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"identity") + b"\r\n0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"xchunked") + b"\r\n0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"\x0bchunked") + b"\r\n0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"gzip, chunked") + b"\r\n0\r\n\r\n",
        CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n0\r\n\r\n",
        OPEN.replace(b"\r\n", b"\n") + b"\n",
        OPEN + b"X: y\n\r\n",
        OPEN + b"X: y\rZ: w\r\n\r\n",
        OPEN + b"X: y\r\n folded\r\n\r\n",
        OPEN + b"X: y\r\n\tfolded\r\n\r\n",
        CHUNKED.replace(b": chunked", b":\r\n chunked") + b"\r\n0\r\n\r\n",
        OPEN + b"X : y\r\n\r\n",
        OPEN + b"Transfer-Encoding : chunked\r\n\r\n",
        OPEN + b" X: y\r\n\r\n",
        OPEN + b": y\r\n\r\n",
        OPEN + b"X: a\x00b\r\n\r\n",
        OPEN + b"Host: localhost\r\n\r\n",
        b"GET /api/open HTTP/1.1\r\n\r\n",
        b"GET http://evil.example/api/open HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET https://localhost:80/api/open HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost:99/api/open HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/open\r\n\r\n",
        b"GET /api/open HTTP/0.9\r\nHost: localhost\r\n\r\n",
        b"GET /api/open HTTP/1.2\r\nHost: localhost\r\n\r\n",
        b"GET /api/open HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"get /api/open HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/\x01open HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET api/open HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET ?x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        SIZED + b"2\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n{}",
        OPEN + WEBSOCKET.replace(b"13", b"12") + b"\r\n",
        OPEN + WEBSOCKET.replace(b"Key:", b"No-Key:") + b"\r\n",
        OPEN + WEBSOCKET.replace(b"AQ==", b"A===") + b"\r\n",
        OPEN.replace(b"GET", b"POST") + WEBSOCKET + b"\r\n",
        OPEN + WEBSOCKET + b"X-Long: " + b"x" * 9000 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_it_is_refused(server: Server, request_bytes: bytes) -> None:
    answers, ended = exchange(server, request_bytes)
    assert len(answers) == 1
    assert_envelope(answers[0], 400)
    assert answers[0].headers["connection"] == "close"
    assert ended


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"+2\r\n{}\r\n0\r\n\r\n",
        b"2 \r\n{}\r\n0\r\n\r\n",
        b"2\n{}\r\n0\r\n\r\n",
        b"2;a\n{}\r\n0\r\n\r\n",
        b"2\r\n{}XX0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
        b"\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nContent-Length: 4\r\n\r\n",
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_broken_chunk_is_refused(server: Server, body: bytes, apart: bool) -> None:
    parts = (CHUNKED + b"\r\n", body) if apart else (CHUNKED + b"\r\n" + body,)
    answers, ended = exchange(server, *parts)
    assert len(answers) == 1
    assert_envelope(answers[0], 400, "invalid_http")
    assert ended


def test_a_huge_chunk_size_is_only_a_large_body(server: Server) -> None:
    answers, _ = exchange(server, CHUNKED + b"\r\nFFFFFFFFFFFFFFF0\r\n" + b"x" * 1_100_000)
    assert_envelope(answers[0], 413)


def test_trailers_change_nothing(server: Server) -> None:
    trailers = b"Authorization: Bearer good\r\nHost: evil.example\r\n"
    (first, second), _ = exchange(server, CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + trailers + b"\r\n" + OPEN + b"\r\n")
    assert (first.status, second.status, second.json()["user"]) == (200, 200, None)


def test_garbage_behind_a_request_waits_for_its_answer(server: Server) -> None:
    slow = b"GET /api/slow?seconds=0.1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    (first, second), ended = exchange(server, slow + b"garbage\r\n\r\n")
    assert first.status == 200
    assert_envelope(second, 400)
    assert ended


def test_too_many_requests_at_once_on_one_connection(server: Server) -> None:
    slow = b"GET /api/slow?seconds=0.05 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers, ended = exchange(server, slow + (OPEN + b"\r\n") * 100)
    assert 10 < len(answers) < 30
    assert_envelope(answers[-1], 400)
    assert ended


def test_an_unknown_upgrade_is_an_ordinary_request(server: Server) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    (answer,), ended = exchange(server, OPEN + upgrade)
    assert (answer.status, ended) == (200, True)


# --- caps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("complete", [True, False])
def test_the_caps_of_a_head(server: Server, complete: bool) -> None:
    end = b"\r\n" if complete else b""
    for headers, status in [
        (b"".join(b"X-%d: y\r\n" % number for number in range(120)), 431),
        (b"X: " + b"y" * 34_000 + b"\r\n", 431),
        (b"".join(b"X-%d: " % number + b"y" * 1000 + b"\r\n" for number in range(40)), 431),
    ]:
        answers, ended = exchange(server, OPEN + headers + end)
        assert_envelope(answers[0], status, "headers_too_large")
        assert ended
    target = b"GET /api/" + b"x" * 9000
    answers, ended = exchange(server, target + (b" HTTP/1.1\r\nHost: localhost\r\n\r\n" if complete else b""))
    assert answers == [] or answers[0].status == 414
    if complete:
        assert_envelope(answers[0], 414, "uri_too_long")
        assert ended


def test_a_header_that_never_ends_is_cut_off(server: Server) -> None:
    with dial(server) as connection:
        connection.sendall(OPEN + b"X: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 100 * 1024 * 1024:
                connection.sendall(b"y" * 65536)
                sent += 65536
        # What the server throws away before it cuts the line, and what the kernel's buffers take beyond that.
        assert sent < 60 * 1024 * 1024


def test_an_unwanted_body_does_not_eat_the_answer(server: Server) -> None:
    """The whole body is sent before anything is read, as simple clients do."""
    body = b"x" * 5_000_000
    with dial(server) as connection, connection.makefile("rb") as reader:
        connection.sendall(SIZED + b"%d\r\n\r\n" % len(body) + body)
        answer = read_answer(reader)
        assert answer is not None
        assert_envelope(answer, 413)
        # All of it was read, so the connection is still good.
        connection.sendall(OPEN + b"\r\n")
        again = read_answer(reader)
        assert again is not None
        assert again.status == 200


def test_a_body_without_end_is_cut_off(server: Server) -> None:
    with dial(server) as connection:
        connection.sendall(SIZED + b"99999999999\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 100 * 1024 * 1024:
                connection.sendall(b"x" * 65536)
                sent += 65536
        assert sent < 60 * 1024 * 1024


def test_connections_beyond_the_cap_get_a_503() -> None:
    with serving(max_connections=20, head_seconds=60) as server, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(dial(server))
        (answer,), ended = exchange(server, OPEN + b"\r\n")
        assert_envelope(answer, 503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
        assert ended
        held = [stack.enter_context(dial(server)) for _ in range(10)]
        at_rest(server)
        with contextlib.suppress(ConnectionError):
            held[-1].sendall(OPEN + b"\r\n")
            assert held[-1].recv(100) == b""
        stack.close()
        at_rest(server)
        (answer,), _ = exchange(server, OPEN + b"\r\n")
        assert answer.status == 200


# --- deadlines -----------------------------------------------------------------------------------------------------


def seconds_until_end(connection: socket.socket) -> tuple[float, bytes]:
    started = time.monotonic()
    received = b""
    connection.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return time.monotonic() - started, received


def drip(connection: socket.socket, data: Callable[[], bytes], stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.wait(0.05):
            connection.sendall(data())


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET", OPEN, OPEN + b"X: y"])
@pytest.mark.parametrize("before", [b"", OPEN + b"\r\n"])
def test_a_head_has_a_deadline_however_it_trickles(hasty: Server, sent: bytes, before: bytes) -> None:
    stop = threading.Event()
    with dial(hasty) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(sent)
        data = b"\r\n" if sent in (b"", b"\r\n") else b"y"
        dripping = threading.Thread(target=drip, args=(connection, lambda: data, stop))
        dripping.start()
        spent, received = seconds_until_end(connection)
        stop.set()
        dripping.join()
    assert spent < 8, "its bytes put the deadline off"
    if sent not in (b"", b"\r\n"):
        assert_envelope(parse_all(received)[0], 400)


def test_an_idle_connection_is_closed(hasty: Server) -> None:
    with dial(hasty) as connection:
        asked = time.monotonic()
        connection.sendall(OPEN + b"\r\n")
        connection.recv(65536)
        spent, received = seconds_until_end(connection)
        assert time.monotonic() - asked > 0.9
    assert spent < 8
    assert received == b""


def test_a_body_has_a_deadline(hasty: Server) -> None:
    stop = threading.Event()
    with dial(hasty) as connection, connection.makefile("rb") as reader:
        connection.sendall(SIZED + b"1000\r\n\r\n")
        dripping = threading.Thread(target=drip, args=(connection, lambda: b" ", stop))
        dripping.start()
        started = time.monotonic()
        answer = read_answer(reader)
        spent = time.monotonic() - started
        stop.set()
        dripping.join()
    assert answer is not None
    assert_envelope(answer, 400, "body_timeout")
    assert spent < 8


def test_a_caller_that_does_not_read_is_dropped(hasty: Server) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", hasty.port))
        connection.settimeout(20)
        connection.sendall(b"GET /api/big?size=100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = len(connection.recv(1))
        at_rest(hasty)
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(1 << 20):
                received += len(data)
    assert received < 50_000_000


def test_a_caller_that_leaves_ends_its_stream(server: Server) -> None:
    gate = server.config.app
    assert isinstance(gate, Gate)
    with dial(server) as connection:
        connection.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536)
        assert gate.in_flight >= 1
    deadline = time.monotonic() + 5
    while gate.in_flight and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gate.in_flight == 0


def test_500_slow_connections_stop_nobody() -> None:
    gate = toy_gate(toy_app(), limits=MANY, body=BodyRule(seconds=3))
    with serving(gate, head_seconds=3, max_connections=2000) as server, contextlib.ExitStack() as stack:
        slow = []
        for number in range(500):
            # Each at once: one that says nothing until its deadline gets no answer.
            slow.append(stack.enter_context(dial(server)))
            slow[-1].sendall(SIZED + b"1000\r\n\r\n{" if number % 2 else b"GET /api/open HT")
        times = []
        for _ in range(50):
            started = time.monotonic()
            (answer,) = one(server)
            times.append(time.monotonic() - started)
            assert answer.status == 200
        assert sorted(times)[45] < 0.5
        for connection in slow:
            with connection.makefile("rb") as reader:
                late = read_answer(reader)
            assert late is not None
            assert_envelope(late, 400)


def one(server: Server) -> list[Answer]:
    with dial(server) as connection, connection.makefile("rb") as reader:
        connection.sendall(OPEN + b"Connection: close\r\n\r\n")
        return parse_all(reader.read())


# --- WebSockets ----------------------------------------------------------------------------------------------------


def test_a_websocket(server: Server) -> None:
    url = f"ws://localhost:{server.port}/api/socket"
    with connect(url, additional_headers={"Authorization": "Bearer good"}) as socket_:
        assert socket_.recv() == "usr_good"
        assert socket_.response is not None
        assert socket_.response.headers["x-request-id"].startswith("req_")
    with pytest.raises(InvalidStatus) as caught:
        connect(url)
    answer = caught.value.response
    assert answer.status_code == 401
    assert answer.body is not None
    assert json.loads(answer.body)["code"] == "unauthorized"


def test_a_refused_websocket_is_no_fault_of_the_server(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    head = b"GET /api/socket HTTP/1.1\r\nHost: localhost\r\n"
    with dial(server) as connection, connection.makefile("rb") as reader:
        connection.sendall(head + WEBSOCKET + b"\r\n")
        (answer,) = parse_all(reader.read())
    assert_envelope(answer, 401, "unauthorized")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server and of its clients."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    (tmp_path / "server.pem").write_bytes(pem)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(tmp_path / "server.pem")
    theirs = ssl.create_default_context(cadata=certificate.public_bytes(Encoding.PEM).decode())
    return ours, theirs


def test_tls(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    ours, theirs = tls
    with (
        serving(tls=ours, lifespan=False) as server,
        theirs.wrap_socket(dial(server), server_hostname="localhost") as connection,
        connection.makefile("rb") as reader,
    ):
        for data, status in ((OPEN + b"\r\n", 200), (b"garbage\r\n\r\n", 400)):
            connection.sendall(data)
            answer = read_answer(reader)
            assert answer is not None
            assert answer.status == status


def test_who_comes_while_too_many_handshakes_are_made_is_turned_away_at_once(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    ours, theirs = tls
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tls=ours, lifespan=False, most_handshakes=3))
        done = stack.enter_context(theirs.wrap_socket(dial(server), server_hostname="localhost"))
        # Only an answer shows that the server has done its part of the handshake too.
        done.sendall(OPEN + b"\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += done.recv(1000)
        silent = [stack.enter_context(dial(server)) for _ in range(3)]
        for _ in range(5):
            with dial(server) as more:
                more.settimeout(20)
                assert more.recv(1) == b""
        # Who is through keeps what they have, and once there is room again others come in.
        done.sendall(OPEN + b"Connection: close\r\n\r\n")
        assert b"200" in done.recv(1000)
        silent[0].close()
        silent[1].sendall(b"this is no handshake")
        for attempt in range(100):
            try:
                with theirs.wrap_socket(dial(server), server_hostname="localhost"):
                    break
            except (OSError, ssl.SSLError):
                time.sleep(0.02)
                assert attempt < 99


def test_a_stop_waits_for_no_handshake(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    with serving(tls=tls[0], lifespan=False) as server:
        silent = dial(server)
        began = time.monotonic()
    assert time.monotonic() - began < 8, "a handshake is given ten seconds"
    silent.close()


# --- the process ---------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_told_in_one_sentence(server: Server) -> None:
    with pytest.raises(CannotListen, match=rf"^Port {server.port} on 127\.0\.0\.1 is already in use; [^.]*$"):
        Server(toy_gate(toy_app()), "127.0.0.1", server.port)


@pytest.mark.parametrize(
    ("host", "reason"), [("192.0.2.1", "does not have the address"), ("no.such.host.invalid", "can't be resolved")]
)
def test_an_address_that_is_not_here(host: str, reason: str) -> None:
    with pytest.raises(CannotListen, match=reason):
        Server(toy_gate(toy_app()), host, 0)


def test_every_address_of_a_name_gets_the_same_port() -> None:
    server = Server(toy_gate(toy_app()), "localhost", 0)
    for bound in server.sockets:
        bound.close()
    assert len({port for _, port in server.addresses}) == 1


def test_a_start_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no database")

    server = Server(app, "127.0.0.1", 0, signals=False)
    with pytest.raises(StartFailed):
        server.run()
    assert "no database" in caplog.text


PROGRAM = """
import sys
from quazzar.core.server import ServerConfig, run_server
from tests.core.edge_app import toy_app, toy_gate
run_server(
    toy_gate(toy_app()), "127.0.0.1", 0, config=ServerConfig(drain_seconds=int(sys.argv[1])),
    on_started=lambda addresses: print("started", addresses[0][1], flush=True),
    on_draining=lambda: print("draining", flush=True),
)
print("ended", flush=True)
"""


@contextlib.contextmanager
def process(drain_seconds: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(drain_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
    ) as running:
        try:
            assert running.stdout is not None
            match = re.match(r"started (\d+)", running.stdout.readline())
            assert match is not None
            yield running, int(match[1])
        finally:
            running.kill()


def begin(port: int) -> tuple[socket.socket, Any]:
    """A request that the process has begun to serve, and that goes on until its body of two bytes is sent."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(SIZED + b"2\r\nExpect: 100-continue\r\n\r\n")
    reader = connection.makefile("rb")
    assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"
    reader.readline()
    return connection, reader


def test_a_signal_lets_requests_finish() -> None:
    with process(10) as (running, port), socket.create_connection(("127.0.0.1", port)) as idle:
        busy, reader = begin(port)
        running.send_signal(signal.SIGTERM)
        assert running.stdout is not None
        assert running.stdout.readline() == "draining\n"
        assert idle.recv(1) == b""
        with busy, reader:
            busy.sendall(b"{}")
            answer = read_answer(reader)
        assert answer is not None
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        assert running.wait(20) == 0
        assert running.stdout.read() == "ended\n"


def test_what_does_not_finish_is_cut_off() -> None:
    with process(1) as (running, port):
        busy, reader = begin(port)
        with busy, reader:
            started = time.monotonic()
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 0
            assert 0.8 < time.monotonic() - started < 15


def test_a_second_signal_ends_at_once() -> None:
    with process(60) as (running, port):
        busy, reader = begin(port)
        with busy, reader:
            running.send_signal(signal.SIGTERM)
            assert running.stdout is not None
            assert running.stdout.readline() == "draining\n"
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 128 + signal.SIGTERM
