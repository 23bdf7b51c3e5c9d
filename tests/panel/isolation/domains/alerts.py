"""Alerts, their rules, and the channels that are told of them."""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import insert

from quazzar.core.ids import new_id
from quazzar.panel.alerts.columns import columns_of
from quazzar.panel.alerts.models import Alert
from quazzar.panel.alerts.schemas import ThresholdRule
from quazzar.panel.alerts.store import add_rule
from tests.factories.panel import make_instance
from tests.panel.isolation.matrix import UNIQUE, Ref, Side, row, thing


@thing
async def channel(side: Side) -> str:
    hook = {"kind": "webhook", "name": UNIQUE, "url": "https://hooks.example.invalid/x"}
    return await side.post("/notification-channels", hook)


@thing
async def other_channel(side: Side) -> str:
    return await channel(side)


@thing
async def alert_rule(side: Side) -> str:
    """One that is switched off, so that nobody looks after its alerts. A row, since without any wall there are as many
    rules as one tenant may have.
    """
    rule_id = new_id("rul")
    rule = ThresholdRule(name=rule_id, metric="disk_percent", value=90, enabled=False)
    async with side.database.begin(tenant=side.tenant_id) as session:
        await add_rule(session, side.tenant_id, (), id=rule_id, **columns_of(rule))
    return rule_id


@thing
async def alert(side: Side) -> str:
    alert_id = new_id("alr")
    instance_id = await make_instance(side.database, side.tenant_id)
    values = {
        "rule_id": await side.id_of("alert_rule"),
        "instance_id": instance_id,
        "instance_name": "srv",
        "name": "Disk",
        "severity": "warning",
        "metric": "disk_percent",
        "status": "firing",
        "reason": "Disk use is 95 %",
        "fired_at": datetime.now(UTC),
    }
    async with side.database.begin(tenant=side.tenant_id) as session:
        await session.execute(insert(Alert).values(id=alert_id, tenant_id=side.tenant_id, **values))
    return alert_id


PLACES: Final[dict[str, Any]] = {
    "targets": {"instances": [Ref("instance")], "groups": [Ref("group"), Ref("other_group")]},
    "channels": [Ref("channel"), Ref("other_channel")],
}

row("GET /api/fleet/alerts", shows="alert", query={"instance_id": Ref("instance"), "rule_id": Ref("alert_rule")})
row("GET /api/fleet/alerts/{alert_id}", "alert")
row("POST /api/fleet/alerts/{alert_id}/acknowledge", "alert")
row("POST /api/fleet/alerts/{alert_id}/resolve", "alert")
row("POST /api/fleet/alerts/{alert_id}/mute", "alert", body={"duration_seconds": 60})

row("GET /api/fleet/alert-rules", shows="alert_rule")
row(
    "POST /api/fleet/alert-rules",
    body={"kind": "absence", "name": UNIQUE, "enabled": False} | PLACES,
)
row("GET /api/fleet/alert-rules/{rule_id}", "alert_rule")
row("PATCH /api/fleet/alert-rules/{rule_id}", "alert_rule", body={"name": UNIQUE} | PLACES)
row("DELETE /api/fleet/alert-rules/{rule_id}", "alert_rule")

HOOK: Final = {"url": "https://hooks.example.invalid/y"}
row("GET /api/notification-channels", shows="channel")
row(
    "POST /api/notification-channels",
    body={"kind": "webhook", "name": UNIQUE} | HOOK,
    no_ids="a channel is made of words",
)
row("GET /api/notification-channels/{channel_id}", "channel")
row("PATCH /api/notification-channels/{channel_id}", "channel", body={"name": UNIQUE} | HOOK)
row("DELETE /api/notification-channels/{channel_id}", "channel")
row("POST /api/notification-channels/{channel_id}/rotate-secret", "channel")
row("POST /api/notification-channels/{channel_id}/test", "channel")
