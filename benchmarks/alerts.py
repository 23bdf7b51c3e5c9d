"""What it costs to evaluate 20 rules over 5,000 instances: when nothing happens, when all go silent, and when all come
back.

`python -m benchmarks.alerts URL` on a migrated database.
"""

import asyncio
import os
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

import quazzar.tables  # noqa: F401 - rows are added to tables that others name
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.link.metrics import row_of
from quazzar.panel.alerts import store
from quazzar.panel.alerts.columns import columns_of
from quazzar.panel.alerts.process import Watch
from quazzar.panel.alerts.schemas import AbsenceRule, AlertRuleCreate, ForecastRule, RateRule, ThresholdRule
from quazzar.settings import load_settings

INSTANCES = int(os.environ.get("QUAZZAR_BENCH_INSTANCES", "5000"))
ROUNDS = 10
START = datetime(2030, 1, 1, tzinfo=UTC)
EVERY = timedelta(seconds=15)
RULES: list[AlertRuleCreate] = [
    *(ThresholdRule(name=f"t{number}", metric="disk_percent", value=90, for_seconds=300) for number in range(14)),
    ThresholdRule(name="apps", metric="apps_down", operator=">", value=0),
    ThresholdRule(name="certificate", metric="certificate_left_seconds", operator="<", value=1_209_600),
    AbsenceRule(name="offline"),
    AbsenceRule(name="backup", metric="backup", for_seconds=86_400),
    RateRule(name="rate", metric="memory_percent", value=50, window_seconds=3_600),
    ForecastRule(name="full", metric="disk_percent", value=100),
]


_INSTANCES = """
INSERT INTO fleet_instances (id, tenant_id, name, status, tags, version, hostname, os, arch, cpu_cores, memory_bytes,
    disk_bytes, machine_id, public_key_hash, certificate_serial, certificate_expires_at, apps, backup_at, created_at)
SELECT 'inst_' || n, :tenant, 'n' || n, 'online', '{}', '0.1.0', 'h', 'Linux', 'x86_64', 4, 1, 1, 'm' || n, '', '1',
    :until, CAST(:apps AS jsonb), :start, :start
FROM generate_series(1, :count) AS n
"""


async def prepare(database: Database) -> str:
    """A tenant with its rules and instances, each with ten apps."""
    tenant_id = new_id("ten")
    apps = "[" + ",".join('{"id": "app_x", "name": "app", "status": "running"}' for _ in range(10)) + "]"
    async with database.begin(tenant=tenant_id) as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        await session.execute(text("INSERT INTO tenants (id, name) VALUES (:id, 'bench')"), {"id": tenant_id})
        await session.execute(text("INSERT INTO alert_turns (tenant_id, seeded) VALUES (:id, true)"), {"id": tenant_id})
        for rule in RULES:
            await store.add_rule(session, tenant_id, (), id=new_id("rul"), **columns_of(rule))
        until = START + timedelta(days=90)
        values = {"tenant": tenant_id, "until": until, "apps": apps, "start": START, "count": INSTANCES}
        await session.execute(text(_INSTANCES), values)
        await session.execute(
            text("INSERT INTO fleet_presence (tenant_id, instance_id) SELECT tenant_id, id FROM fleet_instances")
        )
    return tenant_id


async def heartbeats(database: Database, tenant_id: str, now: datetime) -> None:
    measured = row_of({"disk_percent": 50.0, "memory_percent": 40.0})
    async with database.begin(tenant=tenant_id) as session:
        await session.execute(
            text("UPDATE fleet_presence SET last_seen_at = :now, measured_at = :now, measured = :measured"),
            {"now": now, "measured": measured},
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


async def timed(watch: Watch, tenant_id: str, now: datetime) -> float:
    started = time.perf_counter()
    await watch.look(tenant_id, now)
    return time.perf_counter() - started


async def measure(url: str) -> None:
    database = Database(url, pool_size=4)
    tenant_id = await prepare(database)
    watch = Watch(database, load_settings({"server.data_dir": str(Path.cwd())}, {}), lambda: "", every_seconds=0)
    now, quiet = START, []
    for _ in range(ROUNDS + 1):
        now += EVERY
        await heartbeats(database, tenant_id, now)
        quiet.append(await timed(watch, tenant_id, now))
    print(f"{len(RULES)} rules, {INSTANCES} instances, one evaluation each {EVERY.total_seconds():.0f} s")
    middle = statistics.median(quiet[1:])
    share = 100 * middle / EVERY.total_seconds()
    print(f"nothing happens: median {_ms(middle)}, worst {_ms(max(quiet[1:]))} ({share:.1f} % of the time)")
    worst = 0.0
    for _ in range(24):
        now += EVERY
        worst = max(worst, await timed(watch, tenant_id, now))
    print(f"all fall silent: worst {_ms(worst)}, {await count(database, tenant_id)} alerts")
    now += EVERY
    await heartbeats(database, tenant_id, now)
    print(f"all come back: {_ms(await timed(watch, tenant_id, now))}, {await count(database, tenant_id)} alerts")
    await database.close()


async def count(database: Database, tenant_id: str) -> Any:
    async with database.begin(tenant=tenant_id) as session:
        return (await session.execute(text("SELECT count(*) FROM alerts WHERE status <> 'resolved'"))).scalar_one()


if __name__ == "__main__":
    asyncio.run(measure(sys.argv[1]))
