"""Why a panel's user gets no session here."""

from collections.abc import Mapping
from typing import Final

from quazzar.core.errors import Forbidden, Unauthorized

NO_REFERRER: Final[Mapping[str, str]] = {"Referrer-Policy": "no-referrer"}
"""On every answer to an address that has a token in it."""


class ImpersonationTokenRefused(Unauthorized):
    """Forged, for another instance, from another panel: which of them is nobody's business."""

    message = "The token is not valid"

    def __init__(self, message: str | None = None, *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.headers |= NO_REFERRER


class ImpersonationTokenExpired(ImpersonationTokenRefused):
    code = "token_expired"
    message = "The token is older than a minute; ask the panel for another one"


class ImpersonationTokenUsed(ImpersonationTokenRefused):
    code = "token_used"
    message = "The token was used already; ask the panel for another one"


class ImpersonationRefused(Forbidden):
    """By the switch of the link."""

    code = "impersonation_refused"
    message = "This server lets nobody in from its panel"

    def __init__(self) -> None:
        super().__init__(headers=NO_REFERRER)
