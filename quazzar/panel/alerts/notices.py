"""What is told of alerts: gathered by rule, kept back in quiet hours, and handed to the channels in one transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.channels.service import tell
from quazzar.channels.store import Scope
from quazzar.panel.alerts import store
from quazzar.panel.alerts.quiet import is_quiet
from quazzar.panel.alerts.schemas import QuietHours
from quazzar.panel.alerts.wording import notification_of
from quazzar.settings import Settings


async def tell_due(session: AsyncSession, tenant_id: str, now: datetime, settings: Settings, url: str) -> None:
    """One notification for each rule of which something is to be told by now, unless its hours are quiet."""
    for rule in await store.find_due_rules(session, tenant_id, now):
        if not is_quiet(msgspec.convert(rule.quiet_hours, QuietHours | None), rule.severity, now):
            await tell_of(session, tenant_id, rule, now, settings, url)


async def tell_of(
    session: AsyncSession, tenant_id: str, rule: Any, now: datetime, settings: Settings, url: str
) -> None:
    """Tell what there is to tell of a rule; what is muted, or was never told to have begun, is passed over."""
    kinds: dict[str, set[str]] = {}
    for alert_id, kind in await store.take_notices(session, tenant_id, rule.id, now):
        kinds.setdefault(alert_id, set()).add(kind)
    fired, over = [], []
    for row in await store.find_by_id(session, tenant_id, list(kinds)):
        told = kinds[row.id]
        if row.muted_until is not None and row.muted_until > now:
            continue
        if "resolved" in told:
            if row.notified_at is not None or "fired" in told:
                over.append(row)
        elif "fired" in told or row.status == "firing":
            fired.append(row)
    if not fired and not over:
        return
    await store.note_notified(session, tenant_id, _ids(fired), now)
    channels = None if rule.every_channel else rule.channels
    await tell(session, Scope("panel", tenant_id), settings, notification_of(rule, fired, over, url), channels)


def _ids(rows: Sequence[Any]) -> list[str]:
    return [row.id for row in rows]
