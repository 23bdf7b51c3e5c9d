"""Signing secrets of webhooks as they are kept: sealed, each for its channel alone."""

from datetime import datetime
from typing import Any

from quazzar.core.crypto import Keyring


def seal(keyring: Keyring, channel_id: str, secret: bytes) -> bytes:
    return keyring.seal(secret, context=_place(channel_id))


def open_sealed(keyring: Keyring, channel_id: str, sealed: bytes) -> bytes:
    """Raises `SealBroken`."""
    return keyring.open(sealed, context=_place(channel_id))


def live_secrets(keyring: Keyring, row: Any, now: datetime) -> list[bytes]:
    """The secrets of a webhook's row that sign at `now`, the newest first."""
    sealed = [row.sealed]
    if row.former_sealed is not None and row.former_until > now:
        sealed.append(row.former_sealed)
    return [open_sealed(keyring, row.id, each) for each in sealed]


def _place(channel_id: str) -> str:
    return f"notification_channels.sealed:{channel_id}"
