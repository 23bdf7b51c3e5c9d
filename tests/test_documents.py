"""What the tests' clients hold against the documents does not pass when it is something else."""

import httpx
import pytest

from tests.documents import Documents

ALL = Documents("all")


def answer(status: int, body: object, *, path: str = "/api/health") -> httpx.Response:
    return httpx.Response(status, json=body, request=httpx.Request("GET", f"http://localhost{path}"))


def test_a_status_that_is_not_documented() -> None:
    assert ALL.check_status(answer(200, {}))
    with pytest.raises(AssertionError, match="GET /api/health answered 409"):
        ALL.check_status(answer(409, {}))
    assert not ALL.check_status(answer(418, {}, path="/nowhere")), "no operation, so nothing is said of it"
    assert not ALL.check_status(answer(404, {}, path="/api/nowhere"))
    assert not ALL.check_status(answer(200, {}, path="/api/openapi.json"))
    with pytest.raises(AssertionError, match="GET /panel/api/nowhere is in no document"):
        ALL.check_status(answer(200, {}, path="/panel/api/nowhere"))


def test_a_kind_of_body_that_is_not_documented() -> None:
    request = httpx.Request("GET", "http://localhost/api/health")
    for kind in ("text/plain; charset=utf-8", "text/event-stream", "application/json-seq"):
        with pytest.raises(AssertionError, match="GET /api/health answered 200 with "):
            ALL.check_status(httpx.Response(200, headers={"content-type": kind}, request=request))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"status": 1}),
        (200, []),
        (200, {}),
        (200, {"status": "up", "secret": "x"}),
        (404, {"error": "x"}),
        (404, {"error": 1}),
    ],
)
def test_a_body_that_is_not_documented(status: int, body: object) -> None:
    with pytest.raises(AssertionError, match=f"GET /api/health {status} is not what the document says"):
        ALL.check_body(answer(status, body))


def test_what_the_document_says() -> None:
    error = {"error": "There is no such app", "code": "app_not_found", "request_id": "req_c6xk2m4v7q3n5t2a"}
    ALL.check_body(answer(404, error, path="/api/apps/app_1"))
    # What is named outright is not taken for an id.
    ALL.check_body(answer(200, [], path="/panel/api/fleet/instances"))


def test_a_process_that_is_a_panel_alone_serves_it_without_a_prefix() -> None:
    assert Documents("panel").check_status(answer(200, [], path="/api/fleet/instances"))
    with pytest.raises(AssertionError, match="GET /api/fleet/instances is in no document"):
        Documents("instance").check_status(answer(200, [], path="/api/fleet/instances"))
