"""The list of instances, which whoever watches a fleet asks for again and again: read on the bare driver."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Integer, Select, Text, bindparam, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from quazzar.core.auth import Principal
from quazzar.core.db import Database, Query
from quazzar.core.paging import Page
from quazzar.panel.fleet import store
from quazzar.panel.fleet.models import FleetInstance, FleetPresence
from quazzar.panel.fleet.service import reach_of
from quazzar.panel.fleet.store import Reach


class InstanceRow(msgspec.Struct):
    """`InstanceOut` as it is read, in the order of its fields: what is JSON passes through as it is."""

    id: str
    name: str
    status: str
    status_reason: str | None
    status_since: datetime
    version: str
    hostname: str
    os: str
    arch: str
    cpu_cores: int
    memory_bytes: int
    disk_bytes: int
    ip: str | None
    url: str | None
    tags: list[str]
    group_id: str | None
    apps: msgspec.Raw
    last_seen_at: datetime | None
    health_score: int
    certificate_expires_at: datetime
    created_at: datetime


_NEWEST: Final = "~"
_Id = Text(collation="C")
_Ids = ARRAY(_Id)
_COLUMNS = [
    getattr(FleetPresence if name == "last_seen_at" else FleetInstance, name) for name in InstanceRow.__struct_fields__
]


def _page(statement: Select[Any]) -> Select[Any]:
    tenant_id = bindparam("tenant_id", type_=_Id)
    return (
        statement.join(
            FleetPresence,
            (FleetPresence.tenant_id == FleetInstance.tenant_id) & (FleetPresence.instance_id == FleetInstance.id),
        )
        .where(FleetInstance.tenant_id == tenant_id, FleetInstance.id < bindparam("before", type_=_Id))
        .order_by(FleetInstance.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )


def _filtered() -> Select[Any]:
    statuses, tags = bindparam("statuses", type_=_Ids), bindparam("tags", type_=_Ids)
    groups, version = bindparam("groups", type_=_Ids), bindparam("version", type_=Text)
    words = bindparam("q", type_=Text)
    own, own_groups = bindparam("own", type_=_Ids), bindparam("own_groups", type_=_Ids)
    places = (FleetInstance.name, FleetInstance.hostname, FleetInstance.ip)
    return _page(
        select(*_COLUMNS).where(
            or_(own.is_(None), FleetInstance.id == func.any(own), FleetInstance.group_id == func.any(own_groups)),
            or_(FleetInstance.status == func.any(statuses), statuses.is_(None) & (FleetInstance.status != "revoked")),
            or_(tags.is_(None), FleetInstance.tags.contains(tags)),
            or_(groups.is_(None), FleetInstance.group_id == func.any(groups)),
            or_(version.is_(None), FleetInstance.version == version),
            or_(
                words.is_(None),
                *(func.strpos(func.lower(func.coalesce(place, "")), func.lower(words)) > 0 for place in places),
            ),
        )
    )


_LIST = Query(_page(select(*_COLUMNS).where(FleetInstance.status != "revoked")), InstanceRow, before=_NEWEST)
_LIST_FILTERED = Query(_filtered(), InstanceRow, before=_NEWEST)


async def list_instances(
    database: Database,
    principal: Principal,
    page: Page,
    *,
    statuses: Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
    group: str | None = None,
    version: str | None = None,
    q: str | None = None,
) -> list[InstanceRow]:
    """Newest first, of those that the caller may see; without statuses those that are revoked are left out, and a group
    that does not exist holds none.
    """
    tenant_id = principal.tenant_id
    assert tenant_id is not None
    values: dict[str, Any] = {"tenant_id": tenant_id, "limit": page.fetch}
    if page.after is not None:
        values["before"] = page.after
    filters = {"statuses": statuses, "tags": tags, "version": version, "q": q}
    if principal.resources is None and group is None and not any(filters.values()):
        return await _LIST.all(database, tenant=tenant_id, **values)
    reach, groups = await _reach(database, tenant_id, principal, group)
    values |= {name: value or None for name, value in filters.items()} | {"groups": groups}
    if reach.instances is not None:
        values |= {"own": list(reach.instances), "own_groups": list(reach.groups)}
    return await _LIST_FILTERED.all(database, tenant=tenant_id, **values)


async def _reach(
    database: Database, tenant_id: str, principal: Principal, group: str | None
) -> tuple[Reach, list[str] | None]:
    """What the caller may see, and the group that was asked for with all below it."""
    if principal.resources is None and group is None:
        return Reach(), None
    async with database.begin(tenant=tenant_id) as session:
        groups = None if group is None else await store.expand_groups(session, tenant_id, [group])
        return await reach_of(session, tenant_id, principal), groups
