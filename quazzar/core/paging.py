"""Lists in pages: `limit`, an opaque `cursor`, and the `Link` header that leads to what follows."""

import base64
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from litestar import Request, Response
from litestar.params import QueryParameter

from quazzar.core.errors import BadRequest

T = TypeVar("T")
Shown = TypeVar("Shown")

DEFAULT_LIMIT = 50
MOST = 200

Limit = Annotated[int, QueryParameter(ge=1, le=MOST, description="How many to give at most.")]
"""Query parameter of a list; its default is `DEFAULT_LIMIT`."""

Cursor = Annotated[str | None, QueryParameter(max_length=200, description="From the `Link` of the page before.")]
"""Query parameter of a list; its default is None."""

_TEXT = re.compile(r"[\x21-\x7e]{1,120}\Z")


class Page(msgspec.Struct, frozen=True):
    """What part of a list is asked for: up to `limit` entries after the one whose key is `after`."""

    limit: int = DEFAULT_LIMIT
    after: str | None = None

    @property
    def fetch(self) -> int:
        """How many rows to read: one more than is shown tells whether more follow."""
        return self.limit + 1


def page_of(limit: int, cursor: str | None, *, key: str | None = None) -> Page:
    """The page that the parameters ask for; `key` is the pattern of the list's keys.

    Raises `BadRequest` for a cursor that no answer of ours could have given.
    """
    if cursor is None:
        return Page(limit)
    try:
        after = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (ValueError, UnicodeError):
        after = ""
    if not _TEXT.match(after) or (key is not None and re.fullmatch(key, after) is None):
        raise BadRequest("The cursor can't be read", details={"cursor": "Cursor must come from a Link header"})
    return Page(limit, after)


def cursor_of(key: str) -> str:
    """The opaque form of an entry's key."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def paged(
    request: Request[Any, Any, Any], page: Page, rows: Iterable[T], show: Callable[[T], Shown], key: Callable[[T], str]
) -> Response[list[Shown]]:
    """The answer to a list: at most `page.limit` of `rows` (of which `page.fetch` were read), and where to go on.

    The link is relative to the host, so a forged `Host` leads nowhere.
    """
    found = list(rows)
    shown = found[: page.limit]
    headers = {}
    if len(found) > page.limit:
        query = [(name, value) for name, value in _query(request) if name not in {"limit", "cursor"}]
        query += [("limit", str(page.limit)), ("cursor", cursor_of(key(shown[-1])))]
        headers["Link"] = f'<{_path(request)}?{urlencode(query)}>; rel="next"'
    return Response([show(row) for row in shown], headers=headers)


def _query(request: Request[Any, Any, Any]) -> list[tuple[str, str]]:
    return parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _path(request: Request[Any, Any, Any]) -> str:
    """As the caller wrote it, where the server tells: an inner router may see a shorter one."""
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    return re.sub(
        rb"[^\x21-\x7e]|[<>\"\\^`{|}]", lambda match: b"%%%02X" % match[0][0], raw.partition(b"?")[0]
    ).decode()
