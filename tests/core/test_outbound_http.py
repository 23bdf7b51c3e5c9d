"""Requests to addresses that users chose: pinned, bounded in time and size, and never led elsewhere (S-31, S-40)."""

import asyncio
import ipaddress
import resource
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from quazzar.core.outbound import OutboundPolicy, OutboundRefused
from quazzar.core.outbound_http import READ_BYTES, Answer, OutboundFailed, OutboundHttp
from tests.webhooks.receiver import (
    Behaviour,
    Receiver,
    drip,
    drip_head,
    garbage,
    hang,
    huge,
    many_headers,
    receiving,
    reset,
    response,
)

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture
async def http() -> AsyncIterator[OutboundHttp]:
    client = OutboundHttp(OutboundPolicy(LOOPBACK), connect_seconds=20.0, total_seconds=20.0)
    yield client
    await client.close()


async def post(http: OutboundHttp, url: str) -> Answer:
    return await http.post(url, b'{"a": 1}', {"X-Mark": "m"})


async def test_a_request_and_its_answer(http: OutboundHttp, receiver: Receiver) -> None:
    receiver.script["/a%2Fb?c=%20d"] = [response(201, b"made", X_Thing="y")]
    answer = await post(http, receiver.url("/a%2Fb?c=%20d"))
    assert (answer.status, answer.body, answer.truncated) == (201, b"made", False)
    assert answer.headers["x-thing"] == "y"
    (request,) = receiver.requests
    assert (request.method, request.body, request.headers["x-mark"]) == ("POST", b'{"a": 1}', "m")
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert "accept-encoding" not in request.headers
    assert "cookie" not in request.headers


async def test_connections_are_used_again(http: OutboundHttp, receiver: Receiver) -> None:
    for _ in range(5):
        await post(http, receiver.url())
    assert receiver.connections == 1


async def test_redirects_are_answers(http: OutboundHttp, receiver: Receiver) -> None:
    receiver.script["/hook"] = [response(302, Location=receiver.url("/inside"))]
    assert (await post(http, receiver.url())).status == 302
    assert receiver.of("/inside") == []


async def test_cookies_are_forgotten(http: OutboundHttp, receiver: Receiver) -> None:
    receiver.script["/hook"] = [response(200, Set_Cookie="a=b")]
    for _ in range(2):
        await post(http, receiver.url())
    assert all("cookie" not in request.headers for request in receiver.requests)


async def test_no_proxy_of_the_environment(
    http: OutboundHttp, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await post(http, receiver.url())
        assert proxy.requests == []
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("behaviour", [hang, drip, drip_head])
async def test_s40_slow_answers_end(receiver: Receiver, behaviour: Behaviour) -> None:
    receiver.script["/hook"] = [behaviour]
    http = OutboundHttp(OutboundPolicy(LOOPBACK), connect_seconds=20.0, total_seconds=1.0)
    started = time.monotonic()
    with pytest.raises(OutboundFailed, match="No whole answer within 1 seconds"):
        await post(http, receiver.url())
    assert time.monotonic() - started < 10
    await http.close()


@pytest.mark.parametrize("behaviour", [reset, garbage, many_headers])
async def test_s40_broken_answers_are_failures(http: OutboundHttp, receiver: Receiver, behaviour: Behaviour) -> None:
    receiver.script["/hook"] = [behaviour]
    with pytest.raises(OutboundFailed):
        await post(http, receiver.url())


async def test_s40_huge_answers_are_cut(http: OutboundHttp, receiver: Receiver) -> None:
    receiver.script["/hook"] = [huge]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await post(http, receiver.url())
    assert (answer.status, len(answer.body), answer.truncated) == (200, READ_BYTES, True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    # The rest is not read: the connection is given up.
    receiver.script["/hook"] = [response(200)]
    await post(http, receiver.url())
    assert receiver.connections == 2


async def test_nobody_listens(http: OutboundHttp) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        # It stays ours, so that nobody else begins to listen there.
        with pytest.raises(OutboundFailed, match="refused"):
            await post(http, f"http://127.0.0.1:{free.getsockname()[1]}/")


async def test_plain_http_to_a_tls_address_fails(receiver: Receiver) -> None:
    http = OutboundHttp(OutboundPolicy(LOOPBACK), connect_seconds=0.5, total_seconds=20.0)
    with pytest.raises(OutboundFailed, match=r"No connection|TLS|closed"):
        await post(http, receiver.url().replace("http:", "https:"))
    await http.close()


def answering(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """The resolver gives `answers` one after the other, the last again and again; gives the names it was asked for."""
    asked: list[str] = []
    left = list(answers)

    async def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(None, None, None, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
    return asked


async def test_s31_a_name_that_leads_inside_is_not_dialled(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    http = OutboundHttp(OutboundPolicy(), connect_seconds=0.5, total_seconds=1)
    for inside in ("127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1"):
        answering(monkeypatch, ["93.184.216.34", inside])
        with pytest.raises(OutboundRefused, match="not a public one"):
            await post(http, "https://hooks.example.com/")
    assert receiver.requests == []
    await http.close()


async def test_s31_the_checked_address_is_dialled_and_no_other(
    http: OutboundHttp, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name changes its mind right after the check: the connection goes to what was checked."""
    asked = answering(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    answer = await post(http, f"http://hooks.example.com:{receiver.port}/hook")
    assert answer.status == 204
    assert receiver.requests[0].headers["host"] == f"hooks.example.com:{receiver.port}"
    assert asked == ["hooks.example.com"]
    # The next connection asks again, and what it hears then is refused.
    await http.close()
    with pytest.raises(OutboundRefused):
        await post(http, f"http://hooks.example.com:{receiver.port}/hook")
    assert len(receiver.requests) == 1


async def test_a_name_that_nobody_knows(http: OutboundHttp, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
    with pytest.raises(OutboundFailed, match="can't be resolved"):
        await post(http, "https://nowhere.example.com/")


async def test_localhost_is_loopback(http: OutboundHttp, receiver: Receiver) -> None:
    assert (await post(http, f"http://localhost:{receiver.port}/hook")).status == 204
