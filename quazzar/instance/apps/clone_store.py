"""Every query on apps that are being copied."""

from typing import Any

import msgspec
from sqlalchemy import and_, case, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.apps import store
from quazzar.instance.apps.models import App, AppStatus

_AT_REST = ("running", "unhealthy", "stopped", "crashed", "failed")
_HOLDING = ("restarting", "stopping")


class Source(msgspec.Struct, frozen=True):
    held: store.Held
    status: AppStatus
    desired: Any
    volumes: list[Any]


_SOURCE = (*store.HELD, App.status, App.desired, App.volumes)


def _source(row: Any) -> Source | None:
    if row is None:
        return None
    *held, status, desired, volumes = row
    return Source(store.Held(*held), status, desired, volumes)


async def find_source(session: AsyncSession, app_id: str) -> Source | None:
    """An app that is to be copied; None when it is not there."""
    statement = select(*_SOURCE).where(App.id == app_id, App.trashed_at.is_(None))
    return _source((await session.execute(statement)).one_or_none())


async def run_again(session: AsyncSession, app_id: str, *, job_id: str) -> None:
    """The app that the job holds has to run again afterwards, whatever its row said before."""
    held = (App.id == app_id, App.job_id == job_id, App.status == "stopping")
    await session.execute(update(App).where(*held).values(status="restarting", updated_at=func.clock_timestamp()))


async def hold_source(session: AsyncSession, app_id: str, *, job_id: str, seconds: float) -> Source | None:
    """Keep an app from every other operation while the job copies it; None when it is gone or busy.

    It is `restarting` if it has to run again afterwards, else `stopping`. A job that holds it already goes on with it.
    """
    ours = App.job_id == job_id
    runs = or_(
        App.status.in_(("running", "unhealthy")),
        and_(ours, App.status == "restarting"),
        and_(ours, App.status == "failed", App.desired == "running"),
    )
    statement = (
        update(App)
        .where(
            App.id == app_id,
            App.trashed_at.is_(None),
            App.installed_at.is_not(None),
            or_(App.status.in_(_AT_REST), and_(ours, App.status.in_(_HOLDING))),
        )
        .values(
            status=case((runs, "restarting"), else_="stopping"),
            status_reason="Its data is being copied",
            status_since=func.clock_timestamp(),
            updated_at=func.clock_timestamp(),
            deadline_at=store.deadline(seconds),
            job_id=job_id,
        )
        .returning(*_SOURCE)
    )
    return _source((await session.execute(statement)).one_or_none())
