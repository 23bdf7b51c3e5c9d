"""The rules of channels: where notifications may go, what signs them, and how they set out."""

import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.channels import jobs, sealing, store
from quazzar.channels.errors import (
    ChannelHasNoSecret,
    ChannelInUse,
    ChannelNameTaken,
    ChannelNotFound,
    MailNotConfigured,
    TooManyChannels,
)
from quazzar.channels.models import ChannelKind
from quazzar.channels.schemas import (
    ChannelCreate,
    ChannelOut,
    ChannelSecretOut,
    ChannelTestOut,
    ChannelUpdate,
    Notification,
    WebhookChannelCreate,
)
from quazzar.channels.store import Found, Scope
from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import referenced_or, unique_or
from quazzar.core.errors import Forbidden, Invalid
from quazzar.core.ids import new_id
from quazzar.core.jobs import enqueue
from quazzar.core.outbound import OutboundPolicy, OutboundRefused, origin_of
from quazzar.core.paging import Page
from quazzar.core.records import Caller, audit
from quazzar.core.schema import given
from quazzar.mail.allowance import MailLimitReached
from quazzar.mail.service import mail_configured, send_mail_of
from quazzar.settings import Settings
from quazzar.webhooks.sending import Message, Outcome, body_of
from quazzar.webhooks.signing import new_secret, shown

CHANNEL_ID: Final = re.compile(r"chn_[2-7a-z]{26}")
MOST_CHANNELS: Final = 100
"""Of one instance, or of one tenant of the panel."""
OVERLAP: Final = timedelta(hours=24)
_TEST: Final = Notification(
    type="channel.test",
    subject="A test of Quazzar's notifications",
    text="This is how you will be told when something needs you.\n",
    data={"message": "This is how you will be told when something needs you."},
)
# What a header of a mail must not hold, and what would break a line of text or turn its direction.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


def scope_of(principal: Principal) -> Scope:
    """Raises `Forbidden` for who is bound to some things: channels hear of all of them."""
    if principal.resources is not None:
        raise Forbidden("Who is bound to certain groups or instances can't see or change where all are told of")
    return Scope(principal.realm, principal.tenant_id)


def shown_to(principal: Principal) -> Callable[[Any], ChannelOut]:
    """What a caller sees of a channel's row."""
    return ChannelOut.of if principal.allows("alerts:write") else ChannelOut.masked


