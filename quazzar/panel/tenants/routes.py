"""Endpoints of tenants."""

from collections.abc import Sequence

from litestar import Controller
from litestar.di import NamedDependency, Provide
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.routes import AnyRequest
from quazzar.core.auth import account, principal_of
from quazzar.core.routing import get
from quazzar.panel.tenants.schemas import OwnTenantOut
from quazzar.panel.tenants.service import TenantService


def provide_tenants(session: NamedDependency[AsyncSession]) -> TenantService:
    return TenantService(session)


class TenantController(Controller):
    path = "/tenants"
    tags: Sequence[str] | None = ("Tenants",)
    dependencies = {
        "tenants": Provide(provide_tenants, sync_to_thread=False),
    }

    @get(guards=[account()], operation_id="ListTenants", summary="List the tenants that the caller belongs to")
    async def list_tenants(self, request: AnyRequest, tenants: NamedDependency[TenantService]) -> list[OwnTenantOut]:
        """Newest first; `current` marks the one that this session works in."""
        me = principal_of(request)
        rows = await tenants.find_own(me.user_id)
        return [OwnTenantOut(**row._asdict(), current=row.id == me.tenant_id) for row in rows]


handlers: list[ControllerRouterHandler] = [TenantController]
