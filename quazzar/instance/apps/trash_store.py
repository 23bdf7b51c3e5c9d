"""Every query on apps in the trash."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Integer, Text, bindparam, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import Database, Query
from quazzar.instance.apps import store
from quazzar.instance.apps.models import App, AppStatus
from quazzar.instance.apps.schemas import TrashedRow

_ids = bindparam("ids", type_=ARRAY(Text))
_days = bindparam("days", type_=Integer)
_purge_at = App.trashed_at + func.make_interval(0, 0, 0, _days)
_LIST = Query(
    select(*store.SUMMARY, App.trashed_at, _purge_at)
    .where(
        App.trashed_at.is_not(None),
        or_(_ids.is_(None), App.id == func.any(_ids)),
        App.id < bindparam("before", type_=Text(collation="C")),
    )
    .order_by(App.id.desc())
    .limit(bindparam("limit", type_=Integer)),
    TrashedRow,
    before=store.NEWEST,
)


async def list_trashed(
    database: Database, *, days: int, limit: int, before: str = store.NEWEST, ids: Sequence[str] | None = None
) -> list[TrashedRow]:
    """The newest apps in the trash before the id `before`, of `ids` where given; they are purged after `days`."""
    return await _LIST.all(database, days=days, limit=limit, before=before, ids=ids)


async def put_in(session: AsyncSession, app_id: str, *, job_id: str) -> datetime | None:
    """Put an app that the job has taken off the engine into the trash, and free its ports; None if it is not held."""
    ports = await store.find_ports(session, app_id)
    statement = (
        update(App)
        .where(App.id == app_id, App.job_id == job_id, App.status == "uninstalling", App.trashed_at.is_(None))
        .values(
            status="stopped",
            status_since=func.clock_timestamp(),
            updated_at=func.clock_timestamp(),
            deadline_at=None,
            services=[],
            trashed_at=func.clock_timestamp(),
            trashed_ports=[msgspec.structs.asdict(port) for port in ports],
        )
        .returning(App.trashed_at)
    )
    trashed_at: datetime | None = (await session.execute(statement)).scalar_one_or_none()
    if trashed_at is not None:
        await store.release_ports(session, app_id)
    return trashed_at


class Trashed(msgspec.Struct, frozen=True):
    """`status` is `uninstalling` from the moment on when the app is being purged."""

    held: store.Held
    status: AppStatus
    desired: str
    ports: list[store.HeldPort]


async def lock_trashed(session: AsyncSession, app_id: str) -> Trashed | None:
    """An app in the trash, kept from being purged for the rest of the transaction."""
    statement = (
        select(*store.HELD, App.status, App.desired, App.trashed_ports)
        .where(App.id == app_id, App.trashed_at.is_not(None))
        .with_for_update()
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        return None
    *held, status, desired, ports = row
    return Trashed(store.Held(*held), status, desired, [store.HeldPort(**port) for port in ports or ()])


async def take_out(
    session: AsyncSession, app_id: str, *, status: AppStatus, seconds: float | None, values: dict[str, Any]
) -> None:
    """Back among the others, in `status`; the unique index on the name decides who was first."""
    await session.execute(
        update(App)
        .where(App.id == app_id)
        .values(
            status=status,
            status_reason=None,
            status_since=func.clock_timestamp(),
            updated_at=func.clock_timestamp(),
            deadline_at=store.deadline(seconds),
            trashed_at=None,
            trashed_ports=None,
            **values,
        )
    )


async def begin_purge(session: AsyncSession, app_id: str) -> str | None:
    """Decide that an app in the trash goes; it can't be taken out any more.

    Gives its name, None when it is not there or was decided on before.
    """
    statement = (
        update(App)
        .where(App.id == app_id, App.trashed_at.is_not(None), App.status == "stopped")
        .values(status="uninstalling", updated_at=func.clock_timestamp())
        .returning(App.name)
    )
    return (await session.execute(statement)).scalar_one_or_none()


_DUE = text(
    """
    SELECT id FROM apps WHERE trashed_at IS NOT NULL AND (
        status = 'uninstalling' OR trashed_at <= clock_timestamp() - make_interval(days => :days)
    ) AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = apps.job_id AND jobs.status IN ('queued', 'running'))
    ORDER BY trashed_at LIMIT :limit FOR UPDATE OF apps SKIP LOCKED
    """
)


async def find_due(session: AsyncSession, *, days: int, limit: int = 100) -> list[str]:
    """Apps whose time in the trash is over, and those whose purge was begun and is not being carried out."""
    return list((await session.execute(_DUE, {"days": days, "limit": limit})).scalars())


async def find_purging(session: AsyncSession, app_id: str) -> str | None:
    """The name of an app whose purge is decided; None when it is not there any more."""
    statement = select(App.name).where(App.id == app_id, App.trashed_at.is_not(None), App.status == "uninstalling")
    return (await session.execute(statement)).scalar_one_or_none()


async def forget(session: AsyncSession, app_id: str) -> bool:
    """Forget an app that is purged."""
    statement = (
        delete(App).where(App.id == app_id, App.trashed_at.is_not(None), App.status == "uninstalling").returning(App.id)
    )
    return (await session.execute(statement)).scalar_one_or_none() is not None
