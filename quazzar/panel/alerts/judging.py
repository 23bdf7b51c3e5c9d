"""How rules look at a fleet: a few statements that judge all rules of a tenant over all of its instances at once.

They read the latest values (`fleet_presence`, `fleet_instances`) and give back only what changes, so that an evaluation
in which nothing happens writes nothing but the points of windows.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import DateTime, Text, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import TypeEngine

from quazzar.link.metrics import HOST_METRICS
from quazzar.panel.fleet.health import BAD_APPS
from quazzar.panel.fleet.store import MOST_DEPTH

POINTS: Final = 24
"""How many points a window has, evenly spread."""
_LEAST_POINTS: Final = 6

_TYPES: Final[Mapping[str, TypeEngine[Any]]] = {
    **dict.fromkeys(("host_metrics", "bad_apps", "rule_ids", "instance_ids"), ARRAY(Text())),
    **dict.fromkeys(("now", "resumed_at"), DateTime(timezone=True)),
    "since": ARRAY(DateTime(timezone=True)),
}
_LOOKING: Final = {"host_metrics": list(HOST_METRICS)}


def _sql(statement: str, *typed: str) -> TextClause:
    """`typed` are those of its parameters whose type the values do not say."""
    return text(statement).bindparams(*(bindparam(name, type_=_TYPES[name]) for name in typed))


# Which rule looks at which instance.
_PAIRS = f"""
WITH RECURSIVE rules AS (
    SELECT *, array_position(:host_metrics, metric) AS slot FROM alert_rules WHERE tenant_id = :tenant_id AND enabled
), below AS (
    SELECT id AS rule_id, unnest(group_ids) AS group_id, 0 AS depth FROM rules
    UNION
    SELECT below.rule_id, g.id, depth + 1 FROM fleet_groups g
    JOIN below ON g.parent_id = below.group_id AND depth < {MOST_DEPTH}
    WHERE g.tenant_id = :tenant_id
), places AS (
    SELECT rule_id, array_agg(group_id) AS group_ids FROM below GROUP BY rule_id
), pairs AS (
    SELECT r.id AS rule_id, i.id AS instance_id FROM rules r
    LEFT JOIN places ON places.rule_id = r.id
    JOIN fleet_instances i ON i.tenant_id = :tenant_id AND i.status <> 'revoked' AND (
        r.everywhere OR i.id = ANY (r.instance_ids) OR i.tags && r.tags OR i.group_id = ANY (places.group_ids)
    )
)"""  # noqa: S608 - constants only

# What an instance has of a rule's metric now. Whoever is not heard has none of what it measures itself; what is not a
# number of this world (an instance may send anything) is none either.
_VALUE = """
    CASE WHEN found.raw BETWEEN -1e18 AND 1e18 THEN found.raw END AS value
    FROM rules r
    JOIN pairs ON pairs.rule_id = r.id
    JOIN fleet_instances i ON i.id = pairs.instance_id AND i.tenant_id = :tenant_id
    JOIN fleet_presence p ON p.instance_id = i.id AND p.tenant_id = :tenant_id
    CROSS JOIN LATERAL (SELECT CASE
        WHEN r.slot IS NOT NULL THEN CASE WHEN i.status <> 'offline' THEN p.measured[r.slot] END
        WHEN r.metric = 'apps_down' THEN CASE WHEN i.status <> 'offline' THEN (
            SELECT count(*) FROM jsonb_array_elements(i.apps) app WHERE app ->> 'status' = ANY (:bad_apps)
        ) END
        WHEN r.metric = 'backup_age_seconds' THEN EXTRACT(EPOCH FROM :now - i.backup_at)
        WHEN r.metric = 'certificate_left_seconds' THEN EXTRACT(EPOCH FROM i.certificate_expires_at - :now)
        WHEN r.metric = 'clock_skew_seconds' THEN abs(p.skew_seconds)
        WHEN r.metric = 'health_score' THEN i.health_score
    END::float8 AS raw) found"""

# A point is as old as its measurement, and none is kept twice.
_REMEMBER = _sql(
    f"""{_PAIRS}
