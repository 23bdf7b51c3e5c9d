"""Liveness and readiness, without login and outside the rate limits."""

from typing import Any

from litestar import Request

from quazzar.core.db import Database
from quazzar.core.errors import Unavailable
from quazzar.core.routing import Endpoint, get
from quazzar.core.schema import Out


class Health(Out):
    status: str


@get("/health", operation_id="GetHealth", summary="Is the process up?", tags=["Health"], sync_to_thread=False)
def get_health() -> Health:
    """Answers as soon as the process serves; says nothing about the database."""
    return Health(status="ok")


@get("/ready", operation_id="GetReadiness", summary="Can the process work?", tags=["Health"])
async def get_readiness(request: Request[Any, Any, Any]) -> Health:
    """503 with the reason while the process drains, the database is away or its schema is not the current one."""
    await check_ready(request.app.state)
    return Health(status="ready")


async def check_ready(state: Any) -> None:
    """Raises `Unavailable` with the reason when this process can't do its work now."""
    if state.draining:
        raise Unavailable("The process is shutting down", code="draining")
    database: Database = state.database
    schema = await database.schema_state()
    if not schema.is_current:
        raise Unavailable("The database schema is not current; run `quazzar migrate`", code="schema_outdated")


handlers: list[Endpoint] = [get_health, get_readiness]
