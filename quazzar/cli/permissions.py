"""`quazzar permissions`: the page of who may do what on the panel, made from roles and guards."""

import re
from collections.abc import Iterator

from quazzar.cli.arguments import Arguments
from quazzar.cli.pages import put
from quazzar.core.auth import Guard, scope_within
from quazzar.core.routing import Endpoint

_HEAD = """\
# Who may do what on the panel

Made by `make permissions` from the built-in roles and the guards of the operations; change those.

A member has one role in a tenant: a built-in one, or one that the tenant made for itself from permissions. Nobody
makes, gives or takes a role or an API key that may more than they may themselves. A key has some of the permissions of
who made it, as far as they have them now.
"""

_OPERATIONS = """\
## Operations

`-` needs no login; `login` needs a person who is logged in, whatever their role; `any` is open to every caller, API
keys too. With `(login)` a key can't do it, whatever its permissions. What an operation asks for besides, such as not to
give more than one has, stands in the API documents.
"""


def run(arguments: Arguments) -> int:
    return put(arguments, page(), target="permissions")


def page() -> str:
    return "\n".join([_HEAD, "## Permissions\n", *_permissions(), "", _OPERATIONS, *_operations(), ""])


def _permissions() -> Iterator[str]:
    from quazzar.panel.tenants.permissions import BUILT_IN, PERMISSIONS  # noqa: PLC0415 - only for the page

    yield "| permission | " + " | ".join(BUILT_IN) + " |"
    yield "|---" * (len(BUILT_IN) + 1) + "|"
    for permission in sorted(PERMISSIONS):
        marks = ("✓" if scope_within(permission, granted) else "" for granted in BUILT_IN.values())
        yield f"| `{permission}` | " + " | ".join(marks) + " |"


def _operations() -> Iterator[str]:
    yield "| operation | | permission |"
    yield "|---|---|---|"
    for name, endpoint in sorted(operations(), key=lambda item: item[0].split()[::-1]):
        yield f"| `{name}` | {endpoint.summary} | {_needs(endpoint)} |"


def operations() -> Iterator[tuple[str, Endpoint]]:
    """Every documented operation of the panel, as `GET /api/members`, with its handler."""
    from litestar import Litestar  # noqa: PLC0415 - as above
    from litestar.routes import HTTPRoute  # noqa: PLC0415

    from quazzar.app import panel_router  # noqa: PLC0415

    for route in Litestar([panel_router()], openapi_config=None, logging_config=None).routes:
        if isinstance(route, HTTPRoute):
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path_format)
            for method, (handler, _) in route.route_handler_map.items():
                if isinstance(handler, Endpoint) and handler.resolve_include_in_schema():
                    yield f"{method} {path}", handler


def _needs(endpoint: Endpoint) -> str:
    guard = next((guard for guard in endpoint.resolve_guards() if isinstance(guard, Guard)), None)
    match guard:
        case None:
            return "-"
        case Guard(scope=None, account_only=True):
            return "login"
        case Guard(scope=None):
            return "any"
        case Guard(account_only=True):
            return f"`{guard.scope}` (login)"
        case _:
            return f"`{guard.scope}`"
