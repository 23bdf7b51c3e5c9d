"""The rules of tokens, groups and instances, as their tenant's members use them."""

import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.db import notify, unique_or
from quazzar.core.errors import Forbidden, Invalid
from quazzar.core.ids import new_id
from quazzar.core.jobs import enqueue
from quazzar.core.paging import Page
from quazzar.core.records import Caller, audit, publish
from quazzar.core.schema import given, in_utc
from quazzar.link.metrics import measures
from quazzar.link.tokens import new_token
from quazzar.panel.alerts.open import open_alerts
from quazzar.panel.fleet import store
from quazzar.panel.fleet.channel import CHANNEL, revoked
from quazzar.panel.fleet.errors import (
    GroupCycle,
    GroupNameTaken,
    GroupNotEmpty,
    GroupNotFound,
    InstanceNotFound,
    TokenNotFound,
)
from quazzar.panel.fleet.events import InstanceRevoked
from quazzar.panel.fleet.jobs import forget_metrics
from quazzar.panel.fleet.schemas import (
    Amount,
    BackupsOut,
    Capacity,
    GroupCreate,
    GroupUpdate,
    InstanceUpdate,
    SeverityCounts,
    StatusCounts,
    SummaryOut,
    TokenCreate,
    TokenCreated,
    TokenOut,
)
from quazzar.panel.fleet.store import Found, Reach, Wanted
from quazzar.panel.tenants.service import TenantService

INSTANCE_ID: Final = re.compile(r"inst_[a-z2-7]{26}\Z")
GROUP_ID: Final = re.compile(r"grp_[a-z2-7]{26}\Z")
TOKEN_ID: Final = re.compile(r"tok_[a-z2-7]{26}\Z")
_TOKEN_LIFE: Final = timedelta(hours=1)
_LONGEST_TOKEN_LIFE: Final = timedelta(days=30)
_BACKUP_AGE: Final = timedelta(hours=24)


class Address:
    """Where instances dial this panel, and by what they know it."""

    def __init__(self, host: str, port: int, fingerprint: bytes) -> None:
        self.host = host
        self.port = port
        self.fingerprint = fingerprint

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def reach_of(session: AsyncSession, tenant_id: str, principal: Principal) -> Reach:
    """What a caller may see: someone bound to groups and instances sees those, and what lies below the groups."""
    return await reach_within(session, tenant_id, principal.resources)


async def reach_within(session: AsyncSession, tenant_id: str, resources: Collection[str] | None) -> Reach:
    """What someone may see who is bound to these groups and instances; None is bound to nothing."""
    if resources is None:
        return Reach()
    groups = [name for name in resources if name.startswith("grp_")]
    instances = frozenset(name for name in resources if name.startswith("inst_"))
    return Reach(instances, frozenset(await store.expand_groups(session, tenant_id, groups)))


async def known_ids(session: AsyncSession, tenant_id: str, ids: Collection[str]) -> set[str]:
    """Which of these are groups or instances of the tenant."""
    return await store.find_known(session, tenant_id, ids)


async def makers_of_tokens(session: AsyncSession, tenant_id: str) -> set[str]:
    """Who has made the registration tokens that there are."""
    return await store.find_token_makers(session, tenant_id)


async def revoke_tokens_of(session: AsyncSession, tenant_id: str, user_id: str) -> None:
    """Take back the registration tokens that somebody made who is out now: they may have kept them."""
    await store.delete_tokens_of(session, tenant_id, user_id)


