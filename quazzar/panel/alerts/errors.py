"""What can be wrong with a call about alerts and their rules."""

from quazzar.core.errors import Conflict, NotFound


class AlertNotFound(NotFound):
    code = "alert_not_found"
    message = "There is no such alert"


class AlertIsResolved(Conflict):
    code = "alert_resolved"
    message = "The alert is over"


class AlertRuleNotFound(NotFound):
    code = "alert_rule_not_found"
    message = "There is no such alert rule"


class TooManyAlertRules(Conflict):
    code = "alert_rule_limit_reached"
    message = "There are as many alert rules as there may be; delete one first"
