"""Every query about one tenant's fleet. The tenant comes right after the session; row-level security checks it too."""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Select, delete, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from quazzar.core.db import wait_alone
from quazzar.core.paging import Page
from quazzar.panel.fleet.models import FleetGroup, FleetInstance, FleetPresence, FleetToken

Found = Row[*tuple[Any, ...]]
"""A row with the columns that its query names."""

MOST_DEPTH = 10
"""How deep groups may nest."""

# --- groups --------------------------------------------------------------------------------------------------------


def _groups(tenant_id: str) -> Select[*tuple[Any, ...]]:
    members = (
        select(func.count())
        .select_from(FleetInstance)
        .where(
            FleetInstance.tenant_id == tenant_id,
            FleetInstance.group_id == FleetGroup.id,
            FleetInstance.status != "revoked",
        )
        .scalar_subquery()
    )
    return select(
        FleetGroup.id,
        FleetGroup.name,
        FleetGroup.parent_id,
        members.label("instances"),
        FleetGroup.created_at,
        FleetGroup.updated_at,
    ).where(FleetGroup.tenant_id == tenant_id)


async def find_groups(
    session: AsyncSession, tenant_id: str, page: Page, *, within: Collection[str] | None = None
) -> Sequence[Found]:
    query = _groups(tenant_id).order_by(FleetGroup.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(FleetGroup.id < page.after)
    if within is not None:
        query = query.where(FleetGroup.id.in_(within))
    return (await session.execute(query)).all()


async def get_group(session: AsyncSession, tenant_id: str, group_id: str) -> Found | None:
    return (await session.execute(_groups(tenant_id).where(FleetGroup.id == group_id))).one_or_none()


async def add_group(session: AsyncSession, tenant_id: str, **values: Any) -> None:
    await session.execute(insert(FleetGroup).values(tenant_id=tenant_id, **values))


async def update_group(session: AsyncSession, tenant_id: str, group_id: str, **values: Any) -> None:
    await session.execute(
        update(FleetGroup)
        .where(FleetGroup.tenant_id == tenant_id, FleetGroup.id == group_id)
        .values(updated_at=func.clock_timestamp(), **values)
    )


async def lock_groups(session: AsyncSession, tenant_id: str) -> None:
    """One at a time changes the tree of a tenant, so that two moves can't make a ring between them."""
    await wait_alone(session, f"fleet_groups:{tenant_id}")


async def expand_groups(session: AsyncSession, tenant_id: str, ids: Collection[str]) -> list[str]:
    """The groups of `ids` that exist, and all below them."""
    tree = (
        select(FleetGroup.id, literal(0).label("depth"))
        .where(FleetGroup.tenant_id == tenant_id, FleetGroup.id.in_(ids))
        .cte("tree", recursive=True)
    )
    child = aliased(FleetGroup)
    tree = tree.union_all(
        select(child.id, tree.c.depth + 1).where(
            child.tenant_id == tenant_id, child.parent_id == tree.c.id, tree.c.depth < MOST_DEPTH
        )
    )
    return list((await session.execute(select(tree.c.id).distinct())).scalars())


async def find_known(session: AsyncSession, tenant_id: str, ids: Collection[str]) -> set[str]:
    """Those of `ids` that are groups, or instances that are not revoked."""
    groups = select(FleetGroup.id).where(FleetGroup.tenant_id == tenant_id, FleetGroup.id.in_(ids))
    instances = select(FleetInstance.id).where(
        FleetInstance.tenant_id == tenant_id, FleetInstance.id.in_(ids), FleetInstance.status != "revoked"
    )
    return set((await session.execute(groups.union_all(instances))).scalars())


async def depth_above(session: AsyncSession, tenant_id: str, group_id: str) -> list[str]:
    """The group and those above it, from it upwards."""
    path: list[str] = []
    current: str | None = group_id
    while current is not None and len(path) <= MOST_DEPTH:
        path.append(current)
        query = select(FleetGroup.parent_id).where(FleetGroup.tenant_id == tenant_id, FleetGroup.id == current)
        current = (await session.execute(query)).scalar_one_or_none()
    return path


async def has_children(session: AsyncSession, tenant_id: str, group_id: str) -> bool:
    query = select(FleetGroup.id).where(FleetGroup.tenant_id == tenant_id, FleetGroup.parent_id == group_id).limit(1)
    return (await session.execute(query)).scalar_one_or_none() is not None


async def delete_group(session: AsyncSession, tenant_id: str, group_id: str) -> None:
    """Its instances and tokens stay, without a group."""
    for table in (FleetInstance, FleetToken):
        await session.execute(
            update(table).where(table.tenant_id == tenant_id, table.group_id == group_id).values(group_id=None)
        )
    await session.execute(delete(FleetGroup).where(FleetGroup.tenant_id == tenant_id, FleetGroup.id == group_id))


# --- registration tokens -------------------------------------------------------------------------------------------

_TOKEN = (
    FleetToken.id,
    FleetToken.name,
    FleetToken.tenant_id,
    FleetToken.tags,
    FleetToken.group_id,
    FleetToken.max_uses,
    FleetToken.uses,
    FleetToken.created_by,
    FleetToken.created_at,
    FleetToken.expires_at,
    FleetToken.last_used_at,
)


async def add_token(session: AsyncSession, tenant_id: str, **values: Any) -> Found:
    statement = insert(FleetToken).values(tenant_id=tenant_id, **values).returning(*_TOKEN)
    return (await session.execute(statement)).one()


async def find_tokens(session: AsyncSession, tenant_id: str, page: Page) -> Sequence[Found]:
    query = select(*_TOKEN).where(FleetToken.tenant_id == tenant_id).order_by(FleetToken.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(FleetToken.id < page.after)
    return (await session.execute(query)).all()


async def find_token(session: AsyncSession, tenant_id: str, token_id: str) -> Found | None:
    query = select(*_TOKEN).where(FleetToken.tenant_id == tenant_id, FleetToken.id == token_id)
    return (await session.execute(query)).one_or_none()


async def delete_token(session: AsyncSession, tenant_id: str, token_id: str) -> str | None:
    """The token's name, None when there is no such token."""
    statement = (
        delete(FleetToken)
        .where(FleetToken.tenant_id == tenant_id, FleetToken.id == token_id)
        .returning(FleetToken.name)
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def find_token_makers(session: AsyncSession, tenant_id: str) -> set[str]:
    statement = select(FleetToken.created_by).where(
        FleetToken.tenant_id == tenant_id, FleetToken.created_by.is_not(None)
    )
    return {str(user_id) for user_id in (await session.execute(statement)).scalars()}


async def delete_tokens_of(session: AsyncSession, tenant_id: str, user_id: str) -> None:
    """Those that the user has made."""
    await session.execute(delete(FleetToken).where(FleetToken.tenant_id == tenant_id, FleetToken.created_by == user_id))


async def use_token(session: AsyncSession, tenant_id: str, token_hash: bytes) -> Found | None:
    """Count one use if the token allows one more: however many try at once, no more than `max_uses` succeed."""
    statement = (
        update(FleetToken)
        .where(
            FleetToken.tenant_id == tenant_id,
            FleetToken.token_hash == token_hash,
            FleetToken.uses < FleetToken.max_uses,
            FleetToken.expires_at > func.clock_timestamp(),
        )
        .values(uses=FleetToken.uses + 1, last_used_at=func.clock_timestamp())
        .returning(*_TOKEN)
    )
    return (await session.execute(statement)).one_or_none()


async def get_token(session: AsyncSession, tenant_id: str, token_hash: bytes) -> Found | None:
    """Whatever its state; `expired` is by the database's clock."""
    query = select(*_TOKEN, (FleetToken.expires_at <= func.clock_timestamp()).label("expired")).where(
        FleetToken.tenant_id == tenant_id, FleetToken.token_hash == token_hash
    )
    return (await session.execute(query)).one_or_none()


# --- instances -----------------------------------------------------------------------------------------------------

_INSTANCE = (
    FleetInstance.id,
    FleetInstance.name,
    FleetInstance.status,
    FleetInstance.status_reason,
    FleetInstance.status_since,
    FleetInstance.version,
    FleetInstance.hostname,
    FleetInstance.os,
    FleetInstance.arch,
    FleetInstance.cpu_cores,
    FleetInstance.memory_bytes,
    FleetInstance.disk_bytes,
    FleetInstance.ip,
    FleetInstance.url,
    FleetInstance.tags,
    FleetInstance.group_id,
    FleetInstance.apps,
    FleetInstance.health_score,
    FleetInstance.checks,
    FleetInstance.certificate_expires_at,
    FleetInstance.created_at,
    FleetPresence.last_seen_at,
)


class Reach(msgspec.Struct, frozen=True):
    """Which instances a caller may see: all of the tenant, or those named and those of the groups named.

    `groups` holds the groups below the named ones too.
    """

    instances: frozenset[str] | None = None
    groups: frozenset[str] = frozenset()

    @property
    def condition(self) -> ColumnElement[bool] | None:
        if self.instances is None:
            return None
        return or_(FleetInstance.id.in_(self.instances), FleetInstance.group_id.in_(self.groups))


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a list is narrowed to; `groups` are the group asked for and all below it."""

    statuses: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    version: str | None = None
    q: str | None = None


def _instances(tenant_id: str, reach: Reach, wanted: Wanted | None = None) -> Select[*tuple[Any, ...]]:
    query = (
        select(*_INSTANCE)
        .join(
            FleetPresence,
            (FleetPresence.tenant_id == FleetInstance.tenant_id) & (FleetPresence.instance_id == FleetInstance.id),
        )
        .where(FleetInstance.tenant_id == tenant_id)
    )
    if reach.condition is not None:
        query = query.where(reach.condition)
    if wanted is None:
        return query
    query = query.where(
        FleetInstance.status.in_(wanted.statuses) if wanted.statuses else FleetInstance.status != "revoked"
    )
    if wanted.tags:
        query = query.where(FleetInstance.tags.contains(list(wanted.tags)))
    if wanted.groups is not None:
        query = query.where(FleetInstance.group_id.in_(wanted.groups))
    if wanted.version is not None:
        query = query.where(FleetInstance.version == wanted.version)
    if wanted.q is not None:
        words = wanted.q.lower()
        places = (FleetInstance.name, FleetInstance.hostname, FleetInstance.ip)
        query = query.where(or_(*(func.strpos(func.lower(func.coalesce(place, "")), words) > 0 for place in places)))
    return query


async def find_instances(
    session: AsyncSession, tenant_id: str, reach: Reach, wanted: Wanted, page: Page
) -> Sequence[Found]:
    """Newest first; without a status those that are revoked are left out."""
    query = _instances(tenant_id, reach, wanted).order_by(FleetInstance.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(FleetInstance.id < page.after)
    return (await session.execute(query)).all()


async def get_instance(session: AsyncSession, tenant_id: str, reach: Reach, instance_id: str) -> Found | None:
    query = _instances(tenant_id, reach).where(FleetInstance.id == instance_id)
    return (await session.execute(query)).one_or_none()


async def update_instance(session: AsyncSession, tenant_id: str, instance_id: str, **values: Any) -> None:
    await session.execute(
        update(FleetInstance)
        .where(FleetInstance.tenant_id == tenant_id, FleetInstance.id == instance_id)
        .values(updated_at=func.clock_timestamp(), **values)
    )


async def delete_instance(session: AsyncSession, tenant_id: str, instance_id: str) -> None:
    await session.execute(
        delete(FleetInstance).where(FleetInstance.tenant_id == tenant_id, FleetInstance.id == instance_id)
    )


async def find_totals(session: AsyncSession, tenant_id: str, reach: Reach) -> Sequence[Found]:
    """What the summary adds up: one row for each instance."""
    query = (
        select(
            FleetInstance.status,
            FleetInstance.version,
            FleetInstance.cpu_cores,
            FleetInstance.memory_bytes,
            FleetInstance.disk_bytes,
            FleetInstance.backup_at,
            func.jsonb_array_length(FleetInstance.apps).label("apps"),
            FleetPresence.measured,
        )
        .join(
            FleetPresence,
            (FleetPresence.tenant_id == FleetInstance.tenant_id) & (FleetPresence.instance_id == FleetInstance.id),
        )
        .where(FleetInstance.tenant_id == tenant_id)
    )
    if reach.condition is not None:
        query = query.where(reach.condition)
    return (await session.execute(query)).all()


# --- who comes in --------------------------------------------------------------------------------------------------


async def find_machine(session: AsyncSession, tenant_id: str, machine_id: str) -> Found | None:
    """The instance that is this machine, locked, unless it is revoked."""
    query = (
        select(FleetInstance.id, FleetInstance.name, FleetInstance.public_key_hash, FleetInstance.token_id)
        .where(
            FleetInstance.tenant_id == tenant_id,
            FleetInstance.machine_id == machine_id,
            FleetInstance.status != "revoked",
        )
        .with_for_update()
    )
    return (await session.execute(query)).one_or_none()


async def add_instance(session: AsyncSession, tenant_id: str, **values: Any) -> None:
    await session.execute(insert(FleetInstance).values(tenant_id=tenant_id, **values))
    await session.execute(insert(FleetPresence).values(tenant_id=tenant_id, instance_id=values["id"]))


async def get_credential(session: AsyncSession, tenant_id: str, instance_id: str) -> Found | None:
    """What a certificate of this instance is checked against."""
    query = select(
        FleetInstance.name,
        FleetInstance.status,
        FleetInstance.public_key_hash,
        FleetInstance.certificate_expires_at,
        FleetInstance.state_hash,
    ).where(FleetInstance.tenant_id == tenant_id, FleetInstance.id == instance_id)
    return (await session.execute(query)).one_or_none()
