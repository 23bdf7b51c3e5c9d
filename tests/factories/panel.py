"""What a tenant of the panel has, as rows, where making it over HTTP would need a second machine."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.panel.fleet import store


async def make_instance(database: Database, tenant_id: str, **values: Any) -> str:
    """A server that has joined the tenant and was not heard of yet; gives its id."""
    instance_id = new_id("inst")
    given: dict[str, Any] = {
        "name": f"srv-{secrets.token_hex(4)}",
        "status": "offline",
        "tags": [],
        "version": "1.0.0",
        "hostname": "srv",
        "os": "Debian 12",
        "arch": "x86_64",
        "cpu_cores": 2,
        "memory_bytes": 2**31,
        "disk_bytes": 2**35,
        "machine_id": secrets.token_hex(16),
        "public_key_hash": secrets.token_bytes(32),
        "certificate_serial": secrets.token_hex(8),
        "certificate_expires_at": datetime.now(UTC) + timedelta(days=90),
    }
    async with database.begin(tenant=tenant_id) as session:
        await store.add_instance(session, tenant_id, id=instance_id, **given | values)
    return instance_id


async def make_group(database: Database, tenant_id: str, **values: Any) -> str:
    """A group of the tenant; gives its id."""
    group_id = new_id("grp")
    async with database.begin(tenant=tenant_id) as session:
        await store.add_group(session, tenant_id, id=group_id, **{"name": f"g-{secrets.token_hex(4)}"} | values)
    return group_id
