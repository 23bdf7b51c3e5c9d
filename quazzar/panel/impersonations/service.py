"""The rules of tokens for sessions on instances: who gets one, and that it is known why."""

from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.login import LoginService
from quazzar.core.auth import Principal
from quazzar.core.ids import new_id
from quazzar.core.records import Caller, audit, publish
from quazzar.link.impersonation import MOST_REASON, new_impersonation
from quazzar.panel.accounts.schemas import PanelMeOut
from quazzar.panel.fleet.process import Fleet
from quazzar.panel.fleet.service import FleetService
from quazzar.panel.fleet.store import Found
from quazzar.panel.impersonations import store
from quazzar.panel.impersonations.errors import InstanceGone, InstanceUrlUnknown
from quazzar.panel.impersonations.events import InstanceImpersonated
from quazzar.panel.impersonations.schemas import Impersonate, ImpersonationTicket

PATH: Final = "/api/cp/session"


class ImpersonationService:
    """One per request. Works in transactions of its own: a guess at a code is counted whatever becomes of the call."""

    def __init__(self, fleet: Fleet, logins: LoginService, caller: Caller, principal: Principal) -> None:
        assert principal.tenant_id is not None
        self._fleet = fleet
        self._logins = logins
        self._caller = caller
        self._principal = principal
        self._tenant = principal.tenant_id

    async def create(self, instance_id: str, data: Impersonate) -> ImpersonationTicket:
        """A token of a minute, and the address to take it to.

        Raises `InstanceNotFound`, `InstanceGone`, `InstanceUrlUnknown`, and what `LoginService.step_up` does.
        """
        authority = await self._fleet.authority()
        me = self._principal
        async with self._fleet.database.begin(tenant=self._tenant, user=me.user_id) as session:
            # Before a code is used up for nothing.
            await self._find(session, instance_id)
        await self._logins.step_up(me, data.code)
        async with self._fleet.database.begin(tenant=self._tenant, user=me.user_id) as session:
            session.info["caller"] = self._caller
            instance = await self._find(session, instance_id)
            profile: PanelMeOut = me.profile
            claims = new_impersonation(
                impersonation_id=new_id("imp"),
                instance_id=instance_id,
                tenant_id=self._tenant,
                user_id=me.user_id,
                name=_name(profile),
                reason=data.reason,
            )
            await store.forget_old(session, self._tenant)
            await store.add_impersonation(
                session,
                self._tenant,
                id=claims.jti,
                instance_id=instance_id,
                user_id=me.user_id,
                reason=data.reason,
            )
            after = {"impersonation_id": claims.jti, "name": instance.name, "reason": data.reason}
            audit(session, "impersonation.create", subject=instance_id, after=after)
            made = InstanceImpersonated(
                instance_id=instance_id, impersonation_id=claims.jti, user_id=me.user_id, reason=data.reason
            )
            publish(session, made, subject=instance_id)
        token = authority.sign_impersonation(claims)
        return ImpersonationTicket(
            url=f"{instance.url.rstrip('/')}{PATH}?{urlencode({'token': token})}",
            token=token,
            expires_at=datetime.fromtimestamp(claims.exp, UTC),
        )

    async def _find(self, session: AsyncSession, instance_id: str) -> Found:
        instance = await FleetService(session, self._principal).get(instance_id)
        if instance.status == "revoked":
            raise InstanceGone
        if instance.url is None:
            raise InstanceUrlUnknown
        return instance


def _name(profile: PanelMeOut) -> str:
    """How admins of the instance see who it was. The address is whole and comes last, whatever somebody calls
    themselves, and nothing in a name turns the direction of what is read.
    """
    address = f" <{profile.user.email}>"
    plain = "".join(letter if letter.isprintable() else " " for letter in profile.user.name)
    return plain[: MOST_REASON - len(address)] + address
