"""What instances measure: taken in against COPY of the same rows, and read from among ten million.

`python -m benchmarks.measurements URL` on a migrated database, whose server runs on another core.
"""

import asyncio
import gc
import os
import random
import secrets
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from sqlalchemy import insert, text

from benchmarks.load import SERVER_CORE
from quazzar.accounts.models import User
from quazzar.core.auth import Principal
from quazzar.core.db import Database, see_all_tenants, set_scope
from quazzar.core.ids import new_id
from quazzar.link.messages import AppFacts, Facts, Heartbeat, State, pack, unpack_from_instance
from quazzar.link.metrics import APP_METRICS, HOST_METRICS
from quazzar.panel.fleet.authority import Identity
from quazzar.panel.fleet.ingest import Ingest
from quazzar.panel.fleet.metrics import MetricsService
from quazzar.panel.fleet.metrics_schemas import Range
from quazzar.panel.fleet.models import FleetInstance, FleetPresence
from quazzar.panel.fleet.retention import KEPT_DAYS, keep_partitions
from quazzar.panel.fleet.rollups import FIVE_MINUTES, HOUR, SPANS, roll_up
from quazzar.panel.tenants.service import TenantService

INSTANCES = int(os.environ.get("QUAZZAR_BENCH_INSTANCES", "5000"))
ROWS = int(os.environ.get("QUAZZAR_BENCH_ROWS", "10000000"))
ROUNDS = int(os.environ.get("QUAZZAR_BENCH_ROUNDS", "15"))
APPS = 3
READS = 400


class Line:
    """A line of which only who is at its end matters."""

    skew_seconds = 0.0

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def end(self, code: int, reason: str) -> None:
        raise SystemExit(f"A line was ended with {code}: {reason}")


async def make_tenant(database: Database) -> str:
    user_id, tenant_id = new_id("usr"), new_id("ten")
    async with database.begin() as session:
        email = f"{secrets.token_hex(6)}@example.com"
        await session.execute(insert(User).values(id=user_id, realm="panel", email=email, name="B", password_hash="!"))
        await set_scope(session, tenant=tenant_id, user=user_id)
        await TenantService(session).create(tenant_id, "Bench", owner_id=user_id)
    return tenant_id


async def make_instances(database: Database, tenant_id: str, count: int, state: State | None = None) -> list[str]:
    """Instances that are online, straight in the tables."""
    apps = [{"id": app.id, "name": app.name, "status": app.status} for app in state.apps] if state is not None else []
    rows = [
        {
            "id": new_id("inst"),
            "tenant_id": tenant_id,
            "name": f"server-{number:05}",
            "status": "online",
            "tags": ["bench", f"rack:{number % 40}"],
            "version": "0.1.0",
            "hostname": f"server-{number:05}",
            "os": "Debian GNU/Linux 12",
            "arch": "x86_64",
            "cpu_cores": 4,
            "memory_bytes": 8_000_000_000,
            "disk_bytes": 100_000_000_000,
            "ip": "203.0.113.7",
            "machine_id": secrets.token_hex(32),
            "public_key_hash": b"key",
            "certificate_serial": "1",
            "certificate_expires_at": datetime.now(UTC) + timedelta(days=90),
            "state_hash": state.hash() if state is not None else None,
            "apps": apps,
        }
        for number in range(count)
    ]
    async with database.begin(tenant=tenant_id) as session:
        await session.execute(insert(FleetInstance), rows)
        await session.execute(
            insert(FleetPresence), [{"instance_id": row["id"], "tenant_id": tenant_id} for row in rows]
        )
    return [str(row["id"]) for row in rows]


def a_state() -> State:
    facts = Facts(
        name="server",
        hostname="server",
        machine_id="0" * 64,
        version="0.1.0",
        os="Debian",
        arch="x86_64",
        cpu_cores=4,
        memory_bytes=8_000_000_000,
        disk_bytes=100_000_000_000,
    )
    apps = [AppFacts(id=f"app_{number:026}", name=f"app-{number}", status="running") for number in range(APPS)]
    return State(facts=facts, apps=apps)


async def taking_in(database: Database, owner: "asyncpg.Connection[Any]", tenant_id: str) -> None:
    """Heartbeats from their frames until they are durable, against COPY of the rows that they become."""
    state = a_state()
    lines = [
        Line(Identity(one, tenant_id, "1", b"key"))
        for one in await make_instances(database, tenant_id, INSTANCES, state)
    ]
    await owner.execute("CREATE TABLE copied (LIKE fleet_samples INCLUDING INDEXES)")
    columns = ["tenant_id", "instance_id", "app_id", "at", "measured"]
    ours, copied = [], []
    ingest = Ingest(database, 0.001)
    for number in range(ROUNDS + 1):
        beats = [a_beat(state) for _ in lines]
        rows = [
            (tenant_id, line.identity.instance_id, app_id, beat.sent_at, values)
            for line, beat in zip(lines, beats, strict=True)
            for app_id, values in (("", beat.measured), *beat.app_measured.items())
        ]
        frames = [pack(beat) for beat in beats]
        began = time.perf_counter()
        for line, frame in zip(lines, frames, strict=True):
            message = unpack_from_instance(frame)
            assert isinstance(message, Heartbeat)
            await ingest.heard(line, message)
        await ingest.write_beats()
        taken = time.perf_counter() - began
        began = time.perf_counter()
        await owner.copy_records_to_table("copied", records=rows, columns=columns)
        # The first round fills caches, and learns which apps there are.
        if number:
            ours.append(len(rows) / taken)
            copied.append(len(rows) / (time.perf_counter() - began))
    await owner.execute("DROP TABLE copied")
    values = len(HOST_METRICS) + APPS * len(APP_METRICS)
    ratio = statistics.median(ours) / statistics.median(copied)
    print(f"\nTaking in heartbeats of {INSTANCES} instances, {values} values each, {1 + APPS} rows")
    print(f"  COPY of the same rows {statistics.median(copied):9.0f} rows/s")
    print(f"  ingest                {statistics.median(ours):9.0f} rows/s, {ratio:.2f} of it (0.4 at least)")
    print(f"    that is {statistics.median(ours) / (1 + APPS):.0f} heartbeats a second", flush=True)


