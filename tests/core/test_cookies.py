"""The session cookie: whose it is, and the sign of the own origin without which it does not count."""

from typing import Any

import httpx
import pytest

from quazzar.core.auth import Principal, Realm, authorization_of
from quazzar.core.cookies import MARK, NAME, SECURE_NAME, credential, is_of_own_origin, session_cookie
from quazzar.core.errors import Unauthorized
from quazzar.core.gate import Gate, GateConfig
from quazzar.core.ratelimit import RateLimiter, parse_bucket
from tests.core.edge_app import toy_app


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (f"{NAME}=abc", b"abc"),
        (f"a=b; {NAME}=abc; c", b"abc"),
        (f"{SECURE_NAME}=abc", b"abc"),
        (f"{NAME}=a=b=", b"a=b="),
        (f"{NAME}=", b""),
        ("other=abc", None),
        (f"x{NAME}=abc", None),
        ("", None),
        (";;;=;", None),
        # Somebody on the same host or domain has put a second one beside it.
        (f"{NAME}=abc; {NAME}=def", None),
        (f"{NAME}=abc; {SECURE_NAME}=def", None),
    ],
)
def test_one_cookie_of_one_name_counts(header: str, found: bytes | None) -> None:
    assert credential(header.encode()) == (None if found is None else MARK + found)


OWN = {b"host": b"os.example.com:8080"}


@pytest.mark.parametrize(
    ("method", "headers", "counts"),
    [
        ("POST", {b"sec-fetch-site": b"same-origin"}, True),
        ("POST", {b"sec-fetch-site": b"same-site"}, False),
        ("POST", {b"sec-fetch-site": b"cross-site"}, False),
        ("POST", {b"sec-fetch-site": b"none"}, False),
        ("POST", {b"sec-fetch-site": b""}, False),
        # Where a browser says both, the one that pages can't influence decides.
        ("POST", {b"sec-fetch-site": b"cross-site", b"origin": b"http://os.example.com:8080"}, False),
        ("POST", {b"origin": b"http://os.example.com:8080"}, True),
        ("POST", {b"origin": b"https://OS.example.com:8080"}, True),
        ("POST", {b"origin": b"http://os.example.com"}, False),
        ("POST", {b"origin": b"http://os.example.com:8081"}, False),
        ("POST", {b"origin": b"http://evil.example.com"}, False),
        ("POST", {b"origin": b"http://os.example.com:8080.evil.example"}, False),
        ("POST", {b"origin": b"null"}, False),
        ("POST", {b"origin": b""}, False),
        ("POST", {}, False),
        ("PUT", {}, False),
        ("PATCH", {}, False),
        ("DELETE", {}, False),
        ("BREW", {}, False),
        (None, {}, False),
        (None, {b"origin": b"http://evil.example.com"}, False),
        (None, {b"origin": b"http://os.example.com:8080"}, True),
        ("GET", {}, True),
        ("GET", {b"sec-fetch-site": b"none"}, True),
        ("GET", {b"sec-fetch-site": b"same-origin"}, True),
        ("GET", {b"sec-fetch-site": b"same-site"}, False),
        ("GET", {b"sec-fetch-site": b"cross-site"}, False),
        ("GET", {b"origin": b"http://evil.example.com"}, False),
        ("HEAD", {}, True),
        ("OPTIONS", {}, True),
    ],
)
def test_where_a_request_comes_from(method: str | None, headers: dict[bytes, bytes], counts: bool) -> None:
    assert is_of_own_origin(OWN | headers, method) is counts


def test_without_a_host_no_origin_is_the_own_one() -> None:
    assert not is_of_own_origin({b"origin": b"http://"}, "POST")


def test_the_cookie_itself() -> None:
    plain = session_cookie("abc", seconds=900, secure=False)
    assert plain == "quazzar_session=abc; Max-Age=900; Path=/; HttpOnly; SameSite=Strict"
    assert session_cookie("abc", seconds=1, secure=True) == (
        "__Host-quazzar_session=abc; Max-Age=1; Path=/; HttpOnly; SameSite=Strict; Secure"
    )


class Cookies:
    """Lets the cookie `good` in, and the bearer `good` as somebody else."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def cached(self, realm: Realm, authorization: bytes, address: str) -> Principal | None:
        return None

    async def resolve(self, realm: Realm, authorization: bytes, address: str) -> Principal:
        self.asked.append(authorization)
        user = {MARK + b"good": "guest", b"Bearer good": "owner"}.get(authorization)
        if user is None:
            raise Unauthorized
        return Principal(realm=realm, user_id=user, client=user, scopes=frozenset("*"), session_id="ses_x")


@pytest.fixture
def cookies() -> Cookies:
    return Cookies()


@pytest.fixture
async def client(cookies: Cookies) -> Any:
    bucket = parse_bucket("test", "100/minute")
    config = GateConfig(mode="all", limits={"instance": bucket, "panel": bucket})
    gate = Gate(toy_app(), config, cookies, RateLimiter())
    transport = httpx.ASGITransport(gate, client=("198.51.100.7", 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


GOOD = {"cookie": f"{NAME}=good"}
SAME = {"sec-fetch-site": "same-origin"}


async def test_the_gate_admits_a_cookie_of_the_own_origin(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/guarded", headers=GOOD)).json() == {"user": "guest"}
    made = await client.post("/api/things", json={"name": "x"}, headers=GOOD | SAME)
    assert made.status_code == 201


async def test_a_request_that_another_site_had_sent_is_refused_by_name(
    client: httpx.AsyncClient, cookies: Cookies
) -> None:
    for headers in ({}, {"sec-fetch-site": "cross-site"}, {"origin": "http://localhost:8081"}):
        answer = await client.post("/api/things", json={"name": "x"}, headers=GOOD | headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin_refused")
    # What needs no login is none of its business.
    assert (await client.post("/api/auth/login", json={"name": "x"}, headers=GOOD)).status_code == 201
    assert cookies.asked == []


async def test_a_header_goes_before_a_cookie(client: httpx.AsyncClient) -> None:
    bearer = {"authorization": "Bearer good"}
    assert (await client.get("/api/guarded", headers=GOOD | bearer)).json() == {"user": "owner"}
    wrong = await client.get("/api/guarded", headers=GOOD | {"authorization": "Bearer bad"})
    assert wrong.status_code == 401


async def test_the_panel_knows_no_cookie(client: httpx.AsyncClient, cookies: Cookies) -> None:
    assert (await client.get("/panel/api/guarded", headers=GOOD)).status_code == 401
    assert cookies.asked == []


def test_what_is_admitted_is_asked_again_later() -> None:
    scope: dict[str, Any] = {"type": "http", "headers": [(b"cookie", b"quazzar_session=x")], "state": {}}
    assert authorization_of(scope) is None
    scope["state"]["cookie"] = MARK + b"x"
    assert authorization_of(scope) == MARK + b"x"
    scope["headers"] = [(b"authorization", b"Bearer y")]
    assert authorization_of(scope) == b"Bearer y"
