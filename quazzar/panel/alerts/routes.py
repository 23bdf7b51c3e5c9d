"""Alerts and their rules over HTTP."""

from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.alerts.events import Severity
from quazzar.core.auth import principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, patch, post
from quazzar.panel.alerts.models import AlertStatus
from quazzar.panel.alerts.rules import RULE_ID, AlertRuleService
from quazzar.panel.alerts.schemas import (
    FOR_AN_HOUR,
    AlertMute,
    AlertOut,
    AlertRuleCreate,
    AlertRuleOut,
    AlertRuleUpdate,
)
from quazzar.panel.alerts.service import ALERT_ID, AlertService
from quazzar.panel.alerts.store import Wanted

AlertRequest = Request[Any, Any, State]
AlertId = FromPath[Annotated[str, Meta(description="Id of an alert.", examples=["alr_23oc77vtak2bdwdlqw5ffwpz33"])]]
RuleId = FromPath[Annotated[str, Meta(description="Id of a rule.", examples=["rul_23oc77vtak2bdwdlqw5ffwpz33"])]]
Statuses = Annotated[list[AlertStatus] | None, QueryParameter(name="status", description="Only these.", max_items=3)]
Severities = Annotated[list[Severity] | None, QueryParameter(name="severity", description="Only these.", max_items=3)]
InstanceFilter = Annotated[
    str | None, QueryParameter(name="instance_id", max_length=100, description="Only those of this instance.")
]
RuleFilter = Annotated[
    str | None, QueryParameter(name="rule_id", max_length=100, description="Only those of this rule.")
]


async def provide_alerts(request: AlertRequest, session: NamedDependency[AsyncSession]) -> AlertService:
    return AlertService(session, principal_of(request))


async def provide_rules(request: AlertRequest, session: NamedDependency[AsyncSession]) -> AlertRuleService:
    state = request.app.state
    return AlertRuleService(session, principal_of(request), state.settings, state.fleet.panel_url())


class AlertController(Controller):
    path = "/fleet/alerts"
    tags = ("Alerts",)
    dependencies = {"alerts": Provide(provide_alerts)}

    @get(guards=[requires("alerts:read")], operation_id="ListAlerts", summary="All alerts")
    async def list_alerts(
        self,
        request: AlertRequest,
        alerts: NamedDependency[AlertService],
        status: Statuses = None,
        severity: Severities = None,
        instance_id: InstanceFilter = None,
        rule_id: RuleFilter = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[AlertOut]]:
        """Newest first, those that are over too, for 90 days. `status` and `severity` may be given several times."""
        wanted = Wanted(
            statuses=tuple(status or ()), severities=tuple(severity or ()), instance_id=instance_id, rule_id=rule_id
        )
        page = page_of(limit, cursor, key=ALERT_ID.pattern)
        return paged(request, page, await alerts.find(wanted, page), AlertOut.of, lambda row: str(row.id))

    @get("/{alert_id:str}", guards=[requires("alerts:read")], operation_id="GetAlert", summary="One alert")
    async def get_alert(self, alerts: NamedDependency[AlertService], alert_id: AlertId) -> AlertOut:
        return AlertOut.of(await alerts.get(alert_id))

    @post(
        "/{alert_id:str}/acknowledge",
        guards=[requires("alerts:write")],
        operation_id="AcknowledgeAlert",
        summary="Say that somebody is at it",
        status_code=200,
    )
    async def acknowledge_alert(self, alerts: NamedDependency[AlertService], alert_id: AlertId) -> AlertOut:
        """It is not told again while it goes on. One that is over is 409 `alert_resolved`."""
        return AlertOut.of(await alerts.acknowledge(alert_id))

    @post(
        "/{alert_id:str}/resolve",
        guards=[requires("alerts:write")],
        operation_id="ResolveAlert",
        summary="End an alert by hand",
        status_code=200,
    )
    async def resolve_alert(self, alerts: NamedDependency[AlertService], alert_id: AlertId) -> AlertOut:
        """What is still beyond its limit fires again, as a new alert, after the rule's `for_seconds` from now. To have
        peace from it, mute it.
        """
        return AlertOut.of(await alerts.resolve(alert_id))

    @post(
        "/{alert_id:str}/mute",
        guards=[requires("alerts:write")],
        operation_id="MuteAlert",
        summary="Tell nothing of an alert for a while",
        status_code=200,
    )
    async def mute_alert(
        self, alerts: NamedDependency[AlertService], alert_id: AlertId, data: JSONBody[AlertMute] = FOR_AN_HOUR
    ) -> AlertOut:
        """For an hour unless the body says otherwise. It holds for the next alert of the same rule and instance too.
        One that is over is 409 `alert_resolved`.
        """
        return AlertOut.of(await alerts.mute(alert_id, data))


class AlertRuleController(Controller):
    path = "/fleet/alert-rules"
    tags = ("Alerts",)
    dependencies = {"rules": Provide(provide_rules)}

    @get(guards=[requires("alerts:read")], operation_id="ListAlertRules", summary="All alert rules")
    async def list_rules(
        self,
        request: AlertRequest,
        rules: NamedDependency[AlertRuleService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[AlertRuleOut]]:
        """Newest first. A tenant begins with a few, which are its own to change or delete."""
        page = page_of(limit, cursor, key=RULE_ID.pattern)
        return paged(request, page, await rules.find(page), AlertRuleOut.of, lambda row: str(row.id))

    @post(guards=[requires("alerts:write")], operation_id="CreateAlertRule", summary="Make an alert rule")
    async def create_rule(
        self, request: AlertRequest, rules: NamedDependency[AlertRuleService], data: JSONBody[AlertRuleCreate]
    ) -> Response[AlertRuleOut]:
        """`kind` says what else belongs into the body; docs/alerts.md explains each."""
        made = AlertRuleOut.of(await rules.create(data))
        return Response(made, headers={"Location": f"{request.scope['path'].rstrip('/')}/{made.id}"})

    @get("/{rule_id:str}", guards=[requires("alerts:read")], operation_id="GetAlertRule", summary="One alert rule")
    async def get_rule(self, rules: NamedDependency[AlertRuleService], rule_id: RuleId) -> AlertRuleOut:
        return AlertRuleOut.of(await rules.get(rule_id))

    @patch(
        "/{rule_id:str}",
        guards=[requires("alerts:write")],
        operation_id="UpdateAlertRule",
        summary="Change an alert rule",
    )
    async def update_rule(
        self, rules: NamedDependency[AlertRuleService], rule_id: RuleId, data: JSONBody[AlertRuleUpdate]
    ) -> AlertRuleOut:
        """A rule that watches for something else, or is switched off, ends its open alerts."""
        return AlertRuleOut.of(await rules.update(rule_id, data))

    @delete(
        "/{rule_id:str}",
        guards=[requires("alerts:write")],
        operation_id="DeleteAlertRule",
        summary="Remove an alert rule",
    )
    async def delete_rule(self, rules: NamedDependency[AlertRuleService], rule_id: RuleId) -> None:
        """Its open alerts end; they stay to be seen."""
        await rules.delete(rule_id)


handlers: list[ControllerRouterHandler] = [AlertController, AlertRuleController]
