"""The job that sends a mail: tried again for a day, since mail servers are away, busy or greylisting."""

import base64
from typing import Final

import msgspec

from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.jobs import KEYRING, JobFailed, JobRun, Resource, RetryLater, job
from quazzar.mail.message import Mail
from quazzar.mail.smtp import MailRefused, MailServer, MailUnsent

PAUSES: Final = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 43200)
"""Seconds after each attempt that failed; there is one more attempt than pauses."""

MAIL_SERVER: Resource[MailServer] = Resource("mail server")
MAIL_PAUSES: Resource[tuple[float, ...]] = Resource("pauses between attempts at a mail")


@job("mail.send", max_attempts=len(PAUSES) + 1, timeout_seconds=120)
async def deliver(run: JobRun, *, mail_id: str, sealed: str) -> None:
    """Send it. After a process that ended in the middle it is sent again, under the same Message-ID."""
    server = run.resources.get(MAIL_SERVER)
    if server is None:
        raise JobFailed("No mail server is configured (smtp.host)")
    try:
        mail = open_mail(run.resources[KEYRING], mail_id, sealed)
    except SealBroken:
        raise JobFailed("The mail can't be opened: the key that it was sealed with is gone") from None
    pauses = run.resources.get(MAIL_PAUSES, PAUSES)
    try:
        await server.send(mail)
    except MailRefused as refused:
        raise JobFailed(str(refused)) from refused
    except MailUnsent as unsent:
        raise RetryLater(str(unsent), delay_seconds=pauses[min(run.attempt, len(pauses)) - 1]) from unsent


def seal_mail(keyring: Keyring, mail: Mail) -> str:
    """All of a mail, address and text, as it may lie in a job's arguments."""
    return base64.b64encode(keyring.seal(msgspec.json.encode(mail), context=_place(mail.id))).decode()


def open_mail(keyring: Keyring, mail_id: str, sealed: str) -> Mail:
    """Raises `SealBroken` when it was changed or its key is gone."""
    return msgspec.json.decode(keyring.open(base64.b64decode(sealed), context=_place(mail_id)), type=Mail)


def _place(mail_id: str) -> str:
    return f"mail.send:{mail_id}"
