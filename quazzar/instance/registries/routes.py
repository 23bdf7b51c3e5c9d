"""Private registries over HTTP."""

from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import principal_of, requires, reserved
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, patch, post
from quazzar.instance.registries.schemas import RegistryCreate, RegistryOut, RegistryUpdate
from quazzar.instance.registries.service import REGISTRY_ID, RegistryService

RegistryRequest = Request[Any, Any, State]
RegistryId = FromPath[
    Annotated[str, Meta(description="Id of a registry.", examples=["reg_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
]


async def provide_registries(request: RegistryRequest, session: NamedDependency[AsyncSession]) -> RegistryService:
    return RegistryService(session, principal_of(request), request.app.state.keyring)


class RegistryController(Controller):
    path = "/registries"
    tags = ("Registries",)
    dependencies = {"registries": Provide(provide_registries)}

    @get(guards=[requires("settings:read")], operation_id="ListRegistries", summary="All private registries")
    async def list_registries(
        self,
        request: RegistryRequest,
        registries: NamedDependency[RegistryService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[RegistryOut]]:
        """Newest first, without passwords."""
        page = page_of(limit, cursor, key=REGISTRY_ID.pattern)
        return paged(request, page, await registries.find(page), RegistryOut.of, lambda row: str(row.id))

    @post(guards=[reserved("settings:write")], operation_id="CreateRegistry", summary="Add a private registry")
    async def create_registry(
        self, registries: NamedDependency[RegistryService], data: JSONBody[RegistryCreate]
    ) -> Response[RegistryOut]:
        """From now on every pull of an image whose name begins with `host` logs in. The password is kept sealed and is
        never shown again; it is not tried before the first pull.
        """
        made = RegistryOut.of(await registries.create(data))
        return Response(made, headers={"Location": f"/api/registries/{made.id}"})

    @get("/{registry_id:str}", guards=[requires("settings:read")], operation_id="GetRegistry", summary="One registry")
    async def get_registry(self, registries: NamedDependency[RegistryService], registry_id: RegistryId) -> RegistryOut:
        return RegistryOut.of(await registries.get(registry_id))

    @patch(
        "/{registry_id:str}",
        guards=[reserved("settings:write")],
        operation_id="UpdateRegistry",
        summary="Change the login of a registry",
    )
    async def update_registry(
        self, registries: NamedDependency[RegistryService], registry_id: RegistryId, data: JSONBody[RegistryUpdate]
    ) -> RegistryOut:
        """Fields that are left out stay. Pulls that run go on with the login that they began with."""
        return RegistryOut.of(await registries.update(registry_id, data))

    @delete(
        "/{registry_id:str}",
        guards=[reserved("settings:write")],
        operation_id="DeleteRegistry",
        summary="Forget a registry's login",
    )
    async def delete_registry(self, registries: NamedDependency[RegistryService], registry_id: RegistryId) -> None:
        """Apps whose images are there run on; their next pull has no login."""
        await registries.delete(registry_id)
