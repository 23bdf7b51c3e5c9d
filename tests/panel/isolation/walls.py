"""The walls between tenants, and each of them switched off, so that the others can be seen to hold alone."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, Literal
from unittest import mock
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy import BinaryExpression, BindParameter, ClauseElement, ColumnElement, event, true
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql import visitors

import quazzar.tables  # noqa: F401 - every model on the metadata
from quazzar.core.db import Base, Database, Query
from quazzar.core.postgres import DatabaseUrls
from tests.conftest import with_database

Wall = Literal["both", "stores", "rows", "none"]
"""Which walls stand: the stores' conditions, the rows' security, both, or none (so that the matrix itself is tried)."""

# Columns that say whose a row is; of the audit log the chain does.
_OWNERS: Final = {"tenant_id", "chain"}


def superuser(urls: DatabaseUrls) -> str:
    """The URL of a role that row-level security does not bind."""
    return with_database(urls.owner, urlsplit(urls.owner).path.strip("/"), user="postgres")


@contextlib.asynccontextmanager
async def database_behind(wall: Wall, urls: DatabaseUrls) -> AsyncIterator[Database]:
    database = Database(urls.app if wall in ("both", "rows") else superuser(urls), pool_size=10)
    try:
        with without_conditions(database.engine) if wall in ("rows", "none") else contextlib.nullcontext():
            yield database
    finally:
        await database.close()


@contextlib.contextmanager
def without_conditions(engine: AsyncEngine) -> Iterator[None]:
    """Every statement without the conditions by which stores ask for a tenant's rows, as if each had forgotten them."""

    def forget(_: Any, statement: Any, many: Any, values: Any, __: Any) -> tuple[Any, Any, Any]:
        if isinstance(statement, ClauseElement):
            statement = visitors.replacement_traverse(statement, {}, _forgotten)
        return statement, many, values

    within = Query._fetch_within

    async def forgetful(query: Query[Any], connection: Any, values: dict[str, Any], tenant: str) -> list[Any]:
        statement = visitors.replacement_traverse(query._statement, {}, _forgotten)
        return await within(Query(statement, query._row, **query._given), connection, values, tenant)  # type: ignore[arg-type]

    event.listen(engine.sync_engine, "before_execute", forget, retval=True)
    try:
        with mock.patch.object(Query, "_fetch_within", forgetful):
            yield
    finally:
        event.remove(engine.sync_engine, "before_execute", forget)


def _forgotten(element: Any, **_: Any) -> ColumnElement[bool] | None:
    if not isinstance(element, BinaryExpression) or not isinstance(element.right, BindParameter):
        return None
    column, table = getattr(element.left, "name", None), getattr(element.left, "table", None)
    if column in _OWNERS:
        return true()
    if column == "parent_id" and getattr(table, "name", None) == "tenants":
        # Any client, whosever it is.
        return element.left.is_not(None)
    return None


class Photograph:
    """What a tenant has, row by row, seen past all walls."""

    # What is noted whether a call is refused or not, and what the process does by itself.
    _ASIDE: Final = {"sessions", "webhook_lanes", "alert_turns"}

    def __init__(self, urls: DatabaseUrls) -> None:
        self._url = superuser(urls)
        self._connection: asyncpg.Connection[Any] | None = None
        tables = [table for table in Base.metadata.sorted_tables if "tenant_id" in table.columns]
        own = [f"SELECT '{table.name}' AS t, r::text AS r FROM {table.name} r WHERE tenant_id = $1" for table in tables]
        members = "SELECT user_id FROM memberships WHERE tenant_id = $1"
        self._sql = " UNION ALL ".join(
            [
                *(one for table, one in zip(tables, own, strict=True) if table.name not in self._ASIDE),
                "SELECT 'tenants', r::text FROM tenants r WHERE id = $1 OR parent_id = $1",
                f"SELECT 'users', r::text FROM users r WHERE id IN ({members})",
            ]
        )

    async def take(self, tenant_id: str) -> set[tuple[str, str]]:
        if self._connection is None:
            self._connection = await asyncpg.connect(self._url)
        return {(row["t"], row["r"]) for row in await self._connection.fetch(self._sql, tenant_id)}

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
