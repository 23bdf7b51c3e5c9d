"""The rules of webhooks: what may be an endpoint, what it hears of, how it is trusted, and what is sent again."""

import difflib
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.errors import Invalid
from quazzar.core.ids import new_id
from quazzar.core.outbound import OutboundPolicy, OutboundRefused, origin_of
from quazzar.core.paging import Page
from quazzar.core.records import Caller, audit, event_types, publish
from quazzar.core.schema import given, in_utc
from quazzar.webhooks import store
from quazzar.webhooks.errors import (
    TooManyWebhooks,
    WebhookDeliveryNotFound,
    WebhookInactive,
    WebhookKeyBound,
    WebhookNotFound,
)
from quazzar.webhooks.events import WebhookDisabled, WebhookTested
from quazzar.webhooks.schemas import (
    RedeliveredOut,
    RedeliverSince,
    WebhookCreate,
    WebhookOut,
    WebhookSecretOut,
    WebhookUpdate,
)
from quazzar.webhooks.sending import Message, Outcome, body_of
from quazzar.webhooks.signing import new_secret, shown
from quazzar.webhooks.store import Found, Scope

WEBHOOK_ID = re.compile(r"wh_[2-7a-z]{26}")
DELIVERY_ID = re.compile(r"whd_[2-7a-z]{26}")
MOST_WEBHOOKS = 1000
"""Of one instance, or of one tenant of the panel: each event may go to all of them."""
OVERLAP_HOURS = 24
MOST_SECRETS = 3


def shown_to(principal: Principal) -> Callable[[Any], WebhookOut]:
    """What a caller sees of a webhook's row: the whole address is for who may change it, which no guest may."""
    changes = principal.allows("webhooks:write") and principal.panel_user is None
    return WebhookOut.of if changes else WebhookOut.masked


class WebhookService:
    """Webhooks within one caller's scope, in one transaction."""

    def __init__(self, session: AsyncSession, scope: Scope, keyring: Keyring, policy: OutboundPolicy) -> None:
        self.session = session
        self.scope = scope
        self._keyring = keyring
        self._policy = policy

    async def find(self, page: Page) -> Sequence[Found]:
        return await store.find_webhooks(self.scope, self.session, page)

    async def get(self, webhook_id: str, *, lock: bool = False) -> Found:
        known = WEBHOOK_ID.fullmatch(webhook_id) is not None
        row = await store.get_webhook(self.scope, self.session, webhook_id, lock=lock) if known else None
        if row is None:
            raise WebhookNotFound
        return row

    async def create(self, data: WebhookCreate) -> WebhookSecretOut:
        """Raises `Invalid` for an address that may not be asked and for types that nobody announces."""
        self._check(data.url, data.events)
        if self.scope.bound:
            raise WebhookKeyBound
        if await store.count_webhooks(self.scope, self.session) >= MOST_WEBHOOKS:
            raise TooManyWebhooks
        webhook_id = new_id("wh")
        values = {"url": data.url, "events": list(dict.fromkeys(data.events)), "active": data.active}
        position = await store.last_position(self.scope, self.session)
        await store.add_webhook(self.scope, self.session, id=webhook_id, start_position=position, **values)
        audit(self.session, "webhook.create", subject=webhook_id, after=recorded(values))
        return await self._with_secret(webhook_id)

    async def update(self, webhook_id: str, data: WebhookUpdate) -> Found:
        """Only what is given changes. An endpoint that becomes active hears of what happens from then on."""
        values = given(data)
        self._check(values.get("url"), values.get("events"))
        before = await self.get(webhook_id, lock=True)
        if "events" in values:
            values["events"] = list(dict.fromkeys(values["events"]))
        changed = {name: value for name, value in values.items() if getattr(before, name) != value}
        if not changed:
            return before
        extra: dict[str, Any] = {}
        if changed.get("active"):
            position = await store.last_position(self.scope, self.session)
            extra = {"disabled_reason": None, "disabled_at": None, "start_position": position}
        await store.update_webhook(self.session, webhook_id, **changed, **extra)
        if changed.get("active") or "url" in changed:
            await store.forgive_lane(self.session, webhook_id)
        was = {name: getattr(before, name) for name in changed}
        audit(self.session, "webhook.update", subject=webhook_id, before=recorded(was), after=recorded(changed))
        return await self.get(webhook_id)

    async def delete(self, webhook_id: str) -> None:
        """Its deliveries go with it."""
        row = await self.get(webhook_id, lock=True)
        await store.delete_webhook(self.session, webhook_id)
        before = {"url": row.url, "events": row.events, "active": row.active}
        audit(self.session, "webhook.delete", subject=webhook_id, before=recorded(before))

    async def rotate_secret(self, webhook_id: str) -> WebhookSecretOut:
        """The secrets before sign along for `OVERLAP_HOURS`; of more than `MOST_SECRETS` the oldest ends at once."""
        await self.get(webhook_id, lock=True)
        await store.retire_secrets(self.session, webhook_id, hours=OVERLAP_HOURS, most=MOST_SECRETS - 1)
        audit(self.session, "webhook.rotate_secret", subject=webhook_id)
        return await self._with_secret(webhook_id)

    async def deliveries(self, webhook_id: str, status: str | None, page: Page) -> Sequence[Found]:
        await self.get(webhook_id)
        return await store.find_deliveries(self.scope, self.session, webhook_id, status, page)

    async def delivery(self, delivery_id: str) -> Found:
        known = DELIVERY_ID.fullmatch(delivery_id) is not None
        row = await store.get_delivery(self.scope, self.session, delivery_id) if known else None
        if row is None:
            raise WebhookDeliveryNotFound
        return row

    async def redeliver(self, delivery_id: str) -> Found:
        """Send one again, under its id, at once and with all its attempts. Raises `WebhookInactive`."""
        row = await self.delivery(delivery_id)
        await self._active(row.webhook_id)
        await store.redeliver_one(self.session, delivery_id)
        await store.wake_lane(self.session, row.webhook_id)
        audit(self.session, "webhook.redeliver", subject=delivery_id, before={"status": row.status})
        return await self.delivery(delivery_id)

    async def redeliver_since(self, webhook_id: str, data: RedeliverSince) -> RedeliveredOut:
        """Send everything again that was made since a time. Raises `WebhookInactive`."""
        since = in_utc(data.since, "since")
        await self._active(webhook_id)
        only = data.status == "failed"
        count = await store.redeliver_since(self.session, webhook_id, since, failed_only=only)
        if count:
            await store.wake_lane(self.session, webhook_id)
        after = {"since": since.isoformat(), "status": data.status, "count": count}
        audit(self.session, "webhook.redeliver", subject=webhook_id, after=after)
        return RedeliveredOut(count)

    async def begin_test(self, webhook_id: str) -> "Test":
        """Announce the test in this transaction; what is to be sent when it is committed."""
        row = await self.get(webhook_id)
        event = WebhookTested(webhook_id=webhook_id)
        event_id = publish(self.session, event, subject=webhook_id)
        audit(self.session, "webhook.test", subject=webhook_id)
        secrets = await live_secrets(self.session, self._keyring, webhook_id)
        body = body_of(event_id, event.type, datetime.now(UTC), event)
        return Test(webhook_id, row.url, secrets, Message(event_id, event.type, body))

    async def end_test(self, test: "Test", outcome: Outcome) -> Found:
        """Write down what came back. A webhook that was deleted meanwhile is not found."""
        await self.get(test.webhook_id)
        delivery_id = new_id("whd")
        await store.add_tested_delivery(
            self.scope,
            self.session,
            msgspec.to_builtins(outcome.attempt),
            id=delivery_id,
            webhook_id=test.webhook_id,
            event_id=test.message.event_id,
            type=test.message.type,
            body=test.message.body,
            status="delivered" if outcome.arrived else "failed",
        )
        return await self.delivery(delivery_id)

    async def _active(self, webhook_id: str) -> None:
        if not (await self.get(webhook_id)).active:
            raise WebhookInactive

    async def _with_secret(self, webhook_id: str) -> WebhookSecretOut:
        secret, secret_id = new_secret(), new_id("whs")
        sealed = self._keyring.seal(secret, context=place(secret_id))
        await store.add_secret(self.session, webhook_id, secret_id, sealed)
        webhook = WebhookOut.of(await self.get(webhook_id))
        return WebhookSecretOut(**msgspec.structs.asdict(webhook), secret=shown(secret))

    def _check(self, url: str | None, events: Sequence[str] | None) -> None:
        problems: dict[str, str] = {}
        if url is not None:
            try:
                self._policy.read(url)
            except OutboundRefused as refused:
                problems["url"] = refused.reason
        for index, name in enumerate(events or ()):
            problem = event_problem(name)
            if problem is not None:
                problems[f"events.{index}"] = problem
        if problems:
            raise Invalid(details=problems)


