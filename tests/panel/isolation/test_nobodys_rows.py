"""What belongs to no tenant (the process's own jobs and records, all of an instance) is not there within a tenant's
transaction, whatever a statement has forgotten to ask for.
"""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import ProgrammingError

import quazzar.tables  # noqa: F401 - every model on the metadata
from quazzar.accounts.models import ApiKey, Session
from quazzar.channels.models import NotificationChannel
from quazzar.core.auth import Realm
from quazzar.core.db import Base, Database
from quazzar.core.ids import new_id
from quazzar.core.jobs import enqueue
from quazzar.core.postgres import DatabaseUrls
from quazzar.core.records import Caller, Event, audit, publish
from quazzar.invitations.jobs import prune
from quazzar.invitations.models import Invitation
from quazzar.webhooks.models import Webhook, WebhookDelivery
from tests.factories.accounts import make_member, make_user
from tests.panel.isolation.walls import superuser

TABLES = sorted(
    table.name
    for table in Base.metadata.sorted_tables
    if "tenant_id" in table.columns and table.columns["tenant_id"].nullable
)

_TAKE_HEAD = text("INSERT INTO audit_heads VALUES (:chain, 0, '') ON CONFLICT (chain) DO UPDATE SET number = 0")


class Whispered(Event):
    type = "wall.whispered"


@pytest.fixture(scope="module")
async def of_nobody(database: Database) -> None:
    """A row of no tenant in each of the tables, made as they are made: in a transaction of no tenant."""
    user = await make_user(database)
    soon, webhook_id = datetime.now(UTC) + timedelta(days=1), new_id("wh")
    async with database.begin(user=user.id) as session:
        audit(session, "wall.whisper")
        publish(session, Whispered())
        await enqueue(session, prune)
        here = {"realm": "instance"}
        whose = {"user_id": user.id, "expires_at": soon}
        for table, values in (
            (Session, here | whose | {"id": new_id("ses"), "ip": "-", "user_agent": ""}),
            (
                ApiKey,
                whose
                | {"id": new_id("key"), "name": "x", "key_hash": b"x", "prefix": "x", "suffix": "x", "scopes": ["*"]},
            ),
            (
                Invitation,
                here
                | {"id": new_id("inv"), "email": "a@b.c", "role": "viewer", "token_hash": b"x", "expires_at": soon},
            ),
            (
                NotificationChannel,
                here | {"id": new_id("chn"), "name": "x", "kind": "email", "to_addresses": ["a@b.c"]},
            ),
            (Webhook, here | {"id": webhook_id, "url": "x", "events": ["*"], "active": True, "start_position": 0}),
            (
                WebhookDelivery,
                here
                | {"id": new_id("whd"), "webhook_id": webhook_id, "event_id": "x", "type": "x"}
                | {"body": b"{}", "status": "pending", "tries": 0},
            ),
        ):
            await session.execute(insert(table).values(**values))


@pytest.mark.parametrize("table", TABLES)
async def test_a_tenants_transaction_has_none_of_them(
    database: Database, database_urls: DatabaseUrls, of_nobody: None, table: str
) -> None:
    del of_nobody
    count = f"SELECT count(*) FROM {table} WHERE tenant_id IS NULL"
    connection = await asyncpg.connect(superuser(database_urls))
    try:
        there = await connection.fetchval(count)
    finally:
        await connection.close()
    assert there > 0
    ada = await make_member(database)
    async with database.begin(tenant=ada.tenant_id, user=ada.id) as session:
        assert (await session.execute(text(count))).scalar_one() == 0
        if table != "audit_records":
            gone = await session.execute(text(f"DELETE FROM {table} WHERE tenant_id IS NULL RETURNING 1"))
            assert gone.all() == []


async def test_the_heads_of_other_chains_are_neither_seen_nor_moved(database: Database, of_nobody: None) -> None:
    """A chain has no column for its tenant, whose name is in its own."""
    del of_nobody
    ada, eve = await make_member(database), await make_member(database)
    chains = {ada.tenant_id: f"panel:{ada.tenant_id}", eve.tenant_id: f"panel:{eve.tenant_id}", None: "instance"}
    for tenant in chains:
        async with database.begin() as session:
            realm: Realm = "instance" if tenant is None else "panel"
            audit(session, "wall.whisper", caller=Caller(kind="system", realm=realm, tenant_id=tenant))
    for tenant, mine in chains.items():
        async with database.begin(tenant=tenant) as session:
            seen = set((await session.execute(text("SELECT chain FROM audit_heads"))).scalars())
            assert (mine in seen, seen & set(chains.values())) == (True, {mine})
            moved = await session.execute(text("UPDATE audit_heads SET number = number RETURNING chain"))
            assert set(moved.scalars()) == seen
        for chain in {*chains.values(), f"panel:{new_id('ten')}"} - {mine}:
            with pytest.raises(ProgrammingError, match="row-level security"):
                async with database.begin(tenant=tenant) as session:
                    await session.execute(_TAKE_HEAD, {"chain": chain})


async def test_what_a_tenants_change_has_the_process_do_is_written_all_the_same(database: Database) -> None:
    """A mail is a job of the process and of no tenant, and sets out with the change that it tells of."""
    ada = await make_member(database)
    async with database.begin(tenant=ada.tenant_id, user=ada.id) as session:
        job_id = await enqueue(session, prune)
        audit(session, "wall.whisper")
        publish(session, Whispered())
    async with database.begin() as session:
        found = await session.execute(text("SELECT tenant_id FROM jobs WHERE id = :id"), {"id": job_id})
        assert found.scalar_one() is None
