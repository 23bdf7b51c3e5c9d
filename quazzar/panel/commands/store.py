"""Every query about one tenant's commands. The tenant comes right after the session; row-level security checks it too.

Units are written only by who holds their command's row (`take_command`, `lock_commands`): a rollout takes one step at
a time, whoever moves it. Several commands are locked in the order of their ids.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    false,
    func,
    insert,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.models import User
from quazzar.core.paging import Page
from quazzar.panel.commands.models import OPEN, Command, CommandUnit
from quazzar.panel.commands.rollout import Condition, Counts
from quazzar.panel.fleet.models import FleetInstance, FleetPresence
from quazzar.panel.fleet.store import Reach
from quazzar.panel.tenants.models import Membership

Found = Row[*tuple[Any, ...]]
"""A row with the columns that its query names."""

SILENCE = timedelta(days=1)
"""After so long without a word about it, a unit under way is given up."""

HEARD: ColumnElement[bool] = and_(
    FleetInstance.status != "revoked",
    # Back already, though its first heartbeat is still to come.
    or_(
        FleetInstance.status != "offline",
        func.coalesce(FleetPresence.last_seen_at > FleetInstance.status_since, false()),
    ),
)
"""Whether an instance is there to be told something."""

# By the ids alone: that the tenants are the same is what the foreign keys say, and to name them here would lead the
# planner to go through the tenant's whole fleet for each unit.
_OF_UNIT = FleetInstance.id == CommandUnit.instance_id
_HEARD_OF = FleetPresence.instance_id == FleetInstance.id


# --- who is meant --------------------------------------------------------------------------------------------------


class Candidate(msgspec.Struct, frozen=True):
    """An instance that a command may go to."""

    id: str
    name: str
    status: str
    group_id: str | None
    heard: bool


async def find_candidates(
    session: AsyncSession, tenant_id: str, reach: Reach, wanted: ColumnElement[bool]
) -> list[Candidate]:
    """Those of the caller's instances that are wanted, in the order in which their turns come: who is offline last."""
    query = (
        select(
            FleetInstance.id,
            FleetInstance.name,
            FleetInstance.status,
            FleetInstance.group_id,
            HEARD.label("heard"),
        )
        .join(FleetPresence, _HEARD_OF)
        .where(FleetInstance.tenant_id == tenant_id, wanted)
        .order_by(HEARD.desc(), FleetInstance.name, FleetInstance.id)
    )
    if reach.condition is not None:
        query = query.where(reach.condition)
    return [Candidate(*row) for row in await session.execute(query)]


async def get_member_name(session: AsyncSession, tenant_id: str, user_id: str) -> str | None:
    """The mail address of a member, by which the instances' audit logs name them."""
    query = (
        select(User.email)
        .join(Membership, Membership.user_id == User.id)
        .where(Membership.tenant_id == tenant_id, User.id == user_id)
    )
    return (await session.execute(query)).scalar_one_or_none()


# --- commands ------------------------------------------------------------------------------------------------------


async def add_command(session: AsyncSession, tenant_id: str, **values: Any) -> None:
    await session.execute(insert(Command).values(tenant_id=tenant_id, **values))


_ADD_UNITS = text(
    "INSERT INTO fleet_command_units (command_id, tenant_id, instance_id, order_id, batch) "
    "SELECT :command_id, :tenant_id, * FROM unnest(:instances, :orders, :batches)"
).bindparams(
    bindparam("instances", type_=ARRAY(Text)),
    bindparam("orders", type_=ARRAY(Text)),
    bindparam("batches", type_=ARRAY(Integer)),
)


async def add_units(
    session: AsyncSession,
    tenant_id: str,
    command_id: str,
    *,
    instances: Sequence[str],
    orders: Sequence[str],
    batches: Sequence[int],
) -> None:
    values = {"instances": list(instances), "orders": list(orders), "batches": list(batches)}
    await session.execute(_ADD_UNITS, {"command_id": command_id, "tenant_id": tenant_id} | values)


_SHOWN = tuple(
    column
    for column in Command.__table__.columns
    if column.name not in {"sealed_args", "outcome", "batch", "next_at", "step_at"}
)