class FleetService:
    """One per request, of the tenant that its caller works in."""

    def __init__(self, session: AsyncSession, principal: Principal) -> None:
        assert principal.tenant_id is not None
        self._session = session
        self._principal = principal
        self._tenant = principal.tenant_id

    def _require_unbound(self) -> None:
        if self._principal.resources is not None:
            raise Forbidden("Who is bound to certain groups or instances can't change what lies around them")

    async def _reach(self) -> Reach:
        return await reach_of(self._session, self._tenant, self._principal)

    # --- registration tokens ---------------------------------------------------------------------------------------

    async def create_token(self, data: TokenCreate, address: Address) -> TokenCreated:
        """For the own tenant or a client of it. Raises `Invalid` with every field that fails, `TenantNotFound`, and
        `Forbidden` for a client in which the caller may not do this.
        """
        self._require_unbound()
        tenant_id = data.tenant_id or self._tenant
        if tenant_id != self._tenant:
            granted = await TenantService(self._session).reach_into(self._principal, tenant_id)
            if "fleet:write" not in granted:
                raise Forbidden("This needs the scope fleet:write in that tenant", code="scope_missing")
        now = datetime.now(UTC)
        expires_at = in_utc(data.expires_at, "expires_at") if data.expires_at is not None else now + _TOKEN_LIFE
        problems = {}
        if expires_at <= now:
            problems["expires_at"] = "Expires at must lie ahead"
        elif expires_at > now + _LONGEST_TOKEN_LIFE:
            problems["expires_at"] = "Expires at must be within 30 days"
        if data.group_id is not None and await store.get_group(self._session, tenant_id, data.group_id) is None:
            problems["group_id"] = "There is no such group"
        if problems:
            raise Invalid(details=problems)
        token = new_token(host=address.host, port=address.port, fingerprint=address.fingerprint, tenant_id=tenant_id)
        row = await store.add_token(
            self._session,
            tenant_id,
            id=new_id("tok"),
            name=data.name,
            token_hash=token.digest,
            max_uses=data.max_uses,
            tags=sorted(set(data.tags)),
            group_id=data.group_id,
            created_by=self._principal.user_id,
            expires_at=expires_at,
        )
        shown = {name: getattr(row, name) for name in TokenOut.__struct_fields__}
        after = {"name": row.name, "max_uses": row.max_uses, "tags": row.tags, "group_id": row.group_id}
        after |= {"expires_at": row.expires_at.isoformat()}
        caller: Caller = self._session.info["caller"]
        for told in sorted({self._tenant, tenant_id}):
            there = msgspec.structs.replace(caller, tenant_id=told)
            audit(self._session, "fleet_token.create", subject=row.id, after=after, caller=there)
        return TokenCreated(
            **shown, token=token.encode(), agent_address=str(address), ca_fingerprint=address.fingerprint.hex()
        )

    async def find_tokens(self, page: Page) -> Sequence[Found]:
        self._require_unbound()
        return await store.find_tokens(self._session, self._tenant, page)

    async def get_token(self, token_id: str) -> Found:
        """Raises `TokenNotFound`."""
        self._require_unbound()
        row = await store.find_token(self._session, self._tenant, token_id) if TOKEN_ID.match(token_id) else None
        if row is None:
            raise TokenNotFound
        return row

    async def delete_token(self, token_id: str) -> None:
        """Nobody can join by it any more; who has joined stays. Raises `TokenNotFound`."""
        self._require_unbound()
        name = await store.delete_token(self._session, self._tenant, token_id) if TOKEN_ID.match(token_id) else None
        if name is None:
            raise TokenNotFound
        audit(self._session, "fleet_token.delete", subject=token_id, before={"name": name})

    # --- groups ----------------------------------------------------------------------------------------------------

    async def find_groups(self, page: Page) -> Sequence[Found]:
        reach = await self._reach()
        within = None if reach.instances is None else reach.groups
        return await store.find_groups(self._session, self._tenant, page, within=within)

    async def get_group(self, group_id: str) -> Found:
        """Raises `GroupNotFound`."""
        reach = await self._reach()
        row = await store.get_group(self._session, self._tenant, group_id) if GROUP_ID.match(group_id) else None
        if row is None or (reach.instances is not None and group_id not in reach.groups):
            raise GroupNotFound
        return row

    async def create_group(self, data: GroupCreate) -> Found:
        """Raises `GroupNameTaken`, `Invalid` for a parent that does not exist."""
        self._require_unbound()
        await store.lock_groups(self._session, self._tenant)
        await self._check_parent(data.parent_id, None)
        group_id = new_id("grp")
        async with unique_or(GroupNameTaken(details={"name": "A group of this name exists already"})):
            await store.add_group(self._session, self._tenant, id=group_id, name=data.name, parent_id=data.parent_id)
        audit(self._session, "group.create", subject=group_id, after={"name": data.name, "parent_id": data.parent_id})
        return await self.get_group(group_id)

    async def update_group(self, group_id: str, data: GroupUpdate) -> Found:
        """Raises `GroupNotFound`, `GroupNameTaken`, `GroupCycle`, `Invalid`."""
        self._require_unbound()
        await store.lock_groups(self._session, self._tenant)
        before = await self.get_group(group_id)
        values = given(data)
        if "parent_id" in values:
            await self._check_parent(values["parent_id"], group_id)
        if values:
            async with unique_or(GroupNameTaken(details={"name": "A group of this name exists already"})):
                await store.update_group(self._session, self._tenant, group_id, **values)
            former = {name: getattr(before, name) for name in values}
            audit(self._session, "group.update", subject=group_id, before=former, after=values)
        return await self.get_group(group_id)

    async def delete_group(self, group_id: str) -> None:
        """Raises `GroupNotFound`, `GroupNotEmpty` while there are groups below it."""
        self._require_unbound()
        await store.lock_groups(self._session, self._tenant)
        before = await self.get_group(group_id)
        if await store.has_children(self._session, self._tenant, group_id):
            raise GroupNotEmpty
        await store.delete_group(self._session, self._tenant, group_id)
        audit(self._session, "group.delete", subject=group_id, before={"name": before.name})

    async def _check_parent(self, parent_id: str | None, group_id: str | None) -> None:
        if parent_id is None:
            return
        if await store.get_group(self._session, self._tenant, parent_id) is None:
            raise Invalid(details={"parent_id": "There is no such group"})
        above = await store.depth_above(self._session, self._tenant, parent_id)
        if group_id in above:
            raise GroupCycle(details={"parent_id": "A group can't lie below itself"})
        if len(above) >= store.MOST_DEPTH:
            raise Invalid(details={"parent_id": f"Groups can be nested {store.MOST_DEPTH} deep"})

    # --- instances -------------------------------------------------------------------------------------------------

    async def find(
        self,
        page: Page,
        *,
        status: Sequence[str] = (),
        tag: Sequence[str] = (),
        group: str | None = None,
        version: str | None = None,
        q: str | None = None,
    ) -> Sequence[Found]:
        """Of those that the caller may see; a group that does not exist holds none."""
        groups = None if group is None else tuple(await store.expand_groups(self._session, self._tenant, [group]))
        wanted = Wanted(statuses=tuple(status), tags=tuple(tag), groups=groups, version=version, q=q)
        return await store.find_instances(self._session, self._tenant, await self._reach(), wanted, page)

    async def get(self, instance_id: str) -> Found:
        """Raises `InstanceNotFound`, also for what a bound caller may not see."""
        reach = await self._reach()
        known = INSTANCE_ID.match(instance_id)
        row = await store.get_instance(self._session, self._tenant, reach, instance_id) if known else None
        if row is None:
            raise InstanceNotFound
        return row

    async def update(self, instance_id: str, data: InstanceUpdate) -> Found:
        """Raises `InstanceNotFound`, `Invalid` for a group that does not exist."""
        before = await self.get(instance_id)
        values = given(data)
        if "group_id" in values:
            # Out of its group too: others may be bound to that.
            self._require_unbound()
        group_id = values.get("group_id")
        if group_id is not None and await store.get_group(self._session, self._tenant, group_id) is None:
            raise Invalid(details={"group_id": "There is no such group"})
        if "tags" in values:
            values["tags"] = sorted(set(values["tags"]))
        if values:
            await store.update_instance(self._session, self._tenant, instance_id, **values)
            former = {name: getattr(before, name) for name in values}
            audit(self._session, "instance.update", subject=instance_id, before=former, after=values)
        return await self.get(instance_id)

    async def delete(self, instance_id: str) -> None:
        """Revoke its certificate and cut its line; an instance that is revoked already is forgotten.

        Raises `InstanceNotFound`.
        """
        before = await self.get(instance_id)
        if before.status == "revoked":
            await store.delete_instance(self._session, self._tenant, instance_id)
            await enqueue(self._session, forget_metrics, subject=instance_id, instance_id=instance_id)
            audit(self._session, "instance.forget", subject=instance_id, before={"name": before.name})
            return
        await revoke(self._session, self._tenant, instance_id, before.name, "It was deleted on the panel")

    # --- the whole -------------------------------------------------------------------------------------------------

    async def summary(self) -> SummaryOut:
        reach = await self._reach()
        rows = await store.find_totals(self._session, self._tenant, reach)
        alerts = SeverityCounts(**await open_alerts(self._session, self._tenant, reach))
        return summed(rows, alerts, datetime.now(UTC))


