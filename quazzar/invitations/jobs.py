"""The upkeep of invitations."""

from quazzar.core.jobs import JobRun, job, schedule
from quazzar.invitations import store


@schedule("47 3 * * *")
@job("invitations.prune", concurrency=1)
async def prune(run: JobRun) -> None:
    """Forget invitations that have been over for a month."""
    async with run.database.begin() as session:
        await store.prune_invitations(session)
