"""Every query on the commands that people run in services."""

from collections.abc import Collection
from datetime import datetime

import msgspec
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.apps.models import AppExec


class OpenExec(msgspec.Struct, frozen=True):
    id: str
    app_id: str
    service: str
    actor_id: str
    started_at: datetime
    ended_at: datetime | None


_COLUMNS = tuple(getattr(AppExec, name) for name in OpenExec.__struct_fields__)


async def add_exec(session: AsyncSession, *, exec_id: str, app_id: str, service: str, actor_id: str) -> None:
    await session.execute(insert(AppExec).values(id=exec_id, app_id=app_id, service=service, actor_id=actor_id))


async def end_exec(session: AsyncSession, exec_id: str) -> None:
    """Note that the end is recorded; the row stays until the command is known to be over."""
    await session.execute(update(AppExec).where(AppExec.id == exec_id).values(ended_at=func.clock_timestamp()))


async def forget_exec(session: AsyncSession, exec_id: str) -> None:
    await session.execute(delete(AppExec).where(AppExec.id == exec_id))


async def find_left(session: AsyncSession, open_ids: Collection[str]) -> list[OpenExec]:
    """All that are written down but for those that are open in this process, locked."""
    statement = select(*_COLUMNS).where(AppExec.id.not_in(open_ids)).order_by(AppExec.id).with_for_update()
    return [OpenExec(*row) for row in await session.execute(statement)]
