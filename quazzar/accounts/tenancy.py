"""What accounts ask of a realm whose users belong to tenants; the panel answers it."""

from typing import Any, Protocol

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.store import Person


class Standing(msgspec.Struct, frozen=True):
    """A user's place in a tenant now. `profile` is what `GET /api/auth/me` shows of the two."""

    role: str
    permissions: frozenset[str]
    profile: Any


class Tenancy(Protocol):
    """Both are asked in a transaction whose row-level security knows the user (and, for `standing`, the tenant)."""

    async def home(self, session: AsyncSession, user_id: str) -> str | None:
        """The tenant that a fresh login lands in; None for someone who belongs to none any more."""

    async def standing(self, session: AsyncSession, tenant_id: str, person: Person) -> Standing | None:
        """The user's role in the tenant and what it allows; None when they do not belong to it."""
