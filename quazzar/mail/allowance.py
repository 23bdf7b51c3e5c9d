"""How many mails the people of a tenant may cause: nobody registers at a panel to fill others' mailboxes by it."""

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.errors import RateLimited
from quazzar.core.ratelimit import Bucket, RateLimiter, parse_bucket
from quazzar.settings import RateLimits


class MailLimitReached(RateLimited):
    code = "mail_limit_reached"
    message = "There were as many mails as may be sent in this time; this one is not sent"


Proved = Callable[[AsyncSession, str, str], Awaitable[bool]]
"""Whether an address is that of somebody in the tenant who has proved to read what is sent there."""


class MailAllowance:
    """One per process, in `session.info["mail_allowance"]`. Its counts lie where those of requests do."""

    def __init__(self, settings: RateLimits, limiter: RateLimiter, *, is_proved: Proved) -> None:
        self._limiter = limiter
        self._is_proved = is_proved
        self._of_sender = parse_bucket("mail", settings.mail)
        self._of_address = parse_bucket("mail-address", settings.mail_address)

    async def take(self, session: AsyncSession, sender: str, address: str) -> None:
        """Count a mail that `sender` (the tenant that the transaction is of) causes. Raises `MailLimitReached`, and
        `Unavailable` where the store of the counts does not answer.
        """
        await self._count(self._of_sender, sender)
        # Who wants it may be told however much others send there: nobody uses that up for them.
        if not await self._is_proved(session, sender, address.lower()):
            # What stands behind a plus leads to the same mailbox at most providers.
            local, _, domain = address.lower().partition("@")
            await self._count(self._of_address, f"{local.partition('+')[0]}@{domain}")

    async def _count(self, bucket: Bucket, key: str) -> None:
        hit = await self._limiter.hit(bucket, key)
        if not hit.allowed:
            raise MailLimitReached(headers={"Retry-After": str(hit.retry_after())})
