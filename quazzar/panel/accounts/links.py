"""Links to an address that prove that somebody reads what is sent there."""

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.accounts.errors import UserNotFound
from quazzar.core.records import Caller, audit
from quazzar.core.tokens import new_opaque, opaque_digest
from quazzar.invitations.service import link
from quazzar.settings import Settings

LIFE: Final = timedelta(hours=1)
MOST: Final = 3
"""How many links of one kind a user has at once: nobody fills another's mailbox, and a good link stays good."""


class Purpose(msgspec.Struct, frozen=True):
    """What a link is for: its name in the database, how its token begins, and the page that it leads to."""

    name: str
    prefix: str
    page: str


RESET: Final = Purpose("reset_password", "qzw", "reset-password")
VERIFY: Final = Purpose("verify_email", "qzv", "verify-email")


async def make_link(session: AsyncSession, settings: Settings, purpose: Purpose, user_id: str) -> str:
    """A new link of the user's, beside those that they have."""
    token = new_opaque(purpose.prefix)
    digest = opaque_digest(purpose.prefix, token)
    assert digest is not None
    await store.add_mailed_token(session, user_id, purpose.name, digest, datetime.now(UTC) + LIFE)
    return link(settings, "panel", purpose.page, token)


async def make_link_to_send(session: AsyncSession, settings: Settings, purpose: Purpose, user_id: str) -> str | None:
    """As `make_link`; None when the user has as many as are sent."""
    await store.get_secrets(session, "panel", user_id, lock=True)
    if await store.count_mailed_tokens(session, user_id, purpose.name) >= MOST:
        return None
    return await make_link(session, settings, purpose, user_id)


async def reset_link(session: AsyncSession, settings: Settings, email: str) -> str:
    """The operator's way to a link by which the user of an address sets a new password. Raises `UserNotFound`."""
    user = await store.find_user(session, "panel", email.lower())
    if user is None:
        raise UserNotFound
    audit(session, "user.reset_link", subject=user.id, caller=Caller(kind="system", realm="panel"))
    return await make_link(session, settings, RESET, user.id)
