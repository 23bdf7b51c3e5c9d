"""The end of a session whose time is over, for the audit log."""

from quazzar.core.jobs import JobRun, job
from quazzar.instance.impersonation.guests import PanelGuests


@job("impersonations.end", concurrency=0, cancellable=False)
async def end_impersonation(run: JobRun, session_id: str) -> None:
    """Made with each session, to run when it expires; one that has ended before is left alone."""
    async with run.begin() as session:
        await PanelGuests().end(session, session_id, "expired")
