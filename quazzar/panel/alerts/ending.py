"""How alerts end: marked, announced, and put down to be told."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.alerts.events import AlertResolved, Severity
from quazzar.core.records import publish
from quazzar.panel.alerts import store


async def end_alerts(
    session: AsyncSession,
    tenant_id: str,
    ids: Collection[str],
    *,
    reason: str,
    now: datetime,
    told_at: datetime,
    by: str | None = None,
) -> None:
    """Those of `ids` that are over already are left alone. It is told from `told_at` on; `by` is a user's id."""
    if not ids:
        return
    rows = await store.resolve_alerts(session, tenant_id, ids, resolved_at=now, resolved_by=by, resolved_reason=reason)
    for row in rows:
        _announce(session, tenant_id, row)
    notices = [
        {"rule_id": row.rule_id, "alert_id": row.id, "kind": "resolved", "due_at": told_at}
        for row in rows
        if row.rule_id is not None
    ]
    await store.add_notices(session, tenant_id, notices)


def _announce(session: AsyncSession, tenant_id: str, row: Any) -> None:
    over = AlertResolved(
        alert_id=row.id,
        rule_id=row.rule_id,
        name=row.name,
        severity=cast("Severity", row.severity),
        about=row.instance_id,
        fired_at=row.fired_at,
    )
    publish(session, over, subject=row.id, realm="panel", tenant_id=tenant_id)
