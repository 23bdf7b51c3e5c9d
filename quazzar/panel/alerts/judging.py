"""How a rule looks at a fleet: one statement that judges all instances that it watches at once.

It reads the latest values (`fleet_presence`, `fleet_instances`) and gives back only what changes, so that an evaluation
in which nothing happens writes nothing but the points of windows.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

import msgspec
from sqlalchemy import DateTime, Text, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import TypeEngine

from quazzar.link.metrics import HOST_METRICS
from quazzar.panel.fleet.health import BAD_APPS
from quazzar.panel.fleet.store import expand_groups

POINTS: Final = 24
"""How many points a window has, evenly spread."""
_LEAST_POINTS: Final = 6

_TYPES: Final[Mapping[str, TypeEngine[Any]]] = {
    **dict.fromkeys(("bad_apps", "rule_ids", "instance_ids", "tags", "group_ids"), ARRAY(Text())),
    **dict.fromkeys(("now", "resumed_at"), DateTime(timezone=True)),
    "since": ARRAY(DateTime(timezone=True)),
}


def _sql(statement: str) -> TextClause:
    """With the types of those of its parameters whose values do not say them."""
    named = [name for name in _TYPES if re.search(rf"(?<!:):{name}\b", statement)]
    return text(statement).bindparams(*(bindparam(name, type_=_TYPES[name]) for name in named))


# Whoever is not heard has none of what it measures itself.
_VALUES: Final = {
    **{
        name: f"CASE WHEN i.status <> 'offline' THEN p.measured[{place}] END"
        for place, name in enumerate(HOST_METRICS, start=1)
    },
    "apps_down": "CASE WHEN i.status <> 'offline' THEN cardinality(apps.down) END",
    "backup_age_seconds": "EXTRACT(EPOCH FROM :now - i.backup_at)",
    "certificate_left_seconds": "EXTRACT(EPOCH FROM i.certificate_expires_at - :now)",
    "clock_skew_seconds": "abs(p.skew_seconds)",
    "health_score": "i.health_score",
    "heartbeat": "NULL",
    "backup": "NULL",
}
_SEEN_AT: Final = {"heartbeat": "heard_at", "backup": "backed_up_at"}
_OPERATORS: Final = frozenset({">", ">=", "<", "<="})

# What is not a number of this world (an instance may send anything) is none.
_SEEN: Final = """
WITH raw AS (
    SELECT i.id AS instance_id, i.name AS instance_name, COALESCE(p.last_seen_at, i.created_at) AS heard_at,
        COALESCE(i.backup_at, i.created_at) AS backed_up_at, p.measured_at, ({value})::float8 AS raw, {down} AS down
    FROM fleet_instances i JOIN fleet_presence p ON p.tenant_id = i.tenant_id AND p.instance_id = i.id {apps}
    WHERE i.tenant_id = :tenant_id AND i.status <> 'revoked'
        AND (:everywhere OR i.id = ANY (:instance_ids) OR i.tags && :tags OR i.group_id = ANY (:group_ids))
), seen AS MATERIALIZED (
    SELECT raw.*, CASE WHEN raw BETWEEN -1e18 AND 1e18 THEN raw END AS value FROM raw
), kept AS (
    SELECT * FROM alert_states WHERE tenant_id = :tenant_id AND rule_id = :rule_id
), open AS (
    SELECT instance_id, id FROM alerts WHERE tenant_id = :tenant_id AND rule_id = :rule_id AND status <> 'resolved'
)"""
_APPS: Final = """CROSS JOIN LATERAL (SELECT ARRAY(
        SELECT app ->> 'name' FROM jsonb_array_elements(i.apps) app WHERE app ->> 'status' = ANY (:bad_apps) ORDER BY 1
    ) AS down) apps"""

# A point is as old as its measurement, and none is kept twice. In order, so that all is read before any is written.
_REMEMBER: Final = f"""
INSERT INTO alert_states AS state (tenant_id, rule_id, instance_id, times, points)
SELECT :tenant_id, :rule_id, instance_id, ARRAY[measured_at], ARRAY[value]
FROM seen LEFT JOIN kept USING (instance_id)
WHERE value IS NOT NULL AND measured_at IS NOT NULL AND (
    kept.rule_id IS NULL OR cardinality(times) = 0
    OR measured_at >= times[cardinality(times)] + make_interval(secs => :window_seconds / {POINTS}.0)
)
ORDER BY instance_id
ON CONFLICT (rule_id, instance_id) DO UPDATE SET
    times = (state.times || excluded.times)[GREATEST(1, cardinality(state.times) - {POINTS - 1}):],
    points = (state.points || excluded.points)[GREATEST(1, cardinality(state.times) - {POINTS - 1}):]
