"""Endpoints of tenants."""

from collections.abc import Sequence

from litestar import Controller, Response
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.routes import AnyRequest, accounts_of
from quazzar.core.auth import account, principal_of, requires, requires_login
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, patch, post
from quazzar.panel.tenants.schemas import OwnTenantOut, TenantCreate, TenantOut, TenantUpdate
from quazzar.panel.tenants.service import OwnTenantService

TENANT_ID = r"ten_[a-z2-7]{26}"


def provide_tenants(request: AnyRequest, session: NamedDependency[AsyncSession]) -> OwnTenantService:
    return OwnTenantService(session, accounts_of(request), principal_of(request))


class TenantController(Controller):
    path = "/tenants"
    tags: Sequence[str] | None = ("Tenants",)
    dependencies = {
        "tenants": Provide(provide_tenants, sync_to_thread=False),
    }

    @get(guards=[account()], operation_id="ListTenants", summary="List the tenants that the caller may work in")
    async def list_tenants(
        self,
        request: AnyRequest,
        tenants: NamedDependency[OwnTenantService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[OwnTenantOut]]:
        """Those that they belong to, and the clients of the current one that they may enter; newest first. `current`
        marks the one that this session works in; `auth/switch-tenant` changes it.
        """
        page, current = page_of(limit, cursor, key=TENANT_ID), principal_of(request).tenant_id
        rows = await tenants.find(page)
        return paged(
            request, page, rows, lambda row: OwnTenantOut.of(row, role=row.role, current=row.id == current), _key
        )

    @post(guards=[account()], operation_id="CreateTenant", summary="Make a tenant")
    async def create_tenant(
        self, tenants: NamedDependency[OwnTenantService], data: JSONBody[TenantCreate], request: AnyRequest
    ) -> Response[OwnTenantOut]:
        """The caller owns it. One of the kind `client` lies below the current one, which must be an `msp`, and needs
        the permission `clients:write`. 409 `tenant_limit`, `not_an_msp`.
        """
        made = await tenants.create(data)
        return Response(made, headers={"Location": f"{request.scope['path']}/{made.id}"})

    @get("/{tenant_id:str}", guards=[account()], operation_id="GetTenant", summary="One tenant")
    async def get_tenant(
        self, request: AnyRequest, tenants: NamedDependency[OwnTenantService], tenant_id: FromPath[str]
    ) -> OwnTenantOut:
        """One of those that the caller may work in."""
        row, current = await tenants.get(tenant_id), principal_of(request).tenant_id
        return OwnTenantOut.of(row, role=row.role, current=row.id == current)

    @patch(
        "/{tenant_id:str}",
        guards=[requires("tenant:write")],
        operation_id="UpdateTenant",
        summary="Change a tenant",
    )
    async def update_tenant(
        self, tenants: NamedDependency[OwnTenantService], tenant_id: FromPath[str], data: JSONBody[TenantUpdate]
    ) -> TenantOut:
        """The current one, a client of it, or another that the caller belongs to (a login, not a key), with the
        permission there as well. What is left out stays as it is. What the parent's members may do in a client is for
        the client's own members to say, in it: 403 `parent_access_foreign` for others. When it changes, invitations and
        registration tokens that the parent's members have made for the client are taken back.
        """
        return await tenants.update(tenant_id, data)

    @delete(
        "/{tenant_id:str}",
        guards=[requires_login("tenant:delete")],
        operation_id="DeleteTenant",
        summary="Delete a tenant",
    )
    async def delete_tenant(self, tenants: NamedDependency[OwnTenantService], tenant_id: FromPath[str]) -> None:
        """The current one, a client of it, or another that the caller belongs to, with the permission there as well. It
        goes with its members, roles, keys and webhooks, for good; the audit log stays. 409 `tenant_has_clients`,
        `tenant_in_use`.
        """
        await tenants.delete(tenant_id)


def _key(row: object) -> str:
    return str(getattr(row, "id"))  # noqa: B009 - rows have no type


handlers: list[ControllerRouterHandler] = [TenantController]
