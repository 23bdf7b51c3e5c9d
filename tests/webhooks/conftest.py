"""Fixtures of webhooks: a receiver on loopback, and engines that may reach it."""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from sqlalchemy import CursorResult, text

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.outbound import OutboundPolicy
from quazzar.core.outbound_http import OutboundHttp
from quazzar.core.records import Caller, Event, publish
from quazzar.webhooks.engine import Webhooks
from quazzar.webhooks.schemas import WebhookCreate
from quazzar.webhooks.service import WebhookService
from quazzar.webhooks.store import Scope
from tests.webhooks.receiver import Receiver, receiving

LOOPBACK = OutboundPolicy([ipaddress.ip_network("127.0.0.0/8")])
INSTANCE = Scope(realm="instance")
SCHEDULE = (0, 0.05, 0.05)


class Happened(Event):
    type = "sample.happened"
    number: int


class Ended(Event):
    type = "sample.ended"
    number: int


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


class Lab:
    """Makes endpoints and events without HTTP, and reads what became of them."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self.database = database
        self.keyring = keyring

    @contextlib.asynccontextmanager
    async def service(self, scope: Scope = INSTANCE) -> AsyncIterator[WebhookService]:
        async with self.database.begin(tenant=scope.tenant_id) as session:
            session.info["caller"] = Caller(kind="system", realm=scope.realm, tenant_id=scope.tenant_id)
            yield WebhookService(session, scope, self.keyring, LOOPBACK)

    async def endpoint(self, url: str, *events: str, scope: Scope = INSTANCE) -> Any:
        async with self.service(scope) as webhooks:
            return await webhooks.create(WebhookCreate(url=url, events=list(events) or ["*"]))

    async def announce(self, *numbers: int, scope: Scope = INSTANCE, kind: type[Event] = Happened) -> list[str]:
        async with self.database.begin() as session:
            return [
                publish(session, kind(number=number), realm=scope.realm, tenant_id=scope.tenant_id)
                for number in numbers
            ]

    async def rows(self, sql: str, **values: Any) -> list[Any]:
        async with self.database.begin() as session:
            await session.execute(text("SELECT set_config('app.worker', 'on', true)"))
            result = await session.execute(text(sql), values)
            assert isinstance(result, CursorResult)
            return list(result.mappings()) if result.returns_rows else []

    async def deliveries(self, webhook_id: str) -> list[Any]:
        return await self.rows("SELECT * FROM webhook_deliveries WHERE webhook_id = :id ORDER BY id", id=webhook_id)

    async def settled(self, webhook_id: str, count: int, seconds: float = 15) -> list[Any]:
        """The endpoint's deliveries once there are `count` and none is pending."""
        async with asyncio.timeout(seconds):
            while True:
                rows = await self.deliveries(webhook_id)
                if len(rows) >= count and all(row["status"] != "pending" for row in rows):
                    return rows
                await asyncio.sleep(0.02)


@pytest.fixture
async def lab(database: Database, keyring: Keyring) -> Lab:
    found = Lab(database, keyring)
    for table in ("webhooks", "events"):
        await found.rows(f"DELETE FROM {table}")
    return found


StartEngine = Callable[..., AbstractAsyncContextManager[Webhooks]]


@pytest.fixture
def engine(database: Database, keyring: Keyring) -> StartEngine:
    @contextlib.asynccontextmanager
    async def start(
        schedule: tuple[float, ...] = SCHEDULE, *, total_seconds: float = 20.0, **options: Any
    ) -> AsyncIterator[Webhooks]:
        http = OutboundHttp(LOOPBACK, connect_seconds=20.0, total_seconds=total_seconds)
        running = Webhooks(database, keyring, LOOPBACK, schedule, http=http, **options)
        await running.start()
        try:
            yield running
        finally:
            await running.stop(0.5)

    return start