"""  # noqa: S608 - constants only

# What the points of a window come to; ages are negative, and grow towards now.
_COURSE: Final = f"""LEFT JOIN LATERAL (
        SELECT count(*) AS points, min(one.age) AS oldest, (array_agg(one.point ORDER BY one.age))[1] AS first,
            regr_intercept(one.point, one.age) AS level, regr_slope(one.point, one.age) AS slope
        FROM (
            SELECT point, EXTRACT(EPOCH FROM at - :now)::float8 AS age FROM unnest(times, points) AS each (at, point)
        ) one WHERE one.age >= :window_seconds * -(1 + 1.0 / {POINTS})
    ) course ON true"""  # noqa: S608 - constants only

# `found` is what is compared with the limit, `since` when that began. Null for `beyond` is that nobody can tell: then
# all stays as it is. Who is remembered and not seen is not watched any more.
_JUDGE: Final = """, weighed AS (
    SELECT instance_id, instance_name, value, down, {found} AS found, COALESCE({begun_at}, :now) AS begun_at,
        {is_lost} AS is_lost, kept.since AS noted_since, seen.heard_at IS NOT NULL AS is_watched
    FROM seen FULL JOIN kept USING (instance_id) {course}
), judged AS (
    SELECT *, COALESCE(noted_since, begun_at) AS since, {beyond} AS beyond FROM weighed
), changed AS (
    SELECT judged.*, open.id AS alert_id,
        open.id IS NULL AND since <= :now - make_interval(secs => :for_seconds) AS fires
    FROM judged LEFT JOIN open USING (instance_id)
)
SELECT :rule_id, instance_id, instance_name, found::float8, value, CASE WHEN is_watched THEN beyond END, since,
    noted_since IS NULL, alert_id, fires, down
FROM changed
WHERE NOT is_watched OR CASE WHEN beyond THEN fires OR noted_since IS NULL
    ELSE NOT beyond AND (alert_id IS NOT NULL OR noted_since IS NOT NULL) END