class ChannelService:
    """Channels within one caller's scope, in one transaction."""

    def __init__(
        self, session: AsyncSession, scope: Scope, keyring: Keyring, policy: OutboundPolicy, settings: Settings
    ) -> None:
        self._session = session
        self._scope = scope
        self._keyring = keyring
        self._policy = policy
        self._settings = settings

    async def find(self, page: Page) -> Sequence[Found]:
        return await store.find_channels(self._scope, self._session, page)

    async def get(self, channel_id: str, *, lock: bool = False) -> Found:
        """Raises `ChannelNotFound`."""
        known = CHANNEL_ID.fullmatch(channel_id) is not None
        row = await store.get_channel(self._scope, self._session, channel_id, lock=lock) if known else None
        if row is None:
            raise ChannelNotFound
        return row

    async def create(self, data: ChannelCreate) -> ChannelSecretOut:
        """Raises `Invalid` for an address that may not be asked, `ChannelNameTaken`, `TooManyChannels`."""
        channel_id, secret = new_id("chn"), None
        values: dict[str, Any] = {"name": data.name, "enabled": data.enabled}
        if isinstance(data, WebhookChannelCreate):
            self._check(data.url)
            secret = new_secret()
            values |= {"kind": "webhook", "url": data.url}
            values["sealed"] = sealing.seal(self._keyring, channel_id, secret)
        else:
            values |= {"kind": "email", "to_addresses": _distinct(data.to)}
        if await store.count_channels(self._scope, self._session) >= MOST_CHANNELS:
            raise TooManyChannels
        async with unique_or(_name_taken()):
            await store.add_channel(self._scope, self._session, id=channel_id, **values)
        audit(self._session, "channel.create", subject=channel_id, after=recorded(values))
        return await self._with_secret(channel_id, secret)

    async def update(self, channel_id: str, data: ChannelUpdate) -> Found:
        """Only what is given changes. Raises `ChannelNotFound`, `ChannelNameTaken`, and `Invalid` by field."""
        values = given(data)
        before = await self.get(channel_id, lock=True)
        problems = {}
        if "to" in values and before.kind != "email":
            problems["to"] = "A webhook has no mail addresses"
        if "url" in values and before.kind != "webhook":
            problems["url"] = "Mail has no address on the web"
        if problems:
            raise Invalid(details=problems)
        if "url" in values:
            self._check(values["url"])
        if "to" in values:
            values["to_addresses"] = _distinct(values.pop("to"))
        changed = {name: value for name, value in values.items() if getattr(before, name) != value}
        if not changed:
            return before
        # Whatever failed did so at the address before.
        fresh = {"last_error": None} if changed.keys() & {"url", "to_addresses"} else {}
        async with unique_or(_name_taken()):
            await store.update_channel(self._scope, self._session, channel_id, **changed, **fresh)
        was = {name: getattr(before, name) for name in changed}
        audit(self._session, "channel.update", subject=channel_id, before=recorded(was), after=recorded(changed))
        return await self.get(channel_id)

    async def delete(self, channel_id: str) -> None:
        """Raises `ChannelNotFound`, `ChannelInUse`. What waits to be sent to it is not sent."""
        row = await self.get(channel_id, lock=True)
        async with referenced_or(ChannelInUse()):
            await store.delete_channel(self._scope, self._session, channel_id)
        audit(self._session, "channel.delete", subject=channel_id, before={"name": row.name, "kind": row.kind})

    async def rotate_secret(self, channel_id: str) -> ChannelSecretOut:
        """The secret before signs along for `OVERLAP`. Raises `ChannelNotFound`, `ChannelHasNoSecret`."""
        row = await self.get(channel_id, lock=True)
        if row.kind != "webhook":
            raise ChannelHasNoSecret
        secret = new_secret()
        await store.update_channel(
            self._scope,
            self._session,
            channel_id,
            sealed=sealing.seal(self._keyring, channel_id, secret),
            former_sealed=row.sealed,
            former_until=datetime.now(UTC) + OVERLAP,
        )
        audit(self._session, "channel.rotate_secret", subject=channel_id)
        return await self._with_secret(channel_id, secret)

    async def begin_test(self, channel_id: str) -> "Test | None":
        """What is to be sent to a webhook once this is committed; None for mail, which is on its way with the commit.

        Raises `ChannelNotFound`, `MailNotConfigured`, `MailLimitReached`.
        """
        row = await self.get(channel_id)
        if row.kind == "email" and not mail_configured(self._settings):
            raise MailNotConfigured
        audit(self._session, "channel.test", subject=channel_id)
        if row.kind == "email":
            await _mail(self._session, self._scope, row, _TEST)
            return None
        message_id = new_id("ntf")
        body = body_of(message_id, _TEST.type, datetime.now(UTC), _TEST.data)
        secrets = sealing.live_secrets(self._keyring, row, datetime.now(UTC))
        return Test(row.url, secrets, Message(message_id, _TEST.type, body))

    async def end_test(self, channel_id: str, outcome: Outcome | None) -> ChannelTestOut:
        """Write down what came back. Raises `ChannelNotFound` for a channel that was deleted meanwhile."""
        await self.get(channel_id)
        if outcome is None:
            return ChannelTestOut(status="queued")
        attempt = outcome.attempt
        if attempt.error is None:
            await store.note_delivered(self._scope, self._session, channel_id)
        else:
            await store.note_failed(self._scope, self._session, channel_id, attempt.error)
        return ChannelTestOut(
            status="delivered" if outcome.arrived else "failed",
            response_status=attempt.status,
            duration_seconds=attempt.duration_seconds,
            response_excerpt=attempt.response_excerpt,
            error=attempt.error,
        )

    async def _with_secret(self, channel_id: str, secret: bytes | None) -> ChannelSecretOut:
        channel = ChannelOut.of(await self.get(channel_id))
        return ChannelSecretOut(**msgspec.structs.asdict(channel), secret=shown(secret) if secret is not None else None)

    def _check(self, url: str) -> None:
        try:
            self._policy.read(url)
        except OutboundRefused as refused:
            raise Invalid(details={"url": refused.reason}) from refused


