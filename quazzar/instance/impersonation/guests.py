"""The sessions of panel users as accounts ask for them, and how they end."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.authenticator import AccountAuthenticator
from quazzar.accounts.guests import Guest
from quazzar.accounts.roles import SCOPES
from quazzar.accounts.schemas import GuestOut, MeOut
from quazzar.core.auth import RESERVED_SCOPES, Principal
from quazzar.core.db import Database
from quazzar.core.paging import Page
from quazzar.core.records import SYSTEM, Caller, audit, publish
from quazzar.core.tokens import opaque_digest
from quazzar.instance.impersonation import store
from quazzar.instance.impersonation.events import ImpersonationEnded
from quazzar.instance.impersonation.store import Opened

COOKIE_PREFIX: Final = "qzg"
_SCOPES: Final = SCOPES - RESERVED_SCOPES


class PanelGuests:
    """See `Guests`."""

    async def by_token(self, database: Database, token: bytes) -> Guest | None:
        digest = opaque_digest(COOKIE_PREFIX, token.decode("latin-1"))
        if digest is None:
            return None
        opened = await store.opened_by_cookie.one_or_none(database, cookie_hash=digest)
        return None if opened is None else _guest(opened)

    async def by_id(self, database: Database, session_id: str) -> Guest | None:
        opened = await store.opened_by_id.one_or_none(database, id=session_id)
        return None if opened is None else _guest(opened)

    async def find(self, session: AsyncSession, page: Page) -> Sequence[Any]:
        return [_Row.of(row) for row in await store.find_open(session, page)]

    async def end(self, session: AsyncSession, session_id: str, how: str) -> bool:
        ended = await store.end(session, only=session_id)
        _record(session, ended, how)
        return bool(ended)


async def end_all(session: AsyncSession, authenticator: AccountAuthenticator, how: str) -> None:
    """End every session of panel users, with the commit."""
    ended = await store.end(session)
    _record(session, ended, how)
    for row in ended:
        await authenticator.drop_with(session, row.id)


def _record(session: AsyncSession, ended: Sequence[Any], how: str) -> None:
    caller: Caller = session.info.get("caller", SYSTEM)
    for row in ended:
        # Whoever ends it: the record belongs to the session, and the panel hears of it.
        who = msgspec.structs.replace(caller, impersonation=row.id)
        audit(session, "impersonation.end", subject=row.id, after={"how": how}, caller=who)
        publish(session, ImpersonationEnded(session_id=row.id, panel_user=row.panel_user, how=how), subject=row.id)


class _Row(msgspec.Struct, frozen=True):
    """What `SessionOut` is made from."""

    id: str
    created_at: Any
    last_used_at: Any
    expires_at: Any
    ip: str
    user_agent: str
    impersonation: GuestOut

    @classmethod
    def of(cls, row: Any) -> "_Row":
        return cls(row.id, row.created_at, row.last_used_at, row.expires_at, row.ip, row.user_agent, _shown(row))


def _shown(row: Any) -> GuestOut:
    return GuestOut(user_id=row.panel_user, name=row.panel_user_name, reason=row.reason)


def _guest(opened: Opened) -> Guest:
    """An admin of the instance, without what is reserved. What counts and keeps things by user does so by the
    session: the id of the panel's user is the panel's word, and might be that of a user here.
    """
    profile = MeOut(
        id=opened.panel_user,
        username=opened.panel_user_name,
        role="admin",
        created_at=opened.created_at,
        last_login_at=opened.created_at,
        totp_enabled=True,
        scopes=sorted(_SCOPES),
        impersonation=_shown(opened),
    )
    principal = Principal(
        realm="instance",
        user_id=opened.id,
        client=opened.id,
        scopes=_SCOPES,
        session_id=opened.id,
        role="admin",
        panel_user=opened.panel_user,
        profile=profile,
    )
    return Guest(principal, opened.ip, opened.expires_at)
