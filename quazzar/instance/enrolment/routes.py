"""The link to a panel over HTTP."""

from typing import Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import requires
from quazzar.core.routing import delete, get, post
from quazzar.instance.enrolment.schemas import PanelJoin, PanelLinkOut, PanelStatus
from quazzar.instance.enrolment.service import PanelLinkService, dial

LinkRequest = Request[Any, Any, State]


async def provide_link(request: LinkRequest, session: NamedDependency[AsyncSession]) -> PanelLinkService:
    return PanelLinkService(session, request.app.state.panel_line)


class PanelLinkController(Controller):
    path = "/panel-link"
    tags = ("Panel",)
    dependencies = {"link": Provide(provide_link)}

    @post(guards=[requires("settings:write")], operation_id="JoinPanel", summary="Join a panel")
    async def join_panel(
        self, request: LinkRequest, link: NamedDependency[PanelLinkService], data: JSONBody[PanelJoin]
    ) -> Response[PanelLinkOut]:
        """Enrols at the panel that the token names; the line is opened at once and kept. A panel that can't be reached,
        that is another than the token's or that refuses is a 409 with its reason.
        """
        made = await link.create(await dial(request.app.state.panel_line, data.token))
        return Response(made, headers={"Location": "/api/panel-link"})

    @get(guards=[requires("settings:read")], operation_id="GetPanelLink", summary="The link to the panel")
    async def get_panel_link(self, link: NamedDependency[PanelLinkService]) -> PanelLinkOut:
        """404 `not_linked` where there is none."""
        return await link.get()

    @delete(guards=[requires("settings:write")], operation_id="LeavePanel", summary="Leave the panel")
    async def leave_panel(self, link: NamedDependency[PanelLinkService]) -> None:
        """Apps go on. The key is kept, so that the same panel knows the server again."""
        await link.delete()


class PanelStatusController(Controller):
    path = "/auth/cp-status"
    tags = ("Panel",)
    dependencies = {"link": Provide(provide_link)}

    @get(operation_id="GetPanelStatus", summary="Whether there is a line to a panel")
    async def get_panel_status(self, link: NamedDependency[PanelLinkService]) -> PanelStatus:
        """Needs no login."""
        return await link.status()


handlers: list[ControllerRouterHandler] = [PanelLinkController, PanelStatusController]
