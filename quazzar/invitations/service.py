"""The rules of invitations: one link for one address, good for three days and for one use."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Realm
from quazzar.core.db import Database, set_scope
from quazzar.core.ids import new_id
from quazzar.core.tokens import new_opaque, opaque_digest
from quazzar.invitations import store
from quazzar.invitations.errors import (
    InvitationAccepted,
    InvitationExpired,
    InvitationNotFound,
    TooManyInvitations,
)
from quazzar.invitations.schemas import InvitationLink
from quazzar.invitations.store import Place
from quazzar.settings import Settings

LIFE: Final = timedelta(hours=72)
MOST_OPEN: Final = 200
PREFIX: Final = "qzi"


class Presented(msgspec.Struct, frozen=True):
    """An invitation that somebody holds the token of, and that can be accepted as far as was to be seen."""

    row: Any
    token_hash: bytes

    @property
    def place(self) -> Place:
        return Place(self.row.realm, self.row.tenant_id)


class InvitationService:
    """The invitations to one place, in one transaction."""

    def __init__(self, session: AsyncSession, settings: Settings, place: Place) -> None:
        self._session = session
        self._settings = settings
        self._place = place

    async def invite(self, email: str, **values: Any) -> tuple[Any, InvitationLink]:
        """Invite an address (in lower case); an invitation that it had before is replaced, and its link dead.

        Raises `TooManyInvitations`.
        """
        if await store.count_open(self._session, self._place) >= MOST_OPEN:
            raise TooManyInvitations
        token = new_opaque(PREFIX)
        digest = opaque_digest(PREFIX, token)
        expires_at = datetime.now(UTC) + LIFE
        fresh = {"id": new_id("inv"), "token_hash": digest, "expires_at": expires_at}
        values = {"role": None, "role_id": None, "resources": None} | values
        row = await store.put_invitation(self._session, self._place, email=email, **fresh, **values)
        url = link(self._settings, self._place.realm, "accept-invitation", token)
        return row, InvitationLink(url=url, token=token, expires_at=expires_at)

    async def find(self) -> Sequence[Any]:
        """Those that can still be accepted, newest first; there are few."""
        return await store.find_open(self._session, self._place)

    async def update(self, invitation_id: str, **values: Any) -> None:
        await store.update_invitation(self._session, self._place, invitation_id, **values)

    async def revoke(self, invitation_id: str) -> None:
        """Take it back: its link is dead. Raises `InvitationNotFound`."""
        if not await store.delete_invitation(self._session, self._place, invitation_id):
            raise InvitationNotFound

    async def revoke_of(self, user_id: str) -> None:
        """Take back what a user made and nobody has accepted: whoever is out lets nobody in, nor themselves again."""
        await store.delete_invitations_of(self._session, self._place, user_id)


async def look_up(database: Database, realm: Realm, token: str) -> Presented:
    """The invitation of a token, read in a transaction of its own: hashing a password may follow.

    Raises `InvitationNotFound`, `InvitationAccepted`, `InvitationExpired`.
    """
    digest = opaque_digest(PREFIX, token)
    if digest is None:
        raise InvitationNotFound
    async with database.begin() as session:
        row = await store.get_presented(session, realm, digest)
    if row is None:
        raise InvitationNotFound
    if row.accepted_at is not None:
        raise InvitationAccepted
    if row.expired:
        raise InvitationExpired
    return Presented(row, digest)


async def accept(session: AsyncSession, presented: Presented, *, user_id: str) -> None:
    """Use an invitation up for the user, and set the transaction's scope to where it leads.

    Raises `InvitationAccepted` for all but one of several at once, and for one that was taken back meanwhile.
    """
    place = presented.place
    await set_scope(session, tenant=place.tenant_id, user=user_id)
    if not await store.accept_invitation(session, place, presented.row.id, presented.token_hash):
        raise InvitationAccepted


def link(settings: Settings, realm: Realm, page: str, token: str) -> str:
    """Where a person goes with a token. It stands after the `#`, which browsers send to no server and no log."""
    server = settings.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    base = (server.public_url or f"http://{host}:{server.port}").rstrip("/")
    if realm == "panel" and server.mode == "all":
        base += "/panel"
    return f"{base}/{page}#{urlencode({'token': token})}"
