"""What asking for a session on an instance takes and gives."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.accounts.schemas import Code
from quazzar.core.schema import In, Out, message
from quazzar.link.impersonation import MOST_REASON

Reason = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MOST_REASON,
        pattern=r"^[^\x00-\x1f\x7f\x80-\x9f\u2028\u2029]*\S[^\x00-\x1f\x7f\x80-\x9f\u2028\u2029]*\Z",
        description="Why; both audit logs and the instance's admins see it",
        examples=["Ticket 4711: the backup does not run"],
        extra=message(f"{{label}} must be 1 to {MOST_REASON} characters that say why, without control characters"),
    ),
]


class Impersonate(In):
    """`code` may be left out for five minutes after this session has shown one, at its login or here."""

    reason: Reason
    code: Code | None = None


class ImpersonationTicket(Out):
    """`url` is for the browser of who asked, at once and once."""

    url: Annotated[str, Meta(examples=["https://berlin-1.example.com/api/cp/session?token=eyJhbGciOiJFZERTQSIs…"])]
    token: Annotated[str, Meta(examples=["eyJhbGciOiJFZERTQSIsInR5cCI6ImltcCtqd3QifQ.eyJhdWQiOi…"])]
    expires_at: datetime
