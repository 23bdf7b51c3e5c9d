"""What the shared account machinery asks of the panel about tenants."""

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.store import Person
from quazzar.accounts.tenancy import Standing
from quazzar.panel.accounts.schemas import PanelMeOut, PanelUserOut
from quazzar.panel.tenants.permissions import permissions_of
from quazzar.panel.tenants.schemas import TenantOut
from quazzar.panel.tenants.service import TenantService


class PanelTenancy:
    """See `Tenancy`."""

    async def home(self, session: AsyncSession, user_id: str) -> str | None:
        return await TenantService(session).home_of(user_id)

    async def standing(self, session: AsyncSession, tenant_id: str, person: Person) -> Standing | None:
        row = await TenantService(session).standing(tenant_id, person.id)
        if row is None:
            return None
        permissions = permissions_of(row.role)
        profile = PanelMeOut(
            user=PanelUserOut.of(person),
            tenant=TenantOut(id=row.id, name=row.name, created_at=row.created_at),
            role=row.role,
            permissions=sorted(permissions),
        )
        return Standing(row.role, permissions, profile)
