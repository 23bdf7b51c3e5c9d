"""Why an instance can't join a panel, or leave it."""

from quazzar.core.errors import Conflict, NotFound


class NotLinked(NotFound):
    code = "not_linked"
    message = "This server belongs to no panel"


class AlreadyLinked(Conflict):
    code = "already_linked"
    message = "This server belongs to a panel already; leave that one first"


class PanelRefused(Conflict):
    """The panel's own reason is the message."""

    code = "panel_refused"
    message = "The panel has refused"


class PanelUnreachable(Conflict):
    code = "panel_unreachable"
    message = "The panel can't be reached"


class PanelNotTrusted(Conflict):
    code = "panel_not_trusted"
    message = "Who answers at the panel's address is not the panel that made the token"
