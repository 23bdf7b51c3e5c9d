"""The rules of the audit log: who sees which part of it."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.audit import store
from quazzar.audit.schemas import AuditFilter, ChainCheckOut
from quazzar.audit.store import Found, Scope
from quazzar.audit.verify import verify_chain
from quazzar.core.db import Database
from quazzar.core.errors import Forbidden
from quazzar.core.paging import Page


class AuditService:
    """The log within one caller's scope, in one transaction."""

    def __init__(self, session: AsyncSession, scope: Scope) -> None:
        self.session = session
        self.scope = scope

    async def find(self, narrowed: AuditFilter, page: Page) -> Sequence[Found]:
        """Newest first."""
        before = int(page.after) if page.after is not None else None
        return await store.find_records(self.scope, self.session, narrowed, before=before, limit=page.fetch)


async def verify(database: Database, scope: Scope) -> ChainCheckOut:
    """Check the caller's chain. Raises `Forbidden` for a bound key: a chain is whole or not as a whole."""
    if scope.subjects is not None:
        raise Forbidden("This key is bound to certain apps and can't check the whole log")
    return await verify_chain(database, scope.chain)