def _within(reach: Reach) -> ColumnElement[bool] | None:
    """That a unit's instance is one that the caller may see."""
    if reach.condition is None:
        return None
    return exists().where(_OF_UNIT, reach.condition)


def _seen(query: Select[Any], reach: Reach) -> Select[Any]:
    """Commands of which the caller may see a part."""
    within = _within(reach)
    if within is None:
        return query
    mine = exists().where(CommandUnit.tenant_id == Command.tenant_id, CommandUnit.command_id == Command.id, within)
    return query.where(mine)


async def find_commands(
    session: AsyncSession,
    tenant_id: str,
    reach: Reach,
    page: Page,
    *,
    statuses: Collection[str] = (),
    kind: str | None = None,
    instance_id: str | None = None,
) -> Sequence[Found]:
    """Newest first; narrowed to one instance, those that are about it among others."""
    query = select(*_SHOWN).where(Command.tenant_id == tenant_id).order_by(Command.id.desc()).limit(page.fetch)
    query = _seen(query, reach)
    if page.after is not None:
        query = query.where(Command.id < page.after)
    if statuses:
        query = query.where(Command.status.in_(statuses))
    if kind is not None:
        query = query.where(Command.kind == kind)
    if instance_id is not None:
        units = select(CommandUnit.command_id).where(
            CommandUnit.tenant_id == tenant_id, CommandUnit.instance_id == instance_id
        )
        query = query.where(Command.id.in_(units))
    return (await session.execute(query)).all()


async def get_command(session: AsyncSession, tenant_id: str, reach: Reach, command_id: str) -> Found | None:
    query = _seen(select(*_SHOWN).where(Command.tenant_id == tenant_id, Command.id == command_id), reach)
    found: Found | None = (await session.execute(query)).one_or_none()
    return found


async def is_beyond(session: AsyncSession, tenant_id: str, reach: Reach, command_id: str) -> bool:
    """Whether the command is about instances that the caller may not see."""
    within = _within(reach)
    if within is None:
        return False
    query = select(exists().where(CommandUnit.tenant_id == tenant_id, CommandUnit.command_id == command_id, ~within))
    return bool((await session.execute(query)).scalar_one())


async def find_seen(session: AsyncSession, tenant_id: str, reach: Reach, ids: Collection[str]) -> set[str]:
    """Which of these instances the caller may see."""
    query = select(FleetInstance.id).where(FleetInstance.tenant_id == tenant_id, FleetInstance.id.in_(ids))
    if reach.condition is not None:
        query = query.where(reach.condition)
    return set((await session.execute(query)).scalars())


async def find_batches(
    session: AsyncSession, tenant_id: str, reach: Reach, command_ids: Collection[str]
) -> Sequence[Found]:
    """Of each command, batch and status how many units the caller may see, and from when to when."""
    query = (
        select(
            CommandUnit.command_id,
            CommandUnit.batch,
            CommandUnit.status,
            func.count().label("count"),
            func.min(CommandUnit.begun_at).label("started_at"),
            func.max(CommandUnit.finished_at).label("finished_at"),
        )
        .where(CommandUnit.tenant_id == tenant_id, CommandUnit.command_id.in_(command_ids))
        .group_by(CommandUnit.command_id, CommandUnit.batch, CommandUnit.status)
    )
    within = _within(reach)
    if within is not None:
        query = query.where(within)
    return (await session.execute(query)).all()


async def find_units(
    session: AsyncSession,
    tenant_id: str,
    reach: Reach,
    command_id: str,
    *,
    most_output: int,
    instance_id: str | None = None,
    after: int | None = None,
) -> Sequence[Found]:
    """In the order of their turns; `after` narrows to those that have changed since that revision.

    Of each output the first `most_output` characters.
    """
    query = (
        select(
            CommandUnit.instance_id,
            FleetInstance.name,
            CommandUnit.status,
            CommandUnit.batch,
            CommandUnit.attempt,
            CommandUnit.progress,
            CommandUnit.step,
            func.left(CommandUnit.output, most_output).label("output"),
            (func.coalesce(func.length(CommandUnit.output), 0) > most_output).label("output_cut"),
            CommandUnit.error,
            CommandUnit.error_code,
            CommandUnit.started_at,
            CommandUnit.finished_at,
        )
        .join(FleetInstance, _OF_UNIT)
        .where(CommandUnit.tenant_id == tenant_id, CommandUnit.command_id == command_id)
        .order_by(CommandUnit.batch, FleetInstance.name, CommandUnit.instance_id)
    )
    if reach.condition is not None:
        query = query.where(reach.condition)
    if instance_id is not None:
        query = query.where(CommandUnit.instance_id == instance_id)
    if after is not None:
        query = query.where(CommandUnit.revision > after)
    return (await session.execute(query)).all()


