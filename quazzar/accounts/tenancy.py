"""What accounts ask of a realm whose users belong to tenants; the panel answers it."""

from typing import Any, Protocol

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.store import Person
from quazzar.core.auth import Principal


class Standing(msgspec.Struct, frozen=True):
    """A user's place in a tenant now. `profile`, a struct with `permissions`, is what `GET /api/auth/me` shows of the
    two; `resources` are what the user is bound to there, None when to nothing.
    """

    role: str
    permissions: frozenset[str]
    profile: Any
    resources: frozenset[str] | None = None


class Tenancy(Protocol):
    """Asked in a transaction whose row-level security knows the user (and, but for `home`, the tenant)."""

    async def home(self, session: AsyncSession, user_id: str) -> str | None:
        """The tenant that a fresh login lands in; None for someone who belongs to none any more."""

    async def standing(self, session: AsyncSession, tenant_id: str, person: Person) -> Standing | None:
        """The user's role in the tenant and what it allows; None when they do not belong to it."""

    async def enter(self, session: AsyncSession, principal: Principal, tenant_id: str) -> None:
        """Let the caller work in another tenant; the transaction's scope is that tenant's afterwards.

        Raises `NotFound` for one that they may not enter, as for one that there is not.
        """