INSERT INTO alert_states AS kept (tenant_id, rule_id, instance_id, times, points)
SELECT :tenant_id, rule_id, instance_id, ARRAY[measured_at], ARRAY[value] FROM (
    SELECT r.id AS rule_id, i.id AS instance_id, p.measured_at, r.window_seconds, {_VALUE}
    WHERE r.window_seconds IS NOT NULL
) seen
LEFT JOIN alert_states s USING (rule_id, instance_id)
WHERE value IS NOT NULL AND measured_at IS NOT NULL AND (
    s.rule_id IS NULL OR cardinality(s.times) = 0
    OR measured_at >= s.times[cardinality(s.times)] + make_interval(secs => window_seconds / {POINTS}.0)
)
ON CONFLICT (rule_id, instance_id) DO UPDATE SET
    times = (kept.times || excluded.times)[GREATEST(1, cardinality(kept.times) - {POINTS - 1}):],
    points = (kept.points || excluded.points)[GREATEST(1, cardinality(kept.times) - {POINTS - 1}):]
""",  # noqa: S608 - constants only
    "host_metrics",
    "bad_apps",
    "now",
)

# `found` is what is compared with the limit, `since` when that began. Null for `beyond` is that nobody can tell: then
# all stays as it is.
_JUDGE = _sql(
    f"""{_PAIRS}, seen AS (
    SELECT r.id AS rule_id, r.kind, r.metric, r.operator, r.limit_value, r.for_seconds, r.window_seconds,
        r.horizon_seconds, i.id AS instance_id, i.name AS instance_name, i.apps,
        COALESCE(p.last_seen_at, i.created_at) AS heard_at, COALESCE(i.backup_at, i.created_at) AS backed_up_at,
        p.measured_at, {_VALUE}
), weighed AS (
    SELECT seen.*, s.since AS noted_since, COALESCE(lost.since, :now) AS begun_at, lost.is_so AS is_lost,
        CASE kind
            WHEN 'threshold' THEN value
            WHEN 'absence' THEN EXTRACT(EPOCH FROM :now - lost.seen_at)
            WHEN 'rate' THEN value - course.first
            ELSE CASE WHEN value IS NOT NULL THEN course.forecast END
        END AS found
    FROM seen
    LEFT JOIN alert_states s USING (rule_id, instance_id)
    LEFT JOIN LATERAL (
        SELECT at.seen_at, at.since, at.since IS NULL OR at.since <= :now - make_interval(secs => for_seconds) AS is_so
        FROM (SELECT
            CASE metric WHEN 'heartbeat' THEN heard_at WHEN 'backup' THEN backed_up_at ELSE measured_at END AS seen_at,
            CASE WHEN metric = 'heartbeat' THEN GREATEST(heard_at, :resumed_at)
                WHEN metric = 'backup' THEN backed_up_at
                WHEN value IS NOT NULL THEN GREATEST(measured_at, :resumed_at)
            END AS since
        ) at
    ) lost ON kind = 'absence'
    LEFT JOIN LATERAL (
        SELECT CASE WHEN min(x.age) <= window_seconds * -0.8 THEN (array_agg(x.point ORDER BY x.age))[1] END AS first,
            CASE WHEN count(*) >= {_LEAST_POINTS} AND min(x.age) <= window_seconds * -0.5
                THEN regr_intercept(x.point, x.age) + regr_slope(x.point, x.age) * horizon_seconds
            END AS forecast
        FROM unnest(s.times, s.points) AS one (at, point)
        CROSS JOIN LATERAL (SELECT one.point, EXTRACT(EPOCH FROM one.at - :now)::float8 AS age) x
        WHERE x.age >= window_seconds * -(1 + 1.0 / {POINTS})
    ) course ON kind IN ('rate', 'forecast')
), judged AS (
    SELECT weighed.*, COALESCE(noted_since, begun_at) AS since,
        CASE operator
            WHEN '>' THEN found > limit_value
            WHEN '>=' THEN found >= limit_value
            WHEN '<' THEN found < limit_value
            WHEN '<=' THEN found <= limit_value
            ELSE is_lost
        END AS beyond
    FROM weighed
)
SELECT j.rule_id, j.instance_id, j.instance_name, j.found::float8 AS found, j.value, j.beyond, j.since,
    j.noted_since IS NULL AS is_new, a.id AS alert_id,
    j.beyond AND a.id IS NULL AND j.since <= :now - make_interval(secs => j.for_seconds) AS fires,
    CASE WHEN j.metric = 'apps_down' THEN ARRAY(
        SELECT app ->> 'name' FROM jsonb_array_elements(j.apps) app WHERE app ->> 'status' = ANY (:bad_apps) ORDER BY 1
    ) END AS down
FROM judged j
LEFT JOIN alerts a ON a.tenant_id = :tenant_id AND a.rule_id = j.rule_id AND a.instance_id = j.instance_id
    AND a.status <> 'resolved'
