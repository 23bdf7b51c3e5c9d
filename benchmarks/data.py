"""A database with known clients and apps, made straight in the tables so that a run begins soon."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from quazzar.core.crypto import load_keyring
from quazzar.core.ids import new_id
from quazzar.core.tokens import INSTANCE_ACCESS, Tokens

CLIENTS = 10_000
APPS = 50


async def fill(owner_url: str, data_dir: Path) -> list[str]:
    """Make users with one session each and the apps; gives the Authorization header of each user."""
    connection = await asyncpg.connect(owner_url)
    now = datetime.now(UTC)
    tokens = Tokens(load_keyring(None, data_dir))
    users, sessions, headers = [], [], []
    for number in range(CLIENTS):
        user, session = new_id("usr"), new_id("ses")
        users.append((user, "instance", f"client-{number:05}", "admin", "!", now, now))
        sessions.append((session, "instance", user, now, now + timedelta(days=1), "127.0.0.1", "wrk"))
        token = tokens.sign(INSTANCE_ACCESS, subject=user, session_id=session, seconds=86_400)
        headers.append(f"Bearer {token}")
    columns = ["id", "realm", "username", "role", "password_hash", "created_at", "last_login_at"]
    await connection.copy_records_to_table("users", records=users, columns=columns)
    columns = ["id", "realm", "user_id", "created_at", "expires_at", "ip", "user_agent"]
    # The owner is bound by row-level security too; sessions of the instance belong to no tenant and pass it.
    await connection.executemany(
        f"INSERT INTO sessions ({', '.join(columns)}) VALUES ($1, $2, $3, $4, $5, $6, $7)", sessions
    )
    ports = [{"service": "web", "container_port": 80, "host_port": 20_000, "protocol": "tcp"}]
    for number in range(APPS):
        await connection.execute(
            "INSERT INTO apps (id, name, template, version, definition, status, status_since, ports, urls)"
            " VALUES ($1, $2, 'hello', '1.0.0', '{}', 'running', $3, $4, $5)",
            new_id("app"),
            f"app-{number:02}",
            now,
            msgspec.json.encode(ports).decode(),
            msgspec.json.encode(["http://127.0.0.1:20000"]).decode(),
        )
    await connection.execute("ANALYZE")
    await connection.close()
    return headers


def apps_query() -> tuple[str, list[Any], Any]:
    """The product's own statement for the first page of its list: SQL, arguments, and the struct of a row."""
    from quazzar.instance.apps import store  # noqa: PLC0415
    from quazzar.instance.apps.schemas import AppRow  # noqa: PLC0415

    query = store._LIST
    return query.sql, query._arguments({"limit": APPS}), AppRow


INSTANCES = 200


def instances_query(tenant_id: str) -> tuple[str, list[Any], Any]:
    """What a page of the panel's list of instances needs: SQL, arguments, and a struct of a row."""
    from quazzar.panel.fleet.schemas import InstanceOut  # noqa: PLC0415

    kinds = {"apps": msgspec.Raw}
    row_type = msgspec.defstruct("Row", [(name, kinds.get(name, Any)) for name in InstanceOut.__struct_fields__])
    columns = ", ".join(
        "p.last_seen_at" if name == "last_seen_at" else f"i.{name}" for name in row_type.__struct_fields__
    )
    sql = f"""
        SELECT {columns} FROM fleet_instances i
        JOIN fleet_presence p ON p.tenant_id = i.tenant_id AND p.instance_id = i.id
        WHERE i.tenant_id = $1 AND i.status <> 'revoked' ORDER BY i.id DESC LIMIT $2
    """
    return sql, [tenant_id, INSTANCES], row_type
