"""Every query on what newer there is of apps, and on apps that are updated by themselves."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.apps import store
from quazzar.instance.apps.models import App, AppAutoUpdate, AppStatus, AppUpdateCheck, RegistryPause
from quazzar.instance.apps.schemas import MOST_SKIPPED, AvailableUpdate, SkippedOut
from quazzar.instance.apps.windows import Window

_ANNOUNCED: Final = 100
AT_REST: Final[tuple[AppStatus, ...]] = ("running", "unhealthy", "stopped", "crashed", "failed")


# What newer there is


class Checked(msgspec.Struct, frozen=True):
    """An installed app with what was found out about it before; `is_due` when its registries are to be asked."""

    held: store.Held
    available: AvailableUpdate | None
    announced: list[str]
    is_due: bool


_CHECKED = (
    *store.HELD,
    AppUpdateCheck.available,
    AppUpdateCheck.announced,
    func.coalesce(AppUpdateCheck.due_at <= func.clock_timestamp(), True),
)


async def find_checked(session: AsyncSession, app_id: str | None = None) -> list[Checked]:
    """All apps that are installed and that nobody works on, or the one with the id; the longest due first."""
    statement = (
        select(*_CHECKED)
        .outerjoin(AppUpdateCheck, AppUpdateCheck.app_id == App.id)
        .where(App.trashed_at.is_(None), App.installed_at.is_not(None), App.status.in_(AT_REST))
        .order_by(AppUpdateCheck.due_at.asc().nulls_first(), App.id)
    )
    if app_id is not None:
        statement = statement.where(App.id == app_id)
    return [_checked(row) for row in await session.execute(statement)]


class Catalogued(msgspec.Struct, frozen=True):
    """An installed app of a template, and the version that is `known` to be there for it."""

    id: str
    template: str
    publisher: str | None
    version: str
    known: str | None


async def find_catalogued(session: AsyncSession) -> list[Catalogued]:
    """All apps that are installed from a template and that nobody works on."""
    known = AppUpdateCheck.available["version"].as_string()
    statement = (
        select(
            App.id, App.template, App.definition["publisher"].as_string(), App.version, func.nullif(known, App.version)
        )
        .outerjoin(AppUpdateCheck, AppUpdateCheck.app_id == App.id)
        .where(
            App.template.is_not(None),
            App.version.is_not(None),
            App.trashed_at.is_(None),
            App.installed_at.is_not(None),
            App.status.in_(AT_REST),
        )
    )
    return [Catalogued(*row) for row in await session.execute(statement)]


def _checked(row: Any) -> Checked:
    *held, available, announced, is_due = row
    known = msgspec.convert(available, AvailableUpdate) if available is not None else None
    return Checked(store.Held(*held), known, announced or [], is_due)


async def lock_checked(session: AsyncSession, app: store.Held) -> Checked | None:
    """The app as `find_checked` gave it, kept as it is until the transaction ends.

    None when it has another version or other images by now, is worked on, or is gone.
    """
    statement = (
        select(App.id)
        .where(
            App.id == app.id,
            App.trashed_at.is_(None),
            App.status.in_(AT_REST),
            App.version.is_not_distinct_from(app.version),
            App.images == app.images,
        )
        .with_for_update()
    )
    if (await session.execute(statement)).first() is None:
        return None
    found = await find_checked(session, app.id)
    return found[0] if found else None


async def set_available(
    session: AsyncSession, app_id: str, available: AvailableUpdate | None, *, announced: Sequence[str] = ()
) -> None:
    """Say what an update would bring to an app that the transaction has locked; `announced` are all keys up to now."""
    values = {
        "available": msgspec.to_builtins(available),
        "announced": list(announced)[-_ANNOUNCED:],
    }
    await _put(session, AppUpdateCheck, app_id, values)
    await session.execute(update(App).where(App.id == app_id).values(update_available=available is not None))


async def set_checked(session: AsyncSession, app_id: str, *, again: timedelta, error: str | None) -> None:
    """The registries of an app were asked; the next time is in `again`."""
    due_at = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, again.total_seconds())
    values: dict[str, Any] = {"due_at": due_at, "error": error}
    if error is None:
        values["checked_at"] = func.clock_timestamp()
    await _put(session, AppUpdateCheck, app_id, values)


async def forget_available(session: AsyncSession, app_id: str) -> None:
    """The app is another one now: whether there is anything newer has to be found out anew."""
    await session.execute(
        update(AppUpdateCheck).where(AppUpdateCheck.app_id == app_id).values(available=None, due_at=None)
    )
    await session.execute(update(App).where(App.id == app_id).values(update_available=False))


_DATA_BYTES = text(
    "SELECT sum(CAST(value AS bigint)) FROM app_disks, LATERAL jsonb_each_text(volumes) WHERE app_id = :app_id"
)


async def get_data_bytes(session: AsyncSession, app_id: str) -> int | None:
    """How much data an app had when it was measured last; None if it never was."""
    found = (await session.execute(_DATA_BYTES, {"app_id": app_id})).scalar_one()
    return int(found) if found is not None else None


# Registries


class Pause(msgspec.Struct, frozen=True):
    failures: int
    until_at: datetime


async def find_pauses(session: AsyncSession) -> dict[str, Pause]:
    """The registries that failed when they were asked last; those whose time is over among them."""
    rows = await session.execute(select(RegistryPause.host, RegistryPause.failures, RegistryPause.until_at))
    return {host: Pause(failures, until_at) for host, failures, until_at in rows}


async def set_pause(session: AsyncSession, host: str, pause: Pause) -> None:
    statement = upsert(RegistryPause).values(host=host, failures=pause.failures, until_at=pause.until_at)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[RegistryPause.host],
            set_={"failures": statement.excluded.failures, "until_at": statement.excluded.until_at},
        )
    )


async def end_pauses(session: AsyncSession, hosts: Collection[str]) -> None:
    await session.execute(delete(RegistryPause).where(RegistryPause.host.in_(hosts)))


# Apps that are updated by themselves


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of `AppAutoUpdate`."""

    enabled: bool = False
    window: Window | None = None
    hold_version: str | None = None
    skip_versions: list[str] = []
    canary_app: str | None = None
    skipped: list[SkippedOut] = []
    opens_at: datetime | None = None
    waits_for: str | None = None


