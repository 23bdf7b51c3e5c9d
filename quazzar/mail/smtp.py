"""The way to the mail server of the settings; its library is loaded with the first mail."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from quazzar.mail.message import Mail, compose
from quazzar.settings import Settings

if TYPE_CHECKING:
    import aiosmtplib

STEP_SECONDS: Final = 20.0
"""How long the server may take to accept a connection, or to answer one command."""
TOTAL_SECONDS: Final = 60.0


class MailRefused(Exception):
    """The server does not take this mail and never will; the text names its code, and no address."""


class MailUnsent(Exception):
    """The mail is not sent, which may change; the text is a sentence for the operator, without any secret."""


class MailServer:
    """The mail server of the settings, to which each mail has a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        self._smtp = settings.smtp
        self._public_url = settings.server.public_url

    @property
    def sender(self) -> str:
        """`smtp.from`, else the user name where that is an address, else `quazzar@` and the name of this server."""
        if self._smtp.sender is not None:
            return self._smtp.sender
        if self._smtp.username is not None and "@" in self._smtp.username:
            return self._smtp.username
        host = urlsplit(self._public_url).hostname if self._public_url is not None else None
        if host is None or host.replace(".", "").isdigit() or ":" in host:
            host = socket.gethostname()
        return f"quazzar@{host}"

    async def send(self, mail: Mail) -> None:
        """Raises `MailRefused` and `MailUnsent`; after the latter the server may have taken it all the same."""
        async with self._session() as smtp:
            await smtp.send_message(compose(mail, self.sender), recipients=[mail.to])

    async def probe(self) -> None:
        """Connect and log in as for a mail. Raises `MailUnsent`."""
        async with self._session() as smtp:
            await smtp.noop()

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator["aiosmtplib.SMTP"]:
        import aiosmtplib  # noqa: PLC0415 - only where mail is sent

        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                smtp = await self._connected()
                try:
                    yield smtp
                    # What was taken is taken; how the server says goodbye does not matter.
                    with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                        await smtp.quit()
                finally:
                    smtp.close()
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise _refusal(error.recipients[0].code, "the address") from error
        except (aiosmtplib.SMTPSenderRefused, aiosmtplib.SMTPDataError) as error:
            place = "the sender" if isinstance(error, aiosmtplib.SMTPSenderRefused) else "the mail"
            raise _refusal(error.code, place) from error
        except aiosmtplib.SMTPAuthenticationError as error:
            raise MailUnsent(
                f"The mail server refuses the login ({error.code}); see smtp.username and smtp.password"
            ) from error
        except ssl.SSLCertVerificationError as error:
            raise MailUnsent(f"The mail server's certificate is not trusted: {error.verify_message}") from error
        except (TimeoutError, aiosmtplib.SMTPTimeoutError) as error:
            raise MailUnsent("The mail server does not answer in time") from error
        except aiosmtplib.SMTPResponseException as error:
            raise MailUnsent(f"The mail server answers {error.code}") from error
        except (aiosmtplib.SMTPConnectError, aiosmtplib.SMTPServerDisconnected, OSError) as error:
            raise MailUnsent("The mail server can't be reached, or the connection broke") from error
        except aiosmtplib.SMTPException as error:
            raise MailUnsent(
                "The mail server has no STARTTLS or takes no login; see smtp.tls and smtp.username"
            ) from error

    async def _connected(self) -> "aiosmtplib.SMTP":
        import aiosmtplib  # noqa: PLC0415 - as above

        smtp = self._smtp
        password = smtp.password.reveal() if smtp.password is not None else None
        # Reads the machine's certificates, which takes a moment.
        trusted = await asyncio.to_thread(ssl.create_default_context)
        client = aiosmtplib.SMTP(
            hostname=smtp.host,
            port=smtp.port,
            username=smtp.username,
            password=password,
            use_tls=smtp.tls == "tls",
            start_tls=smtp.tls == "starttls",
            tls_context=trusted,
            timeout=STEP_SECONDS,
        )
        try:
            await client.connect()
        except aiosmtplib.SMTPConnectError as error:
            # The library wraps what the handshake of a connection says.
            if isinstance(error.__cause__, ssl.SSLError):
                raise error.__cause__ from error
            raise
        return client


def _refusal(code: int, what: str) -> Exception:
    """5xx is for good, all else (4xx: full, busy, greylisted) is worth another try."""
    sentence = f"The mail server refuses {what} ({code})"
    return MailRefused(sentence) if code >= 500 else MailUnsent(sentence)
