"""What the shared account machinery asks of the panel about tenants."""

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.store import Person
from quazzar.accounts.tenancy import Standing
from quazzar.core.auth import Principal
from quazzar.panel.accounts.schemas import PanelMeOut, PanelUserOut
from quazzar.panel.tenants.schemas import TenantOut
from quazzar.panel.tenants.service import TenantService


class PanelTenancy:
    """See `Tenancy`."""

    async def home(self, session: AsyncSession, user_id: str) -> str | None:
        return await TenantService(session).home_of(user_id)

    async def standing(self, session: AsyncSession, tenant_id: str, person: Person) -> Standing | None:
        place = await TenantService(session).place(tenant_id, person.id)
        if place is None:
            return None
        profile = PanelMeOut(
            user=PanelUserOut.of(person),
            tenant=TenantOut.of(place.tenant),
            role=place.role,
            permissions=sorted(place.permissions),
        )
        return Standing(place.role, place.permissions, profile, place.resources)

    async def enter(self, session: AsyncSession, principal: Principal, tenant_id: str) -> None:
        await TenantService(session).enter(principal, tenant_id)
