"""What alerts announce; the subject is the alert."""

from datetime import datetime
from typing import Literal

from quazzar.core.records import Event

Severity = Literal["info", "warning", "critical"]


class AlertFired(Event):
    """What a rule watches has been beyond its limit for as long as the rule says."""

    type = "alert.fired"
    alert_id: str
    rule_id: str
    name: str
    severity: Severity
    about: str | None
    value: float | None
    limit: float | None


class AlertResolved(Event):
    """An alert is over: what it watches is within its limit again, or a user has ended it."""

    type = "alert.resolved"
    alert_id: str
    rule_id: str
    name: str
    severity: Severity
    about: str | None
    fired_at: datetime
