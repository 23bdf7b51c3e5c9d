"""Tenants, and the wall between them that stands in the database itself."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.core.paging import Page
from quazzar.panel.tenants import own
from quazzar.panel.tenants.service import TenantService
from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, join, make_member


@pytest.fixture
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


async def test_one_sees_the_own_tenants_only(client: httpx.AsyncClient, database: Database) -> None:
    ada, eve = await make_member(database, organization="Engines"), await make_member(database, organization="Eves")
    listed = await client.get("/panel/api/tenants", headers=await headers_of(client, ada))
    assert listed.status_code == 200
    (only,) = listed.json()
    tenant = {"id", "name", "kind", "parent_id", "parent_access", "created_at"}
    assert only.keys() == tenant | {"role", "current"}
    assert (only["id"], only["name"], only["role"], only["current"]) == (ada.tenant_id, "Engines", "owner", True)
    assert eve.tenant_id is not None
    await join(database, ada, eve.tenant_id)
    both = (await client.get("/panel/api/tenants", headers=await headers_of(client, ada))).json()
    assert {(tenant["name"], tenant["role"], tenant["current"]) for tenant in both} == {
        ("Engines", "owner", True),
        ("Eves", "viewer", False),
    }


async def test_a_role_that_is_not_known_allows_nothing(client: httpx.AsyncClient, database: Database) -> None:
    ada = await make_member(database)
    async with database.begin(tenant=ada.tenant_id) as session:
        await session.execute(text("UPDATE memberships SET role = 'sorcerer'"))
    headers = await headers_of(client, ada)
    found = (await client.get("/panel/api/auth/me", headers=headers)).json()
    assert (found["role"], found["permissions"]) == ("sorcerer", [])


# --- row-level security, asked directly ---


async def visible(database: Database, table: str, **scope: str | None) -> set[str]:
    column = "tenant_id" if table != "tenants" else "id"
    async with database.begin(**scope) as session:
        rows = await session.execute(text(f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"))
        return set(rows.scalars())


@pytest.mark.parametrize("table", ["tenants", "memberships", "sessions"])
async def test_without_a_scope_nothing_is_visible(client: httpx.AsyncClient, database: Database, table: str) -> None:
    ada, eve = await make_member(database), await make_member(database)
    for member in (ada, eve):
        await headers_of(client, member)
    assert await visible(database, table) == set()
    assert await visible(database, table, tenant="", user="") == set()
    assert await visible(database, table, tenant="ten_nobody", user="usr_nobody") == set()
    assert await visible(database, table, tenant=ada.tenant_id) == {ada.tenant_id}
    assert await visible(database, table, user=eve.id) == {eve.tenant_id}


async def test_the_scope_ends_with_its_transaction(database: Database) -> None:
    ada = await make_member(database)
    single = Database(database.url, pool_size=2)
    try:
        for _ in range(4):
            assert await visible(single, "tenants", tenant=ada.tenant_id) == {ada.tenant_id}
            assert await visible(single, "tenants") == set()
    finally:
        await single.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tenants SET name = 'taken' WHERE id = :foreign",
        "DELETE FROM tenants WHERE id = :foreign",
        "UPDATE memberships SET role = 'owner' WHERE tenant_id = :foreign",
        "DELETE FROM memberships WHERE tenant_id = :foreign",
        "DELETE FROM sessions WHERE tenant_id = :foreign",
    ],
)
async def test_what_is_foreign_can_not_be_touched(
    client: httpx.AsyncClient, database: Database, statement: str
) -> None:
    ada, eve = await make_member(database), await make_member(database)
    await headers_of(client, eve)
    # With the right to look at it as a member, too.
    assert eve.tenant_id is not None
    await join(database, ada, eve.tenant_id)
    before = [await dump(database, table, tenant=eve.tenant_id) for table in ("tenants", "memberships", "sessions")]
    async with database.begin(tenant=ada.tenant_id, user=ada.id) as session:
        result: Any = await session.execute(text(statement), {"foreign": eve.tenant_id})
        assert result.rowcount == 0
    after = [await dump(database, table, tenant=eve.tenant_id) for table in ("tenants", "memberships", "sessions")]
    assert before == after


async def dump(database: Database, table: str, **scope: str | None) -> list[str]:
    async with database.begin(**scope) as session:
        return sorted((await session.execute(text(f"SELECT CAST(t AS text) FROM {table} t"))).scalars())


async def test_nothing_can_be_put_into_a_foreign_tenant(database: Database) -> None:
    ada, eve = await make_member(database), await make_member(database)
    assert eve.tenant_id is not None

    async def attempt(statement: str) -> None:
        async with database.begin(tenant=ada.tenant_id, user=ada.id) as session:
            values = {"foreign": eve.tenant_id, "own": ada.tenant_id, "user": ada.id, "id": new_id("mem")}
            await session.execute(text(statement), values)

    for statement in (
        "INSERT INTO memberships (tenant_id, user_id, id, role) VALUES (:foreign, :user, :id, 'owner')",
        "UPDATE memberships SET tenant_id = :foreign WHERE tenant_id = :own",
        "INSERT INTO tenants (id, name) VALUES ('ten_other', 'x')",
        "UPDATE tenants SET id = 'ten_other' WHERE id = :own",
    ):
        with pytest.raises(DBAPIError, match="row-level security"):
            await attempt(statement)


async def test_a_forgotten_condition_leaks_nothing(database: Database) -> None:
    """The store's own functions, called with another tenant than the transaction's."""
    ada, eve = await make_member(database), await make_member(database)
    assert ada.tenant_id is not None
    assert eve.tenant_id is not None
    async with database.begin(tenant=ada.tenant_id, user=ada.id) as session:
        service = TenantService(session)
        assert await service.place(ada.tenant_id, ada.id) is not None
        assert await service.place(eve.tenant_id, eve.id) is None
        assert await service.home_of(eve.id) is None
        assert await own.find_tenants(session, eve.id, current=eve.tenant_id, parent_id=None, page=Page()) == []


async def test_the_owner_of_the_tables_is_bound_as_well(database_urls: Any, database: Database) -> None:
    ada = await make_member(database)
    connection = await asyncpg.connect(database_urls.owner)
    try:
        superuser = await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        assert superuser is False
        for table in ("tenants", "memberships"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0
        await connection.execute("SELECT set_config('app.tenant', $1, false)", ada.tenant_id)
        assert await connection.fetchval("SELECT count(*) FROM tenants") == 1
    finally:
        await connection.close()
