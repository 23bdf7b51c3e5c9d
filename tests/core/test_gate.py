"""The gate, in front of a real Litestar app: labels on every answer, identity, limits, realms, hosts and bodies."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import structlog
import time_machine
from sqlalchemy.exc import TimeoutError as PoolTimeout

from quazzar.core.exchange import Receive, Scope, Send
from quazzar.core.gate import BodyRule, Gate
from quazzar.core.ratelimit import PostgresStorage, RateLimiter, parse_bucket
from tests.core.edge_app import Tokens, raw_app, toy_app, toy_gate

APP = toy_app()
FEW = parse_bucket("instance", "5/minute")


@pytest.fixture(autouse=True)
def one_minute() -> Iterator[None]:
    """No minute ends within a test: its counts would begin anew."""
    with time_machine.travel(1_767_268_812.0, tick=False):
        yield


def client_of(gate: Gate, address: str = "198.51.100.7", **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(gate, client=(address, 4711), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", **options)


@contextlib.asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(toy_gate(APP, **options)) as client:
        yield client


async def call(
    gate: Gate,
    method: str = "GET",
    path: str = "/api/open",
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    receive: Callable[[], Any] | None = None,
    query: bytes = b"",
    client: tuple[str, int] | None = ("198.51.100.7", 1),
    **scope: Any,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """A request in plain ASGI, for what no client library would send."""
    sent: list[Any] = []

    async def empty() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await gate(
        {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": [(b"host", b"localhost")] if headers is None else headers,
            "client": client,
            "server": ("127.0.0.1", 80),
            "scheme": "http",
            **scope,
        },
        receive or empty,
        send,
    )
    body = b"".join(message["body"] for message in sent if message["type"] == "http.response.body")
    assert sent[-1].get("more_body", False) is False
    return sent[0]["status"], dict(sent[0]["headers"]), body


LABELS = ("x-request-id", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


def assert_labelled(answer: httpx.Response) -> None:
    for label in LABELS:
        assert len(answer.headers.get_list(label)) == 1, label
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert set(body) <= {"error", "code", "request_id", "details"}
        assert body["request_id"] == answer.headers["x-request-id"]


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/open", 200),
        ("HEAD", "/api/open", 200),
        ("OPTIONS", "/api/open", 204),
        ("DELETE", "/api/open", 405),
        ("BREW", "/api/open", 405),
        ("GET", "/api/nowhere", 404),
        ("HEAD", "/api/nowhere", 404),
        ("OPTIONS", "/api/nowhere", 404),
        ("GET", "/", 404),
        ("GET", "/panel/api/nothing-here", 404),
        ("GET", "/api/guarded", 401),
        ("HEAD", "/api/guarded", 401),
        ("GET", "/api/crash", 500),
        ("GET", "/api/things/1", 400),
        ("GET", "/api/health", 200),
        ("POST", "/api/health", 405),
        ("GET", "/api/open%00", 400),
        ("GET", "/api/open?cursor=%00", 400),
        ("GET", "/api/open%0ahidden", 400),
        ("GET", "/" + "x" * 9000, 414),
    ],
)
async def test_every_answer_is_labelled(method: str, path: str, status: int) -> None:
    async with opened(mode="all") as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert_labelled(answer)


async def test_a_handler_may_say_how_its_answer_is_cached() -> None:
    status, headers, _ = await call(toy_gate(raw_app))
    assert (status, headers[b"cache-control"]) == (200, b"max-age=60")


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 64])
async def test_a_proper_request_id_of_the_caller_is_kept(given: str) -> None:
    async with opened() as client:
        answer = await client.get("/api/open", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\u00e4", "a/b", "a'--", '"', "a\n"])
async def test_any_other_request_id_is_replaced(given: str) -> None:
    headers = [(b"host", b"localhost"), (b"x-request-id", given.encode())]
    _, answered, _ = await call(toy_gate(APP), headers=headers)
    assert answered[b"x-request-id"].startswith(b"req_")
    assert len(answered[b"x-request-id"]) == 30


async def test_request_ids_are_new_each_time() -> None:
    async with opened() as client:
        ids = [(await client.get("/api/health")).headers["x-request-id"] for _ in range(200)]
    assert len(set(ids)) == 200
    assert ids == sorted(ids)


async def test_an_exception_that_no_framework_caught_is_a_500() -> None:
    with structlog.testing.capture_logs() as lines:
        status, headers, body = await call(toy_gate(raw_app), path="/raise")
    assert status == 500
    assert json.loads(body)["code"] == "internal_error"
    assert b"x-ratelimit-remaining" in headers
    assert isinstance(lines[0]["exc_info"], ValueError)


async def test_an_answer_that_breaks_off_is_logged_and_not_answered_twice() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.sleep(60)

    scope = {"type": "http", "method": "GET", "path": "/api/breaks-off", "headers": [(b"host", b"localhost")]}
    with structlog.testing.capture_logs() as lines:
        await toy_gate(APP)({**scope, "query_string": b"", "client": None, "scheme": "http"}, receive, send)
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert sent[-1].get("more_body") is True
    assert any(line["event"] == "An answer broke off" for line in lines)


# --- HEAD ----------------------------------------------------------------------------------------------------------


async def test_head_is_get_without_a_body() -> None:
    async with opened() as client:
        got = await client.get("/api/open")
        head = await client.head("/api/open")
    assert head.content == b""
    assert abs(int(head.headers["content-length"]) - int(got.headers["content-length"])) <= 1


async def test_head_of_an_endless_stream_ends() -> None:
    async with opened() as client:
        answer = await asyncio.wait_for(client.head("/api/events"), 5)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_streams_pass_chunk_by_chunk() -> None:
    arrived: list[bytes] = []
    left = asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            arrived.append(message["body"])
            if len(arrived) == 3:
                left.set()

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/api/events", "headers": [(b"host", b"localhost")]}
    gate = toy_gate(APP)
    await asyncio.wait_for(gate({**scope, "query_string": b"", "client": None, "scheme": "http"}, receive, send), 5)
    assert len(arrived) >= 3
    assert gate.in_flight == 0


# --- sizes, hosts, single headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([(b"x-%d" % n, b"v") for n in range(99)], 200, ""),
        ([(b"x-%d" % n, b"v") for n in range(100)], 431, "headers_too_large"),
        ([(b"x", b"v")] * 100, 431, "headers_too_large"),
        ([(b"x-long", b"v" * 32_700)], 200, ""),
        ([(b"x-long", b"v" * 32_800)], 431, "headers_too_large"),
        ([(b"x", b"v" * 17_000)] * 2, 431, "headers_too_large"),
        ([(b"host", b"evil.example")], 400, "invalid_header"),
        ([(b"authorization", b"Bearer good"), (b"authorization", b"Bearer poor")], 400, "invalid_header"),
        ([(b"content-length", b"1"), (b"content-length", b"2")], 400, "invalid_header"),
        ([(b"accept", b"a"), (b"accept", b"b")], 200, ""),
    ],
)
async def test_heads(headers: list[tuple[bytes, bytes]], status: int, code: str) -> None:
    answered, labels, body = await call(toy_gate(APP), headers=[(b"host", b"localhost"), *headers])
    assert answered == status
    assert code in ("", json.loads(body).get("code"))
    assert {label.encode() for label in LABELS} <= labels.keys()


async def test_path_and_query_together_have_a_limit() -> None:
    gate = toy_gate(APP)
    assert (await call(gate, query=b"a=" + b"x" * 8000))[0] == 200
    assert (await call(gate, query=b"a=" + b"x" * 8200))[0] == 414


@pytest.mark.parametrize(
    ("host", "good"),
    [
        (b"localhost", True),
        (b"LOCALHOST:8080", True),
        (b"localhost.", True),
        (b"[::1]:80", True),
        (b"127.0.0.1", True),
        (b"cloud.example.com", True),
        (b"a.apps.example.com:443", True),
        (b"apps.example.com", False),
        (b"evil.com", False),
        (b"localhost.evil.com", False),
        (b"evilapps.example.com", False),
        (b"localhost:80x", False),
        (b"localhost@evil.com", False),
        (b"[::1", False),
        (b"[::1]x", False),
        (b"", False),
    ],
)
async def test_hosts(host: bytes, good: bool) -> None:
    gate = toy_gate(APP, allowed_hosts=("localhost", "127.0.0.1", "[::1]", "Cloud.example.com", "*.apps.example.com"))
    for _ in range(2):
        status, _, body = await call(gate, headers=[(b"host", host)])
        assert status == (200 if good else 400)
        assert good or json.loads(body)["code"] == "invalid_host"


async def test_no_host_and_any_host() -> None:
    assert (await call(toy_gate(APP), headers=[]))[0] == 400
    assert (await call(toy_gate(APP, allowed_hosts=("*",)), headers=[(b"host", b"evil.com")]))[0] == 200
    gate = toy_gate(APP)
    assert (await call(gate, headers=[(b"host", b"new.example.com")]))[0] == 400
    gate.allow_hosts(["new.example.com"])
    assert (await call(gate, headers=[(b"host", b"new.example.com")]))[0] == 200
    assert (await call(gate, headers=[(b"host", b"localhost")]))[0] == 400


# --- realms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "path", "realm"),
    [
        ("instance", "/api/open", "instance"),
        ("instance", "/panel/api/open", "instance"),
        ("panel", "/api/open", "panel"),
        ("all", "/api/open", "instance"),
        ("all", "/panel/api/open", "panel"),
        ("all", "//panel//api/open", "panel"),
        ("all", "/panel/api/open/", "panel"),
    ],
)
async def test_realms(mode: str, path: str, realm: str) -> None:
    tokens = Tokens()
    status, headers, body = await call(
        toy_gate(APP, mode=mode, tokens=tokens),
        path=path,
        headers=[(b"host", b"localhost"), (b"authorization", b"Bearer good")],
    )
    assert (status, json.loads(body)["realm"]) == (200, realm)
    assert tokens.resolved == [(realm, b"Bearer good", "198.51.100.7")]
    assert headers[b"x-ratelimit-limit"] == (b"200" if realm == "panel" else b"100")


async def test_a_path_that_only_begins_like_the_panel_is_not_its() -> None:
    _, headers, _ = await call(toy_gate(APP, mode="all"), path="/panelling/api/open")
    assert headers[b"x-ratelimit-limit"] == b"100"


# --- identity ------------------------------------------------------------------------------------------------------


async def test_identity() -> None:
    tokens = Tokens()
    async with opened(tokens=tokens) as client:
        assert (await client.get("/api/open")).json()["user"] is None
        good = await client.get("/api/guarded", headers={"Authorization": "Bearer good"})
        assert (good.status_code, good.json()) == (200, {"user": "usr_good"})
        poor = await client.get("/api/guarded", headers={"Authorization": "Bearer poor"})
        assert (poor.status_code, poor.json()["code"]) == (403, "scope_missing")
        old = await client.get("/api/guarded", headers={"Authorization": "Bearer old"})
        assert (old.status_code, old.json()["code"]) == (401, "token_expired")
        assert old.headers["www-authenticate"] == "Bearer"
        # A public route stays open to whoever brings a stale token along.
        assert (await client.get("/api/open", headers={"Authorization": "Bearer old"})).status_code == 200
        known = len(tokens.resolved)
        cached = await client.get("/api/guarded", headers={"Authorization": "Bearer cached"})
        assert (cached.status_code, len(tokens.resolved)) == (200, known)


@pytest.mark.parametrize("query", ["token=good", "access_token=good", "authorization=Bearer%20good", "api_key=good"])
async def test_a_token_in_the_query_never_counts(query: str) -> None:
    tokens = Tokens()
    async with opened(tokens=tokens) as client:
        answer = await client.get(f"/api/guarded?{query}")
    assert answer.status_code == 401
    assert tokens.resolved == []


async def test_a_database_that_is_away_is_a_503_not_a_401() -> None:
    async with opened() as client:
        answer = await client.get("/api/guarded", headers={"Authorization": "Bearer down"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert_labelled(answer)
        assert (await client.get("/api/health", headers={"Authorization": "Bearer down"})).status_code == 200


# --- rate limits -----------------------------------------------------------------------------------------------------


async def test_the_limit_of_an_address() -> None:
    async with opened(limits={"instance": FEW}) as client:
        answers = [await client.get("/api/open") for _ in range(7)]
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["4", "3", "2", "1", "0", "0", "0"]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    refused = answers[-1]
    assert_labelled(refused)
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert int(refused.headers["x-ratelimit-reset"]) % 60 == 0


async def test_every_kind_of_answer_counts() -> None:
    async with opened(limits={"instance": FEW}) as client:
        await client.get("/api/nowhere")
        await client.delete("/api/open")
        await client.options("/api/open")
        await client.get("/api/crash")
        await client.get("/api/open", headers={"Host": "evil.com"})
        assert (await client.get("/api/open")).status_code == 429


async def test_a_verified_caller_is_counted_apart_from_its_address() -> None:
    async with opened(limits={"instance": FEW}) as client:
        for _ in range(6):
            await client.get("/api/open")
        good = {"Authorization": "Bearer good"}
        for remaining in ("4", "3"):
            answer = await client.get("/api/guarded", headers=good)
            assert (answer.status_code, answer.headers["x-ratelimit-remaining"]) == (200, remaining)


async def test_one_user_is_one_client_from_every_address() -> None:
    gate = toy_gate(APP, limits={"instance": FEW})
    statuses = []
    for number in range(6):
        async with client_of(gate, f"198.51.100.{number}") as client:
            statuses.append((await client.get("/api/guarded", headers={"Authorization": "Bearer good"})).status_code)
    assert statuses == [200] * 5 + [429]


async def test_garbage_credentials_count_on_the_address() -> None:
    async with opened(limits={"instance": FEW}) as client:
        statuses = [
            (await client.get("/api/guarded", headers={"Authorization": f"Bearer {n}"})).status_code for n in range(7)
        ]
    assert statuses == [401] * 5 + [429] * 2


async def test_a_flood_of_garbage_credentials_is_no_longer_looked_at() -> None:
    tokens = Tokens()
    async with opened(tokens=tokens, limits={"instance": FEW}) as client:
        for number in range(1100):
            await client.get("/api/open", headers={"Authorization": f"Bearer {number}"})
        assert len(tokens.resolved) == 1000
        # What is already known goes on working.
        assert (await client.get("/api/guarded", headers={"Authorization": "Bearer cached"})).status_code == 200


async def test_ipv6_neighbours_share_a_count() -> None:
    gate = toy_gate(APP, limits={"instance": FEW})
    for number in range(6):
        status, _, _ = await call(gate, client=(f"2001:db8::{number:x}", 1))
    assert status == 429
    assert (await call(gate, client=("2001:db8:0:1::1", 1)))[0] == 200


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For", "X-Real-IP", "True-Client-IP", "Forwarded", "X-Client-IP", "CF-Connecting-IP"]
)
async def test_rotating_forwarded_addresses_evade_nothing(header: str) -> None:
    async with opened(limits={"instance": FEW}) as client:
        answers = [await client.get("/api/open", headers={header: f"203.0.113.{n}"}) for n in range(6)]
    assert answers[0].json()["address"] == "198.51.100.7"
    assert answers[-1].status_code == 429


async def test_a_trusted_proxy_says_who_it_is_but_not_who_it_claims_to_be() -> None:
    gate = toy_gate(APP, limits={"instance": FEW}, trusted_proxies=("10.0.0.0/8",))
    async with client_of(gate, "10.0.0.1") as client:
        for number in range(6):
            forwarded = f"127.0.0.{number}, 203.0.113.9"
            answer = await client.get("/api/open", headers={"X-Forwarded-For": forwarded})
        assert answer.status_code == 429
        other = await client.get("/api/open", headers={"X-Forwarded-For": "203.0.113.10"})
        assert (other.json()["address"], other.json()["forwarded"]) == ("203.0.113.10", True)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
async def test_it_is_noted_that_a_proxy_was_there(header: str) -> None:
    async with client_of(toy_gate(APP), "127.0.0.1") as client:
        assert (await client.get("/api/open")).json()["forwarded"] is False
        assert (await client.get("/api/open", headers={header: "127.0.0.1"})).json()["forwarded"] is True


STRICT = {("instance", "/api/auth/login"): parse_bucket("login", "3/minute")}


async def login(client: httpx.AsyncClient, path: str = "/api/auth/login", **headers: str) -> httpx.Response:
    return await client.post(path, json={"name": "x"}, headers=headers)


async def test_strict_buckets_count_besides_the_general_one() -> None:
    async with opened(strict=STRICT) as client:
        answers = [await login(client) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
        assert answers[0].headers["x-ratelimit-limit"] == "3"
        assert_labelled(answers[-1])
        # Reading the same path is not logging in, and other paths go on.
        assert (await client.get("/api/auth/login")).status_code == 200
        answer = await client.get("/api/open")
        assert (answer.status_code, answer.headers["x-ratelimit-remaining"]) == (200, "94")


async def test_the_tighter_limit_is_shown() -> None:
    async with opened(strict=STRICT, limits={"instance": parse_bucket("instance", "2/minute")}) as client:
        answers = [await login(client) for _ in range(3)]
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["1", "0", "0"]
    assert [answer.status_code for answer in answers] == [201, 201, 429]


@pytest.mark.parametrize("path", ["/api/auth/login/", "//api/auth/login", "/api//auth///login//"])
async def test_no_spelling_of_a_path_evades_its_bucket(path: str) -> None:
    gate = toy_gate(APP, strict=STRICT)
    spelt = "http://localhost" + path
    async with client_of(gate) as client:
        for _ in range(3):
            assert (await login(client, spelt)).status_code == 201
        assert (await login(client)).status_code == 429


async def test_no_header_and_no_token_evades_a_strict_bucket() -> None:
    async with opened(strict=STRICT) as client:
        headers = [
            {"X-Forwarded-For": "203.0.113.1"},
            {"X-HTTP-Method-Override": "GET"},
            {"Authorization": "Bearer good"},
            {"X-Original-URL": "/api/open"},
        ]
        assert [(await login(client, **each)).status_code for each in headers] == [201, 201, 201, 429]


async def test_the_panel_has_strict_buckets_of_its_own() -> None:
    strict = {**STRICT, ("panel", "/api/auth/login"): parse_bucket("panel-login", "1/minute")}
    async with opened(mode="all", strict=strict) as client:
        assert (await login(client, "/panel/api/auth/login")).status_code == 201
        assert (await login(client, "/panel/api/auth/login")).status_code == 429
        assert (await login(client)).status_code == 201


async def test_strict_buckets_may_have_a_pattern() -> None:
    strict = {("instance", "/api/things/{id}/test"): parse_bucket("test", "1/minute")}
    async with opened(strict=strict) as client:
        answers = [await client.post(f"/api/things/{name}/test") for name in ("a", "b")]
        assert [answer.status_code for answer in answers] == [404, 429]
        assert (await client.post("/api/things/a/b/test")).status_code == 404


@pytest.mark.parametrize(
    ("mode", "path"), [("all", "/api/health"), ("panel", "/api/health"), ("all", "/panel/api/health")]
)
async def test_health_is_not_counted(mode: str, path: str) -> None:
    few = {"instance": FEW, "panel": FEW}
    async with opened(mode=mode, limits=few) as client:
        for _ in range(20):
            answer = await client.get(path)
        assert (answer.status_code, answer.headers["x-ratelimit-remaining"]) == (200, "5")
        assert_labelled(answer)


async def test_a_counter_that_is_away_closes_the_api_but_not_the_health_check() -> None:
    async def refuse() -> Any:
        raise ConnectionRefusedError

    limiter = RateLimiter(PostgresStorage(refuse))
    async with opened(limiter=limiter, strict=STRICT) as client:
        for answer in (await client.get("/api/open"), await login(client), await client.get("/api/nowhere")):
            assert (answer.status_code, answer.json()["code"]) == (503, "rate_limit_unavailable")
            assert_labelled(answer)
        assert (await client.get("/api/health")).status_code == 200


# --- cross-origin ----------------------------------------------------------------------------------------------------

ORIGIN = "https://admin.example.com"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


async def test_cross_origin_requests_are_off_by_default() -> None:
    async with opened() as client:
        for answer in (
            await client.options("/api/open", headers=PREFLIGHT),
            await client.get("/api/open", headers={"Origin": ORIGIN}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_configured_origin_may_ask() -> None:
    async with opened(cors_origins=frozenset({ORIGIN})) as client:
        answer = await client.options("/api/things", headers=PREFLIGHT)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert_labelled(answer)
        for path in ("/api/open", "/api/nowhere", "/api/guarded"):
            answer = await client.get(path, headers={"Origin": ORIGIN})
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert answer.headers["vary"] == "origin"
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["null", "https://evil.com", ORIGIN + ".evil.com", ORIGIN.upper(), "http" + ORIGIN[5:]]
)
async def test_another_origin_may_not(origin: str) -> None:
    async with opened(cors_origins=frozenset({ORIGIN})) as client:
        answer = await client.options("/api/things", headers={**PREFLIGHT, "Origin": origin})
    assert not [name for name in answer.headers if name.startswith("access-control")]


# --- bodies ----------------------------------------------------------------------------------------------------------

GOOD = {"Authorization": "Bearer good"}
JSON = {"Content-Type": "application/json"}


async def post_thing(client: httpx.AsyncClient, body: bytes, **headers: str) -> httpx.Response:
    return await client.post("/api/things", content=body, headers={**GOOD, **JSON, **headers})


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b'{"name":"x"}', {}, 201, None),
        (b'{"name":"x"}', {"Content-Type": "application/json; charset=utf-8"}, 201, None),
        (b'{"name":"x"}', {"Content-Type": "Application/JSON;charset=UTF-8"}, 201, None),
        (b'{"name":"x"}', {"Content-Type": "text/plain"}, 400, "invalid_content_type"),
        (b'{"name":"x"}', {"Content-Type": ""}, 400, "invalid_content_type"),
        (b'{"name":"x"}', {"Content-Type": "application/json, text/plain"}, 400, "invalid_content_type"),
        (b'{"name":"x"}', {"Content-Type": "application/jsonx"}, 400, "invalid_content_type"),
        (b'{"name":"x"}', {"Content-Type": "application/json; charset=latin-1"}, 400, "invalid_content_type"),
        (b"name=x", {"Content-Type": "application/x-www-form-urlencoded"}, 400, "invalid_content_type"),
        (b'{"name":"x"}', {"Content-Type": "application/yaml"}, 400, "invalid_content_type"),
        (b'{"name":"x"}', {"Content-Encoding": "gzip"}, 400, "invalid_content_encoding"),
        (b'{"name":"x"}', {"Content-Encoding": "identity"}, 201, None),
        (b'{"name":', {}, 400, "invalid_json"),
        (b'{"name":"x","name":"y"}', {}, 400, "invalid_json"),
        (b'{"name":"\\u0000"}', {}, 400, "invalid_json"),
        (b"\xff", {}, 400, "invalid_json"),
        (b"[" * 100_000, {}, 400, "invalid_json"),
    ],
)
async def test_bodies(body: bytes, headers: dict[str, str], status: int, code: str | None) -> None:
    async with opened() as client:
        answer = await post_thing(client, body, **headers)
    assert_labelled(answer)
    assert (answer.status_code, answer.json().get("code")) == (status, code)


async def test_identity_path_and_method_come_before_the_body() -> None:
    bad = b"\x00" * (2 * 1024 * 1024)
    async with opened() as client:
        assert (await client.post("/api/things", content=bad)).status_code == 401
        assert (await client.post("/api/nowhere", content=bad, headers=GOOD)).status_code == 404
        assert (await client.delete("/api/things", headers={"Content-Length": "99999999"})).status_code == 405
        assert (await client.post("/api/things", content=bad, headers=GOOD)).status_code == 413


def chunked(*chunks: bytes) -> Callable[[], Any]:
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    return receive


HEAD = [(b"host", b"localhost"), (b"content-type", b"application/json")]
CHUNKED = [*HEAD, (b"transfer-encoding", b"chunked")]


async def test_a_declared_length_is_refused_before_a_byte_is_read() -> None:
    async def receive() -> Any:
        pytest.fail("the body was read")

    for length in (b"1048577", b"9" * 17, b"9" * 30):
        headers = [*HEAD, (b"content-length", length)]
        assert (await call(toy_gate(APP), "PUT", "/api/echo", headers=headers, receive=receive))[0] == 413
    for length in (b"-1", b"1e3", b"0x10", b"1 2"):
        headers = [*HEAD, (b"content-length", length)]
        assert (await call(toy_gate(APP), "PUT", "/api/echo", headers=headers, receive=receive))[0] == 400


async def test_a_stream_is_cut_at_the_limit() -> None:
    body = [b'"' + b"x" * 1023] * 1025
    status, _, answer = await call(toy_gate(APP), "PUT", "/api/echo", headers=CHUNKED, receive=chunked(*body))
    assert (status, json.loads(answer)["code"]) == (413, "body_too_large")
    exact = (b'"' + b"x" * (1024 * 1024 - 2), b'"')
    status, _, answer = await call(toy_gate(APP), "PUT", "/api/echo", headers=CHUNKED, receive=chunked(*exact))
    assert (status, json.loads(answer)["size"]) == (200, 1024 * 1024)


async def test_a_body_in_pieces_is_put_together() -> None:
    pieces = (b'{"a":', b"", b'"', "ä".encode()[:1], "ä".encode()[1:], b'"}')
    status, _, answer = await call(toy_gate(APP), "PUT", "/api/echo", headers=CHUNKED, receive=chunked(*pieces))
    assert (status, json.loads(answer)["size"]) == (200, 10)


async def test_a_body_has_a_deadline() -> None:
    async def receive() -> Any:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    gate = toy_gate(APP, body=BodyRule(seconds=0.2))
    status, _, answer = await call(gate, "PUT", "/api/echo", headers=CHUNKED, receive=receive)
    assert (status, json.loads(answer)["code"]) == (400, "body_timeout")


async def test_a_caller_that_leaves_amid_its_body_is_no_fault_of_ours() -> None:
    messages = [{"type": "http.request", "body": b'{"', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    with structlog.testing.capture_logs() as lines:
        status, _, _ = await call(toy_gate(APP), "PUT", "/api/echo", headers=CHUNKED, receive=receive)
    assert status == 400
    assert lines == []


FILES = ("instance", "/api/files/{name}")
RULES = {
    ("instance", "/api/auth/login"): BodyRule(limit=64 * 1024),
    FILES: BodyRule(limit=3_000_000, types=("application/octet-stream", "application/yaml"), stream=True),
}
HASTY = {FILES: BodyRule(types=("application/octet-stream",), seconds=0.3, stream=True)}


async def test_paths_have_limits_of_their_own() -> None:
    big = b'{"name":"' + b"x" * 70_000 + b'"}'
    async with opened(bodies=RULES) as client:
        assert (await client.post("/api/auth/login", content=big, headers=JSON)).status_code == 413
        assert (await client.post("/api/auth/login/", content=big, headers=JSON)).status_code == 413
        assert (await post_thing(client, big)).status_code == 201


async def test_a_stream_is_handed_on_chunk_by_chunk() -> None:
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/octet-stream"),
        (b"transfer-encoding", b"chunked"),
    ]
    gate = toy_gate(APP, bodies=RULES)
    pieces = [b"\x00" * 1_000_000] * 3
    status, _, answer = await call(gate, "PUT", "/api/files/a", headers=headers, receive=chunked(*pieces))
    assert (status, json.loads(answer)) == (200, {"name": "a", "size": 3_000_000, "chunks": 3})
    status, _, _ = await call(gate, "PUT", "/api/files/a", headers=headers, receive=chunked(*pieces, b"1"))
    assert status == 413
    status, _, answer = await call(gate, "PUT", "/api/files/a", headers=CHUNKED, receive=chunked(b"{}"))
    assert (status, json.loads(answer)["code"]) == (400, "invalid_content_type")

    async def receive() -> Any:
        await asyncio.sleep(30)

    gate = toy_gate(APP, bodies=HASTY)
    status, _, answer = await call(gate, "PUT", "/api/files/a", headers=headers, receive=receive)
    assert (status, json.loads(answer)["code"]) == (400, "body_timeout")


# --- the log ---------------------------------------------------------------------------------------------------------


async def test_one_line_per_request() -> None:
    lines: list[dict[str, Any]] = []
    async with opened(log=lambda **line: lines.append(line)) as client:
        await client.get("/api/open?token=hunter2", headers={"X-Request-Id": "mine"})
        await client.get("/api/guarded", headers=GOOD)
        await client.get("/api/a%0Ab%1b[31m")
        await client.get("/api/crash")
        await client.get("/api/open", headers={"Host": "evil.com"})
    assert [line["status"] for line in lines] == [200, 200, 400, 500, 400]
    first = lines[0]
    assert 0 < first.pop("seconds") < 5
    assert first == {
        "method": "GET",
        "path": "/api/open",
        "status": 200,
        "request": "mine",
        "client": "198.51.100.7",
        "principal": None,
    }
    assert lines[1]["principal"] == "usr_good"
    assert "\n" not in lines[2]["path"]
    assert "\x1b" not in lines[2]["path"]
    assert "hunter2" not in str(lines)


async def test_a_cancelled_request_is_logged_and_not_in_flight() -> None:
    lines: list[dict[str, Any]] = []
    gate = toy_gate(APP, log=lambda **line: lines.append(line))
    task = asyncio.create_task(call(gate, path="/api/slow", query=b"seconds=30"))
    await asyncio.sleep(0.05)
    assert gate.in_flight == 1
    waiting = asyncio.create_task(gate.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    task.cancel()
    await asyncio.wait_for(waiting, 2)
    assert gate.in_flight == 0
    assert lines[0]["status"] == 499


HOSTILE = ["'", '"', "' OR 1=1 --", "\\", "%00", "${jndi:ldap://x}", "\u00ff\u00fe", "a" * 2000, "<script>", "';--\t"]


async def test_hostile_header_values_never_make_a_500() -> None:
    async with opened(limits={"instance": parse_bucket("instance", "100000/minute")}) as client:
        for name in (
            "User-Agent",
            "X-Request-Id",
            "Accept-Language",
            "Referer",
            "Cookie",
            "Accept",
            "Range",
            "If-Match",
        ):
            for value in HOSTILE:
                answer = await client.get("/api/open", headers=[(name.encode(), value.encode("latin-1", "replace"))])
                assert answer.status_code < 500, (name, value)
                assert_labelled(answer)
        for name in ("x-';--", 'x-"', "x-<a>"):
            assert (await client.get("/api/open", headers={name: "1"})).status_code < 500


# --- WebSockets ------------------------------------------------------------------------------------------------------


async def websocket(
    gate: Gate, *headers: tuple[bytes, bytes], extended: bool = False, path: str = "/api/socket"
) -> Any:
    sent: list[Any] = []
    scope = {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"token=good",
        "headers": [(b"host", b"localhost"), *headers],
        "client": ("198.51.100.7", 1),
        "subprotocols": [],
        "scheme": "ws",
        "extensions": {"websocket.http.response": {}} if extended else {},
    }
    messages = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await gate(scope, receive, send)
    return sent


async def test_a_known_caller_gets_its_websocket() -> None:
    sent = await websocket(toy_gate(APP), (b"authorization", b"Bearer good"))
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "usr_good"
    names = [name for name, _ in sent[0]["headers"]]
    assert b"x-request-id" in names
    assert b"x-ratelimit-remaining" in names


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"authorization", b"Bearer nonsense")], 401),
        ([(b"authorization", b"Bearer poor")], 403),
        ([(b"authorization", b"Bearer down")], 503),
        ([(b"host", b"evil.com")], 400),
    ],
)
async def test_a_refused_websocket_is_closed_before_it_opens(headers: list[tuple[bytes, bytes]], status: int) -> None:
    (closed,) = await websocket(toy_gate(APP), *headers)
    assert (closed["type"], closed["code"]) == ("websocket.close", 4000 + status)
    start, body = await websocket(toy_gate(APP), *headers, extended=True)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", status)
    assert {label.encode() for label in LABELS} <= dict(start["headers"]).keys()
    assert json.loads(body["body"])["request_id"].encode() == dict(start["headers"])[b"x-request-id"]


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [
        (PoolTimeout("busy"), 503, False),
        (ValueError("a mistake"), 500, True),
        (ConnectionResetError("gone"), 500, None),
    ],
)
async def test_only_mistakes_of_ours_in_a_websocket_are_logged(
    error: Exception, status: int, logged: bool | None, accepted: bool
) -> None:
    """Thousands come while the database is away; and who is gone is met by whatever is said to it."""

    async def app(_: Scope, __: Receive, send: Send) -> None:
        if accepted:
            await send({"type": "websocket.accept"})
        raise error

    with structlog.testing.capture_logs() as lines:
        sent = await websocket(toy_gate(app), (b"authorization", b"Bearer good"), extended=True)
    expected = logged if logged is not None else not accepted
    assert [line["event"] for line in lines] == (["WebSocket failed"] if expected else [])
    if not accepted:
        assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", status)
    elif isinstance(error, OSError):
        assert [message["type"] for message in sent] == ["websocket.accept"]
    else:
        assert (sent[1]["type"], sent[1]["code"]) == ("websocket.close", 1011)


async def test_websockets_count() -> None:
    gate = toy_gate(APP, limits={"instance": FEW})
    for _ in range(5):
        await websocket(gate, (b"authorization", b"Bearer good"))
    (closed,) = await websocket(gate, (b"authorization", b"Bearer good"))
    assert closed["code"] == 4429


async def test_an_unknown_websocket_path_is_refused() -> None:
    (closed,) = await websocket(toy_gate(APP), (b"authorization", b"Bearer good"), path="/api/nowhere")
    assert closed["code"] == 4404


async def test_the_lifespan_passes_through() -> None:
    gate = toy_gate(APP)
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await gate({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
