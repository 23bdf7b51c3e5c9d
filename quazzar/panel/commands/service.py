"""The rules of commands: whom they go to, what may be done with one, and how one is followed."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Text, any_, literal, or_, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.errors import Invalid
from quazzar.core.ids import new_id
from quazzar.core.jobs.signals import Signals
from quazzar.core.paging import Page
from quazzar.core.records import audit, publish
from quazzar.core.schema import in_utc
from quazzar.core.sse import ServerEvent
from quazzar.link.commands import COMMANDS, check_args
from quazzar.panel.commands import store, upkeep
from quazzar.panel.commands.engine import advance, announce_work
from quazzar.panel.commands.errors import (
    CommandEnded,
    CommandNotFound,
    CommandNotPausable,
    CommandNotPaused,
    CommandNotRetryable,
    CommandOutOfReach,
)
from quazzar.panel.commands.events import CommandCreated
from quazzar.panel.commands.models import ENDED
from quazzar.panel.commands.schemas import (
    MOST_TARGETS,
    CommandCreate,
    CommandOut,
    CommandPlan,
    CommandSummary,
    PlannedBatch,
    PlannedInstance,
    Strategy,
    Targets,
    UnitOut,
    batches_of,
    masked,
)
from quazzar.panel.commands.sealing import open_args, seal_args
from quazzar.panel.commands.store import Candidate, Found
from quazzar.panel.fleet import service as fleet
from quazzar.panel.fleet.errors import GroupNotFound, InstanceNotFound
from quazzar.panel.fleet.models import FleetInstance
from quazzar.panel.fleet.store import Reach, expand_groups

COMMAND_ID: Final = re.compile(r"cmd_[a-z2-7]{26}\Z")
MOST_ARGS_BYTES: Final = 128 * 1024
_LATEST: Final = timedelta(days=366)
_POLL_SECONDS: Final = 5.0
_GATHER_SECONDS: Final = 0.2
_OUTPUT_CHARACTERS: Final = 64 * 1024
_ANSWER_CHARACTERS: Final = 2 * 1024 * 1024
"""How much output one answer shows of all instances together."""


class CommandService:
    """One per request, of the tenant that its caller works in."""

    def __init__(self, session: AsyncSession, principal: Principal, keyring: Keyring) -> None:
        assert principal.tenant_id is not None
        self._session = session
        self._principal = principal
        self._tenant = principal.tenant_id
        self._keyring = keyring

    async def reach(self) -> Reach:
        return await fleet.reach_of(self._session, self._tenant, self._principal)

    # --- giving one ----------------------------------------------------------------------------------------------

    async def plan(self, data: CommandCreate) -> CommandPlan:
        """What `create` would do. Raises what it raises."""
        _, candidates = await self._checked(data)
        scheduled_at = _moment(data)
        batches: dict[int, PlannedBatch] = {}
        strategy = data.strategy or Strategy()
        for number, one in zip(batch_numbers(strategy, len(candidates)), candidates, strict=True):
            canary = strategy.canary > 0 and number == 1
            batch = batches.setdefault(number, PlannedBatch(number, canary, []))
            batch.instances.append(PlannedInstance(one.id, one.name, one.status, one.heard))  # type: ignore[arg-type]
        return CommandPlan(
            dry_run=True,
            kind=data.kind,
            total=len(candidates),
            offline=[one.id for one in candidates if not one.heard],
            batches=list(batches.values()),
            scheduled_at=scheduled_at,
            expires_at=_expiry(data, scheduled_at),
        )

    async def create(self, data: CommandCreate) -> CommandOut:
        """Give a command to all that it is meant for, or to nobody.

        Raises `Invalid` with every field that fails, `InstanceNotFound` and `GroupNotFound` for what is not there or
        not the caller's.
        """
        args, candidates = await self._checked(data)
        strategy = data.strategy or Strategy()
        scheduled_at = _moment(data)
        command_id = new_id("cmd")
        giver = self._principal
        await store.add_command(
            self._session,
            self._tenant,
            id=command_id,
            kind=data.kind,
            sealed_args=seal_args(self._keyring, command_id, args),
            args=masked(args),
            targets=msgspec.to_builtins(data.targets),
            offline=data.offline,
            canary=min(strategy.canary, len(candidates)),
            batch_size=_batch_size(strategy, len(candidates)),
            max_failures=strategy.max_failures,
            pause_seconds=strategy.pause_seconds,
            health_wait_seconds=strategy.health_wait_seconds,
            expires_in_seconds=data.expires_in_seconds,
            status="pending",
            next_at=scheduled_at or datetime.now(UTC),
            created_by=giver.key_id or giver.user_id,
            actor_name=await store.get_member_name(self._session, self._tenant, giver.user_id) or giver.user_id,
            scheduled_at=scheduled_at,
            expires_at=_expiry(data, scheduled_at),
        )
        await store.add_units(
            self._session,
            self._tenant,
            command_id,
            instances=[one.id for one in candidates],
            orders=[new_id("ord") for _ in candidates],
            batches=batch_numbers(strategy, len(candidates)),
        )
        after = {"kind": data.kind, "args": masked(args), "targets": msgspec.to_builtins(data.targets)}
        audit(self._session, "command.create", subject=command_id, after=after | {"instances": len(candidates)})
        created = CommandCreated(command_id=command_id, kind=data.kind, instances=len(candidates))
        publish(self._session, created, subject=command_id)
        await advance(self._session, self._tenant, command_id)
        return await self.get(command_id)

    async def _checked(self, data: CommandCreate) -> tuple[dict[str, Any], list[Candidate]]:
        """The arguments, and who is meant. Nothing is written before all of it is allowed."""
        problems = _problems(data)
        reach = await self.reach()
        targets = data.targets
        groups = await self._groups(targets, reach)
        wanted: list[ColumnElement[bool]] = []
        if targets.instances:
            wanted.append(FleetInstance.id == any_(literal(targets.instances, ARRAY(Text))))
        if targets.tags:
            wanted.append(FleetInstance.tags.overlap(targets.tags))
        if groups:
            wanted.append(FleetInstance.group_id.in_(groups))
        if targets.all:
            wanted.append(true())
        found: list[Candidate] = []
        if wanted:
            found = await store.find_candidates(self._session, self._tenant, reach, or_(*wanted))
        _check_named(targets.instances, {one.id: one for one in found}, problems)
        candidates = [one for one in found if one.status != "revoked"]
        if not candidates and not any(name.startswith("targets") for name in problems):
            problems["targets"] = "Targets must hold at least one instance"
        elif len(candidates) > MOST_TARGETS:
            problems["targets"] = f"Targets can be at most {MOST_TARGETS:,} instances"
        if problems:
            raise Invalid(details=problems)
        return data.args, candidates

    async def _groups(self, targets: Targets, reach: Reach) -> list[str]:
        """The groups meant and all below them."""
        if not targets.groups:
            return []
        known = await fleet.known_ids(self._session, self._tenant, targets.groups)
        missing = [
            number
            for number, name in enumerate(targets.groups)
            if name not in known or (reach.instances is not None and name not in reach.groups)
        ]
        if missing:
            raise GroupNotFound(details={f"targets.groups.{number}": "There is no such group" for number in missing})
        return await expand_groups(self._session, self._tenant, targets.groups)

    # --- seeing --------------------------------------------------------------------------------------------------

    async def find(
        self, page: Page, *, status: Sequence[str], kind: str | None, instance: str | None
    ) -> Sequence[CommandSummary]:
        """Newest first, one more than the page shows."""
        reach = await self.reach()
        rows = await store.find_commands(
            self._session, self._tenant, reach, page, statuses=status, kind=kind, instance_id=instance
        )
        counts = await store.find_batches(self._session, self._tenant, reach, [row.id for row in rows])
        by_command: dict[str, list[Found]] = {}
        for count in counts:
            by_command.setdefault(count.command_id, []).append(count)
        return [
            CommandSummary(**CommandSummary.values_of(row, batches_of(row.canary, by_command.get(row.id, ()))))
            for row in rows
        ]

    async def get(self, command_id: str, instance: str | None = None) -> CommandOut:
        """Raises `CommandNotFound`, also for what a bound caller may see nothing of."""
        return await shown(self._session, self._tenant, await self.reach(), command_id, instance=instance)

    # --- acting on one -------------------------------------------------------------------------------------------

    async def pause(self, command_id: str) -> CommandOut:
        """Begin nothing more for now; what is under way goes on. Raises `CommandNotFound`, `CommandNotPausable`."""
        command = await self._take(command_id)
        if command.status not in ("pending", "running"):
            raise CommandNotPausable
        return await self._change(command, "command.pause", status="paused")

    async def resume(self, command_id: str) -> CommandOut:
        """Raises `CommandNotFound`, `CommandNotPaused`."""
        command = await self._take(command_id)
        if command.status != "paused":
            raise CommandNotPaused
        waits = command.scheduled_at is not None and command.scheduled_at > command.now
        started = {} if waits else {"started_at": command.started_at or command.now}
        return await self._change(command, "command.resume", status="pending" if waits else "running", **started)

    async def cancel(self, command_id: str) -> CommandOut:
        """Begin nothing more, and have what is under way stop; the command ends once all of it has. One that is being
        cancelled stays so. Raises `CommandNotFound`, `CommandEnded`.
        """
        command = await self._take(command_id)
        if command.status in ENDED:
            raise CommandEnded
        reason = "It was cancelled"
        changed = await self._change(command, "command.cancel", status="stopping", outcome="cancelled", reason=reason)
        await announce_work(self._session, await store.find_under_way(self._session, self._tenant, command_id))
        return changed

    async def retry(self, command_id: str) -> CommandOut:
        """Try again where it failed or expired, as new orders and with a new life; those that are revoked by now are
        left. Raises `CommandNotFound`, `CommandNotRetryable`.
        """
        command = await self._take(command_id)
        units = await store.find_retryable(self._session, self._tenant, command_id) if command.status in ENDED else ()
        if not units:
            raise CommandNotRetryable
        await store.retry_units(
            self._session,
            self._tenant,
            command,
            instances=[unit.instance_id for unit in units],
            orders=[new_id("ord") for _ in units],
        )
        return await self._change(
            command,
            "command.retry",
            status="running",
            outcome=None,
            reason=None,
            batch=min(unit.batch for unit in units),
            next_at=command.now,
            started_at=command.started_at or command.now,
            finished_at=None,
            expires_at=command.now + timedelta(seconds=command.expires_in_seconds),
        )

    async def _take(self, command_id: str) -> Found:
        """A command that the caller may act on, locked."""
        reach = await self.reach()
        known = COMMAND_ID.match(command_id)
        if not known or await store.get_command(self._session, self._tenant, reach, command_id) is None:
            raise CommandNotFound
        if await store.is_beyond(self._session, self._tenant, reach, command_id):
            raise CommandOutOfReach
        command = await store.take_command(self._session, self._tenant, command_id)
        if command is None:
            raise CommandNotFound
        return command

    async def _change(self, command: Found, action: str, **values: Any) -> CommandOut:
        await store.update_command(self._session, self._tenant, command.id, **values)
        after = {"status": values["status"]}
        audit(self._session, action, subject=command.id, before={"status": command.status}, after=after)
        await advance(self._session, self._tenant, command.id)
        return await self.get(command.id)


def _problems(data: CommandCreate) -> dict[str, str]:
    """What of the body does not fit together, by field."""
    problems: dict[str, str] = {}
    if data.kind not in COMMANDS:
        problems["kind"] = f"Kind must be one of: {', '.join(COMMANDS)}"
    else:
        try:
            check_args(data.kind, data.args)
        except Invalid as invalid:
            problems |= invalid.details
    if not problems and len(msgspec.msgpack.encode(data.args)) > MOST_ARGS_BYTES:
        problems["args"] = f"Args can be at most {MOST_ARGS_BYTES // 1024} KiB"
    strategy = data.strategy
    if strategy is not None and strategy.batch_size is not None and strategy.percent is not None:
        problems["strategy.percent"] = "Percent can't be given beside batch_size"
    try:
        moment = _moment(data)
    except Invalid as invalid:
        problems |= invalid.details
    else:
        now = datetime.now(UTC)
        if moment is not None and not now < moment <= now + _LATEST:
            problems["schedule"] = "Schedule must lie ahead, within a year"
    targets = data.targets
    if not (targets.instances or targets.tags or targets.groups or targets.all):
        problems["targets"] = "Targets must name instances, tags or groups, or be all"
    return problems


def _moment(data: CommandCreate) -> datetime | None:
    return in_utc(data.schedule, "schedule") if data.schedule is not None else None


def _expiry(data: CommandCreate, scheduled_at: datetime | None) -> datetime:
    return (scheduled_at or datetime.now(UTC)) + timedelta(seconds=data.expires_in_seconds)


def _check_named(named: Sequence[str], found: dict[str, Candidate], problems: dict[str, str]) -> None:
    """Raises `InstanceNotFound` when one that is named is not there; one that is revoked is a problem of its field."""
    missing = [number for number, name in enumerate(named) if name not in found]
    if missing:
        raise InstanceNotFound(
            details={f"targets.instances.{number}": "There is no such instance" for number in missing}
        )
    for number, name in enumerate(named):
        if found[name].status == "revoked":
            problems[f"targets.instances.{number}"] = "The instance was revoked"


def _batch_size(strategy: Strategy, total: int) -> int:
    if strategy.percent is not None:
        return max(1, math.ceil(total * strategy.percent / 100))
    return max(1, min(strategy.batch_size or total, total))


def batch_numbers(strategy: Strategy, total: int) -> list[int]:
    """The batch of each of so many units, in the order of their turns; the canary is the first."""
    canary = min(strategy.canary, total)
    size = _batch_size(strategy, total)
    first = 2 if canary else 1
    return [1] * canary + [first + number // size for number in range(total - canary)]


async def shown(
    session: AsyncSession,
    tenant_id: str,
    reach: Reach,
    command_id: str,
    *,
    instance: str | None = None,
    after: int | None = None,
) -> CommandOut:
    """A command as who has this reach may see it; `after` leaves out the units that are as they were at that revision.

    Raises `CommandNotFound`.
    """
    known = COMMAND_ID.match(command_id)
    row = await store.get_command(session, tenant_id, reach, command_id) if known else None
    if row is None:
        raise CommandNotFound
    batches = batches_of(row.canary, await store.find_batches(session, tenant_id, reach, [command_id]))
    total = sum(_total(batch.units) for batch in batches)
    most = _OUTPUT_CHARACTERS if instance is not None else min(_OUTPUT_CHARACTERS, _ANSWER_CHARACTERS // max(1, total))
    units = await store.find_units(
        session, tenant_id, reach, command_id, most_output=most, instance_id=instance, after=after
    )
    return CommandOut(
        **CommandSummary.values_of(row, batches),
        targets=await _targets(session, tenant_id, reach, msgspec.convert(row.targets, Targets)),
        batches=batches,
        instances=[UnitOut.of(unit) for unit in units],
    )


async def _targets(session: AsyncSession, tenant_id: str, reach: Reach, given: Targets) -> Targets:
    """Whom a command was given to, as far as the caller may know of them."""
    if reach.instances is None:
        return given
    seen = await store.find_seen(session, tenant_id, reach, given.instances)
    return Targets(
        instances=[one for one in given.instances if one in seen],
        tags=given.tags,
        groups=[one for one in given.groups if one in reach.groups],
        all=given.all,
    )


def _total(units: msgspec.Struct) -> int:
    return sum(msgspec.structs.astuple(units))


async def follow(
    database: Database, signals: Signals, tenant_id: str, reach: Reach, command_id: str, *, after: int | None
) -> AsyncIterator[ServerEvent]:
    """The command whenever it changes, each time with the units that have changed, until it has ended.

    Each look is a short transaction of its own: none is open while a reader takes its time. `after` is the revision
    that a reader has seen last.
    """
    seen = after
    async for _ in signals.changes(command_id, poll_seconds=_POLL_SECONDS):
        async with database.begin(tenant=tenant_id) as session:
            row = await store.get_command(session, tenant_id, reach, command_id)
            if row is None:
                return
            ended = row.status in ENDED
            if row.revision == seen and not ended:
                continue
            command = await shown(session, tenant_id, reach, command_id, after=seen)
        seen = row.revision
        yield ServerEvent(id=str(seen), event="end" if ended else "command", data=command)
        if ended:
            return
        # What comes in a rush is told together.
        await asyncio.sleep(_GATHER_SECONDS)


async def end_units(session: AsyncSession, tenant_id: str, instance_id: str) -> None:
    """For an instance that was revoked or joins anew: nothing that was meant for it is done any more."""
    error = "The instance was revoked, or has joined anew"
    for command_id in await store.find_open_of(session, tenant_id, instance_id):
        command = await store.take_command(session, tenant_id, command_id)
        if command is not None:
            await store.cancel_unit(session, tenant_id, command, instance_id, error)
            await advance(session, tenant_id, command_id)


fleet.when_over.append(end_units)


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal the arguments of all commands anew under the ring's current key; gives how many. Raises `SealBroken`."""
    await see_all_tenants(session)
    rows = await upkeep.find_sealed(session)
    for row in rows:
        sealed = seal_args(keyring, row.id, open_args(keyring, row.id, row.sealed_args))
        await store.update_command(session, row.tenant_id, row.id, sealed_args=sealed)
    return len(rows)
