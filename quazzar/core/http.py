"""What every request gets: strict bodies, one transaction, and answers that can be given again."""

from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.types import Empty
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.addresses import is_loopback
from quazzar.core.auth import Principal, Realm
from quazzar.core.db import Database
from quazzar.core.idempotency import begin_idempotent
from quazzar.core.records import Caller
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


def is_at_console(request: Request[Any, Any, Any]) -> bool:
    """Whether the caller sits at this machine: a loopback address, and no sign of a proxy that it came by."""
    state = request.scope["state"]
    peer = request.scope.get("client")
    address = state.get("address", "")
    return peer is not None and is_loopback(peer[0]) and is_loopback(address) and not state.get("forwarded", True)


def caller_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
    """On whose behalf this request works, for audit records and events."""
    state = connection.scope["state"]
    principal: Principal | None = state.get("principal")
    realm: Realm = state.get("realm", "instance")
    address, request_id = state.get("address"), state.get("request_id")
    if principal is None:
        return Caller(kind="anonymous", realm=realm, address=address, request_id=request_id)
    if principal.panel_user is not None:
        return Caller(
            kind="panel",
            id=principal.panel_user,
            realm=realm,
            address=address,
            request_id=request_id,
            impersonation=principal.session_id,
        )
    return Caller(
        kind="key" if principal.key_id is not None else "user",
        id=principal.key_id or principal.user_id,
        realm=realm,
        tenant_id=principal.tenant_id,
        address=address,
        request_id=request_id,
    )


async def provide_session(request: Request[Any, Any, State]) -> AsyncSession:
    """The request's one transaction. The handler class commits it once the answer is built, before it is sent; whatever
    else ends the request, the gate rolls it back.

    Not a generator: Litestar closes those only when every dependency was resolved, and an open one would keep its
    connection. Row-level security sees the caller's tenant and user. A POST's `Idempotency-Key` is looked up here.
    """
    database: Database = request.app.state.database
    state = request.scope["state"]
    principal: Principal | None = state.get("principal")
    tenant = principal.tenant_id if principal is not None else None
    user = principal.user_id if principal is not None else None
    transaction = database.begin(tenant=tenant, user=user)
    session = await transaction.__aenter__()
    state["transaction"] = transaction
    session.info["caller"] = caller_of(request)
    state["idempotent"] = await begin_idempotent(request, session, request.app.state.keyring)
    return session