# --- the rollout ---------------------------------------------------------------------------------------------------


async def take_command(session: AsyncSession, tenant_id: str, command_id: str) -> Found | None:
    """Lock a command for what is about to change, as a new revision; gives the row and `now` by the database's clock.

    Waits for whoever holds it. None when there is no such command.
    """
    statement = (
        update(Command)
        .where(Command.tenant_id == tenant_id, Command.id == command_id)
        .values(revision=Command.revision + 1)
        .returning(*Command.__table__.columns, func.clock_timestamp().label("now"))
    )
    taken: Found | None = (await session.execute(statement)).one_or_none()
    return taken


async def update_command(session: AsyncSession, tenant_id: str, command_id: str, **values: Any) -> None:
    await session.execute(
        update(Command).where(Command.tenant_id == tenant_id, Command.id == command_id).values(**values)
    )


def _condition(now: datetime) -> ColumnElement[Any]:
    """The `Condition` of a unit, joined with its instance and that one's presence."""
    worse = or_(~HEARD, FleetInstance.health_score < CommandUnit.health_before)
    silent = func.coalesce(CommandUnit.heard_at, CommandUnit.sent_at) < now - SILENCE
    return case(
        (CommandUnit.status.not_in(OPEN), CommandUnit.status),
        (FleetInstance.status == "revoked", "revoked"),
        (
            CommandUnit.status == "settling",
            case((worse, "worse"), (CommandUnit.settles_at <= now, "settled"), else_="settling"),
        ),
        (CommandUnit.sent_at.is_not(None), case((silent, "lost"), else_="flying")),
        (CommandUnit.begun_at.is_not(None), case((HEARD, "called"), else_="lapsed")),
        (HEARD, "present"),
        else_="absent",
    )


async def count_conditions(session: AsyncSession, tenant_id: str, command_id: str, now: datetime) -> Counts:
    units = (
        select(CommandUnit.batch, _condition(now).label("condition"))
        .join(FleetInstance, _OF_UNIT)
        .join(FleetPresence, _HEARD_OF)
        .where(CommandUnit.tenant_id == tenant_id, CommandUnit.command_id == command_id)
        .subquery()
    )
    query = select(units.c.batch, units.c.condition, func.count()).group_by(units.c.batch, units.c.condition)
    return {(row[0], row[1]): row[2] for row in await session.execute(query)}


def _chosen(
    tenant_id: str, command: Found, conditions: Collection[Condition], batch: int | None, most: int | None
) -> Select[Any]:
    """Ids of the instances whose units are in these conditions, first come first."""
    query = (
        select(CommandUnit.instance_id)
        .join(FleetInstance, _OF_UNIT)
        .join(FleetPresence, _HEARD_OF)
        .where(
            CommandUnit.tenant_id == tenant_id,
            CommandUnit.command_id == command.id,
            CommandUnit.status.in_(OPEN),
            _condition(command.now).in_(conditions),
        )
    )
    if batch is not None:
        query = query.where(CommandUnit.batch <= batch)
    if most is not None:
        query = query.order_by(CommandUnit.batch, FleetInstance.name, CommandUnit.instance_id).limit(most)
    return query


async def change_units(
    session: AsyncSession,
    tenant_id: str,
    command: Found,
    conditions: Collection[Condition],
    *,
    batch: int | None = None,
    most: int | None = None,
    **values: Any,
) -> None:
    """Units in these conditions at `command.now`, of batches up to `batch` and at most so many, get `values`."""
    chosen = _chosen(tenant_id, command, conditions, batch, most)
    await session.execute(
        update(CommandUnit)
        .where(
            CommandUnit.tenant_id == tenant_id,
            CommandUnit.command_id == command.id,
            CommandUnit.instance_id.in_(chosen),
        )
        .values(revision=command.revision, **values)
    )


