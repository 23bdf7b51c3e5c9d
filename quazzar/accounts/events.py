"""What happens to accounts, as it is announced; the subject of each is the user, where one is known."""

from datetime import datetime

from quazzar.core.records import Event


class LoggedIn(Event):
    """A session has begun."""

    type = "auth.login"
    user_id: str
    session_id: str
    address: str | None


class LoginFailed(Event):
    """A password or a second factor was wrong. `user_id` is null for a name that nobody has; what was typed is not
    kept, for people type passwords into the wrong field.
    """

    type = "auth.login_failed"
    user_id: str | None
    step: str
    address: str | None


class ApiKeyCreated(Event):
    """A user, or a key of theirs, has made an API key."""

    type = "auth.api_key_created"
    key_id: str
    user_id: str
    name: str
    scopes: list[str]
    expires_at: datetime
