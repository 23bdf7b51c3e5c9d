"""How long what instances measure is kept: whole days, which are partitions and are dropped as one."""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import see_all_tenants
from quazzar.panel.fleet.rollups import rolled_up_until

KEPT_DAYS: Final = {"fleet_samples": 2, "fleet_five_minutes": 14, "fleet_hours": 400}
"""Whole days before today (UTC). Samples of the last 24 hours can still come, and those of two days can be read."""
_AHEAD: Final = timedelta(days=7)
_KEEP = text("SELECT fleet_keep_partitions(:part, CAST(:oldest AS date), CAST(:first AS date), CAST(:last AS date))")


async def keep_partitions(session: AsyncSession, now: datetime) -> None:
    """Make the partitions of the coming week, and drop those that are too old; may be called at any time, by many.

    Samples that are not in the sums yet stay, however old they are.
    """
    await see_all_tenants(session)
    today = now.astimezone(UTC).date()
    summed_up = await rolled_up_until(session)
    for part, days in KEPT_DAYS.items():
        oldest = today - timedelta(days=days)
        if part != "fleet_hours" and summed_up.timestamp() > 0:
            oldest = min(oldest, summed_up.date())
        values = {"oldest": oldest, "first": today - timedelta(days=2), "last": today + _AHEAD}
        await session.execute(_KEEP, {"part": part} | values)
