"""Everything that may be allowed within a tenant, and what the built-in roles allow of it.

A permission is what a handler's guard names (`requires("fleet:write")`) and what a role or an API key is made of.
"""

from typing import Final, Literal, get_args

from quazzar.core.auth import scope_within

Permission = Literal[
    "tenant:read",
    "tenant:write",
    "tenant:delete",
    "clients:write",
    "clients:access",
    "members:read",
    "members:write",
    "roles:read",
    "roles:write",
    "keys:read",
    "keys:write",
    "fleet:read",
    "fleet:write",
    "fleet:operate",
    "fleet:impersonate",
    "alerts:read",
    "alerts:write",
    "blueprints:read",
    "blueprints:write",
    "policies:read",
    "policies:write",
    "approvals:read",
    "approvals:write",
    "billing:read",
    "billing:write",
    "webhooks:read",
    "webhooks:write",
    "audit:read",
    "audit:write",
    "jobs:read",
    "jobs:write",
]
"""`fleet:write` is tokens, groups and the instances themselves, and includes `fleet:operate`, which is commands;
`clients:access` is entering client tenants, within what each of them allows.
"""

PERMISSIONS: Final[frozenset[str]] = frozenset(get_args(Permission))

OWNER: Final = "owner"

_READS: Final = frozenset(name for name in PERMISSIONS if name.endswith(":read"))

BUILT_IN: Final[dict[str, frozenset[str]]] = {
    OWNER: frozenset({"*"}),
    "admin": PERMISSIONS - {"tenant:delete", "billing:write"},
    "operator": (_READS - {"billing:read"})
    | {
        "clients:access",
        "keys:write",
        "fleet:operate",
        "alerts:write",
        "blueprints:write",
        "jobs:write",
    },
    "viewer": _READS - {"billing:read"},
    "billing": frozenset({"tenant:read", "members:read", "billing:read", "billing:write"}),
}
"""The roles that every tenant has. Only owners have `*`, which no other role can be given."""


def permissions_of(role: str) -> frozenset[str]:
    """The permissions of a built-in role; an unknown one has none."""
    return BUILT_IN.get(role, frozenset())


def is_within(wanted: frozenset[str], granted: frozenset[str]) -> bool:
    """Whether whoever has `granted` may hand all of `wanted` on: nobody gives more than they have."""
    return "*" in granted or all(name != "*" and scope_within(name, granted) for name in wanted)


def common(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """What both allow."""
    return frozenset(name for name in PERMISSIONS if scope_within(name, one) and scope_within(name, other))
