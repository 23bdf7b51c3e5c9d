"""The rules that every tenant begins with; they are its own from then on, to change, switch off or delete."""

from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.ids import new_id
from quazzar.panel.alerts import store
from quazzar.panel.alerts.columns import columns_of
from quazzar.panel.alerts.schemas import AbsenceRule, AlertRuleCreate, ForecastRule, ThresholdRule

_DAY: Final = 86_400

DEFAULTS: Final[tuple[AlertRuleCreate, ...]] = (
    AbsenceRule(name="Offline for 5 minutes", severity="critical", metric="heartbeat", for_seconds=300),
    ThresholdRule(name="Disk 90 % full", metric="disk_percent", value=90, for_seconds=300),
    ForecastRule(name="Disk full within 48 hours", metric="disk_percent", value=100, horizon_seconds=2 * _DAY),
    ThresholdRule(name="Memory 95 % in use", metric="memory_percent", value=95, for_seconds=300),
    ThresholdRule(name="App down", metric="apps_down", operator=">", value=0, for_seconds=120),
    ThresholdRule(name="Certificate not renewed", metric="certificate_left_seconds", operator="<", value=14.0 * _DAY),
)


async def seed(session: AsyncSession, tenant_id: str) -> None:
    """Give a tenant its rules and its turn; the transaction's scope must be the tenant."""
    await store.add_turn(session, tenant_id)
    for rule in DEFAULTS:
        await store.add_rule(session, tenant_id, (), id=new_id("rul"), **columns_of(rule))
