"""Mails about accounts that anybody may ask for; the work is not done in the request, whose time would tell of it."""

from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.core.jobs import SETTINGS, JobRun, job
from quazzar.mail.service import mail_configured, send_mail
from quazzar.panel.accounts.links import RESET, VERIFY, make_link_to_send
from quazzar.settings import Settings

log = structlog.get_logger(__name__)


@job("accounts.mail_reset")
async def mail_reset(run: JobRun, *, email: str) -> None:
    """A link to set a new password, if the address is that of a user."""
    settings = run.resources[SETTINGS]
    async with run.begin() as session:
        user = await store.find_user(session, "panel", email)
        if user is None:
            return
        if not mail_configured(settings):
            log.warning("A user forgot their password; `quazzar admin reset-link` makes a link for them", user=user.id)
            return
        await _send_reset(session, settings, user.id, email, _RESET)


@job("accounts.mail_registered")
async def mail_registered(run: JobRun, *, email: str, user_id: str) -> None:
    """After a registration: a link to confirm the address, or to its owner of before that somebody tried it."""
    settings = run.resources[SETTINGS]
    async with run.begin() as session:
        user = await store.find_user(session, "panel", email)
        if user is None:
            return
        if user.id == user_id:
            await _send_verification(session, settings, user_id, email)
        else:
            await _send_reset(session, settings, user.id, email, _REGISTERED)


@job("accounts.mail_verification")
async def mail_verification(run: JobRun, *, user_id: str) -> None:
    """A link to confirm the address of a user who asks for it, unless it is confirmed."""
    async with run.begin() as session:
        person = await store.get_person(session, "panel", user_id)
        if person is None or person.email is None or person.email_verified:
            return
        await _send_verification(session, run.resources[SETTINGS], user_id, person.email)


async def _send_reset(session: AsyncSession, settings: Settings, user_id: str, email: str, text: str) -> None:
    link = await make_link_to_send(session, settings, RESET, user_id)
    if link is not None:
        await send_mail(session, to=email, subject="Set a new password", text=text.format(link=link))


async def _send_verification(session: AsyncSession, settings: Settings, user_id: str, email: str) -> None:
    link = await make_link_to_send(session, settings, VERIFY, user_id)
    if link is not None:
        await send_mail(session, to=email, subject="Confirm your address", text=_VERIFY.format(link=link))


_RESET: Final = """\
Somebody, probably you, asked for a new password for the account of this address. Set it here:

{link}

The link works once, within an hour. If it was not you, ignore this mail; your password stays as it is.
"""

_REGISTERED: Final = """\
Somebody, probably you, wanted to register with this address, which has an account already. Log in with it. If you do
not know its password any more, set a new one here:

{link}

The link works once, within an hour. If it was not you, ignore this mail; nothing has changed.
"""

_VERIFY: Final = """\
Confirm that this is your address:

{link}

The link works once, within an hour. If you did not register, ignore this mail.
"""
