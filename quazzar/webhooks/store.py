"""Every query about webhooks as users see them; each within the scope of its caller."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, CursorResult, Row, Select, and_, delete, false, func, insert, or_, select, update
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal, Realm
from quazzar.core.db import Database, see_all_tenants, wait_alone
from quazzar.core.paging import Page
from quazzar.core.records import EventRow
from quazzar.webhooks.models import Webhook, WebhookDelivery, WebhookLane, WebhookSecret

CHANNEL = "webhooks"
"""NOTIFY channel: there may be something to send."""
MOST_ATTEMPTS_KEPT = 100

Found = Row[*tuple[Any, ...]]
"""A row with the columns that its query names."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Whose webhooks are meant: those of one API, on the panel of one tenant. A key bound to apps has none."""

    realm: Realm
    tenant_id: str | None = None
    bound: bool = False

    @classmethod
    def of(cls, principal: Principal) -> "Scope":
        return cls(realm=principal.realm, tenant_id=principal.tenant_id, bound=principal.resources is not None)

    @property
    def condition(self) -> ColumnElement[bool]:
        if self.bound:
            return false()
        own = Webhook.tenant_id.is_(None) if self.tenant_id is None else Webhook.tenant_id == self.tenant_id
        return and_(Webhook.realm == self.realm, own)


_COLUMNS = (
    Webhook.id,
    Webhook.realm,
    Webhook.tenant_id,
    Webhook.url,
    Webhook.events,
    Webhook.active,
    Webhook.disabled_reason,
    Webhook.disabled_at,
    Webhook.created_at,
    Webhook.updated_at,
)


def _webhooks(scope: Scope) -> Select[*tuple[Any, ...]]:
    return select(*_COLUMNS).where(scope.condition)


async def find_webhooks(scope: Scope, session: AsyncSession, page: Page) -> Sequence[Found]:
    """Newest first; one more than the page shows."""
    query = _webhooks(scope).order_by(Webhook.id.desc()).limit(page.fetch)
    if page.after is not None:
        query = query.where(Webhook.id < page.after)
    return (await session.execute(query)).all()


async def get_webhook(scope: Scope, session: AsyncSession, webhook_id: str, *, lock: bool = False) -> Found | None:
    """With `lock` nobody else changes it before this transaction has ended."""
    query = _webhooks(scope).where(Webhook.id == webhook_id)
    return (await session.execute(query.with_for_update(key_share=True) if lock else query)).one_or_none()


async def count_webhooks(scope: Scope, session: AsyncSession) -> int:
    """Nobody else counts before this transaction has ended."""
    await wait_alone(session, f"webhooks {scope.realm} {scope.tenant_id}")
    return (await session.execute(select(func.count()).select_from(Webhook).where(scope.condition))).scalar_one()


async def last_position(scope: Scope, session: AsyncSession) -> int:
    """The newest event that this scope can have seen."""
    own = EventRow.tenant_id.is_(None) if scope.tenant_id is None else EventRow.tenant_id == scope.tenant_id
    query = select(func.coalesce(func.max(EventRow.position), 0)).where(EventRow.realm == scope.realm, own)
    return (await session.execute(query)).scalar_one()


async def add_webhook(scope: Scope, session: AsyncSession, **values: Any) -> None:
    values |= {"realm": scope.realm, "tenant_id": scope.tenant_id}
    await session.execute(insert(Webhook).values(**values))
    await session.execute(insert(WebhookLane).values(webhook_id=values["id"]))


async def update_webhook(session: AsyncSession, webhook_id: str, **values: Any) -> None:
    await session.execute(
        update(Webhook).where(Webhook.id == webhook_id).values(**values, updated_at=func.clock_timestamp())
    )


async def delete_webhook(session: AsyncSession, webhook_id: str) -> None:
    """With all that hangs on it; deliveries before lanes, as deliverers lock them."""
    await session.execute(_PATIENCE)
    await session.execute(delete(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id))
    await session.execute(delete(Webhook).where(Webhook.id == webhook_id))


# A month of deliveries may be more than a request's usual time allows.
_PATIENCE = sql("SET LOCAL statement_timeout = '60s'")


async def add_secret(session: AsyncSession, webhook_id: str, secret_id: str, sealed: bytes) -> None:
    await session.execute(insert(WebhookSecret).values(id=secret_id, webhook_id=webhook_id, sealed=sealed))


async def retire_secrets(session: AsyncSession, webhook_id: str, *, hours: int, most: int) -> None:
    """Let the secrets end in `hours`, and keep no more than `most` of them, the newest."""
    values = {"webhook_id": webhook_id, "hours": hours, "most": most}
    for statement in (_RETIRE, _DROP_RETIRED):
        await session.execute(statement, values)


_RETIRE = sql(
    "UPDATE webhook_secrets SET expires_at = LEAST(expires_at, now() + make_interval(hours => :hours)) "
    "WHERE webhook_id = :webhook_id"
)
_DROP_RETIRED = sql(
    "DELETE FROM webhook_secrets WHERE webhook_id = :webhook_id AND (expires_at <= now() OR id NOT IN "
    "(SELECT id FROM webhook_secrets WHERE webhook_id = :webhook_id AND expires_at > now() "
    "ORDER BY id DESC LIMIT :most))"
)