class Test(msgspec.Struct, frozen=True):
    """A test that is announced and about to be sent."""

    __test__ = False
    webhook_id: str
    url: str
    secrets: Sequence[bytes]
    message: Message


def event_problem(name: str) -> str | None:
    """Why nobody can wait for `name`: a type that exists, a whole area as `app.*`, or `*`."""
    types = event_types()
    if name == "*" or name in types:
        return None
    if name.endswith(".*") and any(each.startswith(name[:-1]) for each in types):
        return None
    areas = {each.partition(".")[0] + ".*" for each in types}
    close = difflib.get_close_matches(name, [*types, *sorted(areas)], n=1)
    return "There is no such event" + (f"; did you mean {close[0]}?" if close else "")


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """What an audit record says of a webhook: paths and queries of addresses are often secrets of their receivers."""
    if "url" not in values:
        return values
    return values | {"url": origin_of(values["url"])}


def place(secret_id: str) -> str:
    """The context of a sealed secret."""
    return f"webhook_secrets.sealed:{secret_id}"


async def live_secrets(session: AsyncSession, keyring: Keyring, webhook_id: str) -> list[bytes]:
    """The secrets that sign now, newest first."""
    rows = await store.find_live_secrets(session, webhook_id)
    return [keyring.open(row.sealed, context=place(row.id)) for row in rows]


async def disable(session: AsyncSession, webhook_id: str, scope: Scope, reason: str) -> bool:
    """Take an endpoint out of service on behalf of the process; false when it is out of service or gone already."""
    row = await store.get_webhook(scope, session, webhook_id, lock=True)
    if row is None or not row.active:
        return False
    await store.update_webhook(session, webhook_id, active=False, disabled_reason=reason, disabled_at=datetime.now(UTC))
    caller = Caller(kind="system", realm=scope.realm, tenant_id=scope.tenant_id)
    audit(session, "webhook.disable", subject=webhook_id, after={"reason": reason}, caller=caller)
    publish(
        session,
        WebhookDisabled(webhook_id=webhook_id, reason=reason),
        subject=webhook_id,
        realm=scope.realm,
        tenant_id=scope.tenant_id,
    )
    return True


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal every secret anew under the ring's current key; gives how many. Reads under any key of the ring.

    Raises `SealBroken` when one can't be opened; nothing is changed then.
    """
    rows = await store.find_sealed(session)
    for row in rows:
        secret = keyring.open(row.sealed, context=place(row.id))
        await store.replace_sealed(session, row.id, keyring.seal(secret, context=place(row.id)))
    return len(rows)
