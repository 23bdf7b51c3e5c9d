"""Joining a panel and leaving it."""

import asyncio
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.authenticator import AccountAuthenticator
from quazzar.core.db import after_commit, unique_or
from quazzar.core.errors import Invalid
from quazzar.core.records import audit
from quazzar.core.schema import given
from quazzar.instance.enrolment import spool_store, store
from quazzar.instance.enrolment.dialling import fetch_ca, send_enrolment
from quazzar.instance.enrolment.errors import AlreadyLinked, NotLinked
from quazzar.instance.enrolment.line import Line
from quazzar.instance.enrolment.measuring import facts_of
from quazzar.instance.enrolment.schemas import PanelLinkOut, PanelLinkUpdate, PanelStatus
from quazzar.instance.impersonation.guests import end_all
from quazzar.instance.orders.service import forget_panel
from quazzar.link.messages import Enrol, Enrolled
from quazzar.link.tokens import RegistrationToken, TokenProblem, parse_token


class Joined:
    """What the panel has answered, before it is written down."""

    def __init__(self, token: RegistrationToken, ca_certificate: str, enrolled: Enrolled) -> None:
        self.token = token
        self.ca_certificate = ca_certificate
        self.enrolled = enrolled


async def dial(line: Line, text: str) -> Joined:
    """Enrol at the panel that the token names; no transaction is open meanwhile.

    Raises `Invalid` for a text that is no token, `AlreadyLinked`, `PanelUnreachable`, `PanelNotTrusted`,
    `PanelRefused`.
    """
    try:
        token = parse_token(text)
    except TokenProblem as problem:
        raise Invalid(details={"token": str(problem)}) from None
    async with line.database.begin() as session:
        link = await store.get_link(session)
    if link is not None and link.left_at is None:
        raise AlreadyLinked
    from quazzar.instance.enrolment import keys  # noqa: PLC0415 - see there

    key = await asyncio.to_thread(keys.own_key, line.data_dir)
    facts = await asyncio.to_thread(facts_of, line.data_dir, line.url)
    ca_certificate = await asyncio.to_thread(fetch_ca, token)
    data = Enrol(token=text.strip(), csr=keys.signing_request(key), facts=facts)
    return Joined(token, ca_certificate, await asyncio.to_thread(send_enrolment, token, ca_certificate, data))


async def is_linked_or_left(line: Line) -> bool:
    """Whether this instance belongs to a panel or ever has."""
    async with line.database.begin() as session:
        return await store.get_link(session) is not None


class PanelLinkService:
    """One per request."""

    def __init__(self, session: AsyncSession, line: Line, authenticator: AccountAuthenticator) -> None:
        self._session = session
        self._line = line
        self._authenticator = authenticator

    async def create(self, joined: Joined, *, impersonation: bool = True) -> PanelLinkOut:
        """Write down what the panel has answered; the line is opened with the commit. Raises `AlreadyLinked`."""
        enrolled = joined.enrolled
        async with unique_or(AlreadyLinked()):
            await store.put_link(
                self._session,
                instance_id=enrolled.instance_id,
                panel_url=enrolled.panel_url,
                host=joined.token.host,
                port=joined.token.port,
                ca_certificate=joined.ca_certificate,
                certificate=enrolled.certificate,
                signing_key=enrolled.signing_key,
                impersonation=impersonation,
            )
        # Of a panel before, should anything be left.
        await forget_panel(self._session)
        await spool_store.clear_samples(self._session)
        after = {"panel_url": enrolled.panel_url, "impersonation": impersonation}
        audit(self._session, "panel_link.create", subject=enrolled.instance_id, after=after)
        after_commit(self._session, self._line.changed)
        return await self.get()

    async def get(self) -> PanelLinkOut:
        """Raises `NotLinked`."""
        link = await self._row()
        return PanelLinkOut(
            instance_id=link.instance_id,
            panel_url=link.panel_url,
            connected=self._line.connected,
            linked_at=link.linked_at,
            error=self._line.error,
            impersonation=link.impersonation,
        )

    async def update(self, data: PanelLinkUpdate) -> PanelLinkOut:
        """Change what was sent. Raises `NotLinked`."""
        link = await self._row(lock=True)
        values = {name: value for name, value in given(data).items() if value != getattr(link, name)}
        if values:
            await store.update_link(self._session, **values)
            former = {name: getattr(link, name) for name in values}
            audit(self._session, "panel_link.update", subject=link.instance_id, before=former, after=values)
        if data.impersonation is False:
            await end_all(self._session, self._authenticator, "refused")
        return await self.get()

    async def status(self) -> PanelStatus:
        link = await store.get_link(self._session)
        if link is None or link.left_at is not None:
            return PanelStatus(connected=False)
        return PanelStatus(connected=self._line.connected, panel_url=link.panel_url, instance_id=link.instance_id)

    async def delete(self) -> None:
        """Leave; the panel is told where there is a line to tell it on, and what it has ordered and is not begun never
        begins. Raises `NotLinked`.
        """
        link = await self._row()
        await self._line.say_farewell()
        # Only now, and without a wait that a session could slip into: whoever opens one locks the row as well.
        await self._row(lock=True)
        await store.leave(self._session)
        await end_all(self._session, self._authenticator, "unlinked")
        await forget_panel(self._session)
        await spool_store.clear_samples(self._session)
        audit(self._session, "panel_link.delete", subject=link.instance_id, before={"panel_url": link.panel_url})
        after_commit(self._session, self._line.changed)

    async def _row(self, *, lock: bool = False) -> Any:
        link = await store.get_link(self._session, lock=lock)
        if link is None or link.left_at is not None:
            raise NotLinked
        return link
