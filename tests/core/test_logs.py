"""What a log line must carry, and what must never get into one."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core import logs
from quazzar.core.secret import MASK, Secret

CANARIES = {
    "api key": "qzr_0a1b2c3d4e5f6g7h8i9j",
    "panel key": "qzp_canary0canary0canary0",
    "webhook secret": "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlY2FuYXJ5",
    "half a jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ",
    "password hash": "$argon2id$v=19$m=19456,t=2,p=1$Y2FuYXJ5$aGFzaGNhbmFyeQ",
    "private key": "-----BEGIN EC PRIVATE KEY-----\nY2FuYXJ5Y2FuYXJ5\n-----END EC PRIVATE KEY-----",
}


class Lines:
    def __init__(self) -> None:
        self.stream = io.BytesIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue().decode()

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Logging as in a process that writes JSON, into memory; as it was before when the test ends."""
    before, output = structlog.get_config(), vars(logs._output).copy()
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    collected = Lines()
    logs.configure("info", "json", stream=collected.stream)
    yield collected
    structlog.configure(**before)
    vars(logs._output).update(output)
    root.setLevel(level)
    root.handlers[:] = handlers


def test_a_line_has_time_level_logger_and_values(lines: Lines) -> None:
    logs.get_logger("apps").info("App installed", app_id="app_1", seconds=1.5, services=["web", "db"])
    (line,) = lines.read()
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "apps",
        "event": "App installed",
        "app_id": "app_1",
        "seconds": 1.5,
        "services": ["web", "db"],
    }


def test_lines_below_the_level_are_not_written(lines: Lines) -> None:
    log = logs.get_logger("apps")
    log.debug("quiet")
    log.warning("loud")
    assert [line["event"] for line in lines.read()] == ["loud"]


async def test_each_line_of_a_request_carries_its_id_and_no_other(lines: Lines) -> None:
    async def handle(request: str) -> None:
        logs.request_id.set(request)
        await asyncio.sleep(0)
        logs.get_logger("x").info("work", of=request)

    await asyncio.gather(*(asyncio.create_task(handle(f"req_{number}")) for number in range(20)))
    written = lines.read()
    assert len(written) == 20
    assert all(line["request_id"] == line["of"] for line in written)


@pytest.mark.parametrize("kind", CANARIES)
def test_what_looks_like_a_secret_is_masked_wherever_it_stands(lines: Lines, kind: str) -> None:
    canary = CANARIES[kind]
    log = logs.get_logger("x")
    log.info(f"event with {canary} inside", text=f"a {canary}", nested={"list": [1, {"deep": canary}]})
    log.info("as a key", **{canary: 1})
    logging.getLogger("library").warning("through the standard library: %s", canary)
    try:
        raise ValueError(canary)
    except ValueError:
        log.exception("failed")
    log.info("object", thing=ValueError(canary))
    for piece in canary.splitlines():
        assert piece not in lines.text
    assert MASK in lines.text
    assert len(lines.read()) == 5


@pytest.mark.parametrize(
    "key",
    [
        *("password", "new_password", "Authorization", "api_key", "apikey", "token", "refresh_token", "client_secret"),
        *("key", "Set-Cookie", "recovery-token", "totp", "private_key", "database_dsn", "passphrase", "X-Signature"),
    ],
)
def test_values_under_a_telling_name_are_masked(lines: Lines, key: str) -> None:
    logs.get_logger("x").info("event", **{key: "canary"}, body={key: ["canary"]})
    assert "canary" not in lines.text


@pytest.mark.parametrize("key", ["key_id", "code", "monkey", "token_type", "tokens_used", "passed", "keyboard"])
def test_names_that_only_sound_alike_are_left(lines: Lines, key: str) -> None:
    logs.get_logger("x").info("event", **{key: "plain"})
    assert lines.read()[0][key] == "plain"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer canary-canary",
        "postgresql://quazzar:canary-canary@db.example/quazzar",
        "redis://:canary-canary@cache.example/0",
        '{"password": "canary-canary"}',
        "password=canary-canary&x=1",
        "GET /api/cp/session?token=canary-canary",
        "(sqlalchemy) duplicate key\n[SQL: INSERT …]\n[parameters: ('canary-canary', [1])]\n(Background …)",
    ],
)
def test_secrets_inside_other_text_are_masked(lines: Lines, text: str) -> None:
    logging.getLogger("library").error(text)
    logs.get_logger("x").error(text)
    assert "canary" not in lines.text


def test_secrets_and_unprintable_objects_are_harmless(lines: Lines) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("canary")

    class Row(msgspec.Struct):
        password: str

    loop: list[Any] = []
    loop.append(loop)
    logs.get_logger("x").info("e", a=Secret("canary"), b=Broken(), c=b"canary", d=loop, f=Row("canary"), g={1: 2})
    assert "canary" not in lines.text
    assert lines.read()[0]["c"] == "<6 bytes>"


