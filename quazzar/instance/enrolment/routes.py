"""The link to a panel over HTTP."""

from typing import Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import requires, reserved
from quazzar.core.routing import delete, get, patch, post
from quazzar.instance.enrolment.schemas import PanelJoin, PanelLinkOut, PanelLinkUpdate, PanelStatus
from quazzar.instance.enrolment.service import PanelLinkService, dial

LinkRequest = Request[Any, Any, State]


async def provide_link(request: LinkRequest, session: NamedDependency[AsyncSession]) -> PanelLinkService:
    state = request.app.state
    return PanelLinkService(session, state.panel_line, state.authenticator)


class PanelLinkController(Controller):
    path = "/panel-link"
    tags = ("Panel",)
    dependencies = {"link": Provide(provide_link)}

    @post(guards=[reserved("*")], operation_id="JoinPanel", summary="Join a panel")
    async def join_panel(
        self, request: LinkRequest, link: NamedDependency[PanelLinkService], data: JSONBody[PanelJoin]
    ) -> Response[PanelLinkOut]:
        """Enrols at the panel that the token names; the line is opened at once and kept. A panel that can't be reached,
        that is another than the token's or that refuses is a 409 with its reason.
        """
        joined = await dial(request.app.state.panel_line, data.token)
        made = await link.create(joined, impersonation=data.impersonation)
        return Response(made, headers={"Location": "/api/panel-link"})

    @get(guards=[requires("settings:read")], operation_id="GetPanelLink", summary="The link to the panel")
    async def get_panel_link(self, link: NamedDependency[PanelLinkService]) -> PanelLinkOut:
        """404 `not_linked` where there is none."""
        return await link.get()

    @patch(guards=[reserved("*")], operation_id="UpdatePanelLink", summary="Change the link to the panel")
    async def update_panel_link(
        self, link: NamedDependency[PanelLinkService], data: JSONBody[PanelLinkUpdate]
    ) -> PanelLinkOut:
        """With `impersonation: false` no user of the panel can open a session on this server, and those that are open
        end at once.
        """
        return await link.update(data)

    @delete(guards=[reserved("*")], operation_id="LeavePanel", summary="Leave the panel")
    async def leave_panel(self, link: NamedDependency[PanelLinkService]) -> None:
        """Apps go on, sessions that were opened from the panel end. The key is kept, so that the same panel knows the
        server again.
        """
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
