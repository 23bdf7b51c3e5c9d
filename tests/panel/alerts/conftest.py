"""A tenant's fleet whose clock, values and heartbeats a test sets, and evaluations as of that clock."""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import msgspec
import pytest
from sqlalchemy import text, update

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.core.records import Caller
from quazzar.core.schema import decode_body
from quazzar.link.metrics import row_of
from quazzar.panel.alerts.process import Watch
from quazzar.panel.alerts.rules import AlertRuleService
from quazzar.panel.alerts.schemas import AlertRuleCreate, AlertRuleUpdate
from quazzar.panel.alerts.service import AlertService
from quazzar.panel.fleet.models import FleetInstance, FleetPresence
from quazzar.settings import Settings
from tests.factories.accounts import make_member
from tests.factories.panel import make_instance

START = datetime(2030, 1, 1, tzinfo=UTC)
LATE = START + timedelta(days=90)
STEP = 15


class Lab:
    """`look` lets time pass, has everybody heard who is not `silent`, and evaluates."""

    def __init__(self, database: Database, settings: Settings, tenant_id: str, user_id: str) -> None:
        self.database = database
        self.settings = settings
        self.tenant_id = tenant_id
        self.principal = Principal(
            realm="panel", user_id=user_id, client=user_id, scopes=frozenset("*"), tenant_id=tenant_id, session_id="x"
        )
        self.now = START
        self.silent: set[str] = set()
        self.values: dict[str, dict[str, float | None]] = {}
        self.watch = self.watcher()

    def watcher(self) -> Watch:
        """As another process would have one."""
        return Watch(self.database, self.settings, lambda: "https://panel.example.com", every_seconds=0)

    async def instance(self, name: str = "berlin-1", *, values: dict[str, Any] | None = None, **measured: float) -> str:
        usual = {"name": name, "status": "online", "created_at": self.now, "certificate_expires_at": LATE}
        made = await make_instance(self.database, self.tenant_id, **usual | (values or {}))
        self.values[made] = dict(measured)
        return made

    def set(self, instance_id: str, **measured: float | None) -> None:
        self.values[instance_id] |= measured

    async def rule(self, **body: Any) -> str:
        whole = {"kind": "threshold", "name": "Rule", "metric": "disk_percent", "value": 90} | body
        if whole["kind"] == "absence":
            whole = {name: value for name, value in whole.items() if name not in {"value", "metric"} or name in body}
        data: AlertRuleCreate = decode_body(msgspec.json.encode(whole), AlertRuleCreate)  # type: ignore[arg-type]
        async with self._begin() as session:
            return str((await self._rules(session).create(data)).id)

    async def change(self, rule_id: str, **body: Any) -> None:
        data = decode_body(msgspec.json.encode(body), AlertRuleUpdate)
        async with self._begin() as session:
            await self._rules(session).update(rule_id, data)

    async def drop(self, rule_id: str) -> None:
        async with self._begin() as session:
            await self._rules(session).delete(rule_id)

    async def act(self, action: str, alert_id: str, *args: Any) -> None:
        async with self._begin() as session:
            await getattr(AlertService(session, self.principal), action)(alert_id, *args)

    def _rules(self, session: Any) -> AlertRuleService:
        return AlertRuleService(session, self.principal, self.settings, "https://panel.example.com")

    def _begin(self) -> Any:
        return self.database.begin(tenant=self.tenant_id, user=self.principal.user_id)

    async def heard(self) -> None:
        """A heartbeat of everybody who is not silent, as of now."""
        async with self.database.begin(tenant=self.tenant_id) as session:
            for instance_id, measured in self.values.items():
                if instance_id not in self.silent:
                    values = {"last_seen_at": self.now, "measured_at": self.now, "measured": row_of(measured)}
                    own = FleetPresence.instance_id == instance_id
                    await session.execute(update(FleetPresence).where(own).values(**values))

    async def describe(self, instance_id: str, **values: Any) -> None:
        async with self.database.begin(tenant=self.tenant_id) as session:
            await session.execute(update(FleetInstance).where(FleetInstance.id == instance_id).values(**values))

    async def look(self, seconds: float = STEP) -> None:
        self.now += timedelta(seconds=seconds)
        await self.heard()
        await self.watch.look(self.tenant_id, self.now)

    async def looks(self, seconds: float, step: float = STEP) -> None:
        """As `look`, again and again for that long."""
        for _ in range(round(seconds / step)):
            await self.look(step)

    async def rows(self, sql: str, **values: Any) -> list[Any]:
        async with self.database.begin(tenant=self.tenant_id) as session:
            return list((await session.execute(text(sql), values)).mappings())

    async def alerts(self, status: str | None = None) -> list[Any]:
        """Oldest first."""
        found = await self.rows("SELECT * FROM alerts ORDER BY id")
        return [row for row in found if status in (None, row["status"])]

    async def happened(self) -> list[str]:
        """Types of the events of alerts, oldest first."""
        own = "SELECT type FROM events WHERE tenant_id = :id AND type LIKE 'alert.%' ORDER BY position"
        return [row["type"] for row in await self.rows(own, id=self.tenant_id)]

    async def told(self) -> list[dict[str, Any]]:
        """What webhooks are to be told, oldest first, as it will arrive."""
        own = "SELECT args FROM jobs WHERE kind = 'channels.deliver' AND tenant_id = :id ORDER BY id"
        rows = await self.rows(own, id=self.tenant_id)
        return [msgspec.json.decode(row["args"]["body"])["data"] for row in rows]

    async def channel(self, url: str = "https://hooks.example.com/a", **values: Any) -> str:
        channel_id = new_id("chn")
        sql = (
            "INSERT INTO notification_channels (id, realm, tenant_id, name, kind, url, sealed)"
            " VALUES (:id, 'panel', :tenant_id, :id, 'webhook', :url, '')"
        )
        async with self.database.begin(tenant=self.tenant_id) as session:
            session.info["caller"] = Caller(kind="system", realm="panel", tenant_id=self.tenant_id)
            await session.execute(text(sql), {"id": channel_id, "tenant_id": self.tenant_id, "url": url} | values)
        return channel_id


async def make_lab(database: Database, settings: Settings, keyring: Keyring) -> Lab:
    """A fresh tenant without the rules that it begins with."""
    database.session_info["keyring"] = keyring
    member = await make_member(database)
    assert member.tenant_id is not None
    made = Lab(database, settings, member.tenant_id, member.id)
    async with database.begin(tenant=made.tenant_id) as session:
        await session.execute(text("DELETE FROM alert_rules"))
    return made


@pytest.fixture
async def lab(database: Database, settings: Settings, keyring: Keyring) -> Lab:
    return await make_lab(database, settings, keyring)


@pytest.fixture
def by_the_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What users do happens by the lab's clock too."""
    set_clocks(lab, monkeypatch)


def set_clocks(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        @staticmethod
        def now(tz: tzinfo) -> datetime:
            return lab.now.astimezone(tz)

    for module in ("service", "rules", "open"):
        monkeypatch.setattr(f"quazzar.panel.alerts.{module}.datetime", Clock)
