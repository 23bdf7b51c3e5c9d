"""Endpoints of a tenant's API keys."""

from collections.abc import Sequence

from litestar import Controller, Response
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.api_keys import KEY_ID
from quazzar.accounts.routes import AnyRequest, accounts_of
from quazzar.core.auth import principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, post
from quazzar.panel.keys.schemas import TenantKeyCreate, TenantKeyCreated, TenantKeyOut
from quazzar.panel.keys.service import TenantKeyService


def provide_keys(request: AnyRequest, session: NamedDependency[AsyncSession]) -> TenantKeyService:
    return TenantKeyService(session, accounts_of(request), principal_of(request))


class TenantKeyController(Controller):
    path = "/api-keys"
    tags: Sequence[str] | None = ("API keys",)
    dependencies = {"keys": Provide(provide_keys, sync_to_thread=False)}

    @get(guards=[requires("keys:read")], operation_id="ListApiKeys", summary="List the API keys of the tenant")
    async def list_keys(
        self,
        request: AnyRequest,
        keys: NamedDependency[TenantKeyService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[TenantKeyOut]]:
        """Newest first, without the keys themselves. Who is bound to some instances sees their own alone."""
        page = page_of(limit, cursor, key=KEY_ID)
        return paged(request, page, await keys.find(page), TenantKeyOut.of, lambda row: str(row.id))

    @post(guards=[requires("keys:write")], operation_id="CreateApiKey", summary="Make an API key")
    async def create_key(
        self, request: AnyRequest, keys: NamedDependency[TenantKeyService], data: JSONBody[TenantKeyCreate]
    ) -> Response[TenantKeyCreated]:
        """The key is in this answer and never again. It works in this tenant, for its maker: it may no more than they
        may (403 `scope_exceeded`, and later changes of their role hold for it too), goes when they leave, and can't do
        what needs a login. One that a key makes lives no longer than that key (403 `key_lifetime_exceeded`). A member
        has at most 50 (409 `api_key_limit`).
        """
        made = await keys.create(data)
        return Response(made, headers={"Location": f"{request.scope['path'].rstrip('/')}/{made.id}"})

    @get("/{key_id:str}", guards=[requires("keys:read")], operation_id="GetApiKey", summary="One API key")
    async def get_key(self, keys: NamedDependency[TenantKeyService], key_id: FromPath[str]) -> TenantKeyOut:
        """Without the key itself."""
        return TenantKeyOut.of(await keys.get(key_id))

    @delete("/{key_id:str}", guards=[requires("keys:write")], operation_id="DeleteApiKey", summary="Revoke an API key")
    async def delete_key(self, keys: NamedDependency[TenantKeyService], key_id: FromPath[str]) -> None:
        """It stops at once. One of another member's only by who may all that it may: 403 `scope_exceeded`."""
        await keys.delete(key_id)


handlers: list[ControllerRouterHandler] = [TenantKeyController]
