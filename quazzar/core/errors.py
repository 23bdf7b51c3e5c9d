"""The errors that reach a caller; the kind of a class gives its status, the class its stable code."""

from collections.abc import Mapping
from typing import ClassVar


class AppError(Exception):
    """An answer of 400 or more.

    `message` is one sentence for people, `code` is stable for programs, `details` maps a field (dots for nesting)
    to one sentence. Neither may hold a secret, a path or SQL: they are sent as they stand.
    """

    status: ClassVar[int] = 500
    code: str = "internal_error"
    message: str = "Something went wrong on our side"

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        details: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message if message is not None else type(self).message
        self.code = code if code is not None else type(self).code
        self.details = dict(details) if details else {}
        self.headers = dict(headers) if headers else {}
        super().__init__(self.message)


class BadRequest(AppError):
    status = 400
    code = "invalid_parameter"
    message = "The request can't be read"


class InvalidJson(BadRequest):
    code = "invalid_json"
    message = "The body is not valid JSON"


class Unauthorized(AppError):
    status = 401
    code = "unauthorized"
    message = "Authentication is required"

    def __init__(self, message: str | None = None, *, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(AppError):
    status = 403
    code = "forbidden"
    message = "You are not allowed to do this"


class NotFound(AppError):
    status = 404
    code = "not_found"
    message = "There is no such thing"


class MethodNotAllowed(AppError):
    status = 405
    code = "method_not_allowed"
    message = "This path does not take this method"


class Conflict(AppError):
    status = 409
    code = "conflict"
    message = "The current state does not allow this"


class BodyTooLarge(AppError):
    status = 413
    code = "body_too_large"
    message = "The body is too large"


class Invalid(AppError):
    """The body was read but does not validate; `details` names every failing field."""

    status = 422
    code = "validation_failed"
    message = "Validation failed"


class RateLimited(AppError):
    status = 429
    code = "rate_limited"
    message = "Too many requests; try again later"


class Unavailable(AppError):
    """A component is out of reach; `retry_after` is in seconds."""

    status = 503
    code = "unavailable"
    message = "The service is not available right now"

    def __init__(self, message: str | None = None, *, code: str | None = None, retry_after: int = 1) -> None:
        super().__init__(message, code=code, headers={"Retry-After": str(retry_after)})


class DatabaseUnavailable(Unavailable):
    code = "database_unavailable"
    message = "The database is not reachable right now"
