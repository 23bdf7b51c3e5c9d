"""The rules of alert rules: what they may watch, whom they may tell, and what a change does to what is going on."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.channels.service import known_channels
from quazzar.channels.store import Scope
from quazzar.core.auth import Principal
from quazzar.core.errors import Forbidden, Invalid
from quazzar.core.ids import new_id
from quazzar.core.paging import Page
from quazzar.core.records import audit
from quazzar.core.schema import decode_body, given
from quazzar.panel.accounts.service import is_timezone
from quazzar.panel.alerts import store
from quazzar.panel.alerts.columns import body_of, columns_of
from quazzar.panel.alerts.ending import end_alerts
from quazzar.panel.alerts.errors import AlertRuleNotFound, TooManyAlertRules
from quazzar.panel.alerts.notices import tell_of
from quazzar.panel.alerts.schemas import AlertRuleCreate, AlertRuleUpdate, QuietHours
from quazzar.panel.alerts.store import Found
from quazzar.panel.commands.schemas import Targets
from quazzar.panel.fleet.service import known_ids
from quazzar.settings import Settings

RULE_ID: Final = re.compile(r"rul_[a-z2-7]{26}\Z")
MOST_RULES: Final = 200
"""Of one tenant: each looks at every instance of its targets in every evaluation."""
_CONDITION: Final = {"metric", "operator", "limit_value", "window_seconds", "horizon_seconds"}
"""A rule in which one of these changes is another rule: nothing that it has found or remembers holds any more."""


class AlertRuleService:
    """One per request, of the tenant that its caller works in."""

    def __init__(self, session: AsyncSession, principal: Principal, settings: Settings, url: str) -> None:
        """Raises `Forbidden` for who is bound to some instances: rules are about all of them."""
        assert principal.tenant_id is not None
        if principal.resources is not None:
            raise Forbidden("Who is bound to certain groups or instances can't see or change the rules for all")
        self._session = session
        self._principal = principal
        self._tenant = principal.tenant_id
        self._settings = settings
        self._url = url

    async def find(self, page: Page) -> Sequence[Found]:
        return await store.find_rules(self._session, self._tenant, page)

    async def get(self, rule_id: str) -> Found:
        """Raises `AlertRuleNotFound`."""
        row = await store.get_rule(self._session, self._tenant, rule_id) if RULE_ID.match(rule_id) else None
        if row is None:
            raise AlertRuleNotFound
        return row

    async def create(self, data: AlertRuleCreate) -> Found:
        """Raises `Invalid` with every field that fails, `TooManyAlertRules`."""
        await store.lock_turn(self._session, self._tenant)
        await self._check(data, set(data.__struct_fields__))
        if await store.count_rules(self._session, self._tenant) >= MOST_RULES:
            raise TooManyAlertRules
        rule_id, values, channels = new_id("rul"), columns_of(data), sorted(set(data.channels or ()))
        await store.add_rule(self._session, self._tenant, channels, id=rule_id, **values)
        audit(self._session, "alert_rule.create", subject=rule_id, after={**values, "channels": channels})
        return await self.get(rule_id)

    async def update(self, rule_id: str, data: AlertRuleUpdate) -> Found:
        """Raises `AlertRuleNotFound`, and `Invalid` with every field that fails or is not of the rule's kind."""
        await store.lock_turn(self._session, self._tenant)
        before = await self.get(rule_id)
        values = given(data)
        whole = body_of(before) | {name: msgspec.to_builtins(value) for name, value in values.items()}
        rule: AlertRuleCreate = decode_body(msgspec.json.encode(whole), AlertRuleCreate)  # type: ignore[arg-type]
        await self._check(rule, set(values))
        after = columns_of(rule) | {"channels": sorted(set(rule.channels or ()))}
        changed = {name: value for name, value in after.items() if value != getattr(before, name)}
        if changed:
            columns = {name: value for name, value in changed.items() if name != "channels"}
            await store.update_rule(self._session, self._tenant, rule_id, changed.get("channels"), **columns)
            await self._follow(rule_id, changed)
            former = {name: getattr(before, name) for name in changed}
            audit(self._session, "alert_rule.update", subject=rule_id, before=former, after=changed)
        return await self.get(rule_id)

    async def _follow(self, rule_id: str, changed: dict[str, Any]) -> None:
        """What a change does to the alerts of the rule that are open."""
        if changed.get("enabled") is False:
            await self._end(rule_id, "The rule was switched off")
        elif changed.keys() & _CONDITION:
            await self._end(rule_id, "The rule was changed")
        elif changed.keys() & {"name", "severity"}:
            row = await self.get(rule_id)
            await store.relabel(self._session, self._tenant, rule_id, row.name, row.severity)

    async def _end(self, rule_id: str, reason: str) -> None:
        now = datetime.now(UTC)
        ids = await store.find_open_of_rule(self._session, self._tenant, rule_id)
        by = self._principal.user_id
        await end_alerts(self._session, self._tenant, ids, reason=reason, now=now, told_at=now, by=by)
        await store.forget_states(self._session, self._tenant, rule_id)

    async def delete(self, rule_id: str) -> None:
        """Its open alerts end, which is told at once: nothing could wait for it. Raises `AlertRuleNotFound`."""
        await store.lock_turn(self._session, self._tenant)
        before = await self.get(rule_id)
        await self._end(rule_id, "The rule was deleted")
        now = datetime.now(UTC)
        await store.hasten_notices(self._session, self._tenant, rule_id, now)
        await tell_of(self._session, self._tenant, before, now, self._settings, self._url)
        await store.delete_rule(self._session, self._tenant, rule_id)
        audit(self._session, "alert_rule.delete", subject=rule_id, before={"name": before.name, "kind": before.kind})

    async def _check(self, rule: AlertRuleCreate, fields: set[str]) -> None:
        """Of `fields`, what can't be seen from themselves alone. Raises `Invalid`."""
        problems: dict[str, str] = {}
        if "targets" in fields:
            problems |= await self._target_problems(rule.targets)
        if "channels" in fields and rule.channels:
            known = await known_channels(self._session, Scope("panel", self._tenant), rule.channels)
            unknown = [index for index, one in enumerate(rule.channels) if one not in known]
            problems |= {f"channels.{index}": "There is no such notification channel" for index in unknown}
        if "quiet_hours" in fields and rule.quiet_hours is not None:
            problems |= _quiet_problems(rule.quiet_hours)
        if problems:
            raise Invalid(details=problems)

    async def _target_problems(self, targets: Targets) -> dict[str, str]:
        named = [*targets.instances, *targets.groups]
        if targets.all and (named or targets.tags):
            return {"targets.all": "All is every instance; leave out instances, tags and groups, or all"}
        if not targets.all and not named and not targets.tags:
            return {"targets": "Targets must name instances, tags or groups, or be all"}
        known = await known_ids(self._session, self._tenant, named) if named else set()
        places = [("instances", targets.instances, "instance"), ("groups", targets.groups, "group")]
        return {
            f"targets.{field}.{index}": f"There is no such {noun}"
            for field, ids, noun in places
            for index, one in enumerate(ids)
            if one not in known
        }


def _quiet_problems(hours: QuietHours) -> dict[str, str]:
    problems = {}
    if hours.start == hours.end:
        problems["quiet_hours.end"] = "End must be another time than start"
    if not is_timezone(hours.time_zone):
        problems["quiet_hours.time_zone"] = "There is no such time zone; it is written as in Europe/Berlin"
    return problems
