"""From a panel's token to a session on this instance."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal, refuse_guests
from quazzar.core.cookies import session_cookie
from quazzar.core.ids import new_id
from quazzar.core.jobs import enqueue
from quazzar.core.records import Caller, audit, publish
from quazzar.core.tokens import new_opaque, opaque_digest
from quazzar.instance.enrolment.line import Line
from quazzar.instance.enrolment.store import get_link
from quazzar.instance.impersonation import store
from quazzar.instance.impersonation.errors import (
    ImpersonationRefused,
    ImpersonationTokenExpired,
    ImpersonationTokenRefused,
    ImpersonationTokenUsed,
)
from quazzar.instance.impersonation.events import ImpersonationStarted
from quazzar.instance.impersonation.guests import COOKIE_PREFIX
from quazzar.instance.impersonation.jobs import end_impersonation
from quazzar.link.impersonation import Impersonation, TokenOver, TokenRefused, open_impersonation
from quazzar.settings import Settings

LIFE: Final = timedelta(minutes=15)


class ImpersonationService:
    """One per request. Works in transactions of its own: a refusal must leave its trace."""

    def __init__(
        self, line: Line, settings: Settings, caller: Caller, principal: Principal | None, *, user_agent: str
    ) -> None:
        self._line = line
        self._database = line.database
        self._settings = settings
        self._caller = caller
        self._principal = principal
        self._user_agent = user_agent

    async def open(self, token: str) -> str:
        """The `Set-Cookie` of a session of 15 minutes, for which the token is used up.

        Raises `ImpersonationTokenRefused`, `ImpersonationTokenExpired`, `ImpersonationTokenUsed`,
        `ImpersonationRefused`, and `Forbidden` within such a session: there is none inside another.
        """
        if self._principal is not None:
            refuse_guests(self._principal)
        async with self._database.begin() as session:
            claims = self._read(token, await get_link(session))
        cookie = new_opaque(COOKIE_PREFIX)
        async with self._database.begin() as session:
            # Locked, so that a switch that is turned off, or a link that is ended, ends this session as well.
            link = await get_link(session, lock=True)
            refusal = await self._begin(session, link, claims, cookie)
        if refusal is not None:
            raise refusal
        https = (self._settings.server.public_url or "").startswith("https://")
        return session_cookie(cookie, seconds=int(LIFE.total_seconds()), secure=https)

    def _read(self, token: str, link: Any) -> Impersonation:
        """What the panel of this link says. Raises `ImpersonationTokenRefused`, `ImpersonationTokenExpired`."""
        if link is None or link.left_at is not None:
            raise ImpersonationTokenRefused
        now = self._line.clock.now()
        try:
            claims = open_impersonation(token, link.signing_key, instance_id=link.instance_id, now=now)
        except TokenOver:
            raise ImpersonationTokenExpired from None
        except TokenRefused:
            raise ImpersonationTokenRefused from None
        from quazzar.instance.enrolment import keys  # noqa: PLC0415 - see there

        # One key signs for all tenants of a panel: it is the certificate that says whose this server is.
        if claims.tid != keys.tenant_of(link.certificate):
            raise ImpersonationTokenRefused
        return claims

    async def _begin(
        self, session: AsyncSession, link: Any, claims: Impersonation, cookie: str
    ) -> ImpersonationRefused | ImpersonationTokenRefused | None:
        """Why there is no session, once that is recorded; None when there is one."""
        if link is None or link.left_at is not None or link.instance_id != claims.aud:
            return ImpersonationTokenRefused()
        session_id, expires_at = new_id("ses"), datetime.now(UTC) + LIFE
        caller = msgspec.structs.replace(self._caller, kind="panel", id=claims.sub)
        known = {"impersonation_id": claims.jti, "name": claims.act.name, "tenant_id": claims.tid}
        refusal: ImpersonationRefused | ImpersonationTokenRefused | None = None
        if not link.impersonation:
            refusal = ImpersonationRefused()
        elif not await self._claim(session, claims, cookie, session_id, expires_at):
            refusal = ImpersonationTokenUsed()
        if refusal is not None:
            audit(
                session, "impersonation.begin", after=known | {"code": refusal.code}, outcome="refused", caller=caller
            )
            return refusal
        session.info["caller"] = msgspec.structs.replace(caller, impersonation=session_id)
        after = known | {"reason": claims.reason, "expires_at": expires_at.isoformat()}
        audit(session, "impersonation.begin", subject=session_id, after=after)
        begun = ImpersonationStarted(
            session_id=session_id,
            panel_user=claims.sub,
            panel_user_name=claims.act.name,
            reason=claims.reason,
            expires_at=expires_at,
        )
        publish(session, begun, subject=session_id)
        await enqueue(
            session,
            end_impersonation,
            subject=session_id,
            actor="system",
            delay_seconds=LIFE.total_seconds(),
            session_id=session_id,
        )
        return None

    async def _claim(
        self, session: AsyncSession, claims: Impersonation, cookie: str, session_id: str, expires_at: datetime
    ) -> bool:
        await store.forget_old(session)
        return await store.claim(
            session,
            id=session_id,
            token_id=claims.jti,
            cookie_hash=opaque_digest(COOKIE_PREFIX, cookie),
            instance_id=claims.aud,
            panel_user=claims.sub,
            panel_user_name=claims.act.name,
            reason=claims.reason,
            ip=self._caller.address or "-",
            user_agent=self._user_agent,
            expires_at=expires_at,
        )
