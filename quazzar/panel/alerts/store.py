"""Every query about one tenant's alerts and rules. The tenant comes right after the session; row-level security checks
it too.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import msgspec
from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Table,
    Text,
    any_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.paging import Page
from quazzar.panel.alerts.models import Alert, AlertNotice, AlertRule, AlertRuleChannel, AlertState, AlertTurn
from quazzar.panel.fleet.models import FleetInstance
from quazzar.panel.fleet.store import Reach

Found = Row[*tuple[Any, ...]]
"""A row with the columns that its query names."""


def _among(column: Any, ids: Collection[str]) -> ColumnElement[bool]:
    """As one parameter: thousands of servers may go silent at once."""
    among: ColumnElement[bool] = column == any_(literal(list(ids), ARRAY(Text(collation="C"))))
    return among


# --- turns ---------------------------------------------------------------------------------------------------------


async def add_turn(session: AsyncSession, tenant_id: str) -> None:
    """The turn of a tenant that has been given its rules."""
    keys = [AlertTurn.tenant_id]
    statement = upsert(AlertTurn).values(tenant_id=tenant_id, seeded=True)
    await session.execute(statement.on_conflict_do_update(index_elements=keys, set_={"seeded": True}))


# A row that names its tenant holds that one's row against deletion. It is held first of all, since whoever deletes a
# tenant goes the same way: from the tenant to its turn.
_HOLD = text("SELECT id FROM tenants WHERE id = :tenant_id FOR KEY SHARE SKIP LOCKED")
_WAIT = text("SELECT id FROM tenants WHERE id = :tenant_id FOR KEY SHARE")


async def take_turn(session: AsyncSession, tenant_id: str, now: datetime) -> Found | None:
    """The tenant's turn, locked, if it is due and nobody else has it."""
    if (await session.execute(_HOLD, {"tenant_id": tenant_id})).one_or_none() is None:
        return None
    query = select(AlertTurn.evaluated_at, AlertTurn.resumed_at, AlertTurn.seeded).where(
        AlertTurn.tenant_id == tenant_id, AlertTurn.due_at <= now
    )
    return (await session.execute(query.with_for_update(skip_locked=True))).one_or_none()


async def lock_turn(session: AsyncSession, tenant_id: str) -> None:
    """Wait until nobody evaluates the tenant, and keep others from it: to change rules, end alerts, or tell of them."""
    await session.execute(_WAIT, {"tenant_id": tenant_id})
    query = select(AlertTurn.tenant_id).where(AlertTurn.tenant_id == tenant_id)
    await session.execute(query.with_for_update())


async def end_turn(session: AsyncSession, tenant_id: str, **values: Any) -> None:
    await session.execute(update(AlertTurn).where(AlertTurn.tenant_id == tenant_id).values(**values))


# --- rules ---------------------------------------------------------------------------------------------------------


def _rules(tenant_id: str) -> Select[*tuple[Any, ...]]:
    named = aggregate_order_by(AlertRuleChannel.channel_id, AlertRuleChannel.channel_id)
    channels = (
        select(func.coalesce(func.array_agg(named), text("'{}'")))
        .where(AlertRuleChannel.tenant_id == tenant_id, AlertRuleChannel.rule_id == AlertRule.id)
        .scalar_subquery()
    )
    return select(*AlertRule.__table__.columns, channels.label("channels")).where(AlertRule.tenant_id == tenant_id)