def a_beat(state: State) -> Heartbeat:
    return Heartbeat(
        sent_at=datetime.now(UTC),
        state_hash=state.hash(),
        measured=[random.uniform(0, 80) for _ in HOST_METRICS],
        app_measured={app.id: [random.uniform(0, 1e9) for _ in APP_METRICS] for app in state.apps},
    )


_SAMPLES = """
INSERT INTO fleet_samples (tenant_id, instance_id, app_id, at, measured)
SELECT $1, id, '', $2::timestamptz + moment * interval '30 seconds', ARRAY[{values}]
FROM generate_series($3::integer, $4::integer) AS moment, unnest($5::text[]) AS id ORDER BY moment
"""
_SUMS = """
INSERT INTO {table} (tenant_id, instance_id, app_id, at, minimum, average, maximum, counts)
SELECT $1, id, '', at, ARRAY[{values}], ARRAY[{values}], ARRAY[{values}], array_fill(10, ARRAY[{width}])
FROM generate_series($2::timestamptz, $3::timestamptz, $4::interval) AS at, unnest($5::text[]) AS id ORDER BY id, at
ON CONFLICT DO NOTHING
"""


async def fill(database: Database, owner: "asyncpg.Connection[Any]", tenant_id: str) -> list[str]:
    """A day of samples, `ROWS` in all, in the order in which they would have come, and sums of the time before."""
    count = max(1, ROWS // 2880)
    ids = await make_instances(database, tenant_id, count)
    now = datetime.now(UTC)
    begin = now - timedelta(days=1)
    for part in KEPT_DAYS:
        await owner.execute(
            "SELECT fleet_keep_partitions($1, 'epoch', $2, $3)", part, now.date() - timedelta(95), now.date()
        )
    random_values = ", ".join("random() * 100" for _ in HOST_METRICS)
    print(f"\nFilling {count * 2880:,} samples of {count} instances, and their sums …", flush=True)
    await owner.execute("SELECT set_config('app.worker', 'on', false)")
    for first in range(1, 2881, 120):
        await owner.execute(_SAMPLES.format(values=random_values), tenant_id, begin, first, first + 119, ids)
    begin = datetime.fromtimestamp(now.timestamp() // 86_400 * 86_400, UTC)
    for table, seconds, days in (("fleet_five_minutes", FIVE_MINUTES, 7), ("fleet_hours", HOUR, 90)):
        sums = _SUMS.format(table=table, values=random_values, width=len(HOST_METRICS))
        step, span = timedelta(seconds=seconds), timedelta(seconds=SPANS[seconds])
        # As the job writes them: by the span, and within it instance by instance.
        since = begin - timedelta(days=days)
        while since < begin - timedelta(days=1):
            await owner.execute(sums, tenant_id, since, since + span - step, step, ids)
            since += span
    # The last day is summed up by the job itself.
    began = time.perf_counter()
    await roll_up(database, datetime.now(UTC))
    print(f"  a day of it summed up in {time.perf_counter() - began:.0f} s, of which there are 86,400")
    for table in KEPT_DAYS:
        await owner.execute(f"VACUUM ANALYZE {table}")
        rows = await owner.fetchval(f"SELECT count(*) FROM {table}")
        size = await owner.fetchval(
            "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = to_regclass($1)", table
        )
        print(f"  {table}: {rows:,} rows, {float(size) / 2**20:,.0f} MiB, {float(size) / rows:.0f} bytes a row")
    return ids


async def reading(database: Database, tenant_id: str, ids: list[str]) -> None:
    """Histories of random instances, as the API's service reads them."""
    me = Principal(realm="panel", user_id="usr_x", client="x", scopes=frozenset("*"), tenant_id=tenant_id)
    limits: dict[Range, float | None] = {"1h": None, "6h": None, "24h": 25.0, "7d": None, "30d": 50.0, "90d": None}
    print(f"\nHistory of one instance ({READS} reads of random ones, one after the other)")
    for span, limit in limits.items():
        taken, points = [], 0
        for _ in range(READS):
            began = time.perf_counter()
            async with database.begin(tenant=tenant_id) as session:
                found = await MetricsService(session, me, 30.0).history(
                    random.choice(ids), span=span, metric="cpu_percent", app_id=None, step_seconds=None
                )
            taken.append((time.perf_counter() - began) * 1000)
            points = max(points, len(found.points))
        taken.sort()
        most = f" ({limit:.0f} ms at most)" if limit is not None else ""
        print(
            f"  {span:4} {points:4} points: median {statistics.median(taken):6.1f} ms,"
            f" p99 {taken[int(READS * 0.99)]:6.1f} ms{most}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


async def measure(url: str) -> None:
    os.sched_setaffinity(0, {int(SERVER_CORE)})
    # As the process that serves does it.
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    database = Database(url)
    owner = await asyncpg.connect(url)
    try:
        tenant_id = await make_tenant(database)
        async with database.begin() as session:
            await keep_partitions(session, datetime.now(UTC))
        await taking_in(database, owner, tenant_id)
        async with database.begin() as session:
            await see_all_tenants(session)
            await session.execute(text("DELETE FROM fleet_samples"))
        await reading(database, tenant_id, await fill(database, owner, tenant_id))
    finally:
        await owner.close()
        await database.close()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(sys.argv[1]))
