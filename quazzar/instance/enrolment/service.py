"""Joining a panel and leaving it."""

import asyncio
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import after_commit, unique_or
from quazzar.core.errors import Invalid
from quazzar.core.records import audit
from quazzar.instance.enrolment import spool_store, store
from quazzar.instance.enrolment.dialling import fetch_ca, send_enrolment
from quazzar.instance.enrolment.errors import AlreadyLinked, NotLinked
from quazzar.instance.enrolment.line import Line
from quazzar.instance.enrolment.measuring import facts_of
from quazzar.instance.enrolment.schemas import PanelLinkOut, PanelStatus
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
    facts = await asyncio.to_thread(facts_of, line.data_dir)
    ca_certificate = await asyncio.to_thread(fetch_ca, token)
    data = Enrol(token=text.strip(), csr=keys.signing_request(key), facts=facts)
    return Joined(token, ca_certificate, await asyncio.to_thread(send_enrolment, token, ca_certificate, data))


async def is_linked_or_left(line: Line) -> bool:
    """Whether this instance belongs to a panel or ever has."""
    async with line.database.begin() as session:
        return await store.get_link(session) is not None


class PanelLinkService:
    """One per request."""

    def __init__(self, session: AsyncSession, line: Line) -> None:
        self._session = session
        self._line = line

    async def create(self, joined: Joined) -> PanelLinkOut:
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
            )
        # Of a panel before, should anything be left.
        await forget_panel(self._session)
        await spool_store.clear_samples(self._session)
        audit(self._session, "panel_link.create", subject=enrolled.instance_id, after={"panel_url": enrolled.panel_url})
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
        )

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
        await store.leave(self._session)
        await forget_panel(self._session)
        await spool_store.clear_samples(self._session)
        audit(self._session, "panel_link.delete", subject=link.instance_id, before={"panel_url": link.panel_url})
        after_commit(self._session, self._line.changed)

    async def _row(self) -> Any:
        link = await store.get_link(self._session)
        if link is None or link.left_at is not None:
            raise NotLinked
        return link
