"""Every query about invitations. Whose they are (realm, and tenant on the panel) comes right after the session."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Interval, and_, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Realm
from quazzar.core.db import present, see_all_tenants
from quazzar.invitations.models import Invitation

_KEPT: Final = timedelta(days=30)


class Place(msgspec.Struct, frozen=True):
    """Where one is invited to: an instance, or a tenant of the panel."""

    realm: Realm
    tenant_id: str | None = None

    @property
    def condition(self) -> ColumnElement[bool]:
        return and_(Invitation.realm == self.realm, Invitation.tenant_id.is_not_distinct_from(self.tenant_id))


_COLUMNS = tuple(Invitation.__table__.columns)
_OPEN = (Invitation.accepted_at.is_(None), Invitation.expires_at > func.now())


async def put_invitation(session: AsyncSession, place: Place, *, email: str, **values: Any) -> Any:
    """Insert the invitation of an address, in place of the one that it had; gives the row."""
    fresh = {"created_at": func.now(), "accepted_at": None, **values}
    statement = (
        upsert(Invitation)
        .values(realm=place.realm, tenant_id=place.tenant_id, email=email, **values)
        .on_conflict_do_update(constraint="uq_invitations_address", set_=fresh)
        .returning(*_COLUMNS)
    )
    return (await session.execute(statement)).one()


async def count_open(session: AsyncSession, place: Place) -> int:
    statement = select(func.count()).where(place.condition, *_OPEN)
    return (await session.execute(statement)).scalar_one()


async def find_open(session: AsyncSession, place: Place) -> Sequence[Any]:
    """Those that can still be accepted, newest first."""
    statement = select(*_COLUMNS).where(place.condition, *_OPEN).order_by(Invitation.id.desc())
    return (await session.execute(statement)).all()


async def update_invitation(session: AsyncSession, place: Place, invitation_id: str, **values: Any) -> None:
    await session.execute(update(Invitation).where(place.condition, Invitation.id == invitation_id).values(**values))


async def delete_invitation(session: AsyncSession, place: Place, invitation_id: str) -> bool:
    """False when there is no such invitation that could still be accepted."""
    statement = delete(Invitation).where(place.condition, Invitation.id == invitation_id, *_OPEN)
    return (await session.execute(statement.returning(Invitation.id))).one_or_none() is not None


async def delete_invitations_of(session: AsyncSession, place: Place, user_id: str) -> None:
    await session.execute(delete(Invitation).where(place.condition, Invitation.invited_by == user_id, *_OPEN))


async def get_presented(session: AsyncSession, realm: Realm, token_hash: bytes) -> Any:
    """The invitation of a token, accepted and expired ones too, with `expired`."""
    await present(session, token_hash)
    statement = select(*_COLUMNS, (Invitation.expires_at <= func.now()).label("expired")).where(
        Invitation.realm == realm, Invitation.token_hash == token_hash
    )
    return (await session.execute(statement)).one_or_none()


async def accept_invitation(session: AsyncSession, place: Place, invitation_id: str, token_hash: bytes) -> bool:
    """Use the invitation up; False when it was used, renewed or taken back meanwhile."""
    statement = (
        update(Invitation)
        .where(place.condition, Invitation.id == invitation_id, Invitation.token_hash == token_hash, *_OPEN)
        .values(accepted_at=func.now())
        .returning(Invitation.id)
    )
    return (await session.execute(statement)).one_or_none() is not None


async def prune_invitations(session: AsyncSession) -> None:
    """Forget those of all tenants that have been over for a month."""
    await see_all_tenants(session)
    limit = func.now() - literal(_KEPT, Interval())
    await session.execute(delete(Invitation).where(Invitation.expires_at < limit))
