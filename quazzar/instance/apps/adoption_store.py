"""Every query on what apps have of adopted Compose projects."""

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.apps.models import AppAdoption
from quazzar.instance.apps.runtimes.base import Adoption


async def add_adoption(session: AsyncSession, app_id: str, adoption: Adoption) -> None:
    """Write down what is an app's; the unique name of the project decides who was first."""
    objects = msgspec.to_builtins(adoption)
    await session.execute(insert(AppAdoption).values(app_id=app_id, project=adoption.project, objects=objects))


async def is_adopted(session: AsyncSession, project: str) -> bool:
    statement = select(AppAdoption.app_id).where(AppAdoption.project == project)
    return (await session.execute(statement)).first() is not None


async def find_adoptions(session: AsyncSession) -> dict[str, Adoption]:
    """What all apps have, by app."""
    rows = await session.execute(select(AppAdoption.app_id, AppAdoption.objects))
    return {app_id: msgspec.convert(objects, Adoption) for app_id, objects in rows}
