"""Letting instances in, many at once and of all tenants: whose certificate counts, and whose socket is the newest."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import text

from quazzar.core.db import Database, see_all_tenants
from quazzar.panel.fleet.authority import Identity
from quazzar.panel.fleet.channel import CHANNEL, moved
from quazzar.panel.fleet.together import Together


class Arrival(msgspec.Struct, frozen=True):
    """An instance that has greeted on a socket of this name."""

    identity: Identity
    connection: str
    skew_seconds: float
    address: str | None


class Doors:
    """One per panel process. Both give the instance's row, None for a certificate that does not count (any more)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.check = Together(self._check)
        self.enter = Together(self._enter)

    async def _check(self, identities: Sequence[Identity]) -> list[Any]:
        async with self._database.begin() as session:
            await see_all_tenants(session)
            found = await session.execute(_KNOWN, {"ids": [one.instance_id for one in identities]})
            return _counting(identities, found)

    async def _enter(self, arrivals: Sequence[Arrival]) -> list[Any]:
        """Note whose sockets are the newest, and tell the other processes."""
        async with self._database.begin() as session:
            await see_all_tenants(session)
            found = await session.execute(_KNOWN, {"ids": [one.identity.instance_id for one in arrivals]})
            rows = _counting([one.identity for one in arrivals], found)
            # Of two sockets of one instance the later counts; a statement that names a row twice would take either.
            newest = {
                one.identity.instance_id: one for one, row in zip(arrivals, rows, strict=True) if row is not None
            }.values()
            values = {
                "ids": [one.identity.instance_id for one in newest],
                "tenants": [one.identity.tenant_id for one in newest],
                "connections": [one.connection for one in newest],
                "skews": [one.skew_seconds for one in newest],
                "addresses": [one.address for one in newest],
                "words": [moved(one.identity.instance_id, one.connection) for one in newest],
            }
            await session.execute(_PRESENT, values)
            await session.execute(_ADDRESS, values)
            await session.execute(_TELL, values | {"channel": CHANNEL})
        return rows


def _counting(identities: Sequence[Identity], found: Any) -> list[Any]:
    rows = {(row.tenant_id, row.id, row.public_key_hash): row for row in found}
    return [rows.get((one.tenant_id, one.instance_id, one.public_key_hash)) for one in identities]


_KNOWN = text(
    """
    SELECT id, tenant_id, public_key_hash, state_hash FROM fleet_instances
    WHERE id = ANY(CAST(:ids AS text[])) AND status <> 'revoked'
    """
)
_PRESENT = text(
    """
    UPDATE fleet_presence AS p SET last_seen_at = clock_timestamp(), connection = now.connection,
        skew_seconds = now.skew
    FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]), CAST(:connections AS text[]), CAST(:skews AS float8[]))
        AS now (tenant_id, instance_id, connection, skew)
    WHERE p.instance_id = now.instance_id AND p.tenant_id = now.tenant_id
    """
)
_ADDRESS = text(
    """
    UPDATE fleet_instances AS i SET ip = now.address, updated_at = clock_timestamp()
    FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]), CAST(:addresses AS text[]))
        AS now (tenant_id, id, address)
    WHERE i.id = now.id AND i.tenant_id = now.tenant_id AND i.ip IS DISTINCT FROM now.address
    """
)
_TELL = text("SELECT pg_notify(:channel, word) FROM unnest(CAST(:words AS text[])) AS word")
