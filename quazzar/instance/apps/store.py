"""Every query on apps and their ports.

Changes of status are compare-and-set: each names what it expects to find, and says whether it was there.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import (
    Integer,
    Text,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnElement, Select

from quazzar.core.db import Database, Query, wait_alone
from quazzar.instance.apps.models import TRANSITIONAL, App, AppPort, AppStatus
from quazzar.instance.apps.schemas import AppRow, FullAppRow

SUMMARY = (
    App.id,
    App.name,
    App.template,
    App.version,
    App.status,
    App.status_reason,
    App.status_since,
    App.created_at,
    App.job_id,
    App.ports,
    App.urls,
    App.update_available,
)
# Sizes are measured apart from what the reconciler writes, and joined when they are shown.
_VOLUMES: ColumnElement[Any] = literal_column(
    """(SELECT COALESCE(jsonb_agg(one || jsonb_build_object('size_bytes', measured.volumes -> (one->>'name'))
        ORDER BY place), CAST('[]' AS jsonb))
    FROM jsonb_array_elements(apps.volumes) WITH ORDINALITY AS listed (one, place)
    LEFT JOIN app_disks AS measured ON measured.app_id = apps.id)""",
    JSONB,
).label("volumes")
_DISK: ColumnElement[Any] = literal_column(
    """(SELECT jsonb_build_object('size_bytes', containers_bytes + total, 'volumes_bytes', total,
        'containers_bytes', containers_bytes,
        'measured_at', to_char(measured_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
    FROM app_disks, LATERAL (SELECT COALESCE(sum(CAST(value AS bigint)), 0) AS total FROM jsonb_each_text(volumes))
        AS summed
    WHERE app_id = apps.id)""",
    JSONB,
).label("disk")
_AVAILABLE: ColumnElement[Any] = literal_column(
    "(SELECT available FROM app_update_checks WHERE app_id = apps.id)", JSONB
).label("available_update")
_CHECK: ColumnElement[Any] = literal_column(
    """COALESCE(
        (SELECT jsonb_build_object('error', error,
            'checked_at', to_char(checked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
        FROM app_update_checks WHERE app_id = apps.id),
        CAST('{"checked_at": null, "error": null}' AS jsonb))""",
    JSONB,
).label("update_check")
_AUTO: ColumnElement[Any] = literal_column(
    """COALESCE(
        (SELECT jsonb_build_object('enabled', enabled, 'window', "window", 'hold_version', hold_version,
            'skip_versions', skip_versions, 'canary_app', canary_app)
        FROM app_auto_updates WHERE app_id = apps.id),
        CAST('{"enabled": false, "window": null, "hold_version": null, "skip_versions": [], "canary_app": null}'
            AS jsonb))""",
    JSONB,
).label("auto_update")
_AUTO_STATE: ColumnElement[Any] = literal_column(
    """COALESCE(
        (SELECT jsonb_build_object('waits_for', waits_for, 'skipped', skipped,
            'opens_at', to_char(opens_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
        FROM app_auto_updates WHERE app_id = apps.id),
        CAST('{"opens_at": null, "waits_for": null, "skipped": []}' AS jsonb))""",
    JSONB,
).label("auto_update_state")
_FULL = (
    *SUMMARY,
    App.services,
    _VOLUMES,
    App.config,
    App.resources,
    App.domain,
    App.updated_at,
    _DISK,
    App.restart_policy,
    App.labels,
    _AVAILABLE,
    _CHECK,
    _AUTO,
    _AUTO_STATE,
)

_texts = ARRAY(Text)
_ids = bindparam("ids", type_=_texts)
_mine = or_(_ids.is_(None), App.id == func.any(_ids))
_there = App.trashed_at.is_(None)
"""What is in the trash is not there, but for `trash_store`."""

NEWEST = "~"
"""Greater than any id: where the list begins."""


def _page(statement: Select[Any]) -> Select[Any]:
    before = bindparam("before", type_=Text(collation="C"))
    return statement.where(App.id < before, _there).order_by(App.id.desc()).limit(bindparam("limit", type_=Integer))


def _filtered() -> Select[Any]:
    statuses = bindparam("statuses", type_=_texts)
    template = bindparam("template", type_=Text)
    words = bindparam("q", type_=Text)
    return _page(
        select(*SUMMARY).where(
            _mine,
            or_(statuses.is_(None), App.status == func.any(statuses)),
            or_(template.is_(None), App.template == template),
            or_(
                words.is_(None),
                func.strpos(App.name, words) > 0,
                func.strpos(func.coalesce(App.template, ""), words) > 0,
            ),
        )
    )


_LIST = Query(_page(select(*SUMMARY)), AppRow, before=NEWEST)
_LIST_FILTERED = Query(_filtered(), AppRow, before=NEWEST)
_ONE = Query(select(*_FULL).where(App.id == bindparam("id", type_=Text), _there, _mine), FullAppRow)
_EXISTS = Query(select(App.id).where(App.id == bindparam("id", type_=Text), _there, _mine), str)


async def list_apps(database: Database, *, limit: int, before: str = NEWEST) -> list[AppRow]:
    """The newest `limit` apps before the id `before`."""
    return await _LIST.all(database, limit=limit, before=before)


async def find_apps(
    database: Database,
    *,
    limit: int,
    before: str = NEWEST,
    ids: Sequence[str] | None = None,
    statuses: Sequence[str] | None = None,
    template: str | None = None,
    q: str | None = None,
) -> list[AppRow]:
    """As `list_apps`, of those that fit every filter that is given."""
    return await _LIST_FILTERED.all(
        database, limit=limit, before=before, ids=ids, statuses=statuses, template=template, q=q
    )


async def read_app(database: Database, app_id: str, *, ids: Sequence[str] | None = None) -> FullAppRow | None:
    """One app as it is shown, or None when it is not there or not among `ids`."""
    return await _ONE.one_or_none(database, id=app_id, ids=ids)


async def has_app(database: Database, app_id: str, *, ids: Sequence[str] | None = None) -> bool:
    return await _EXISTS.one_or_none(database, id=app_id, ids=ids) is not None


class Standing(msgspec.Struct, frozen=True):
    """What decides on an operation."""

    id: str
    name: str
    status: AppStatus
    installed_at: datetime | None
    job_id: str | None
    copies_from: str | None
    expected: list[dict[str, Any]]
    services: list[dict[str, Any]]


_STANDING = tuple(getattr(App, name) for name in Standing.__struct_fields__)


async def get_state(session: AsyncSession, app_id: str) -> Standing | None:
    row = (await session.execute(select(*_STANDING).where(App.id == app_id, _there))).one_or_none()
    return Standing(*row) if row is not None else None


async def show_app(session: AsyncSession, app_id: str) -> FullAppRow | None:
    """As `read_app`, but within the caller's transaction."""
    row = (await session.execute(_SHOW, {"id": app_id})).one_or_none()
    if row is None:
        return None
    values: dict[str, Any] = row._asdict()
    return FullAppRow(**values | {name: _raw(values[name]) for name in _JSON})


_SHOW = select(*_FULL).where(App.id == bindparam("id", type_=Text), _there)


_JSON = frozenset(
    {
        "ports",
        "urls",
        "services",
        "volumes",
        "config",
        "resources",
        "disk",
        "labels",
        "available_update",
        "update_check",
        "auto_update",
        "auto_update_state",
    }
)


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


async def add_app(session: AsyncSession, values: dict[str, Any], *, seconds: float | None) -> None:
    """Insert a row whose operation, if any, has `seconds`; the unique index on the name decides who was first."""
    await session.execute(insert(App).values(deadline_at=deadline(seconds), **values))


async def move_app(
    session: AsyncSession,
    app_id: str,
    *,
    of: Collection[str],
    to: AppStatus,
    seconds: float | None = None,
    job_id: str | None = None,
    **values: Any,
) -> bool:
    """Set the status to `to` if it is one of `of` (and the app is held by `job_id`, where given).

    `seconds` sets the deadline from now. False when the app was not in such a state any more.
    """
    statement = (
        update(App)
        .where(App.id == app_id, App.status.in_(of))
        .values(
            status=to,
            status_since=func.clock_timestamp(),
            updated_at=func.clock_timestamp(),
            deadline_at=deadline(seconds),
            **values,
        )
        .returning(App.id)
    )
    if job_id is not None:
        statement = statement.where(App.job_id == job_id)
    return (await session.execute(statement)).scalar_one_or_none() is not None


def deadline(seconds: float | None) -> Any:
    return None if seconds is None else func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


async def set_job(session: AsyncSession, app_id: str, job_id: str) -> None:
    await session.execute(update(App).where(App.id == app_id).values(job_id=job_id))


async def change_app(session: AsyncSession, app_id: str, *, job_id: str, values: dict[str, Any]) -> None:
    """Change columns of an app that is held by the job."""
    await session.execute(
        update(App).where(App.id == app_id, App.job_id == job_id).values(updated_at=func.clock_timestamp(), **values)
    )


async def set_reason(session: AsyncSession, app_id: str, *, job_id: str, status: str, reason: str | None) -> None:
    """Say why an operation does not get on; changes nothing once the app is no longer held by the job."""
    await session.execute(
        update(App)
        .where(App.id == app_id, App.job_id == job_id, App.status == status)
        .values(status_reason=reason, updated_at=func.clock_timestamp())
    )


class Held(msgspec.Struct, frozen=True):
    """An app in the hands of a job: all that its work needs."""

    id: str
    name: str
    template: str | None
    version: str | None
    definition: dict[str, Any]
    config: dict[str, Any]
    secrets: bytes | None
    resources: dict[str, Any]
    expected: list[Any]
    installed_at: datetime | None
    copies_from: str | None
    restart_policy: str | None
    images: dict[str, str]


HELD = tuple(getattr(App, name) for name in Held.__struct_fields__)


async def claim_app(
    session: AsyncSession, app_id: str, *, job_id: str, status: AppStatus, again: Collection[str], seconds: float
) -> Held | None:
    """Take an app for the job that its row names; None when another operation has it, or it is gone.

    Each attempt has `seconds` to its deadline: what an operation waited in the queue, or for our process to come back,
    does not count. A job that is tried again after it failed finds the app in one of the states `again` and takes it
    back into its own.
    """
    statement = (
        update(App)
        .where(App.id == app_id, App.job_id == job_id, App.status.in_((status, *again)))
        .values(
            status=status,
            status_reason=None,
            status_since=case((App.status == status, App.status_since), else_=func.clock_timestamp()),
            updated_at=func.clock_timestamp(),
            deadline_at=deadline(seconds),
        )
        .returning(*HELD)
    )
    row = (await session.execute(statement)).one_or_none()
    return Held(**row._asdict()) if row is not None else None


async def delete_app(session: AsyncSession, app_id: str, *, job_id: str) -> bool:
    """Forget an app that its uninstall has taken off the engine; its ports are free again."""
    statement = (
        delete(App).where(App.id == app_id, App.job_id == job_id, App.status == "uninstalling").returning(App.id)
    )
    return (await session.execute(statement)).scalar_one_or_none() is not None


class Watched(msgspec.Struct, frozen=True):
    """An app as the reconciler knows it; `updated_at` is what its compare-and-set looks at."""

    id: str
    name: str
    status: AppStatus
    status_reason: str | None
    updated_at: datetime
    desired: Any
    installed_at: datetime | None
    job_id: str | None
    deadline_at: datetime | None
    expected: list[Any]
    services: list[Any]
    ports: list[Any]
    volumes: list[Any]


_WATCHED = tuple(getattr(App, name) for name in Watched.__struct_fields__)


async def watch_apps(session: AsyncSession, ids: Sequence[str] | None = None) -> list[Watched]:
    """All apps, or those of `ids` that are there."""
    statement = select(*_WATCHED).where(_there).order_by(App.id)
    if ids is not None:
        statement = statement.where(App.id.in_(ids))
    return [Watched(*row) for row in await session.execute(statement)]


async def record_truth(session: AsyncSession, app: Watched, values: dict[str, Any]) -> bool:
    """Write what the engine says of `app`, unless anything has changed the row since it was read."""
    statement = (
        update(App)
        .where(App.id == app.id, App.updated_at == app.updated_at, App.status == app.status)
        .values(updated_at=func.clock_timestamp(), **values)
        .returning(App.id)
    )
    return (await session.execute(statement)).scalar_one_or_none() is not None


class Abandoned(msgspec.Struct, frozen=True):
    """`job_status` is `missing` for a job that is gone, None where only the deadline has passed."""

    id: str
    name: str
    status: AppStatus
    job_id: str | None
    job_status: str | None


_ABANDONED = text(
    """
    SELECT apps.id, apps.name, apps.status, apps.job_id,
        CASE WHEN jobs.id IS NULL THEN 'missing' WHEN jobs.status NOT IN ('queued', 'running') THEN jobs.status END
    FROM apps LEFT JOIN jobs ON jobs.id = apps.job_id
    WHERE apps.status = ANY(:statuses) AND apps.trashed_at IS NULL AND (
        jobs.id IS NULL OR jobs.status NOT IN ('queued', 'running')
        OR (jobs.status = 'running' AND apps.deadline_at < clock_timestamp() - make_interval(secs => :grace)))
    """
)

DEADLINE_GRACE_SECONDS = 30.0
"""A job ends itself at its deadline; only one that has no live worker is still there this much later."""


async def find_abandoned(session: AsyncSession) -> list[Abandoned]:
    """Apps in a transitional state that no job will end."""
    rows = await session.execute(_ABANDONED, {"statuses": list(TRANSITIONAL), "grace": DEADLINE_GRACE_SECONDS})
    return [Abandoned(*row) for row in rows]


def now() -> Any:
    """The time of the statement, for a value of `record_truth`."""
    return func.clock_timestamp()


async def find_name(session: AsyncSession, name: str) -> str | None:
    """The id of the app that has `name`, if there is one."""
    return (await session.execute(select(App.id).where(App.name == name, _there))).scalar_one_or_none()


class HeldPort(msgspec.Struct, frozen=True):
    host_port: int
    protocol: str
    app_id: str
    field: str | None
    auto: bool


_PORT = (AppPort.host_port, AppPort.protocol, AppPort.app_id, AppPort.field, AppPort.auto)


async def find_ports(session: AsyncSession, app_id: str | None = None) -> list[HeldPort]:
    """Host ports that apps hold: all, or those of one app."""
    statement = select(*_PORT).order_by(AppPort.host_port, AppPort.protocol)
    if app_id is not None:
        statement = statement.where(AppPort.app_id == app_id)
    return [HeldPort(*row) for row in await session.execute(statement)]


async def hold_ports(session: AsyncSession, ports: Iterable[HeldPort]) -> None:
    """Take host ports; the primary key decides who was first."""
    rows = [{name: getattr(port, name) for name in HeldPort.__struct_fields__} for port in ports]
    if rows:
        await session.execute(insert(AppPort), rows)


async def release_ports(session: AsyncSession, app_id: str) -> None:
    await session.execute(delete(AppPort).where(AppPort.app_id == app_id))


async def lock_ports(session: AsyncSession) -> None:
    """One at a time picks free ports, so that two installs don't pick the same ones and one of them fails.

    Nor do two take the last room of the machine: what apps reserve is summed up under this lock.
    """
    await wait_alone(session, "app_ports")


async def find_sealed(session: AsyncSession) -> Sequence[tuple[str, bytes]]:
    """Id and sealed secrets of all apps that have some, locked: for a change of the master key."""
    statement = select(App.id, App.secrets).where(App.secrets.is_not(None)).order_by(App.id).with_for_update()
    return [(app_id, sealed) for app_id, sealed in await session.execute(statement) if sealed is not None]


async def replace_sealed(session: AsyncSession, app_id: str, sealed: bytes) -> None:
    await session.execute(update(App).where(App.id == app_id).values(secrets=sealed))


async def count_apps(database: Database) -> dict[str, int]:
    """How many apps stand in each status."""
    async with database.begin() as session:
        rows = await session.execute(select(App.status, func.count()).group_by(App.status))
        return dict(rows.tuples().all())
