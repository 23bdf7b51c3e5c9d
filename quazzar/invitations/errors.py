"""Why an invitation can't be made or accepted."""

from quazzar.core.errors import Conflict, Forbidden, NotFound, Unauthorized


class InvitationNotFound(NotFound):
    code = "invitation_not_found"
    message = "There is no such invitation; it may have been taken back or renewed"


class InvitationAccepted(Conflict):
    code = "invitation_accepted"
    message = "This invitation has been accepted already"


class InvitationExpired(Conflict):
    code = "invitation_expired"
    message = "This invitation is over; ask for a new one"


class InvitationForAnother(Forbidden):
    code = "invitation_for_another"
    message = "This invitation is for another address than the one that you are logged in with"


class LoginRequired(Unauthorized):
    """The address has an account, and only who can log in to it decides what it joins."""

    code = "login_required"
    message = "There is an account of this address; log in to it and accept again"


class TooManyInvitations(Conflict):
    code = "invitation_limit"
    message = "There are as many open invitations as are allowed; take one back first"
