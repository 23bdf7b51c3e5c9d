"""Carries rollouts on: decides, writes the moves, and tells whoever holds the sockets that there is work.

One step is one transaction under the lock of the command's row. A process that is killed in it leaves the step to the
next one that looks; nothing is kept anywhere but in the database.
"""

from collections.abc import Collection
from datetime import timedelta
from typing import Any, Final, assert_never

from sqlalchemy import null
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import notify
from quazzar.core.records import Caller, audit, publish
from quazzar.panel.commands import store
from quazzar.panel.commands.events import CommandFinished
from quazzar.panel.commands.givers import objection_to
from quazzar.panel.commands.rollout import (
    OVER,
    Begin,
    Counts,
    End,
    Finish,
    Move,
    Place,
    Plan,
    Recall,
    Refuse,
    Start,
    Stop,
    Turn,
    decide,
    look_at,
)
from quazzar.panel.commands.store import Found
from quazzar.panel.fleet.channel import CHANNEL as FLEET_CHANNEL
from quazzar.panel.fleet.channel import work

CHANNEL: Final = "commands"
"""NOTIFY with the id of a command: something about it has changed."""


def plan_of(row: Any) -> Plan:
    return Plan(
        canary=row.canary,
        batch_size=row.batch_size,
        max_failures=row.max_failures,
        pause=timedelta(seconds=row.pause_seconds),
        offline=row.offline,
        expires_at=row.expires_at,
        scheduled_at=row.scheduled_at,
    )


async def advance(session: AsyncSession, tenant_id: str, command_id: str) -> None:
    """Make every move that can be made now. One at a time: waits for whoever else moves this command."""
    command = await store.take_command(session, tenant_id, command_id)
    if command is None:
        return
    plan = plan_of(command)
    place = Place(status=command.status, outcome=command.outcome, batch=command.batch, next_at=command.next_at)
    changes: dict[str, Any] = {}
    counts = await store.count_conditions(session, tenant_id, command_id, command.now)
    while (move := decide(plan, place, counts, command.now)) is not None:
        objection = await objection_to(session, tenant_id, command) if isinstance(move, Begin) else None
        changes |= await _make(session, tenant_id, command, Refuse(objection) if objection is not None else move)
        if isinstance(move, End | Recall | Begin):
            counts = await store.count_conditions(session, tenant_id, command_id, command.now)
        place = Place(**{name: changes.get(name, getattr(place, name)) for name in Place.__struct_fields__})
    if "finished_at" in changes:
        _announce_end(session, tenant_id, command, place.status, changes.get("reason", command.reason), counts)
    changes["step_at"] = look_at(plan, place, counts, command.now)
    await store.update_command(session, tenant_id, command_id, **changes)
    await notify(session, CHANNEL, command_id)


async def _make(session: AsyncSession, tenant_id: str, command: Found, move: Move | Refuse) -> dict[str, Any]:
    """Make a move on the units; gives what changes of the command."""
    match move:
        case End():
            await store.change_units(
                session,
                tenant_id,
                command,
                move.conditions,
                batch=move.batch,
                most=move.most,
                status=move.status,
                finished_at=command.now,
                **_told(move),
            )
            return {}
        case Recall():
            await store.change_units(session, tenant_id, command, move.conditions, begun_at=null())
            return {}
        case Begin():
            begun = await store.begin_units(session, tenant_id, command, batch=move.batch, most=move.most)
            await announce_work(session, begun)
            return {}
        case Turn():
            return {"batch": move.batch, "next_at": move.next_at}
        case Start():
            return {"status": "running", "started_at": command.now, "next_at": command.now}
        case Stop():
            return {"status": "stopping", "outcome": "failed", "reason": move.reason}
        case Refuse():
            before, after = {"status": command.status}, {"status": "stopping", "reason": move.reason}
            panel = Caller(kind="system", realm="panel", tenant_id=tenant_id)
            audit(
                session,
                "command.refuse",
                subject=command.id,
                before=before,
                after=after,
                outcome="refused",
                caller=panel,
            )
            return after | {"outcome": "refused"}
        case Finish():
            return {"status": move.status, "finished_at": command.now}
        case _:
            assert_never(move)


def _told(move: End) -> dict[str, Any]:
    """What the panel says of a unit stands beside what the instance has said of it."""
    if move.error is None:
        return {}
    return {"error": move.error, "error_code": move.error_code}


async def announce_work(session: AsyncSession, instance_ids: Collection[str]) -> None:
    """Tell whoever holds the sockets of these instances, with the commit."""
    for payload in work(instance_ids):
        await notify(session, FLEET_CHANNEL, payload)


def _announce_end(
    session: AsyncSession, tenant_id: str, command: Found, status: str, reason: str | None, counts: Counts
) -> None:
    ended = {name: sum(count for (_, what), count in counts.items() if what == name) for name in OVER}
    event = CommandFinished(command_id=command.id, kind=command.kind, status=status, reason=reason, **ended)
    publish(session, event, subject=command.id, realm="panel", tenant_id=tenant_id)
