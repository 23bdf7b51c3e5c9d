"""Releases next to each other: what the one before sends is read, and what the next one adds is passed over."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from quazzar.link.messages import FromInstance, FromPanel, Message, pack, unpack_from_instance, unpack_from_panel

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FACTS = {
    "name": "server",
    "hostname": "server",
    "machine_id": "0" * 64,
    "version": "0.1.0",
    "os": "Debian",
    "arch": "x86_64",
    "cpu_cores": 4,
    "memory_bytes": 1,
    "disk_bytes": 1,
}
# The least that a message of the first release may consist of. A release that needs more of one can't be spoken to.
FROM_INSTANCE: list[dict[str, Any]] = [
    {"type": "hello", "instance_id": "inst_a", "protocol": 1, "version": "0.1.0", "sent_at": NOW, "state_hash": ""},
    {"type": "heartbeat", "sent_at": NOW, "state_hash": ""},
    {"type": "heartbeat", "sent_at": NOW, "state_hash": "", "measured": [1.5, None], "state": {"facts": FACTS}},
    {"type": "renew", "csr": "x"},
    {"type": "leave"},
    {"type": "report", "order_id": "ord_a", "sequence": 1, "status": "taken", "at": NOW},
    {"type": "samples", "batch": 1, "points": [[NOW, [1.5, None]]]},
    {"type": "deeds", "impersonation_id": "imp_a", "deeds": [{"number": 1, "at": NOW, "action": "app.stop"}]},
]
FROM_PANEL: list[dict[str, Any]] = [
    {"type": "welcome", "protocol": 1, "version": "0.1.0", "heartbeat_seconds": 30.0},
    {"type": "certificate", "certificate": "x"},
    {"type": "order", "body": b"x", "signature": b"x" * 64},
    {"type": "cancel", "order_id": "ord_a"},
    {"type": "reported", "order_id": "ord_a", "sequence": 1},
    {"type": "kept", "batch": 1},
    {"type": "noted", "impersonation_id": "imp_a", "number": 1},
]
BOTH = [(unpack_from_instance, message) for message in FROM_INSTANCE] + [
    (unpack_from_panel, message) for message in FROM_PANEL
]
NAMES = [str(message["type"]) for _, message in BOTH]


def tag_of(message: Message) -> object:
    return message.__struct_config__.tag


@pytest.mark.parametrize(("unpack", "message"), BOTH, ids=NAMES)
def test_of_the_release_before(unpack: Any, message: dict[str, Any]) -> None:
    read = unpack(msgspec.msgpack.encode(message))
    assert tag_of(read) == message["type"]
    # What is not said is what it was.
    assert unpack(pack(read)) == read


@pytest.mark.parametrize(("unpack", "message"), BOTH, ids=NAMES)
def test_of_the_release_after(unpack: Any, message: dict[str, Any]) -> None:
    read = unpack(msgspec.msgpack.encode(message))
    assert unpack(msgspec.msgpack.encode({**message, "later": {"a": [1, None]}, "more": "x"})) == read
    assert unpack(msgspec.msgpack.encode({**message, "type": f"later_{message['type']}"})) is None


def test_every_message_is_there() -> None:
    for union, messages in ((FromInstance, FROM_INSTANCE), (FromPanel, FROM_PANEL)):
        kinds = {kind.__struct_config__.tag for kind in union.__args__}
        assert kinds == {message["type"] for message in messages}


def test_deeper_things_may_have_more_too() -> None:
    state = {"facts": FACTS | {"gpu": "x"}, "apps": [{"id": "a", "name": "a", "status": "frozen", "later": 1}], "x": 1}
    beat = {"type": "heartbeat", "sent_at": NOW, "state_hash": "", "state": state}
    assert unpack_from_instance(msgspec.msgpack.encode(beat)) is not None
    point = [NOW, [1.5], {"app_a": [1.0]}, "later"]
    assert unpack_from_instance(msgspec.msgpack.encode({"type": "samples", "batch": 1, "points": [point]})) is not None
