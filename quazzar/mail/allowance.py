"""How many mails the people of a tenant may cause: nobody registers at a panel to fill others' mailboxes by it."""

from quazzar.core.errors import RateLimited
from quazzar.core.ratelimit import RateLimiter, parse_bucket
from quazzar.settings import RateLimits


class MailLimitReached(RateLimited):
    code = "mail_limit_reached"
    message = "There were as many mails as may be sent in this time; this one is not sent"


class MailAllowance:
    """One per process, in `session.info["mail_allowance"]`. Its counts lie where those of requests do."""

    def __init__(self, settings: RateLimits, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._of_sender = parse_bucket("mail", settings.mail)
        self._of_address = parse_bucket("mail-address", settings.mail_address)

    async def take(self, sender: str, address: str) -> None:
        """Count a mail that `sender` (a tenant's id) causes. Raises `MailLimitReached`, and `Unavailable` where the
        store of the counts does not answer.
        """
        # What stands behind a plus leads to the same mailbox at most providers.
        local, _, domain = address.lower().partition("@")
        mailbox = f"{local.partition('+')[0]}@{domain}"
        for bucket, key in ((self._of_sender, sender), (self._of_address, mailbox)):
            hit = await self._limiter.hit(bucket, key)
            if not hit.allowed:
                raise MailLimitReached(headers={"Retry-After": str(hit.retry_after())})
