"""Every query on changes of apps and on what apps were before."""

from collections.abc import Collection
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import delete, func, insert, not_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import Select

from quazzar.core.ids import new_id
from quazzar.instance.apps import store
from quazzar.instance.apps.models import App, AppChange, AppPort, AppRevision, AppStatus

Kind = Literal["patch", "update", "rollback"]
Phase = Literal["asked", "pulling", "stopping", "saving", "starting", "reverting"]
UNTOUCHED: Final[tuple[Phase, ...]] = ("asked", "pulling")
"""In these the containers and the data are still what they were."""


class Shape(msgspec.Struct, frozen=True):
    """The columns that say what an app is made from."""

    template: str | None
    version: str | None
    definition: dict[str, Any]
    config: dict[str, Any]
    secrets: bytes | None
    resources: dict[str, Any]
    restart_policy: str | None
    images: dict[str, str]


def new_snapshot() -> str:
    """A name for the data of an app as it is now."""
    return new_id("snp").partition("_")[2]


def shape_of(app: Any) -> dict[str, Any]:
    """What an app, a revision or a change is made from, by column."""
    return {name: getattr(app, name) for name in Shape.__struct_fields__}


class Settled(msgspec.Struct, frozen=True):
    """An app that nobody works on, kept as it is for the rest of the transaction."""

    held: store.Held
    status: AppStatus
    labels: dict[str, str]


async def lock_app(session: AsyncSession, app_id: str) -> Settled | None:
    return _settled((await session.execute(_there(app_id).with_for_update())).one_or_none())


async def find_app(session: AsyncSession, app_id: str) -> Settled | None:
    """As `lock_app`, of an app that others may change meanwhile."""
    return _settled((await session.execute(_there(app_id))).one_or_none())


def _there(app_id: str) -> Select[Any]:
    return select(*store.HELD, App.status, App.labels).where(App.id == app_id, App.trashed_at.is_(None))


def _settled(row: Any) -> Settled | None:
    if row is None:
        return None
    *held, status, labels = row
    return Settled(store.Held(*held), status, labels)


async def set_app(session: AsyncSession, app_id: str, values: dict[str, Any]) -> None:
    """Change an app that the transaction has locked."""
    await session.execute(update(App).where(App.id == app_id).values(updated_at=func.clock_timestamp(), **values))


async def has_change(session: AsyncSession, app_id: str) -> bool:
    """Whether a change has touched an app that nobody works on, and was not taken back whole.

    One whose job was cancelled before it came so far left all as it was.
    """
    touched = select(AppChange.app_id).where(AppChange.app_id == app_id, AppChange.phase.not_in(UNTOUCHED))
    return (await session.execute(touched)).first() is not None


async def add_change(session: AsyncSession, values: dict[str, Any]) -> None:
    """In the place of one that touched nothing, if there is such a one."""
    await end_change(session, values["app_id"])
    await session.execute(insert(AppChange).values(phase="asked", **values))


class Change(Shape, frozen=True):
    app_id: str
    kind: Kind
    phase: Phase
    stopped: bool
    snapshot: str | None
    revision: int | None
    reason: str | None
    automatic: bool


_CHANGE = tuple(getattr(AppChange, name) for name in Change.__struct_fields__)


async def get_change(session: AsyncSession, app_id: str) -> Change | None:
    row = (await session.execute(select(*_CHANGE).where(AppChange.app_id == app_id))).one_or_none()
    return Change(*row) if row is not None else None


async def set_change(session: AsyncSession, app_id: str, **values: Any) -> None:
    await session.execute(update(AppChange).where(AppChange.app_id == app_id).values(**values))


async def end_change(session: AsyncSession, app_id: str) -> None:
    await session.execute(delete(AppChange).where(AppChange.app_id == app_id))


class Revision(Shape, frozen=True):
    number: int
    snapshot: str


_REVISION = tuple(getattr(AppRevision, name) for name in Revision.__struct_fields__)


async def get_revision(session: AsyncSession, app_id: str, number: int | None = None) -> Revision | None:
    """What the app was before: the newest, or the one with the number."""
    statement = select(*_REVISION).where(AppRevision.app_id == app_id).order_by(AppRevision.number.desc()).limit(1)
    if number is not None:
        statement = statement.where(AppRevision.number == number)
    row = (await session.execute(statement)).one_or_none()
    return Revision(*row) if row is not None else None


async def add_revision(session: AsyncSession, app: store.Held, *, snapshot: str, keep: int) -> None:
    """Remember what the app was, and forget all but the newest `keep`."""
    last = select(func.coalesce(func.max(AppRevision.number), 0)).where(AppRevision.app_id == app.id)
    number = (await session.execute(last)).scalar_one() + 1
    await session.execute(insert(AppRevision).values(app_id=app.id, number=number, snapshot=snapshot, **shape_of(app)))
    await session.execute(delete(AppRevision).where(AppRevision.app_id == app.id, AppRevision.number <= number - keep))


async def drop_revision(session: AsyncSession, app_id: str, number: int) -> None:
    await session.execute(delete(AppRevision).where(AppRevision.app_id == app_id, AppRevision.number == number))


async def find_snapshots(session: AsyncSession, app_id: str) -> set[str]:
    """The names of all snapshots that an app still needs."""
    kept = select(AppRevision.snapshot).where(AppRevision.app_id == app_id)
    used = select(AppChange.snapshot).where(AppChange.app_id == app_id, AppChange.snapshot.is_not(None))
    return {*(await session.execute(kept)).scalars(), *(one for one in (await session.execute(used)).scalars() if one)}


async def find_all_snapshots(session: AsyncSession) -> dict[str, set[str]]:
    """As `find_snapshots`, of every app by its id; those that are in the trash need theirs too."""
    statement = (
        select(App.id, AppRevision.snapshot, AppChange.snapshot)
        .outerjoin(AppRevision, AppRevision.app_id == App.id)
        .outerjoin(AppChange, AppChange.app_id == App.id)
    )
    found: dict[str, set[str]] = {}
    for app_id, *names in await session.execute(statement):
        found.setdefault(app_id, set()).update(name for name in names if name is not None)
    return found


async def keep_ports(session: AsyncSession, app_id: str, ports: Collection[tuple[int, str]]) -> None:
    """Free the host ports of the app that are not among `ports` (number and protocol)."""
    statement = delete(AppPort).where(AppPort.app_id == app_id)
    if ports:
        statement = statement.where(not_(tuple_(AppPort.host_port, AppPort.protocol).in_(list(ports))))
    await session.execute(statement)


async def find_sealed(session: AsyncSession) -> list[tuple[str, int | None, bytes]]:
    """App, number (None for a change) and sealed secrets of all revisions and changes, locked: for a new master key."""
    revisions = select(AppRevision.app_id, AppRevision.number, AppRevision.secrets).with_for_update()
    changes = select(AppChange.app_id, AppChange.secrets).with_for_update()
    found: list[tuple[str, int | None, bytes]] = [
        (app_id, number, sealed) for app_id, number, sealed in await session.execute(revisions) if sealed is not None
    ]
    found += [(app_id, None, one) for app_id, one in await session.execute(changes) if one is not None]
    return found


async def replace_sealed(session: AsyncSession, app_id: str, number: int | None, sealed: bytes) -> None:
    """`number` is that of a revision, None for the change."""
    if number is None:
        await set_change(session, app_id, secrets=sealed)
        return
    await session.execute(
        update(AppRevision).where(AppRevision.app_id == app_id, AppRevision.number == number).values(secrets=sealed)
    )
