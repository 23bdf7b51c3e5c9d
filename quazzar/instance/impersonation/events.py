"""Sessions of a panel's users, as they are announced; who may read the audit log sees them."""

from datetime import datetime

from quazzar.core.records import Event


class ImpersonationStarted(Event):
    """A user of the panel has opened a session on this server. The subject is the session."""

    type = "auth.impersonation_started"
    session_id: str
    panel_user: str
    panel_user_name: str
    reason: str
    expires_at: datetime


class ImpersonationEnded(Event):
    """It is over. `how`: `left`, `revoked` by an admin, `expired`, `refused` since the server lets nobody in any more,
    or `unlinked` since it has left the panel.
    """

    type = "auth.impersonation_ended"
    session_id: str
    panel_user: str
    how: str
