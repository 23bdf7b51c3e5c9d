"""One tenant's evaluation: what its rules find, written down as alerts in one transaction, and told in the next.

Whoever locks the tenant's turn does it, so however many processes try, each change is found once; and since the turn,
what rules remember, alerts, events and what is to be told are written together, a process that dies in between leaves
the tenant as it was.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final, cast

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.alerts.events import AlertFired, Severity
from quazzar.core.ids import new_id
from quazzar.core.records import publish
from quazzar.panel.alerts import judging, store
from quazzar.panel.alerts.defaults import seed
from quazzar.panel.alerts.ending import end_alerts
from quazzar.panel.alerts.judging import Change
from quazzar.panel.alerts.wording import reason_of

FLAP: Final = timedelta(minutes=5)
"""What comes back so soon is the same alert; that it is over is told when it has stayed so for as long."""
PAUSE: Final = timedelta(minutes=2)
"""No evaluation for longer than this: the panel itself was away, and heard nobody."""

_RESTS: Final = 4
"""A tenant whose many rules and instances take long gets its next turn after as many times that: others wait for it."""


class Pace(msgspec.Struct, frozen=True):
    """How often a tenant is evaluated, and how long the first alert of a rule waits for others that fire with it, so
    that they are told together.
    """

    every: timedelta
    group: timedelta

    def until_next(self, seconds: float) -> timedelta:
        """From one evaluation, which took so long, to the next."""
        return max(self.every, min(timedelta(seconds=seconds) * _RESTS, PAUSE / 2))


async def evaluate(session: AsyncSession, tenant_id: str, now: datetime, pace: Pace) -> bool | None:
    """Judge all rules of the tenant, whose scope the transaction has, as of `now`.

    None when it is not due or another process is at it, else whether anything is to be told by now.
    """
    began = monotonic()
    turn = await store.take_turn(session, tenant_id, now)
    if turn is None:
        return None
    if not turn.seeded:
        await seed(session, tenant_id)
    paused = turn.evaluated_at is None or now - turn.evaluated_at > PAUSE
    resumed_at = now if paused else turn.resumed_at
    rules = await store.find_enabled_rules(session, tenant_id)
    await judging.prepare(session)
    changes = [
        change
        for rule in rules.values()
        for change in await judging.find_changes(session, tenant_id, rule, now, resumed_at)
    ]
    beyond = [one for one in changes if one.beyond]
    await judging.begin(session, tenant_id, [one for one in beyond if one.is_new])
    await _fire(session, tenant_id, rules, [one for one in beyond if one.fires], now, pace.group)
    within = [one for one in changes if one.beyond is False]
    await judging.calm(session, tenant_id, within)
    await _end(session, tenant_id, within, "It is within its limit again", now)
    gone = [one for one in changes if one.beyond is None]
    await judging.forget(session, tenant_id, gone)
    await _end(session, tenant_id, gone, "The rule does not watch it any more", now)
    if any(rule.repeat_seconds is not None for rule in rules.values()):
        await judging.repeat(session, tenant_id, now)
    due_at = now + pace.until_next(monotonic() - began)
    await store.end_turn(session, tenant_id, evaluated_at=now, resumed_at=resumed_at, due_at=due_at)
    return await store.has_due_notices(session, tenant_id, now)


async def _end(session: AsyncSession, tenant_id: str, changes: Sequence[Change], reason: str, now: datetime) -> None:
    ids = [one.alert_id for one in changes if one.alert_id is not None]
    await end_alerts(session, tenant_id, ids, reason=reason, now=now, told_at=now + FLAP)


async def _fire(
    session: AsyncSession,
    tenant_id: str,
    rules: Mapping[str, Any],
    changes: Sequence[Change],
    now: datetime,
    group: timedelta,
) -> None:
    """Open the alert that was over a moment ago again, else a new one, which is to be told."""
    if not changes:
        return
    again = await judging.reopen(session, tenant_id, changes, now, seconds=FLAP.total_seconds())
    await store.drop_resolved_notices(session, tenant_id, list(again.values()))
    mutes = await judging.find_mutes(session, tenant_id, changes)
    made, updated, notices = [], [], []
    for change in changes:
        rule, pair = rules[change.rule_id], (change.rule_id, change.instance_id)
        found = {
            "instance_name": change.instance_name,
            "name": rule.name,
            "severity": rule.severity,
            "value": change.found,
            "limit_value": rule.limit_value if rule.limit_value is not None else rule.for_seconds,
            "reason": reason_of(rule, change, now),
        }
        alert_id = again.get(pair)
        if alert_id is not None:
            updated.append({"alert_id": alert_id, **found})
        else:
            alert_id = new_id("alr")
            places = {"id": alert_id, "rule_id": change.rule_id, "instance_id": change.instance_id}
            times = {"fired_at": now, "muted_until": mutes.get(pair)}
            made.append({**places, **found, **times, "metric": rule.metric, "status": "firing"})
            notices.append({"rule_id": rule.id, "alert_id": alert_id, "kind": "fired", "due_at": now + group})
        _announce(session, tenant_id, alert_id, change, found, rule)
    await store.update_alerts(session, tenant_id, updated)
    await store.add_alerts(session, tenant_id, made)
    await store.add_notices(session, tenant_id, notices)


def _announce(
    session: AsyncSession, tenant_id: str, alert_id: str, change: Change, found: Mapping[str, Any], rule: Any
) -> None:
    fired = AlertFired(
        alert_id=alert_id,
        rule_id=rule.id,
        name=rule.name,
        severity=cast("Severity", rule.severity),
        about=change.instance_id,
        value=found["value"],
        limit=found["limit_value"],
    )
    publish(session, fired, subject=alert_id, realm="panel", tenant_id=tenant_id)