async def find_rules(session: AsyncSession, tenant_id: str, page: Page) -> Sequence[Found]:
    """Newest first; one more than the page shows."""
    query = _rules(tenant_id).order_by(AlertRule.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(AlertRule.id < page.after)
    return (await session.execute(query)).all()


async def find_enabled_rules(session: AsyncSession, tenant_id: str) -> dict[str, Found]:
    """By id."""
    rows = (await session.execute(_rules(tenant_id).where(AlertRule.enabled))).all()
    return {row.id: row for row in rows}


async def get_rule(session: AsyncSession, tenant_id: str, rule_id: str) -> Found | None:
    return (await session.execute(_rules(tenant_id).where(AlertRule.id == rule_id))).one_or_none()


async def count_rules(session: AsyncSession, tenant_id: str) -> int:
    query = select(func.count()).select_from(AlertRule).where(AlertRule.tenant_id == tenant_id)
    return (await session.execute(query)).scalar_one()


async def add_rule(session: AsyncSession, tenant_id: str, channels: Collection[str], **values: Any) -> None:
    await session.execute(insert(AlertRule).values(tenant_id=tenant_id, **values))
    await _route(session, tenant_id, values["id"], channels)


async def update_rule(
    session: AsyncSession, tenant_id: str, rule_id: str, channels: Collection[str] | None, **values: Any
) -> None:
    """`channels` are all that it names from now on; None leaves them."""
    await session.execute(
        update(AlertRule)
        .where(AlertRule.tenant_id == tenant_id, AlertRule.id == rule_id)
        .values(updated_at=func.clock_timestamp(), **values)
    )
    if channels is not None:
        own = (AlertRuleChannel.tenant_id == tenant_id, AlertRuleChannel.rule_id == rule_id)
        await session.execute(delete(AlertRuleChannel).where(*own))
        await _route(session, tenant_id, rule_id, channels)


async def _route(session: AsyncSession, tenant_id: str, rule_id: str, channels: Collection[str]) -> None:
    if channels:
        rows = [{"tenant_id": tenant_id, "rule_id": rule_id, "channel_id": one} for one in channels]
        await session.execute(insert(AlertRuleChannel), rows)


async def delete_rule(session: AsyncSession, tenant_id: str, rule_id: str) -> None:
    """With what it remembers and what waits to be told of it; its alerts stay as history."""
    await session.execute(delete(AlertRule).where(AlertRule.tenant_id == tenant_id, AlertRule.id == rule_id))


# --- what rules remember -------------------------------------------------------------------------------------------


async def forget_states(session: AsyncSession, tenant_id: str, rule_id: str) -> None:
    """All that a rule remembers."""
    await session.execute(delete(AlertState).where(AlertState.tenant_id == tenant_id, AlertState.rule_id == rule_id))


async def begin_anew(session: AsyncSession, tenant_id: str, rule_id: str, instance_id: str, now: datetime) -> None:
    """An instance that is beyond a rule's limits counts as being so since `now`."""
    await session.execute(
        update(AlertState)
        .where(
            AlertState.tenant_id == tenant_id,
            AlertState.rule_id == rule_id,
            AlertState.instance_id == instance_id,
            AlertState.since.is_not(None),
        )
        .values(since=now)
    )


# --- alerts --------------------------------------------------------------------------------------------------------

_TABLE = cast("Table", Alert.__table__)
_ALERT = tuple(_TABLE.columns)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a list is narrowed to; empty narrows nothing."""

    statuses: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    instance_id: str | None = None
    rule_id: str | None = None


def _alerts(tenant_id: str, reach: Reach) -> Select[*tuple[Any, ...]]:
    query = select(*_ALERT).where(Alert.tenant_id == tenant_id)
    return query if reach.condition is None else _within(query, reach)


def _within(query: Select[*tuple[Any, ...]], reach: Reach) -> Select[*tuple[Any, ...]]:
    """Of the instances that a bound caller may see."""
    assert reach.condition is not None
    joined = (FleetInstance.tenant_id == Alert.tenant_id) & (FleetInstance.id == Alert.instance_id)
    return query.join(FleetInstance, joined).where(reach.condition)


async def find_alerts(
    session: AsyncSession, tenant_id: str, reach: Reach, wanted: Wanted, page: Page
) -> Sequence[Found]:
    """Newest first; one more than the page shows."""
    query = _alerts(tenant_id, reach).order_by(Alert.id.desc()).limit(page.fetch)
    if wanted.statuses:
        query = query.where(Alert.status.in_(wanted.statuses))
    if wanted.severities:
        query = query.where(Alert.severity.in_(wanted.severities))
    if wanted.instance_id is not None:
        query = query.where(Alert.instance_id == wanted.instance_id)
    if wanted.rule_id is not None:
        query = query.where(Alert.rule_id == wanted.rule_id)
    if page.after is not None:
        query = query.where(Alert.id < page.after)
    return (await session.execute(query)).all()


async def get_alert(
    session: AsyncSession, tenant_id: str, reach: Reach, alert_id: str, *, lock: bool = False
) -> Found | None:
    """With `lock` nobody else changes it before this transaction has ended."""
    query = _alerts(tenant_id, reach).where(Alert.id == alert_id)
    return (await session.execute(query.with_for_update(of=Alert) if lock else query)).one_or_none()


async def count_open(session: AsyncSession, tenant_id: str, reach: Reach) -> dict[str, int]:
    """How many alerts are not over, by severity."""
    query: Select[*tuple[Any, ...]] = select(Alert.severity, func.count()).where(
        Alert.tenant_id == tenant_id, Alert.status != "resolved"
    )
    if reach.condition is not None:
        query = _within(query, reach)
    rows = (await session.execute(query.group_by(Alert.severity))).all()
    return {row[0]: row[1] for row in rows}


async def find_by_id(session: AsyncSession, tenant_id: str, ids: Collection[str]) -> Sequence[Found]:
    """Oldest first."""
    query = select(*_ALERT).where(Alert.tenant_id == tenant_id, _among(Alert.id, ids)).order_by(Alert.id)
    return (await session.execute(query)).all()


async def find_open_of_rule(session: AsyncSession, tenant_id: str, rule_id: str) -> Sequence[str]:
    """Ids of a rule's alerts that are not over."""
    query = select(Alert.id).where(Alert.tenant_id == tenant_id, Alert.rule_id == rule_id, Alert.status != "resolved")
    return (await session.execute(query)).scalars().all()


async def find_open_of_instance(session: AsyncSession, tenant_id: str, instance_id: str) -> Sequence[str]:
    """Ids of an instance's alerts that are not over."""
    query = select(Alert.id).where(
        Alert.tenant_id == tenant_id, Alert.instance_id == instance_id, Alert.status != "resolved"
    )
    return (await session.execute(query)).scalars().all()


async def add_alerts(session: AsyncSession, tenant_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        await session.execute(insert(Alert), [{"tenant_id": tenant_id, **row} for row in rows])


async def update_alert(session: AsyncSession, tenant_id: str, alert_id: str, **values: Any) -> None:
    await session.execute(update(Alert).where(Alert.tenant_id == tenant_id, Alert.id == alert_id).values(**values))


async def update_alerts(session: AsyncSession, tenant_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Change many at once; each row has its `alert_id` and the same columns as the others."""
    if rows:
        columns: dict[str, Any] = {name: bindparam(name) for name in rows[0] if name != "alert_id"}
        own = (_TABLE.c.tenant_id == tenant_id, _TABLE.c.id == bindparam("alert_id"))
        # On the connection: a session takes an update of many rows for one by their primary keys.
        connection = await session.connection()
        await connection.execute(update(_TABLE).where(*own).values(**columns), [dict(row) for row in rows])


async def relabel(session: AsyncSession, tenant_id: str, rule_id: str, name: str, severity: str) -> None:
    """Open alerts go by the name and severity that their rule has now."""
    await session.execute(
        update(Alert)
        .where(Alert.tenant_id == tenant_id, Alert.rule_id == rule_id, Alert.status != "resolved")
        .values(name=name, severity=severity)
    )


async def resolve_alerts(session: AsyncSession, tenant_id: str, ids: Collection[str], **values: Any) -> Sequence[Found]:
    """End those of `ids` that are not over; gives them as they are now. Locked in one order by everybody."""
    own = select(Alert.id).where(Alert.tenant_id == tenant_id, _among(Alert.id, ids), Alert.status != "resolved")
    found = (await session.execute(own.order_by(Alert.id).with_for_update())).scalars().all()
    if not found:
        return ()
    statement = (
        update(Alert)
        .where(Alert.tenant_id == tenant_id, _among(Alert.id, found))
        .values(status="resolved", **values)
        .returning(*_ALERT)
    )
    return (await session.execute(statement)).all()


async def note_notified(session: AsyncSession, tenant_id: str, ids: Collection[str], now: datetime) -> None:
    await session.execute(
        update(Alert).where(Alert.tenant_id == tenant_id, _among(Alert.id, ids)).values(notified_at=now)
    )


# --- notices -------------------------------------------------------------------------------------------------------


async def add_notices(session: AsyncSession, tenant_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """One that is waiting already stays as it is."""
    if rows:
        statement = upsert(AlertNotice).on_conflict_do_nothing(index_elements=["alert_id", "kind"])
        await session.execute(statement, [{"tenant_id": tenant_id, **row} for row in rows])


async def drop_resolved_notices(session: AsyncSession, tenant_id: str, alert_ids: Collection[str]) -> None:
    """Nothing is told of the end of what goes on."""
    await session.execute(
        delete(AlertNotice).where(
            AlertNotice.tenant_id == tenant_id, _among(AlertNotice.alert_id, alert_ids), AlertNotice.kind == "resolved"
        )
    )


async def find_due_rules(session: AsyncSession, tenant_id: str, now: datetime) -> Sequence[Found]:
    """Rules of which something is to be told by now."""
    due = select(AlertNotice.rule_id).where(AlertNotice.tenant_id == tenant_id, AlertNotice.due_at <= now)
    return (await session.execute(_rules(tenant_id).where(AlertRule.id.in_(due)).order_by(AlertRule.id))).all()


async def take_notices(session: AsyncSession, tenant_id: str, rule_id: str, now: datetime) -> Sequence[Found]:
    """What is to be told of a rule, which is deleted here: all that has fired, and the ends whose time has come."""
    statement = (
        delete(AlertNotice)
        .where(
            AlertNotice.tenant_id == tenant_id,
            AlertNotice.rule_id == rule_id,
            (AlertNotice.kind != "resolved") | (AlertNotice.due_at <= now),
        )
        .returning(AlertNotice.alert_id, AlertNotice.kind)
    )
    return (await session.execute(statement)).all()


async def hasten_notices(session: AsyncSession, tenant_id: str, rule_id: str, now: datetime) -> None:
    """All that is to be told of a rule is to be told now."""
    await session.execute(
        update(AlertNotice)
        .where(AlertNotice.tenant_id == tenant_id, AlertNotice.rule_id == rule_id, AlertNotice.due_at > now)
        .values(due_at=now)
    )


async def has_due_notices(session: AsyncSession, tenant_id: str, now: datetime) -> bool:
    query = select(AlertNotice.alert_id).where(AlertNotice.tenant_id == tenant_id, AlertNotice.due_at <= now).limit(1)
    return (await session.execute(query)).first() is not None
