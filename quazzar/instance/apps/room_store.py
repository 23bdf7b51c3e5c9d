"""Every query on what apps reserve of the machine."""

from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.instance.apps.models import App
from quazzar.instance.apps.room import Claim, claim_from
from quazzar.instance.apps.store import HELD, Held

# An install that failed has taken everything away again. What is installed is on the disk, where it is not free.
_SUM = text(
    """
    SELECT COALESCE(sum(CAST(claim->>'memory_bytes' AS bigint)), 0) AS memory_bytes,
        COALESCE(sum(CAST(claim->>'memory_limit_bytes' AS bigint)), 0) AS memory_limit_bytes,
        COALESCE(sum(CAST(claim->>'cpus' AS float8)), 0) AS cpus,
        COALESCE(sum(CAST(claim->>'pids' AS bigint)), 0) AS pids,
        COALESCE(sum(CAST(claim->>'disk_bytes' AS bigint)) FILTER (WHERE installed_at IS NULL), 0) AS disk_bytes
    FROM apps
    WHERE trashed_at IS NULL AND NOT (installed_at IS NULL AND status = 'failed') AND id <> :but
    """
)
_IMAGES = text("SELECT DISTINCT jsonb_object_keys(images) FROM apps WHERE installed_at IS NOT NULL")


async def sum_claims(session: AsyncSession, *, but: str = "") -> Claim:
    """What all apps together reserve, without the app `but`."""
    row = (await session.execute(_SUM, {"but": but})).one()
    return Claim(
        memory_bytes=int(row.memory_bytes),
        memory_limit_bytes=int(row.memory_limit_bytes),
        cpus=float(row.cpus),
        pids=int(row.pids),
        disk_bytes=int(row.disk_bytes),
    )


async def get_claim(session: AsyncSession, app_id: str) -> Claim:
    """What one app reserves; nothing where it is not there."""
    return claim_from((await session.execute(select(App.claim).where(App.id == app_id))).scalar_one_or_none())


async def set_claim(session: AsyncSession, app_id: str, claim: dict[str, Any]) -> None:
    await session.execute(update(App).where(App.id == app_id).values(claim=claim))


async def find_unclaimed(session: AsyncSession) -> list[Held]:
    """The apps whose claim was never written down, also those in the trash, locked."""
    statement = select(*HELD).where(App.claim == {}).order_by(App.id).with_for_update()
    return [Held(*row) for row in await session.execute(statement)]


async def find_images(session: AsyncSession) -> set[str]:
    """The images of all apps that are installed."""
    return set((await session.execute(_IMAGES)).scalars())