def test_no_character_can_forge_or_hide_a_line(lines: Lines) -> None:
    hostile = 'a\n{"level":"error"}\r\x1b[2J\x00\x9b31m\u202egnp.exe\u2028\ud800'
    logs.get_logger("x").warning(hostile, user_agent=hostile, **{hostile: 1})
    assert len(lines.text.splitlines()) == 1
    assert not set(lines.text.rstrip("\n")) & set("\n\r\x1b\x00\x9b\u202e\u2028")
    assert lines.read()[0]["user_agent"] == (
        'a\\n{"level":"error"}\\r\\x1b[2J\\x00\\x9b31m\\u202egnp.exe\\u2028\\ud800'
    )


def test_the_console_form_is_safe_too(lines: Lines) -> None:
    logs.configure("info", "console", stream=lines.stream)
    logs.get_logger("x").error("bad\nthing\x1b[2J", who="a b\x07", token="canary")
    try:
        raise ValueError("first\nsecond \x1b[31m")
    except ValueError:
        logs.get_logger("x").exception("trace")
    written = lines.text.splitlines()
    assert written[0].endswith('error   bad\\nthing\\x1b[2J  logger=x who="a b\\\\x07" token=********')
    assert all(part.startswith("    ") for part in written[2:])
    assert "\x1b" not in lines.text


PLAIN = st.none() | st.text() | st.integers() | st.floats() | st.binary()


@given(st.dictionaries(st.text(max_size=8), st.recursive(PLAIN, st.lists, max_leaves=5)))
def test_any_event_gives_exactly_one_line_of_json(values: dict[str, Any]) -> None:
    before, stream = logs._output.stream, io.BytesIO()
    logs._output.stream = stream
    try:
        logs._output.emit({"event": "x"} | values, level="info")
    finally:
        logs._output.stream = before
    assert stream.getvalue().count(b"\n") == 1
    json.loads(stream.getvalue())


def test_libraries_write_through_the_same_door(lines: Lines) -> None:
    logging.getLogger("uvicorn.error").error("cannot bind")
    logging.getLogger("uvicorn.access").error("GET /?token=canary")
    logging.getLogger("sqlalchemy.engine.Engine").info("INSERT canary")
    logging.getLogger("asyncio").warning("slow %d", 3)
    record = logging.makeLogRecord({"name": "x", "levelname": "ERROR", "msg": "bad format %d", "args": ("canary",)})
    logs._Routed().handle(record)
    assert [(line["logger"], line["event"]) for line in lines.read()] == [
        ("uvicorn.error", "cannot bind"),
        ("asyncio", "slow 3"),
        ("x", "bad format %d"),
    ]


def test_a_log_that_can_not_be_written_stops_nothing(lines: Lines) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    logs.configure("info", "json", stream=Full())
    logs.get_logger("x").info("event")
    closed = io.BytesIO()
    logs.configure("info", "json", stream=closed)
    closed.close()
    logs.get_logger("x").info("event")


def test_the_access_line(lines: Lines) -> None:
    access = logs.AccessLog()
    access(
        method="GET",
        path="/api/apps",
        status=200,
        seconds=0.01234567,
        request="req_1",
        client="192.0.2.1",
        principal="usr_1",
    )
    access(
        method="A\nB",
        path="/api/qzr_canarycanary/\x1b[2J",
        status=404,
        seconds=0,
        request="r",
        client="::1",
        principal=None,
    )
    first, second = lines.read()
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "event": "request",
        "request_id": "req_1",
        "method": "GET",
        "path": "/api/apps",
        "status": 200,
        "duration_ms": 12.35,
        "client": "192.0.2.1",
        "principal": "usr_1",
    }
    assert second["path"] == f"/api/{MASK}/\\x1b[2J"
    assert second["method"] == "A\\nB"


def test_the_access_line_is_off_above_info(lines: Lines) -> None:
    logs.configure("warning", "json", stream=lines.stream)
    logs.AccessLog()(method="GET", path="/", status=200, seconds=0, request="r", client="c", principal=None)
    assert lines.text == ""


def test_a_secret_shows_itself_to_nobody() -> None:
    import pickle  # noqa: PLC0415

    secret = Secret("canary")
    shown = f"{secret} {secret!r} {secret:>20} {[secret]} { ({'a': secret}) } %s" % secret
    assert "canary" not in shown
    assert secret.reveal() == "canary"
    assert secret == Secret("canary") != Secret("other")
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        msgspec.json.encode({"s": secret})
