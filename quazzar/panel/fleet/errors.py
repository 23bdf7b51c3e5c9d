"""What can be wrong with a call on the fleet, and why an instance is not let in."""

from quazzar.core.errors import Conflict, Forbidden, Invalid, NotFound


class InstanceNotFound(NotFound):
    code = "instance_not_found"
    message = "There is no such instance"


class GroupNotFound(NotFound):
    code = "group_not_found"
    message = "There is no such group"


class GroupNameTaken(Conflict):
    code = "group_name_taken"
    message = "A group of this name exists already"


class GroupNotEmpty(Conflict):
    code = "group_not_empty"
    message = "The group has groups below it; move or delete those first"


class GroupCycle(Conflict):
    code = "group_cycle"
    message = "A group can't lie below itself"


class TokenNotFound(NotFound):
    code = "token_not_found"
    message = "There is no such registration token"


class TokenRefused(Forbidden):
    """Unknown, of another panel, or taken back: which of them is nobody's business."""

    code = "token_refused"
    message = "The panel does not know this registration token"


class TokenExpired(Forbidden):
    code = "token_expired"
    message = "The registration token has expired"


class TokenUsedUp(Forbidden):
    code = "token_used_up"
    message = "The registration token has been used as often as it allows"


class InstanceKnown(Conflict):
    code = "instance_known"
    message = (
        "This machine belongs to the fleet already; without its old key it can join again once it was deleted there"
    )


class RequestRefused(Invalid):
    """A certificate signing request that is not what an instance sends."""

    message = "The certificate signing request can't be used"
