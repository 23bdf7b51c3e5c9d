"""Every query about the members of a tenant, and who is invited. The tenant comes right after the session."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import DateTime, Select, Text, cast, delete, exists, false, func, null, select, union_all, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.models import User
from quazzar.core.paging import Page
from quazzar.invitations.models import Invitation
from quazzar.panel.tenants.models import Membership


def _members(tenant_id: str) -> Select[*tuple[Any, ...]]:
    return (
        select(
            Membership.id.label("id"),
            Membership.user_id.label("user_id"),
            User.email.label("email"),
            User.name.label("name"),
            Membership.role.label("role"),
            Membership.role_id.label("role_id"),
            Membership.parent_id.label("parent_id"),
            Membership.resources.label("resources"),
            User.totp_enabled_at.is_not(None).label("totp_enabled"),
            Membership.created_at.label("created_at"),
            cast(null(), DateTime(timezone=True)).label("expires_at"),
        )
        .join(User, User.id == Membership.user_id)
        .where(Membership.tenant_id == tenant_id)
    )


def _invited(tenant_id: str) -> Select[*tuple[Any, ...]]:
    return select(
        Invitation.id,
        cast(null(), Text).label("user_id"),
        Invitation.email,
        cast(null(), Text).label("name"),
        Invitation.role,
        Invitation.role_id,
        cast(null(), Text).label("parent_id"),
        Invitation.resources,
        false().label("totp_enabled"),
        Invitation.created_at,
        Invitation.expires_at,
    ).where(
        Invitation.realm == "panel",
        Invitation.tenant_id == tenant_id,
        Invitation.accepted_at.is_(None),
        Invitation.expires_at > func.now(),
    )


def key_of(row: Any) -> str:
    """What the list goes on after: the part of an id that begins with the time."""
    return str(row.id).partition("_")[2]


async def find_members(session: AsyncSession, tenant_id: str, page: Page) -> Sequence[Any]:
    """Members and who is invited, newest first; one more than the page shows."""
    both = union_all(_members(tenant_id), _invited(tenant_id)).subquery()
    key = func.split_part(both.c.id, "_", 2)
    statement = select(both).order_by(key.desc()).limit(page.fetch)
    if page.after is not None:
        statement = statement.where(key < page.after)
    return (await session.execute(statement)).all()


async def get_member(session: AsyncSession, tenant_id: str, member_id: str, *, lock: bool = False) -> Any:
    statement = _members(tenant_id).where(Membership.id == member_id)
    if lock:
        statement = statement.with_for_update(of=Membership)
    return (await session.execute(statement)).one_or_none()


async def get_member_of(session: AsyncSession, tenant_id: str, user_id: str) -> Any:
    """The user's own place in the tenant."""
    statement = _members(tenant_id).where(Membership.user_id == user_id)
    return (await session.execute(statement)).one_or_none()


async def get_invited(session: AsyncSession, tenant_id: str, invitation_id: str, *, lock: bool = False) -> Any:
    """An invitation that can still be accepted, with the columns of a member."""
    statement = _invited(tenant_id).where(Invitation.id == invitation_id)
    if lock:
        statement = statement.with_for_update()
    return (await session.execute(statement)).one_or_none()


async def has_member(session: AsyncSession, tenant_id: str, email: str) -> bool:
    """Whether the address is that of a member; those of the parent tenant are none."""
    statement = select(
        exists()
        .where(Membership.tenant_id == tenant_id, Membership.parent_id.is_(None))
        .where(User.id == Membership.user_id, User.email == email)
    )
    return bool((await session.execute(statement)).scalar_one())


async def has_proved(session: AsyncSession, tenant_id: str, email: str) -> bool:
    """Whether the address is that of a member who has confirmed it; those of the parent tenant are members too."""
    statement = select(
        exists()
        .where(Membership.tenant_id == tenant_id)
        .where(User.id == Membership.user_id, User.email == email, User.email_verified_at.is_not(None))
    )
    return bool((await session.execute(statement)).scalar_one())


async def update_member(session: AsyncSession, tenant_id: str, member_id: str, **values: Any) -> None:
    await session.execute(
        update(Membership).where(Membership.tenant_id == tenant_id, Membership.id == member_id).values(**values)
    )


async def delete_member(session: AsyncSession, tenant_id: str, member_id: str) -> None:
    """With their sessions and keys in this tenant, and their places in its clients."""
    await session.execute(delete(Membership).where(Membership.tenant_id == tenant_id, Membership.id == member_id))