async def find_live_secrets(session: AsyncSession, webhook_id: str) -> Sequence[Found]:
    """Id and sealed secret, newest first."""
    live = or_(WebhookSecret.expires_at.is_(None), WebhookSecret.expires_at > func.now())
    query = (
        select(WebhookSecret.id, WebhookSecret.sealed)
        .where(WebhookSecret.webhook_id == webhook_id, live)
        .order_by(WebhookSecret.expires_at.desc().nulls_first(), WebhookSecret.id.desc())
    )
    return (await session.execute(query)).all()


async def find_sealed(session: AsyncSession) -> Sequence[Found]:
    """Every secret of every webhook of every tenant."""
    await see_all_tenants(session)
    return (await session.execute(select(WebhookSecret.id, WebhookSecret.sealed).with_for_update())).all()


async def replace_sealed(session: AsyncSession, secret_id: str, sealed: bytes) -> None:
    await session.execute(update(WebhookSecret).where(WebhookSecret.id == secret_id).values(sealed=sealed))


async def wake_lane(session: AsyncSession, webhook_id: str) -> None:
    """Something is to be sent now: whatever kept the endpoint waiting is over, and deliverers are told."""
    await session.execute(_WAKE_LANE, {"webhook_id": webhook_id})
    await session.execute(_NOTIFY, {"channel": CHANNEL})


_WAKE_LANE = sql(
    "UPDATE webhook_lanes SET due_at = LEAST(due_at, now()), paused_until = NULL, failures = 0,"
    " updated_at = now() WHERE webhook_id = :webhook_id"
)


async def forgive_lane(session: AsyncSession, webhook_id: str) -> None:
    """An endpoint that a user has set right begins anew, and so do the days after which it is given up."""
    await session.execute(update(WebhookLane).where(WebhookLane.webhook_id == webhook_id).values(failing_since=None))
    await wake_lane(session, webhook_id)


_NOTIFY = sql("SELECT pg_notify(:channel, '')")

_DELIVERY = (
    WebhookDelivery.id,
    WebhookDelivery.webhook_id,
    WebhookDelivery.event_id,
    WebhookDelivery.type,
    WebhookDelivery.status,
    WebhookDelivery.attempts,
    WebhookDelivery.next_attempt_at,
    WebhookDelivery.created_at,
)


def _deliveries(scope: Scope) -> Select[*tuple[Any, ...]]:
    return select(*_DELIVERY).join(Webhook, Webhook.id == WebhookDelivery.webhook_id).where(scope.condition)


async def find_deliveries(
    scope: Scope, session: AsyncSession, webhook_id: str, status: str | None, page: Page
) -> Sequence[Found]:
    """Newest first; one more than the page shows."""
    query = _deliveries(scope).where(WebhookDelivery.webhook_id == webhook_id)
    if status is not None:
        query = query.where(WebhookDelivery.status == status)
    if page.after is not None:
        query = query.where(WebhookDelivery.id < page.after)
    return (await session.execute(query.order_by(WebhookDelivery.id.desc()).limit(page.fetch))).all()


async def get_delivery(scope: Scope, session: AsyncSession, delivery_id: str) -> Found | None:
    return (await session.execute(_deliveries(scope).where(WebhookDelivery.id == delivery_id))).one_or_none()


async def add_tested_delivery(scope: Scope, session: AsyncSession, attempt: dict[str, Any], **values: Any) -> None:
    """The delivery of a test, which has been made already and is not repeated."""
    values |= {"realm": scope.realm, "tenant_id": scope.tenant_id, "tries": 1, "attempts": [attempt]}
    await session.execute(insert(WebhookDelivery).values(**values))


_AGAIN = {
    "status": "pending",
    "tries": 0,
    "next_attempt_at": func.now(),
    "updated_at": func.now(),
}


async def redeliver_one(session: AsyncSession, delivery_id: str) -> None:
    """From now on it has all its attempts again."""
    await session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(**_AGAIN))


async def redeliver_since(session: AsyncSession, webhook_id: str, since: datetime, *, failed_only: bool) -> int:
    query = update(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id, WebhookDelivery.created_at >= since)
    if failed_only:
        query = query.where(WebhookDelivery.status == "failed")
    result = await session.execute(query.values(**_AGAIN))
    assert isinstance(result, CursorResult)
    return result.rowcount


async def prune_deliveries(session: AsyncSession, *, days: int, batch: int) -> int:
    """Forget up to `batch` deliveries of all tenants that were made more than `days` ago; gives how many."""
    await see_all_tenants(session)
    result = await session.execute(_PRUNE, {"days": days, "batch": batch})
    assert isinstance(result, CursorResult)
    return result.rowcount


_PRUNE = sql(
    "DELETE FROM webhook_deliveries WHERE id IN (SELECT id FROM webhook_deliveries "
    "WHERE created_at < now() - make_interval(days => :days) LIMIT :batch FOR UPDATE SKIP LOCKED)"
)


async def count_waiting(database: Database) -> dict[str, int]:
    """How many deliveries of all tenants wait for their next attempt."""
    async with database.begin() as session:
        await see_all_tenants(session)
        waiting = select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.status == "pending")
        return {"pending": (await session.execute(waiting)).scalar_one()}
