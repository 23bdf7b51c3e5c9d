"""Asking for a session on an instance."""

from litestar import Controller
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody
from litestar.types import ControllerRouterHandler

from quazzar.accounts.routes import provide_logins
from quazzar.core.auth import principal_of, requires_login
from quazzar.core.http import caller_of
from quazzar.core.routing import post
from quazzar.panel.fleet.routes import FleetRequest, InstanceId
from quazzar.panel.impersonations.schemas import Impersonate, ImpersonationTicket
from quazzar.panel.impersonations.service import ImpersonationService


def provide_impersonations(request: FleetRequest) -> ImpersonationService:
    logins = provide_logins(request)
    return ImpersonationService(request.app.state.fleet, logins, caller_of(request), principal_of(request))


class ImpersonationController(Controller):
    path = "/fleet/instances/{instance_id:str}/impersonate"
    tags = ("Fleet",)
    dependencies = {"impersonations": Provide(provide_impersonations, sync_to_thread=False)}

    @post(
        status_code=200,
        guards=[requires_login("fleet:impersonate")],
        operation_id="ImpersonateInstance",
        summary="Get into an instance as its admin",
    )
    async def impersonate(
        self,
        impersonations: NamedDependency[ImpersonationService],
        instance_id: InstanceId,
        data: JSONBody[Impersonate],
    ) -> ImpersonationTicket:
        """Open `url` in the caller's browser within a minute: it gives a session of 15 minutes on the instance, without
        what is reserved to the instance's own people. Both audit logs say who, why, and what was done.

        Needs a second factor: `code`, or one that this session has shown within the last five minutes (403
        `totp_required`, `totp_code_wrong`; `totp_setup_required` for an account without one). 409
        `instance_url_unknown` where the instance has no `server.public_url`, `instance_revoked` for a revoked one.
        """
        return await impersonations.create(instance_id, data)


handlers: list[ControllerRouterHandler] = [ImpersonationController]