async def begin_units(session: AsyncSession, tenant_id: str, command: Found, *, batch: int, most: int) -> Sequence[str]:
    """The turn of present units has come; gives the ids of their instances."""
    chosen = _chosen(tenant_id, command, {"present"}, batch, most).subquery()
    statement = (
        update(CommandUnit)
        .where(
            CommandUnit.tenant_id == tenant_id,
            CommandUnit.command_id == command.id,
            CommandUnit.instance_id == chosen.c.instance_id,
            _OF_UNIT,
        )
        .values(begun_at=command.now, health_before=FleetInstance.health_score, revision=command.revision)
        .returning(CommandUnit.instance_id)
    )
    return (await session.execute(statement)).scalars().all()


async def find_under_way(session: AsyncSession, tenant_id: str, command_id: str) -> Sequence[str]:
    """Ids of the instances that were called and have not had their last word."""
    query = select(CommandUnit.instance_id).where(
        CommandUnit.tenant_id == tenant_id,
        CommandUnit.command_id == command_id,
        CommandUnit.status.in_(("pending", "running")),
        CommandUnit.begun_at.is_not(None),
    )
    return (await session.execute(query)).scalars().all()


async def find_open_of(session: AsyncSession, tenant_id: str, instance_id: str) -> Sequence[str]:
    """Ids of the commands that have not ended on this instance, in their order."""
    query = (
        select(CommandUnit.command_id)
        .where(CommandUnit.tenant_id == tenant_id, CommandUnit.instance_id == instance_id, CommandUnit.status.in_(OPEN))
        .order_by(CommandUnit.command_id)
    )
    return (await session.execute(query)).scalars().all()


async def cancel_unit(session: AsyncSession, tenant_id: str, command: Found, instance_id: str, error: str) -> None:
    """End the unit of one instance, whatever it was at, if it has not ended."""
    await session.execute(
        update(CommandUnit)
        .where(
            CommandUnit.tenant_id == tenant_id,
            CommandUnit.command_id == command.id,
            CommandUnit.instance_id == instance_id,
            CommandUnit.status.in_(OPEN),
        )
        .values(
            status="cancelled",
            error=error,
            error_code="instance_revoked",
            finished_at=command.now,
            revision=command.revision,
        )
    )


_AGAIN: Mapping[str, Any] = {
    "status": "pending",
    "attempt": CommandUnit.attempt + 1,
    "sequence": 0,
} | dict.fromkeys(
    (
        "progress",
        "step",
        "output",
        "error",
        "error_code",
        "health_before",
        "begun_at",
        "sent_at",
        "tried_at",
        "heard_at",
        "started_at",
        "settles_at",
        "finished_at",
    ),
    null(),
)


async def find_retryable(session: AsyncSession, tenant_id: str, command_id: str) -> Sequence[Found]:
    """`instance_id` and `batch` of the units that failed or expired and whose instances are still there."""
    query = (
        select(CommandUnit.instance_id, CommandUnit.batch)
        .join(FleetInstance, _OF_UNIT)
        .where(
            CommandUnit.tenant_id == tenant_id,
            CommandUnit.command_id == command_id,
            CommandUnit.status.in_(("failed", "expired")),
            FleetInstance.status != "revoked",
        )
    )
    return (await session.execute(query)).all()


async def retry_units(
    session: AsyncSession, tenant_id: str, command: Found, *, instances: Sequence[str], orders: Sequence[str]
) -> None:
    """Everything from the start, under new order ids: to an instance this is another order."""
    new = select(
        func.unnest(cast(list(instances), ARRAY(Text))).label("instance_id"),
        func.unnest(cast(list(orders), ARRAY(Text))).label("order_id"),
    ).subquery()
    await session.execute(
        update(CommandUnit)
        .where(
            CommandUnit.tenant_id == tenant_id,
            CommandUnit.command_id == command.id,
            CommandUnit.instance_id == new.c.instance_id,
        )
        .values(order_id=new.c.order_id, revision=command.revision, **_AGAIN)
    )
