"""Joining by a setting, what an instance says of itself, and the listeners that it knows."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core.errors import Invalid
from quazzar.instance.enrolment import joining
from quazzar.instance.enrolment.dialling import places
from quazzar.instance.enrolment.errors import PanelRefused, PanelUnreachable
from quazzar.instance.enrolment.joining import Joining
from quazzar.instance.enrolment.measuring import facts_of
from quazzar.link.messages import Facts, Welcome, pack, unpack_from_panel


class Link(msgspec.Struct):
    host: str = "panel.example.com"
    port: int = 8443
    addresses: list[str] = []


def test_the_listeners_of_a_panel() -> None:
    assert places(Link()) == [("panel.example.com", 8443)]
    told = ["panel.example.com:8443", "10.0.0.2:8444", "[2001:db8::1]:8445", "10.0.0.2:8444"]
    assert places(Link(addresses=told)) == [("panel.example.com", 8443), ("10.0.0.2", 8444), ("2001:db8::1", 8445)]


@pytest.mark.parametrize("address", ["x", ":1", "a b:1", "a:b", "a:123456", "http://a:1", "a:1/", "[::1", "::1:1"])
def test_a_panel_tells_addresses_or_nothing(address: str) -> None:
    frame = pack(Welcome(protocol=1, version="0.1.0", heartbeat_seconds=30, addresses=["a:1"]))
    assert unpack_from_panel(frame) is not None
    with pytest.raises(ValueError, match="matching regex"):
        unpack_from_panel(pack(Welcome(protocol=1, version="0", heartbeat_seconds=1, addresses=[address])))


@pytest.mark.parametrize("url", ["https://os.example.com", "http://[::1]:8080/q", "http://127.0.0.1:8080"])
def test_where_people_find_a_server_is_told(url: str, tmp_path: Path) -> None:
    assert facts_of(tmp_path, url).url == url


@given(st.one_of(st.none(), st.text(max_size=600), st.text(max_size=20).map(lambda text: f"https://{text}")))
def test_no_url_makes_a_message_that_a_panel_refuses(url: str | None) -> None:
    facts = facts_of(Path("/"), url)
    msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=Facts)
    assert facts.url in (None, url)


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "ftp://x", "https://user@x", "https://x?a=b", "https://x#y", "https://a b", "x"]
)
def test_what_is_no_address_of_a_page_is_not_told(url: str, tmp_path: Path) -> None:
    assert facts_of(tmp_path, url).url is None


class Panel:
    """Answers attempts to join with one failure after the other, then with success."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.attempts = 0

    async def join(self) -> None:
        self.attempts += 1
        if self.failures:
            raise self.failures.pop(0)


async def attempts(monkeypatch: pytest.MonkeyPatch, panel: Panel, *, known: bool = False) -> int:
    async def is_linked_or_left(_: Any) -> bool:
        return known

    monkeypatch.setattr(joining, "is_linked_or_left", is_linked_or_left)
    monkeypatch.setattr(joining, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(Joining, "_join", panel.join)
    one: Any = None
    tried = Joining(one, one, "qze_x")
    await tried.start()
    assert tried._task is not None
    async with asyncio.timeout(20):
        await tried._task
    await tried.stop()
    return panel.attempts


async def test_it_is_tried_until_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await attempts(monkeypatch, Panel()) == 1
    # A panel that is not there yet, or counts too many attempts, may be another in a minute.
    assert await attempts(monkeypatch, Panel(PanelUnreachable(), PanelRefused(), OSError(), PanelUnreachable())) == 5


async def test_a_text_that_is_no_token_never_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await attempts(monkeypatch, Panel(Invalid(details={"token": "It is not complete"}), PanelRefused())) == 1


async def test_a_server_that_has_joined_or_left_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await attempts(monkeypatch, Panel(), known=True) == 0


async def test_stopping_ends_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = Panel(*[PanelUnreachable() for _ in range(10)])
    monkeypatch.setattr(joining, "_FIRST_PAUSE", 600.0)

    async def is_linked_or_left(_: Any) -> bool:
        return False

    monkeypatch.setattr(joining, "is_linked_or_left", is_linked_or_left)
    monkeypatch.setattr(Joining, "_join", panel.join)
    one: Any = None
    tried = Joining(one, one, "qze_x")
    await tried.start()
    while not panel.attempts:
        await asyncio.sleep(0)
    await tried.stop()
    assert panel.attempts == 1
