"""The fleet over HTTP: registration tokens, groups, instances, summary and health."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import principal_of, requires
from quazzar.core.db import Database
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, Page, page_of, paged
from quazzar.core.routing import delete, get, patch, post
from quazzar.panel.fleet.listing import InstanceRow, list_instances
from quazzar.panel.fleet.metrics_routes import MetricsController
from quazzar.panel.fleet.models import InstanceStatus
from quazzar.panel.fleet.process import Fleet
from quazzar.panel.fleet.schemas import (
    GroupCreate,
    GroupOut,
    GroupUpdate,
    HealthOut,
    InstanceOut,
    InstanceUpdate,
    SummaryOut,
    TokenCreate,
    TokenCreated,
    TokenOut,
)
from quazzar.panel.fleet.service import GROUP_ID, INSTANCE_ID, TOKEN_ID, Address, FleetService

FleetRequest = Request[Any, Any, State]
InstanceId = FromPath[
    Annotated[str, Meta(description="Id of an instance.", examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"])]
]
GroupId = FromPath[Annotated[str, Meta(description="Id of a group.", examples=["grp_23oc77vtak2bdwdlqw5ffwpz33"])]]
TokenId = FromPath[
    Annotated[str, Meta(description="Id of a registration token.", examples=["tok_23oc77vtak2bdwdlqw5ffwpz33"])]
]
Statuses = Annotated[
    list[InstanceStatus] | None,
    QueryParameter(name="status", description="Only these; without it all but the revoked ones.", max_items=4),
]
TagFilter = Annotated[
    list[Annotated[str, Meta(max_length=63)]] | None,
    QueryParameter(name="tag", description="Only those that have all of these tags.", max_items=20),
]
GroupFilter = Annotated[
    str | None, QueryParameter(name="group", description="Only those of this group and the groups below it.")
]
VersionFilter = Annotated[str | None, QueryParameter(name="version", max_length=100, description="Only this version.")]
Words = Annotated[
    str | None, QueryParameter(max_length=200, description="Only those whose name, host name or address holds this.")
]


async def provide_fleet(request: FleetRequest, session: NamedDependency[AsyncSession]) -> FleetService:
    return FleetService(session, principal_of(request))


async def provide_address(request: FleetRequest) -> Address:
    """Where instances dial; before the request's transaction begins, since it may have to make the CA."""
    fleet: Fleet = request.app.state.fleet
    return await fleet.address()


def shown(request: FleetRequest, page: Page, rows: Sequence[InstanceRow]) -> Response[list[InstanceOut]]:
    """Rows are as they are shown already."""
    return cast("Response[list[InstanceOut]]", paged(request, page, rows, lambda row: row, lambda row: row.id))