when_over: Final[list[Callable[[AsyncSession, str, str], Awaitable[None]]]] = []
"""What ends with an instance's membership, in the same transaction: called with its tenant and its id. Domains that
keep something for instances add themselves, also for a machine that joins anew.
"""


async def end_membership(session: AsyncSession, tenant_id: str, instance_id: str) -> None:
    """Empty whatever is kept for an instance as it was."""
    for end in when_over:
        await end(session, tenant_id, instance_id)


async def revoke(session: AsyncSession, tenant_id: str, instance_id: str, name: str, reason: str) -> None:
    """End an instance's membership: whichever process holds its socket hears of it with the commit."""
    now = datetime.now(UTC)
    await store.update_instance(
        session,
        tenant_id,
        instance_id,
        status="revoked",
        status_reason=reason,
        status_since=now,
        revoked_at=now,
        health_score=0,
        checks=[],
    )
    await end_membership(session, tenant_id, instance_id)
    audit(session, "instance.revoke", subject=instance_id, before={"name": name})
    publish(
        session,
        InstanceRevoked(instance_id=instance_id, name=name, reason=reason),
        subject=instance_id,
        realm="panel",
        tenant_id=tenant_id,
    )
    await notify(session, CHANNEL, revoked(instance_id))


def summed(rows: Sequence[Any], alerts: SeverityCounts, now: datetime) -> SummaryOut:
    """The summary of one row for each instance."""
    status = StatusCounts()
    versions: dict[str, int] = {}
    cpu, memory, disk = Amount(), Amount(), Amount()
    apps = stale = 0
    for row in rows:
        setattr(status, row.status, getattr(status, row.status) + 1)
        if row.status == "revoked":
            continue
        versions[row.version] = versions.get(row.version, 0) + 1
        apps += row.apps
        stale += row.backup_at is None or now - row.backup_at > _BACKUP_AGE
        if row.status != "offline":
            measured = measures(row.measured)
            _add(cpu, row.cpu_cores, row.cpu_cores * measured.get("cpu_percent", 0) / 100)
            _add(memory, row.memory_bytes, measured.get("memory_used_bytes", 0))
            _add(disk, row.disk_bytes, measured.get("disk_used_bytes", 0))
    return SummaryOut(
        instances=len(rows) - status.revoked,
        status=status,
        versions=dict(sorted(versions.items())),
        apps=apps,
        capacity=Capacity(cpu_cores=cpu, memory_bytes=memory, disk_bytes=disk),
        alerts=alerts,
        backups=BackupsOut(stale_instances=stale),
    )


def _add(amount: Amount, total: float, used: float) -> None:
    amount.total += total
    amount.used = round(amount.used + used, 3)
