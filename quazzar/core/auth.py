"""Who is asking: the principal of a request, how the gate learns it, and the guard that each handler carries."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from quazzar.core.errors import Forbidden, Unauthorized

Realm = Literal["instance", "panel"]

RESERVED_SCOPES: Final = frozenset({"*", "auth:read", "auth:write", "apps:secrets", "audit:write"})
"""What no guest from a panel has, nor within a coarser scope: credentials, keys, secrets, what the audit log keeps, and
what only administrators may, since it opens the machine itself.
"""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A verified caller. `client` is what the rate limit counts: all sessions of a user are one, one API key is one.

    `scopes` are the effective ones (`*` means all). `resources` are the ids that a bound API key (on the panel also a
    bound member: the groups and instances) may touch, None when it is not bound. `tenant_id` is set on the panel only.
    Exactly one of `session_id` and `key_id` is set. `panel_user` is the panel's user who has opened this session on an
    instance as a guest; None for everybody else.
    """

    realm: Realm
    user_id: str
    client: str
    scopes: frozenset[str]
    session_id: str | None = None
    key_id: str | None = None
    tenant_id: str | None = None
    role: str = "viewer"
    resources: frozenset[str] | None = None
    key_expires_at: float | None = None
    panel_user: str | None = None
    profile: Any = None
    """What `GET /api/auth/me` shows, kept with the cached principal so that the call needs no query."""

    def allows(self, scope: str) -> bool:
        if self.panel_user is not None and scope in RESERVED_SCOPES:
            return False
        return scope_within(scope, self.scopes)


# Finer scopes lie within a coarse one: `apps:write` includes each of them.
_FINER = {
    "apps:operate": "apps:write",
    "apps:deploy": "apps:write",
    "apps:exec": "apps:write",
    "apps:secrets": "apps:write",
    "fleet:operate": "fleet:write",
}


def scope_within(scope: str, granted: frozenset[str]) -> bool:
    """Whether `scope` is covered by `granted`: itself, `*`, or the coarse scope that it lies in. Write is no read."""
    if scope in granted or "*" in granted:
        return True
    coarse = _FINER.get(scope)
    return coarse is not None and coarse in granted


class Authenticator(Protocol):
    """Turns the value of an `Authorization` header, or what `quazzar.core.cookies` makes of a cookie, into a principal.

    The gate asks `cached` first, without awaiting; only a miss goes to `resolve`.
    """

    def cached(self, realm: Realm, authorization: bytes, address: str) -> Principal | None:
        """The principal of a credential that was verified a moment ago and is known to be still valid, else None."""

    async def resolve(self, realm: Realm, authorization: bytes, address: str) -> Principal:
        """Verify the credential. Raises `Unauthorized` when it does not hold, `Unavailable` without a database."""


current_principal: ContextVar[Principal | None] = ContextVar("principal", default=None)
"""The verified caller of the request that this task answers, set by the gate."""


BEARER_PROTOCOL = "bearer."
"""Before the token in a subprotocol that a browser offers: it can set no headers on a WebSocket."""


def authorization_of(scope: Any) -> bytes | None:
    """The `Authorization` header of a connection; for a WebSocket without one, the token among its subprotocols; else
    what the gate has admitted of a cookie.
    """
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value)
    offered: Sequence[str] = scope.get("subprotocols") or ()
    for protocol in offered:
        if protocol.startswith(BEARER_PROTOCOL):
            return b"Bearer " + protocol.removeprefix(BEARER_PROTOCOL).encode("latin-1")
    admitted: bytes | None = scope.get("state", {}).get("cookie")
    return admitted


def principal_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:
    """The verified caller of this request; raises `Unauthorized` when there is none."""
    state = connection.scope["state"]
    principal: Principal | None = state.get("principal")
    if principal is None:
        raise state.get("auth_error") or Unauthorized()
    return principal


def refuse_guests(principal: Principal) -> None:
    """Raises `Forbidden` for a panel's user in a session on an instance: what this is before is for its own people."""
    if principal.panel_user is not None:
        raise Forbidden("This can't be done in a session that was opened from a panel", code="impersonation_denied")


class Guard:
    """The guard that `requires` makes; tests and the OpenAPI documents read `scope` from it.

    `reserved`: guests from a panel are refused. So are they, unless it is given as False, where only a person may act.
    """

    __slots__ = ("account_only", "reserved", "scope")

    def __init__(self, scope: str | None, *, account_only: bool = False, reserved: bool | None = None) -> None:
        self.scope = scope
        self.account_only = account_only
        self.reserved = (account_only or scope in RESERVED_SCOPES) if reserved is None else reserved

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        principal = principal_of(connection)
        if self.reserved:
            refuse_guests(principal)
        if self.account_only and principal.session_id is None:
            raise Forbidden("An API key can't do this; log in", code="session_required")
        if self.scope is not None and not principal.allows(self.scope):
            raise Forbidden(f"This needs the scope {self.scope}", code="scope_missing")
        if self.scope == "*":
            _refuse_bound(principal)


def require_everything(principal: Principal) -> None:
    """Raises `Forbidden` unless the caller may do everything: for a field of a body that opens the machine itself."""
    if not principal.allows("*"):
        raise Forbidden("This needs the scope *, which administrators have", code="scope_missing")
    _refuse_bound(principal)


def _refuse_bound(principal: Principal) -> None:
    """Everything, but of some apps only, is less than the machine."""
    if principal.resources is not None:
        raise Forbidden("A key that is bound to certain apps can't do this, which is about all of the machine")


def requires(scope: str) -> Guard:
    """A guard: the caller must be known and hold `scope` (401 without a credential, 403 without the scope)."""
    return Guard(scope)


def reserved(scope: str) -> Guard:
    """A guard: as `requires`, but no guest from a panel: for what hands out secrets, or decides who comes in."""
    return Guard(scope, reserved=True)


def requires_login(scope: str) -> Guard:
    """A guard: a person who logged in and holds `scope`; API keys are refused, whatever they may."""
    return Guard(scope, account_only=True)


def authenticated() -> Guard:
    """A guard: any known caller, whatever its scopes."""
    return Guard(None)


def account() -> Guard:
    """A guard: a person who logged in; API keys and guests from a panel are refused (passwords, second factors,
    sessions).
    """
    return Guard(None, account_only=True)


def leaving() -> Guard:
    """A guard: a person who logged in, or a guest from a panel, to end the own session."""
    return Guard(None, account_only=True, reserved=False)