WHERE CASE WHEN j.beyond
    THEN j.noted_since IS NULL OR (a.id IS NULL AND j.since <= :now - make_interval(secs => j.for_seconds))
    ELSE j.beyond IS NOT NULL AND (j.noted_since IS NOT NULL OR a.id IS NOT NULL)
END
ORDER BY j.rule_id, j.instance_id
""",  # noqa: S608 - constants only
    "host_metrics",
    "bad_apps",
    "now",
    "resumed_at",
)
_UNWATCHED = _sql(
    f"""{_PAIRS}, forgotten AS (
    DELETE FROM alert_states s WHERE tenant_id = :tenant_id AND NOT EXISTS (
        SELECT FROM pairs WHERE pairs.rule_id = s.rule_id AND pairs.instance_id = s.instance_id
    )
)
SELECT a.id FROM alerts a WHERE a.tenant_id = :tenant_id AND a.status <> 'resolved' AND NOT EXISTS (
    SELECT FROM pairs WHERE pairs.rule_id = a.rule_id AND pairs.instance_id = a.instance_id
)
""",  # noqa: S608 - constants only
    "host_metrics",
)
_BEGIN = _sql(
    "INSERT INTO alert_states AS kept (tenant_id, rule_id, instance_id, since) "
    "SELECT :tenant_id, * FROM unnest(:rule_ids, :instance_ids, :since) "
    "ON CONFLICT (rule_id, instance_id) DO UPDATE SET since = excluded.since",
    "rule_ids",
    "instance_ids",
    "since",
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
    """,
    "rule_ids",
    "instance_ids",
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
    """,
    "rule_ids",
    "instance_ids",
    "now",
)
_REPEAT = _sql(
    """
    INSERT INTO alert_notices (tenant_id, rule_id, alert_id, kind, due_at)
    SELECT a.tenant_id, a.rule_id, a.id, 'repeated', :now FROM alerts a JOIN alert_rules r ON r.id = a.rule_id
    WHERE a.tenant_id = :tenant_id AND r.tenant_id = :tenant_id AND a.status = 'firing'
        AND COALESCE(a.notified_at, a.fired_at) <= :now - make_interval(secs => r.repeat_seconds)
        AND (a.muted_until IS NULL OR a.muted_until <= :now)
    ON CONFLICT DO NOTHING
    """,
    "now",
)
# Compiling such statements to machine code takes longer than running them.
_PLAIN = text("SET LOCAL jit = off")


class Change(msgspec.Struct, frozen=True):
    """What an evaluation finds to have changed of a rule and an instance.

    `found` is what was compared with the limit, `value` what the metric is now. `beyond` the limit since `since`
    (`is_new`: that was not noted before), or within it again; `fires` is that it has been so for long enough and there
    is no open alert. `down` are the names of apps, where the rule asks for those.
    """

    rule_id: str
    instance_id: str
    instance_name: str
    found: float | None
    value: float | None
    beyond: bool
    since: datetime
    is_new: bool
    alert_id: str | None
    fires: bool
    down: list[str] | None


async def prepare(session: AsyncSession) -> None:
    """Before the others, once in a transaction."""
    await session.execute(_PLAIN)


async def remember(session: AsyncSession, tenant_id: str, now: datetime) -> None:
    """Add to the windows of rates and forecasts what was measured since, where the next point is due."""
    await session.execute(_REMEMBER, {"tenant_id": tenant_id, "now": now, **_LOOKING, "bad_apps": sorted(BAD_APPS)})


async def find_changes(session: AsyncSession, tenant_id: str, now: datetime, resumed_at: datetime) -> Sequence[Change]:
    """What has changed since the last evaluation, for every enabled rule and every instance that it watches."""
    values = {"tenant_id": tenant_id, "now": now, "resumed_at": resumed_at, **_LOOKING, "bad_apps": sorted(BAD_APPS)}
    return [Change(*row) for row in await session.execute(_JUDGE, values)]


async def find_unwatched(session: AsyncSession, tenant_id: str) -> Sequence[str]:
    """Ids of open alerts whose rule watches their instance no more; what such rules remember is forgotten."""
    return (await session.execute(_UNWATCHED, {"tenant_id": tenant_id, **_LOOKING})).scalars().all()


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


async def repeat(session: AsyncSession, tenant_id: str, now: datetime) -> None:
    """Have those told again whose rule says so, unless somebody has acknowledged or muted them."""
    await session.execute(_REPEAT, {"tenant_id": tenant_id, "now": now})


def _pairs(tenant_id: str, changes: Sequence[Change]) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "rule_ids": [one.rule_id for one in changes],
        "instance_ids": [one.instance_id for one in changes],
    }