class Test(msgspec.Struct, frozen=True):
    """A test that is on record and about to be sent."""

    __test__ = False
    url: str
    secrets: Sequence[bytes]
    message: Message


async def known_channels(session: AsyncSession, scope: Scope, ids: Collection[str]) -> set[str]:
    """Which of these are channels of the scope; nobody deletes them before the transaction has ended."""
    return await store.find_known(scope, session, ids)


async def tell(
    session: AsyncSession,
    scope: Scope,
    settings: Settings,
    notification: Notification,
    channel_ids: Collection[str] | None = None,
) -> int:
    """Send `notification` once the transaction of `session` is committed, to the enabled ones of `channel_ids`, or to
    all that are; gives how many. It arrives at least once, tried again for a day. Mail without a mail server, and what
    is beyond the limit of mails, is noted on its channel.
    """
    channels = await store.find_enabled(scope, session, channel_ids)
    message_id = new_id("ntf")
    body = body_of(message_id, notification.type, datetime.now(UTC), notification.data).decode()
    for row in channels:
        match cast("ChannelKind", row.kind):
            case "webhook":
                await enqueue(
                    session,
                    jobs.deliver,
                    caller=Caller(kind="system", id="system", realm=scope.realm, tenant_id=scope.tenant_id),
                    subject=row.id,
                    channel_id=row.id,
                    message_id=message_id,
                    event=notification.type,
                    body=body,
                )
            case "email":
                if not mail_configured(settings):
                    await store.note_failed(scope, session, row.id, MailNotConfigured.message)
                    continue
                try:
                    await _mail(session, scope, row, notification)
                except MailLimitReached as reached:
                    await store.note_failed(scope, session, row.id, reached.message)
    return len(channels)


async def _mail(session: AsyncSession, scope: Scope, row: Found, notification: Notification) -> None:
    """To each of the addresses that may be sent to; raises `MailLimitReached` where there is one that may not."""
    subject = one_line(notification.subject, 200)
    text = "\n".join(one_line(line, 2000) for line in notification.text.split("\n"))
    refused: MailLimitReached | None = None
    for address in row.to_addresses:
        try:
            await send_mail_of(session, scope.tenant_id or scope.realm, to=address, subject=subject, text=text)
        except MailLimitReached as reached:
            refused = reached
    if refused is not None:
        raise refused


def one_line(text: str, most: int) -> str:
    """`text` as a line of a mail: without control characters, and no longer than `most`."""
    line = _CONTROL.sub(" ", text)
    return line if len(line) <= most else line[: most - 1] + "…"


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """What an audit record says of a channel: paths and queries of addresses are often secrets of their receivers."""
    shown_values = {name: value for name, value in values.items() if name != "sealed"}
    if "url" in shown_values:
        shown_values["url"] = origin_of(shown_values["url"])
    return shown_values


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal every secret anew under the ring's current key; gives how many.

    Raises `SealBroken` when one can't be opened; nothing is changed then.
    """
    count = 0
    for row in await store.find_sealed(session):
        fresh = {
            name: sealing.seal(keyring, row.id, sealing.open_sealed(keyring, row.id, sealed))
            for name in ("sealed", "former_sealed")
            if (sealed := getattr(row, name)) is not None
        }
        await store.replace_sealed(session, row.id, **fresh)
        count += len(fresh)
    return count


def _distinct(addresses: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(addresses))


def _name_taken() -> ChannelNameTaken:
    return ChannelNameTaken(details={"name": ChannelNameTaken.message})
