"""The arguments of commands at rest: they may hold passwords."""

from typing import Any

import msgspec

from quazzar.core.crypto import Keyring


def seal_args(keyring: Keyring, command_id: str, args: dict[str, Any]) -> bytes:
    return keyring.seal(msgspec.msgpack.encode(args), context=_place(command_id))


def open_args(keyring: Keyring, command_id: str, sealed: bytes) -> dict[str, Any]:
    """Raises `SealBroken`."""
    args: dict[str, Any] = msgspec.msgpack.decode(keyring.open(sealed, context=_place(command_id)))
    return args


def _place(command_id: str) -> str:
    return f"fleet_commands.sealed_args:{command_id}"
