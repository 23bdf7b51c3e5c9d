"""What panel processes tell each other through PostgreSQL about instances: news of one, by whoever holds its socket.

A lost word is made up for: after each gap of the line to the database every socket is looked at anew.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

CHANNEL: Final = "fleet"
"""NOTIFY channel; the payload is a verb, a colon and the id of an instance, maybe with one word more. Work has ids of
many instances, by commas.
"""
_IDS_AT_ONCE: Final = 200
"""A payload holds at most 8,000 bytes."""


def revoked(instance_id: str) -> str:
    """Its socket is to be cut."""
    return f"revoked:{instance_id}"


def moved(instance_id: str, connection: str) -> str:
    """It holds a new socket, by whose name any other is out of date."""
    return f"moved:{instance_id}:{connection}"


def work(instance_ids: Iterable[str]) -> Iterator[str]:
    """There may be commands for them; as few payloads as hold them all."""
    found = iter(instance_ids)
    while some := list(islice(found, _IDS_AT_ONCE)):
        yield f"work:{','.join(some)}"
