"""A mail as it waits and as it travels: plain text to one address, whose parts can't break out of their places."""

import re
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final

import msgspec

LONGEST_SUBJECT: Final = 400
LONGEST_TEXT: Final = 100_000

_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")

# Control characters, lone surrogates, and what some programs take for the end of a line or for a change of direction.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Mail(msgspec.Struct, frozen=True):
    """One mail to one address; `id` is also the name by which its receiver knows a second copy."""

    id: str
    to: str
    subject: str
    text: str

    def check(self) -> None:
        """Raises `ValueError` for an address that is not a single plain one, for line breaks and control characters in
        a header, for control characters in the text, and for what is too long.
        """
        if _ADDRESS.fullmatch(self.to) is None:
            raise ValueError("A mail goes to one plain address such as ada@example.com")
        if _UNSAFE.search(self.subject) or len(self.subject) > LONGEST_SUBJECT:
            raise ValueError("A mail's subject is one short line without control characters")
        if _UNSAFE_IN_TEXT.search(self.text) or len(self.text) > LONGEST_TEXT:
            raise ValueError("A mail's text is no more than 100,000 characters, without control characters")


def compose(mail: Mail, sender: str) -> EmailMessage:
    """The message as it is sent now; it says that no person wrote it, so that nobody's absence note answers."""
    message = EmailMessage()
    message["From"] = sender
    message["To"] = mail.to
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(datetime.now(UTC))
    domain = message["From"].addresses[0].domain or "localhost"
    message["Message-ID"] = f"<{mail.id}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    return message
