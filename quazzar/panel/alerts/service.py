"""The rules of alerts as their tenant's members use them."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.paging import Page
from quazzar.core.records import audit
from quazzar.panel.alerts import store
from quazzar.panel.alerts.ending import end_alerts
from quazzar.panel.alerts.errors import AlertIsResolved, AlertNotFound
from quazzar.panel.alerts.open import end_with_instance
from quazzar.panel.alerts.schemas import AlertMute
from quazzar.panel.alerts.store import Found, Wanted
from quazzar.panel.fleet.service import reach_of, when_over

ALERT_ID: Final = re.compile(r"alr_[a-z2-7]{26}\Z")


class AlertService:
    """One per request, of the tenant that its caller works in; who is bound to some instances sees theirs."""

    def __init__(self, session: AsyncSession, principal: Principal) -> None:
        assert principal.tenant_id is not None
        self._session = session
        self._principal = principal
        self._tenant = principal.tenant_id

    async def find(self, wanted: Wanted, page: Page) -> Sequence[Found]:
        reach = await reach_of(self._session, self._tenant, self._principal)
        return await store.find_alerts(self._session, self._tenant, reach, wanted, page)

    async def get(self, alert_id: str, *, lock: bool = False) -> Found:
        """Raises `AlertNotFound`, also for what a bound caller may not see."""
        reach = await reach_of(self._session, self._tenant, self._principal)
        known = ALERT_ID.match(alert_id) is not None
        row = await store.get_alert(self._session, self._tenant, reach, alert_id, lock=lock) if known else None
        if row is None:
            raise AlertNotFound
        return row

    async def acknowledge(self, alert_id: str) -> Found:
        """Nothing changes for one that is acknowledged. Raises `AlertNotFound`, `AlertIsResolved`."""
        before = await self._open(alert_id)
        if before.status == "acknowledged":
            return before
        by = self._principal.user_id
        return await self._update(
            before, "alert.acknowledge", status="acknowledged", acknowledged_at=datetime.now(UTC), acknowledged_by=by
        )

    async def resolve(self, alert_id: str) -> Found:
        """End it by hand; nothing changes for one that is over. What is still beyond its limit counts as being so since
        now, and fires as a new alert once that is long enough. Raises `AlertNotFound`.
        """
        await store.lock_turn(self._session, self._tenant)
        before = await self.get(alert_id, lock=True)
        if before.status == "resolved":
            return before
        now, by = datetime.now(UTC), self._principal.user_id
        await end_alerts(
            self._session, self._tenant, [alert_id], reason="It was ended by hand", now=now, told_at=now, by=by
        )
        if before.rule_id is not None and before.instance_id is not None:
            await store.begin_anew(self._session, self._tenant, before.rule_id, before.instance_id, now)
        audit(self._session, "alert.resolve", subject=alert_id, before={"status": before.status})
        return await self.get(alert_id)

    async def mute(self, alert_id: str, data: AlertMute) -> Found:
        """Raises `AlertNotFound`, `AlertIsResolved`."""
        before = await self._open(alert_id)
        span = timedelta(seconds=data.duration_seconds)
        return await self._update(before, "alert.mute", muted_until=datetime.now(UTC) + span if span else None)

    async def _open(self, alert_id: str) -> Found:
        row = await self.get(alert_id, lock=True)
        if row.status == "resolved":
            raise AlertIsResolved
        return row

    async def _update(self, before: Found, action: str, **values: Any) -> Found:
        await store.update_alert(self._session, self._tenant, before.id, **values)
        former = {name: _recorded(getattr(before, name)) for name in values}
        after = {name: _recorded(value) for name, value in values.items()}
        audit(self._session, action, subject=before.id, before=former, after=after)
        return await self.get(before.id)


when_over.append(end_with_instance)


def _recorded(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else value.isoformat()
