"""What panel processes tell each other through PostgreSQL about instances: news of one, by whoever holds its socket.

A lost word is made up for: after each gap of the line to the database every socket is looked at anew.
"""

from typing import Final

CHANNEL: Final = "fleet"
"""NOTIFY channel; the payload is a verb, a colon and the id of an instance, maybe with one word more."""


def revoked(instance_id: str) -> str:
    """Its socket is to be cut."""
    return f"revoked:{instance_id}"


def moved(instance_id: str, connection: str) -> str:
    """It holds a new socket, by whose name any other is out of date."""
    return f"moved:{instance_id}:{connection}"


def work(instance_id: str) -> str:
    """There may be commands for it."""
    return f"work:{instance_id}"
