"""What can go wrong with accounts."""

from quazzar.core.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized


class BadCredentials(Unauthorized):
    """The one answer to an unknown name and to a wrong password."""

    message = "Name or password is wrong"


class SecondFactorRefused(Unauthorized):
    """The one answer to a wrong code, a used one, and a step token that is over."""

    message = "The code or the temporary token is not valid"


class RefreshRefused(Unauthorized):
    message = "The refresh token is not valid"


class LinkRefused(Unauthorized):
    """The one answer to a mailed link's token that is missing, wrong, used, over, or for something else."""

    code = "link_not_valid"
    message = "The link is not valid, was used, or is over; ask for a new one"


class MailNotConfigured(Conflict):
    code = "mail_not_configured"
    message = "This server sends no mail; ask who runs it"


class PasswordWrong(Forbidden):
    """For a caller who is logged in: 401 would make clients throw a good session away."""

    code = "password_wrong"
    message = "The current password is wrong"


class CodeWrong(Forbidden):
    """As `PasswordWrong`, for a code."""

    code = "totp_code_wrong"
    message = "The code is wrong or was used already"


class TotpNeeded(Forbidden):
    """What is asked for is only for accounts with a second factor."""

    code = "totp_setup_required"
    message = "This needs a second factor; turn it on first"


class CodeNeeded(Forbidden):
    code = "totp_required"
    message = "This needs a fresh code of the second factor"


class TotpEnabled(Conflict):
    code = "totp_already_enabled"
    message = "The second factor is on already; disable it first"


class TotpNotEnabled(Conflict):
    code = "totp_not_enabled"
    message = "The second factor is not on"


class TotpNotPending(Conflict):
    code = "totp_not_pending"
    message = "There is no second factor to confirm; enable it first"


class SessionNotFound(NotFound):
    code = "session_not_found"
    message = "There is no such session"


class UserNotFound(NotFound):
    code = "user_not_found"
    message = "There is no such user"


class ApiKeyNotFound(NotFound):
    code = "api_key_not_found"
    message = "There is no such API key"


class TooManyApiKeys(Conflict):
    code = "api_key_limit"
    message = "You have as many API keys as are allowed; delete one first"


class ScopeExceeded(Forbidden):
    code = "scope_exceeded"
    message = "A key can't have more than its maker has"


class LifetimeExceeded(Forbidden):
    code = "key_lifetime_exceeded"
    message = "A key can't make one that lives longer than itself"


class NoTenant(Forbidden):
    """Someone who knows the password but belongs to no tenant any more."""

    code = "no_tenant"
    message = "You do not belong to any organization"


class PasswordRefused(Invalid):
    """The new password is too short, too common, or says whose it is; `field` is where it stood."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(details={field: reason})