class TokenController(Controller):
    path = "/fleet/tokens"
    tags = ("Fleet",)
    dependencies = {"fleet": Provide(provide_fleet)}

    @post(
        guards=[requires("fleet:write")],
        operation_id="CreateRegistrationToken",
        summary="Make a registration token",
        dependencies={"address": Provide(provide_address)},
    )
    async def create_token(
        self,
        request: FleetRequest,
        fleet: NamedDependency[FleetService],
        address: NamedDependency[Address],
        data: JSONBody[TokenCreate],
    ) -> Response[TokenCreated]:
        """The token is one string that names the panel's agent address and the fingerprint of its CA. Give it to
        `POST /api/panel-link` of a server, or to its start by `panel.token`. It is shown this once.

        With `tenant_id` for a client of the tenant, where it is listed from then on. 404 `tenant_not_found`.
        """
        made = await fleet.create_token(data, address)
        return Response(made, headers={"Location": f"{request.scope['path'].rstrip('/')}/{made.id}"})

    @get(guards=[requires("fleet:write")], operation_id="ListRegistrationTokens", summary="All registration tokens")
    async def list_tokens(
        self,
        request: FleetRequest,
        fleet: NamedDependency[FleetService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[TokenOut]]:
        """Newest first, used up and expired ones too, without the tokens themselves."""
        page = page_of(limit, cursor, key=TOKEN_ID.pattern)
        return paged(request, page, await fleet.find_tokens(page), TokenOut.of, lambda row: str(row.id))

    @get(
        "/{token_id:str}",
        guards=[requires("fleet:write")],
        operation_id="GetRegistrationToken",
        summary="One registration token",
    )
    async def get_token(self, fleet: NamedDependency[FleetService], token_id: TokenId) -> TokenOut:
        """How often it was used, without the token itself."""
        return TokenOut.of(await fleet.get_token(token_id))

    @delete(
        "/{token_id:str}",
        guards=[requires("fleet:write")],
        operation_id="DeleteRegistrationToken",
        summary="Take a registration token back",
    )
    async def delete_token(self, fleet: NamedDependency[FleetService], token_id: TokenId) -> None:
        """Nobody can join by it any more; servers that have joined stay."""
        await fleet.delete_token(token_id)


class GroupController(Controller):
    path = "/fleet/groups"
    tags = ("Fleet",)
    dependencies = {"fleet": Provide(provide_fleet)}

    @get(guards=[requires("fleet:read")], operation_id="ListGroups", summary="All groups")
    async def list_groups(
        self,
        request: FleetRequest,
        fleet: NamedDependency[FleetService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[GroupOut]]:
        """Newest first; `parent_id` makes the tree."""
        page = page_of(limit, cursor, key=GROUP_ID.pattern)
        return paged(request, page, await fleet.find_groups(page), GroupOut.of, lambda row: str(row.id))

    @post(guards=[requires("fleet:write")], operation_id="CreateGroup", summary="Make a group")
    async def create_group(
        self, request: FleetRequest, fleet: NamedDependency[FleetService], data: JSONBody[GroupCreate]
    ) -> Response[GroupOut]:
        """Groups nest up to ten deep; names are unique in the tenant."""
        made = GroupOut.of(await fleet.create_group(data))
        return Response(made, headers={"Location": f"{request.scope['path'].rstrip('/')}/{made.id}"})

    @get("/{group_id:str}", guards=[requires("fleet:read")], operation_id="GetGroup", summary="One group")
    async def get_group(self, fleet: NamedDependency[FleetService], group_id: GroupId) -> GroupOut:
        return GroupOut.of(await fleet.get_group(group_id))

    @patch("/{group_id:str}", guards=[requires("fleet:write")], operation_id="UpdateGroup", summary="Change a group")
    async def update_group(
        self, fleet: NamedDependency[FleetService], group_id: GroupId, data: JSONBody[GroupUpdate]
    ) -> GroupOut:
        """A group can't be moved below itself (409 `group_cycle`)."""
        return GroupOut.of(await fleet.update_group(group_id, data))

    @delete("/{group_id:str}", guards=[requires("fleet:write")], operation_id="DeleteGroup", summary="Remove a group")
    async def delete_group(self, fleet: NamedDependency[FleetService], group_id: GroupId) -> None:
        """Its instances stay, without a group. One with groups below it is 409 `group_not_empty`."""
        await fleet.delete_group(group_id)


class InstanceController(Controller):
    path = "/fleet"
    tags = ("Fleet",)
    dependencies = {"fleet": Provide(provide_fleet)}

    @get("/instances", guards=[requires("fleet:read")], operation_id="ListInstances", summary="All instances")
    async def list_instances(
        self,
        request: FleetRequest,
        status: Statuses = None,
        tag: TagFilter = None,
        group: GroupFilter = None,
        version: VersionFilter = None,
        q: Words = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[InstanceOut]]:
        """Newest first. `status` and `tag` may be given several times."""
        page, me = page_of(limit, cursor, key=INSTANCE_ID.pattern), principal_of(request)
        database: Database = request.app.state.database
        return shown(
            request,
            page,
            await list_instances(database, me, page, statuses=status, tags=tag, group=group, version=version, q=q),
        )

    @get(
        "/instances/{instance_id:str}",
        guards=[requires("fleet:read")],
        operation_id="GetInstance",
        summary="One instance",
    )
    async def get_instance(self, fleet: NamedDependency[FleetService], instance_id: InstanceId) -> InstanceOut:
        return InstanceOut.of(await fleet.get(instance_id))

    @patch(
        "/instances/{instance_id:str}",
        guards=[requires("fleet:write")],
        operation_id="UpdateInstance",
        summary="Rename, tag or group an instance",
    )
    async def update_instance(
        self, fleet: NamedDependency[FleetService], instance_id: InstanceId, data: JSONBody[InstanceUpdate]
    ) -> InstanceOut:
        return InstanceOut.of(await fleet.update(instance_id, data))

    @delete(
        "/instances/{instance_id:str}",
        guards=[requires("fleet:write")],
        operation_id="DeleteInstance",
        summary="Revoke an instance",
    )
    async def delete_instance(self, fleet: NamedDependency[FleetService], instance_id: InstanceId) -> None:
        """Its certificate counts no more and its line is cut within seconds; what was queued for it is cancelled. It
        stays to be seen with the status `revoked`; deleting it once more forgets it.
        """
        await fleet.delete(instance_id)

    @get("/summary", guards=[requires("fleet:read")], operation_id="GetFleetSummary", summary="The fleet in numbers")
    async def get_summary(self, fleet: NamedDependency[FleetService]) -> SummaryOut:
        """Totals by status and version, capacity and use, what is wrong, and whose backups are old."""
        return await fleet.summary()

    @get("/health", guards=[requires("fleet:read")], operation_id="GetFleetHealth", summary="Health of the instances")
    async def get_health(
        self,
        request: FleetRequest,
        fleet: NamedDependency[FleetService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[HealthOut]]:
        """For each instance its score and every check that fails, with the reason."""
        page = page_of(limit, cursor, key=INSTANCE_ID.pattern)
        return paged(request, page, await fleet.find(page), HealthOut.of, lambda row: str(row.id))


handlers: list[ControllerRouterHandler] = [TokenController, GroupController, InstanceController, MetricsController]
