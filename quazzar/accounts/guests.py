"""What accounts ask about sessions of people without an account: a panel's users on an instance, which answers it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.db import Database
from quazzar.core.paging import Page


class Guest(msgspec.Struct, frozen=True):
    """A session that is open now; it counts from `address` alone."""

    principal: Principal
    address: str
    expires_at: datetime


class Guests(Protocol):
    """All of them are shown to admins, who may end each."""

    async def by_token(self, database: Database, token: bytes) -> Guest | None:
        """Whose cookie has this value; None when it opens nothing (any more)."""

    async def by_id(self, database: Database, session_id: str) -> Guest | None:
        """Who is in the session; None once it has ended."""

    async def find(self, session: AsyncSession, page: Page) -> Sequence[Any]:
        """The open sessions, newest first, with what `SessionOut` shows of them."""

    async def end(self, session: AsyncSession, session_id: str, how: str) -> bool:
        """End one; False when there is none of this id that is open. `how` is for the audit log."""
