"""What every request gets: strict bodies, one transaction, and answers that can be given again."""

from collections.abc import AsyncGenerator
from typing import Any

from litestar import Request
from litestar.datastructures import State
from litestar.types import Empty
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.db import Database
from quazzar.core.idempotency import begin_idempotent
from quazzar.core.schema import decode_body


class JsonRequest(Request[Any, Any, State]):
    """A request whose body is decoded strictly into the type that the handler declares for `data`."""

    async def json(self) -> Any:
        field = self.route_handler.parsed_data_field
        if field is None:
            return await super().json()
        if self._json is Empty:
            self._json = decode_body(await self.body(), field.annotation)
        return self._json


async def provide_session(request: Request[Any, Any, State]) -> AsyncGenerator[AsyncSession, None]:
    """The request's one transaction, committed after the answer is built and before it is sent.

    Row-level security sees the caller's tenant and user. A POST with an `Idempotency-Key` is looked up here.
    """
    database: Database = request.app.state.database
    principal: Principal | None = request.scope["state"].get("principal")
    tenant = principal.tenant_id if principal is not None else None
    user = principal.user_id if principal is not None else None
    async with database.begin(tenant=tenant, user=user) as session:
        request.scope["state"]["idempotent"] = await begin_idempotent(request, session, request.app.state.keyring)
        yield session