_POLICY = tuple(getattr(AppAutoUpdate, name) for name in Policy.__struct_fields__)


async def get_policy(session: AsyncSession, app_id: str, *, lock: bool = False) -> Policy:
    """That of an app; one that says no where nothing was ever said."""
    statement = select(*_POLICY).where(AppAutoUpdate.app_id == app_id)
    row = (await session.execute(statement.with_for_update() if lock else statement)).one_or_none()
    return msgspec.convert(row._asdict(), Policy) if row is not None else Policy()


async def put_policy(session: AsyncSession, app_id: str, policy: Policy) -> None:
    values = msgspec.structs.asdict(policy)
    for name in ("window", "skipped"):
        values[name] = msgspec.to_builtins(values[name])
    await _put(session, AppAutoUpdate, app_id, values)


async def find_canaries(session: AsyncSession) -> dict[str, str | None]:
    """App → the app that it waits for."""
    statement = select(AppAutoUpdate.app_id, AppAutoUpdate.canary_app).where(AppAutoUpdate.canary_app.is_not(None))
    return {row[0]: row[1] for row in await session.execute(statement)}


async def add_skip(session: AsyncSession, app_id: str, skipped: SkippedOut) -> bool:
    """Update the app no more by itself to what `skipped` says; false for one that never was to be.

    It is the digests that count where there are some, else the version.
    """
    policy = await get_policy(session, app_id, lock=True)
    if not policy.enabled:
        return False
    keys = skipped.digests or ([skipped.version] if skipped.version is not None else [])
    skip = [one for one in policy.skip_versions if one not in keys] + keys
    told = [one for one in policy.skipped if (one.version, one.digests) != (skipped.version, skipped.digests)]
    policy = msgspec.structs.replace(
        policy, skip_versions=skip[-MOST_SKIPPED:], skipped=[*told, skipped][-MOST_SKIPPED:]
    )
    await put_policy(session, app_id, policy)
    return True


