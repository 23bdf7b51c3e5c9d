"""What other domains need of mail: whether there is any, and to send one."""

import binascii

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.ids import new_id
from quazzar.core.jobs import enqueue
from quazzar.core.records import SYSTEM
from quazzar.mail import store
from quazzar.mail.allowance import MailAllowance
from quazzar.mail.jobs import deliver, open_mail, seal_mail
from quazzar.mail.message import Mail
from quazzar.settings import Settings


def mail_configured(settings: Settings) -> bool:
    """Whether mails can be sent at all."""
    return settings.smtp.host is not None


async def send_mail(session: AsyncSession, *, to: str, subject: str, text: str) -> None:
    """Send a plain text to one address once the transaction of `session` is committed, and not if it is rolled back.

    It goes out at least once, tried again for a day. Nobody sees address or text: the job, which is the process's own
    and no tenant's, keeps them sealed. Raises `ValueError` for what a header must not hold (see `Mail.check`).
    """
    mail = Mail(new_id("mail"), to, subject, text)
    mail.check()
    keyring: Keyring = session.info["keyring"]
    await enqueue(session, deliver, caller=SYSTEM, mail_id=mail.id, sealed=seal_mail(keyring, mail))


async def send_mail_of(session: AsyncSession, sender: str, *, to: str, subject: str, text: str) -> None:
    """As `send_mail`, for what people have sent to addresses that nobody proved to be theirs: counted for `sender`, the
    tenant that they work in, and for the address; an instance, which has no tenants, counts nobody's. Raises
    `MailLimitReached` too, and then nothing is sent.
    """
    allowance: MailAllowance | None = session.info.get("mail_allowance")
    if allowance is not None:
        await allowance.take(session, sender, to)
    await send_mail(session, to=to, subject=subject, text=text)


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal every mail that may still be sent anew under the ring's current key; gives how many.

    One that no key of the ring opens is left as it is: its job says so, and nothing else hangs on it.
    """
    count = 0
    for row in await store.find_unsent(session, deliver.kind):
        try:
            mail = open_mail(keyring, row.args["mail_id"], row.args["sealed"])
        except (SealBroken, KeyError, binascii.Error):
            continue
        await store.replace_args(session, row.id, {"mail_id": mail.id, "sealed": seal_mail(keyring, mail)})
        count += 1
    return count
