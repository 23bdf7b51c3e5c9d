"""What the built-in roles of a tenant allow."""

from typing import Final

OWNER: Final = "owner"

_PERMISSIONS: Final[dict[str, frozenset[str]]] = {OWNER: frozenset({"*"})}


def permissions_of(role: str) -> frozenset[str]:
    """The permissions of a role; an unknown one has none."""
    return _PERMISSIONS.get(role, frozenset())
