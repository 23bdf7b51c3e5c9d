"""Endpoints of roles."""

from collections.abc import Sequence

from litestar import Controller, Response
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.routes import AnyRequest, accounts_of
from quazzar.core.auth import principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, patch, post
from quazzar.panel.roles.schemas import RoleCreate, RoleOut, RoleUpdate
from quazzar.panel.roles.service import RoleService


def provide_roles(request: AnyRequest, session: NamedDependency[AsyncSession]) -> RoleService:
    return RoleService(session, accounts_of(request), principal_of(request))


class RoleController(Controller):
    path = "/roles"
    tags: Sequence[str] | None = ("Members",)
    dependencies = {"roles": Provide(provide_roles, sync_to_thread=False)}

    @get(guards=[requires("roles:read")], operation_id="ListRoles", summary="List the roles of the tenant")
    async def list_roles(
        self,
        request: AnyRequest,
        roles: NamedDependency[RoleService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[RoleOut]]:
        """Own ones, newest first, and after them the built-in ones, whose ids are their names."""
        page = page_of(limit, cursor, key=r"[a-z]{3,10}(?:_[a-z2-7]{26})?")
        return paged(request, page, await roles.find(page), lambda role: role, lambda role: role.id)

    @post(guards=[requires("roles:write")], operation_id="CreateRole", summary="Make a role from permissions")
    async def create_role(
        self, request: AnyRequest, roles: NamedDependency[RoleService], data: JSONBody[RoleCreate]
    ) -> Response[RoleOut]:
        """Of no more permissions than the caller has: 403 `scope_exceeded`. 409 `role_name_taken`, `role_limit`."""
        made = await roles.create(data)
        return Response(made, headers={"Location": f"{request.scope['path']}/{made.id}"})

    @get("/{role_id:str}", guards=[requires("roles:read")], operation_id="GetRole", summary="One role")
    async def get_role(self, roles: NamedDependency[RoleService], role_id: FromPath[str]) -> RoleOut:
        return await roles.get(role_id)

    @patch("/{role_id:str}", guards=[requires("roles:write")], operation_id="UpdateRole", summary="Change an own role")
    async def update_role(
        self, roles: NamedDependency[RoleService], role_id: FromPath[str], data: JSONBody[RoleUpdate]
    ) -> RoleOut:
        """What is left out stays as it is. It holds for the next call of everyone who has the role."""
        return await roles.update(role_id, data)

    @delete("/{role_id:str}", guards=[requires("roles:write")], operation_id="DeleteRole", summary="Delete an own role")
    async def delete_role(self, roles: NamedDependency[RoleService], role_id: FromPath[str]) -> None:
        """409 `role_in_use` while somebody has it."""
        await roles.delete(role_id)


handlers: list[ControllerRouterHandler] = [RoleController]
