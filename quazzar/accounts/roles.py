"""Scopes, and which of them a role on an instance has."""

from typing import Final, Literal, get_args

from quazzar.core.auth import scope_within

Scope = Literal[
    "*",
    "apps:read",
    "apps:write",
    "apps:operate",
    "apps:deploy",
    "apps:exec",
    "apps:secrets",
    "templates:read",
    "templates:write",
    "system:read",
    "system:write",
    "system:power",
    "backups:read",
    "backups:write",
    "domains:read",
    "domains:write",
    "vpn:read",
    "vpn:write",
    "firewall:read",
    "firewall:write",
    "webhooks:read",
    "webhooks:write",
    "settings:read",
    "settings:write",
    "audit:read",
    "audit:write",
    "jobs:read",
    "jobs:write",
    "auth:read",
    "auth:write",
]
"""Everything that a key may be given. `auth` is about the caller's own API keys."""

SCOPES: Final[frozenset[str]] = frozenset(get_args(Scope))

_ROLES: Final[dict[str, frozenset[str]]] = {
    "admin": frozenset({"*"}),
    "operator": frozenset(
        {
            "apps:read",
            "apps:write",
            "templates:read",
            "system:read",
            "backups:read",
            "backups:write",
            "domains:read",
            "domains:write",
            "jobs:read",
            "jobs:write",
            "auth:read",
            "auth:write",
        }
    ),
    "viewer": frozenset(scope for scope in SCOPES if scope.endswith(":read")),
}


def scopes_of(role: str | None) -> frozenset[str]:
    """The scopes of a role; an unknown one has none."""
    return _ROLES.get(role or "", frozenset())


def is_covered(scope: str, granted: frozenset[str]) -> bool:
    """Whether whoever holds `granted` may hand `scope` on; `*` only by a holder of `*`."""
    return scope in granted or (scope != "*" and scope_within(scope, granted))


def effective(scopes: frozenset[str], granted: frozenset[str]) -> frozenset[str]:
    """What is left of a key's `scopes` when its owner has `granted`: a key never has more than its owner has now."""
    if "*" in granted:
        return scopes
    if "*" in scopes:
        return granted
    return frozenset(scope for scope in scopes if is_covered(scope, granted)) | frozenset(
        scope for scope in granted if scope_within(scope, scopes)
    )