_DUE = text(
    """
    SELECT policy.app_id FROM app_auto_updates AS policy JOIN apps ON apps.id = policy.app_id
        JOIN app_update_checks AS found ON apps.id = found.app_id
    WHERE enabled AND :now >= COALESCE(opens_at, :now) AND available IS NOT NULL
        AND status = 'running' AND trashed_at IS NULL AND installed_at IS NOT NULL
    ORDER BY opens_at NULLS LAST, policy.app_id
    """
)
_RUNNING = text(
    "SELECT EXISTS (SELECT FROM app_changes JOIN apps ON apps.id = app_id WHERE automatic AND status = 'updating')"
)


async def find_due(session: AsyncSession, now: datetime) -> list[str]:
    """Running apps that are to be updated by themselves and may be by the clock, the longest open window first."""
    return list((await session.execute(_DUE, {"now": now})).scalars())


async def is_one_running(session: AsyncSession) -> bool:
    """Whether an app is being updated by itself now."""
    return bool((await session.execute(_RUNNING)).scalar_one())


class Candidate(msgspec.Struct, frozen=True):
    """An app that could be updated by itself, kept for the rest of the transaction."""

    id: str
    name: str
    version: str | None
    policy: Policy
    available: AvailableUpdate


async def lock_candidate(session: AsyncSession, app_id: str) -> Candidate | None:
    """None when somebody else has it, or it is none any more."""
    statement = (
        select(App.name, App.version, AppUpdateCheck.available)
        .join(AppUpdateCheck, AppUpdateCheck.app_id == App.id)
        .where(App.id == app_id, App.status == "running", App.trashed_at.is_(None), App.installed_at.is_not(None))
        .with_for_update(of=App, skip_locked=True)
    )
    row = (await session.execute(statement)).one_or_none()
    policy = await get_policy(session, app_id, lock=True) if row is not None else Policy()
    if row is None or row.available is None or not policy.enabled:
        return None
    return Candidate(app_id, row.name, row.version, policy, msgspec.convert(row.available, AvailableUpdate))


class Canary(msgspec.Struct, frozen=True):
    """What counts of the app that another one waits for; it is well and unchanged since `since`."""

    name: str
    template: str | None
    version: str | None
    images: dict[str, str]
    status: AppStatus
    since: datetime


_CANARY = text(
    """
    SELECT name, template, version, images, status, greatest(status_since, installed_at,
        (SELECT max(created_at) FROM app_revisions WHERE app_id = apps.id)) AS since
    FROM apps WHERE id = :id AND trashed_at IS NULL AND installed_at IS NOT NULL
    """
)


async def get_canary(session: AsyncSession, app_id: str) -> Canary | None:
    row = (await session.execute(_CANARY, {"id": app_id})).one_or_none()
    return Canary(**row._asdict()) if row is not None else None


async def set_policy_state(session: AsyncSession, app_id: str, **values: Any) -> None:
    """`opens_at` and `waits_for` of an app whose row the transaction has locked."""
    await session.execute(update(AppAutoUpdate).where(AppAutoUpdate.app_id == app_id).values(**values))


async def _put(session: AsyncSession, table: Any, app_id: str, values: Mapping[str, Any]) -> None:
    statement = upsert(table).values(app_id=app_id, **values)
    await session.execute(statement.on_conflict_do_update(index_elements=[table.app_id], set_=dict(values)))
