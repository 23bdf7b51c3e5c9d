"""The roles and the database that the embedded server has to have."""

from typing import Any

import asyncpg

from quazzar.core.db import APP_ROLE

OWNER_ROLE = "quazzar_owner"
SUPERUSER = "postgres"
DATABASE = "quazzar"


async def ensure_roles(connection: "asyncpg.Connection[Any]") -> None:
    """Make the roles and the database as they must be, and change nothing if they are; `connection` is a superuser's.

    `quazzar_owner` owns the database. `quazzar_app` may connect to it and owns nothing; what it may do in it is
    granted by migrations. Neither is a superuser, makes roles or databases, or passes row-level security by.
    """
    rows = await connection.fetch(
        "SELECT rolname, rolcanlogin AND NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication"
        " OR rolbypassrls) AS sound FROM pg_roles WHERE rolname = ANY($1)",
        [OWNER_ROLE, APP_ROLE],
    )
    roles = {row["rolname"]: row["sound"] for row in rows}
    for role in (OWNER_ROLE, APP_ROLE):
        if roles.get(role) is not True:
            verb = "ALTER" if role in roles else "CREATE"
            await connection.execute(
                f"{verb} ROLE {role} LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS"
            )
    if await connection.fetchval("SELECT pg_has_role($1, $2, 'MEMBER')", APP_ROLE, OWNER_ROLE):
        await connection.execute(f"REVOKE {OWNER_ROLE} FROM {APP_ROLE}")
    if not await connection.fetchval("SELECT pg_has_role($1, $2, 'MEMBER')", OWNER_ROLE, APP_ROLE):
        # So that the owner can check, under the app's role, what it granted.
        await connection.execute(f"GRANT {APP_ROLE} TO {OWNER_ROLE} WITH INHERIT FALSE, SET TRUE")
    owner = await connection.fetchval("SELECT datdba::regrole::text FROM pg_database WHERE datname = $1", DATABASE)
    if owner is None:
        await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER_ROLE}")
    elif owner != OWNER_ROLE:
        await connection.execute(f"ALTER DATABASE {DATABASE} OWNER TO {OWNER_ROLE}")
    if await connection.fetchval("SELECT has_database_privilege('public', $1, 'CONNECT')", DATABASE):
        await connection.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")
    if not await connection.fetchval("SELECT has_database_privilege($1::name, $2, 'CONNECT')", APP_ROLE, DATABASE):
        await connection.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {APP_ROLE}")
