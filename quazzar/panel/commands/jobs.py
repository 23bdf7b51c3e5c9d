"""The upkeep of commands."""

from typing import Final

from quazzar.core.db import see_all_tenants
from quazzar.core.jobs import JobRun, job, schedule
from quazzar.panel.commands import upkeep

KEPT_DAYS: Final = 90
_BATCH: Final = 20


@schedule("53 3 * * *")
@job("commands.prune", concurrency=1)
async def prune(run: JobRun) -> None:
    """Forget commands that ended long ago, with what their instances said."""
    removed = _BATCH
    while removed == _BATCH:
        run.check_cancelled()
        async with run.database.begin() as session:
            await see_all_tenants(session)
            # Each may have thousands of units, with output.
            removed = await upkeep.prune_commands(session, days=KEPT_DAYS, most=_BATCH)