ORDER BY instance_id
"""
_LONG: Final = "make_interval(secs => :for_seconds)"


@cache
def _remembering(metric: str) -> TextClause:
    return _sql(_seen(metric) + _REMEMBER)


@cache
def _judging(kind: str, metric: str, operator: str | None) -> TextClause:
    """The statement of all rules that compare this metric in this way; limits and times are its parameters."""
    assert operator is None or operator in _OPERATORS
    parts = {"begun_at": "NULL", "is_lost": "NULL", "course": "", "beyond": f"found {operator} :limit_value"}
    match kind:
        case "threshold":
            parts["found"] = "value"
        case "absence":
            seen_at = _SEEN_AT.get(metric, "measured_at")
            begun_at = seen_at if metric == "backup" else f"GREATEST({seen_at}, :resumed_at)"
            if metric not in _SEEN_AT:
                begun_at = f"CASE WHEN value IS NOT NULL THEN {begun_at} END"
            parts |= {
                "found": f"EXTRACT(EPOCH FROM :now - {seen_at})",
                "begun_at": begun_at,
                "is_lost": f"COALESCE({begun_at} <= :now - {_LONG}, true)",
                "beyond": "is_lost",
            }
        case "rate":
            parts["found"] = "CASE WHEN course.oldest <= :window_seconds * -0.8 THEN value - course.first END"
            parts["course"] = _COURSE
        case "forecast":
            parts["found"] = (
                f"CASE WHEN value IS NOT NULL AND course.points >= {_LEAST_POINTS} AND course.oldest <= :window_seconds"
                " * -0.5 THEN course.level + course.slope * :horizon_seconds END"
            )
            parts["course"] = _COURSE
        case _:
            raise AssertionError(kind)
    return _sql(_seen(metric) + _JUDGE.format(**parts))


def _seen(metric: str) -> str:
    apps = metric == "apps_down"
    down = "apps.down" if apps else "CAST(NULL AS text[])"
    return _SEEN.format(value=_VALUES[metric], down=down, apps=_APPS if apps else "")


_BEGIN = _sql(
    "INSERT INTO alert_states AS kept (tenant_id, rule_id, instance_id, since) "
    "SELECT :tenant_id, * FROM unnest(:rule_ids, :instance_ids, :since) "
    "ON CONFLICT (rule_id, instance_id) DO UPDATE SET since = excluded.since"
)
_CALM = _sql(
    """
    WITH over AS (SELECT * FROM unnest(:rule_ids, :instance_ids) AS one (rule_id, instance_id)), gone AS (
        DELETE FROM alert_states s USING over
        WHERE s.tenant_id = :tenant_id AND s.rule_id = over.rule_id AND s.instance_id = over.instance_id
            AND s.times = '{}'
    )
    UPDATE alert_states s SET since = NULL FROM over
    WHERE s.tenant_id = :tenant_id AND s.rule_id = over.rule_id AND s.instance_id = over.instance_id
        AND s.times <> '{}'
    """
)
_FORGET = _sql(
    """
    DELETE FROM alert_states s USING unnest(:rule_ids, :instance_ids) AS one (rule_id, instance_id)
    WHERE s.tenant_id = :tenant_id AND s.rule_id = one.rule_id AND s.instance_id = one.instance_id
    """
)
_REOPEN = _sql(
    """
    UPDATE alerts a SET status = CASE WHEN acknowledged_at IS NULL THEN 'firing' ELSE 'acknowledged' END,
        count = count + 1, resolved_at = NULL, resolved_reason = NULL
    FROM (
        SELECT DISTINCT ON (o.rule_id, o.instance_id) o.id FROM alerts o
        JOIN unnest(:rule_ids, :instance_ids) AS one (rule_id, instance_id)
            ON one.rule_id = o.rule_id AND one.instance_id = o.instance_id
        WHERE o.tenant_id = :tenant_id AND o.status = 'resolved' AND o.resolved_by IS NULL
            AND o.resolved_at > :now - make_interval(secs => :seconds)
        ORDER BY o.rule_id, o.instance_id, o.resolved_at DESC
    ) latest
    WHERE a.id = latest.id AND a.tenant_id = :tenant_id RETURNING a.id, a.rule_id, a.instance_id
    """
)
_MUTES = _sql(
    """
    SELECT DISTINCT ON (a.rule_id, a.instance_id) a.rule_id, a.instance_id, a.muted_until FROM alerts a
    JOIN unnest(:rule_ids, :instance_ids) AS one (rule_id, instance_id)
        ON one.rule_id = a.rule_id AND one.instance_id = a.instance_id
    WHERE a.tenant_id = :tenant_id ORDER BY a.rule_id, a.instance_id, a.id DESC
    """
)
_REPEAT = _sql(
    """
    INSERT INTO alert_notices (tenant_id, rule_id, alert_id, kind, due_at)
    SELECT a.tenant_id, a.rule_id, a.id, 'repeated', :now FROM alerts a JOIN alert_rules r ON r.id = a.rule_id
    WHERE a.tenant_id = :tenant_id AND r.tenant_id = :tenant_id AND a.status = 'firing'
        AND COALESCE(a.notified_at, a.fired_at) <= :now - make_interval(secs => r.repeat_seconds)
        AND (a.muted_until IS NULL OR a.muted_until <= :now)
    ON CONFLICT DO NOTHING
    """
)
# The planner can't know how many instances a rule watches, and may take them for one: then it would look through all
# states for each of them. And to compile such statements to machine code takes longer than to run them.
_PLAIN = text("SELECT set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true)")


class Change(msgspec.Struct, frozen=True):
    """What an evaluation finds to have changed of a rule and an instance.

    `found` is what was compared with the limit, `value` what the metric is now. It is `beyond` the limit since `since`
    (`is_new`: that was not noted before), within it again, or, when that is None, not watched any more. `fires` is that
    it has been beyond for long enough and there is no open alert. `down` are the names of apps, for rules about those.
    """

    rule_id: str
    instance_id: str
    instance_name: str
    found: float | None
    value: float | None
    beyond: bool | None
    since: datetime
    is_new: bool
    alert_id: str | None
    fires: bool
    down: list[str] | None


async def prepare(session: AsyncSession) -> None:
    """Before the others, once in a transaction."""
    await session.execute(_PLAIN)


async def find_changes(
    session: AsyncSession, tenant_id: str, rule: Any, now: datetime, resumed_at: datetime
) -> Sequence[Change]:
    """What has changed since the last evaluation, for every instance that the rule watches or has watched; what was
    measured meanwhile is added to the windows.
    """
    values: dict[str, Any] = {
        "tenant_id": tenant_id,
        "rule_id": rule.id,
        "now": now,
        "resumed_at": resumed_at,
        "bad_apps": sorted(BAD_APPS),
        "everywhere": rule.everywhere,
        "instance_ids": rule.instance_ids,
        "tags": rule.tags,
        "group_ids": await expand_groups(session, tenant_id, rule.group_ids) if rule.group_ids else [],
        "limit_value": rule.limit_value,
        "for_seconds": rule.for_seconds,
        "window_seconds": rule.window_seconds,
        "horizon_seconds": rule.horizon_seconds,
    }
    if rule.window_seconds is not None:
        await session.execute(_remembering(rule.metric), values)
    rows = await session.execute(_judging(rule.kind, rule.metric, rule.operator), values)
    return [Change(*row) for row in rows]


async def forget(session: AsyncSession, tenant_id: str, changes: Sequence[Change]) -> None:
    """All that is remembered of these."""
    if changes:
        await session.execute(_FORGET, _pairs(tenant_id, changes))


async def begin(session: AsyncSession, tenant_id: str, changes: Sequence[Change]) -> None:
    """Note since when these are beyond their limits."""
    if changes:
        await session.execute(_BEGIN, _pairs(tenant_id, changes) | {"since": [one.since for one in changes]})


async def calm(session: AsyncSession, tenant_id: str, changes: Sequence[Change]) -> None:
    """Note that these are within their limits."""
    if changes:
        await session.execute(_CALM, _pairs(tenant_id, changes))


async def reopen(
    session: AsyncSession, tenant_id: str, changes: Sequence[Change], now: datetime, *, seconds: float
) -> Mapping[tuple[str, str], str]:
    """Open the alerts again that ended by themselves less than `seconds` ago; gives their ids by rule and instance."""
    values = _pairs(tenant_id, changes) | {"now": now, "seconds": seconds}
    rows = await session.execute(_REOPEN, values)
    return {(rule_id, instance_id): alert_id for alert_id, rule_id, instance_id in rows}


async def find_mutes(
    session: AsyncSession, tenant_id: str, changes: Sequence[Change]
) -> Mapping[tuple[str, str], datetime | None]:
    """Until when the last alert of each rule and instance is or was muted."""
    rows = await session.execute(_MUTES, _pairs(tenant_id, changes))
    return {(rule_id, instance_id): until for rule_id, instance_id, until in rows}


async def repeat(session: AsyncSession, tenant_id: str, now: datetime) -> None:
    """Have those told again whose rule says so, unless somebody has acknowledged or muted them."""
    await session.execute(_REPEAT, {"tenant_id": tenant_id, "now": now})


def _pairs(tenant_id: str, changes: Sequence[Change]) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "rule_ids": [one.rule_id for one in changes],
        "instance_ids": [one.instance_id for one in changes],
    }
