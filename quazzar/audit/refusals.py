"""Refused calls leave a record: who asked for a change that they may not make.

A refusal has no transaction that it could be part of, so it gets one of its own. A client that is refused again and
again writes a few records a minute, and the next one says how many were left out.
"""

import re
import time
from typing import Any, Final

import structlog
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.types import Scope

from quazzar.core.addresses import rate_key
from quazzar.core.errors import Forbidden
from quazzar.core.http import caller_of
from quazzar.core.records import audit

log = structlog.get_logger(__name__)

PER_MINUTE: Final = 10
"""Records of one client."""
MOST_PER_MINUTE: Final = 300
"""Records of all clients together."""
_MOST_CLIENTS: Final = 10_000
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_ID: Final = re.compile(r"[a-z]{2,5}_[a-z2-7]{20,30}")


class Refusals:
    """Counts what is recorded. One per process."""

    def __init__(self) -> None:
        self._minute = -1
        self._total = 0
        self._counts: dict[str, int] = {}
        self._left_out: dict[str, int] = {}

    def count(self, client: str, now: float) -> int | None:
        """How many of the client's refusals were left out before this one; None when this one is to be left out."""
        minute = int(now // 60)
        if minute != self._minute:
            self._minute, self._total, self._counts = minute, 0, {}
        if len(self._left_out) > _MOST_CLIENTS:
            self._left_out.clear()
        count = self._counts.get(client, 0)
        if count >= PER_MINUTE or self._total >= MOST_PER_MINUTE:
            self._left_out[client] = self._left_out.get(client, 0) + 1
            return None
        self._counts[client] = count + 1
        self._total += 1
        return self._left_out.pop(client, 0)

    async def record(self, error: Exception, scope: Scope) -> None:
        """For `Litestar(after_exception=[…])`: a 403 on a call that would change something becomes a record."""
        if not isinstance(error, Forbidden) or scope["type"] != ScopeType.HTTP or scope["method"] in _READS:
            return
        connection: ASGIConnection[Any, Any, Any, Any] = ASGIConnection(scope)
        state = connection.scope["state"]
        principal = state.get("principal")
        client = principal.client if principal is not None else rate_key(state.get("address") or "-")
        left_out = self.count(client, time.time())
        if left_out is None:
            return
        caller = caller_of(connection)
        asked = {"operation": getattr(scope["route_handler"], "operation_id", None), "code": error.code}
        try:
            async with scope["litestar_app"].state.database.begin(tenant=caller.tenant_id) as session:
                session.info["caller"] = caller
                more = {"left_out": left_out} if left_out else {}
                audit(session, "call.refuse", subject=_subject(scope), after=asked | more, outcome="refused")
        except Exception as failure:  # noqa: BLE001 - the call is refused all the same
            log.warning("audit.refusal_not_recorded", error=type(failure).__name__)


def _subject(scope: Scope) -> str | None:
    """The id in the path, when it has the form of one of ours: nothing that a caller made up gets into the log."""
    values = [str(value) for value in (scope.get("path_params") or {}).values()]
    return next((value for value in values if _ID.fullmatch(value)), None)
