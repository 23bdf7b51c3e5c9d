"""Heartbeats and measurements of the past on their way into the database: queued in memory, written together.

A heartbeat costs no transaction of its own. What has come within a quarter of a second, from instances of any tenant,
is one statement, and only an instance whose status, checks or state have changed costs more. Measurements of the past
have a queue of their own, so that they never stand before a sign of life.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

import asyncpg
import msgspec
import structlog
from sqlalchemy import func, text, update
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import Database, see_all_tenants
from quazzar.core.records import publish
from quazzar.link.messages import CLOSE_MALFORMED, CLOSE_REVOKED, AppFacts, Heartbeat, Samples, State
from quazzar.link.metrics import APP_METRICS, HOST_METRICS, measures
from quazzar.panel.fleet import copying
from quazzar.panel.fleet.authority import Identity
from quazzar.panel.fleet.copying import COLUMNS, Row
from quazzar.panel.fleet.events import InstanceDegraded, InstanceOnline
from quazzar.panel.fleet.health import BAD_APPS, failing, score_of
from quazzar.panel.fleet.models import FleetInstance
from quazzar.panel.fleet.retention import keep_partitions
from quazzar.panel.fleet.rollups import HOUR, began, late_before
from quazzar.panel.fleet.schemas import CheckOut

log = structlog.get_logger(__name__)

BATCH_SECONDS: Final = 0.25
PAST: Final = timedelta(hours=24)
AHEAD: Final = timedelta(minutes=5)
"""What was measured longer ago, or lies further ahead by this panel's clock, is not taken."""
MOST_VALUE: Final = 2.0**63
"""No measurement is larger, and sums of them stay finite."""
_MOST_ROWS: Final = 5000
_WRITERS: Final = 2
_MOST_KNOWN: Final = 50_000
_TELL_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 0.5
_WRONG: Final = frozenset({"22", "23"})
"""Classes of SQLSTATE that tell of what was written, not of the database; trying the same again would not help."""

_encode = msgspec.json.Encoder().encode


def _now() -> datetime:
    return datetime.now(UTC)


class Line(Protocol):
    """What ingestion needs to know of an open line."""

    identity: Identity
    skew_seconds: float

    def end(self, code: int, reason: str) -> None: ...


class _Known:
    """What is remembered of an instance between its messages: which apps it has, and how much it may still send."""

    __slots__ = ("allowance", "app_ids", "bad_apps", "looked_at", "shift", "state_hash")

    def __init__(self, allowance: float) -> None:
        self.state_hash: str | None = None
        self.app_ids: frozenset[str] | None = None
        self.bad_apps: list[dict[str, Any]] = []
        self.shift = timedelta()
        self.allowance = allowance
        self.looked_at = time.monotonic()

    def learn(self, state_hash: str | None, apps: Iterable[Mapping[str, Any]]) -> None:
        found = list(apps)
        self.state_hash = state_hash
        self.app_ids = frozenset(app["id"] for app in found)
        self.bad_apps = [{"name": app["name"], "status": app["status"]} for app in found if app["status"] in BAD_APPS]


class _Beat:
    """A heartbeat that waits for its batch; `measured` and `samples` are what is kept of it, once it was looked at."""

    __slots__ = ("came_at", "done", "known", "line", "measured", "message", "samples", "time")

    def __init__(self, line: Line, message: Heartbeat, known: _Known) -> None:
        self.line = line
        self.message = message
        self.known = known
        self.came_at = time.monotonic()
        self.time = _now()
        self.measured: list[float | None] | None = None
        self.samples: list[Row] | None = None
        self.done: asyncio.Event | None = None

    @property
    def instance_id(self) -> str:
        return self.line.identity.instance_id


class _Past:
    """Measurements of the past that wait to be written; `rows` are what is kept of them."""

    __slots__ = ("done", "known", "line", "message", "rows")

    def __init__(self, line: Line, message: Samples, known: _Known) -> None:
        self.line = line
        self.message = message
        self.known = known
        self.rows: list[Row] | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def instance_id(self) -> str:
        return self.line.identity.instance_id


class _Before(NamedTuple):
    """How an instance stood before its heartbeat; `checks` is JSON."""

    id: str
    name: str
    status: str
    status_reason: str | None
    state_hash: str | None
    checks: str
    certificate_expires_at: datetime


class _Standing:
    """How an instance stands by its newest heartbeat, against what is written of it."""

    def __init__(self, identity: Identity, before: _Before, checks: Sequence[CheckOut]) -> None:
        self.identity = identity
        self.before = before
        self.checks = msgspec.to_builtins(checks)
        self.score = score_of(checks)
        self.status = "degraded" if checks else "online"
        self.reason = "; ".join(check.reason for check in checks) or None

    @property
    def differs(self) -> bool:
        before = (self.before.status, self.before.status_reason, msgspec.json.decode(self.before.checks))
        return before != (self.status, self.reason, self.checks)


class Ingest:
    """One per panel process. `healthy_since` is when (`time.monotonic`) the database began to take what came."""

    def __init__(self, database: Database, heartbeat_seconds: float) -> None:
        self.database = database
        self.healthy_since = time.monotonic()
        self.dropped: Counter[str] = Counter()
        """What was not taken, by reason, since it was told to the log last."""
        self._each_second = 2 / heartbeat_seconds
        self._most_points = PAST.total_seconds() * self._each_second
        self._known: dict[str, _Known] = {}
        self._beats: dict[str, _Beat] = {}
        self._waiting: deque[_Beat] = deque()
        self._pasts: deque[_Past] = deque()
        self._beat_came = asyncio.Event()
        self._past_came = asyncio.Event()
        self._ready_for: date | None = None
        self._told_at = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self.healthy_since = time.monotonic()
        self._tasks = [
            *(
                asyncio.create_task(self._often(self._beat_came, self.write_beats), name="fleet-heartbeats")
                for _ in range(_WRITERS)
            ),
            asyncio.create_task(self._often(self._past_came, self.write_past), name="fleet-past"),
        ]

    async def stop(self) -> None:
        """What has come is written, if the database takes it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                await self.write_beats()

    # --- what comes --------------------------------------------------------------------------------------------------

    def greeted(self, line: Line) -> None:
        """A line was opened: its clock is as its greeting said until a heartbeat tells more."""
        self._of(line).shift = _shift(line.skew_seconds)

    async def heard(self, line: Line, message: Heartbeat) -> None:
        """Take a heartbeat in. Returns at once, unless the one before is not written yet: an instance that sends faster
        than can be written waits, and no other does.
        """
        while (before := self._beats.get(line.identity.instance_id)) is not None:
            before.done = before.done or asyncio.Event()
            await before.done.wait()
        beat = _Beat(line, message, self._of(line))
        self._beats[beat.instance_id] = beat
        self._waiting.append(beat)
        beat.known.shift = _shift((message.sent_at - beat.time).total_seconds())
        self._beat_came.set()

    async def keep(self, line: Line, message: Samples) -> None:
        """Write measurements of the past; they are durable when this returns. Those that are too old, lie ahead, are no
        numbers or are more than an instance can have measured are dropped; those that are there already change nothing.
        """
        past = _Past(line, message, self._of(line))
        self._pasts.append(past)
        self._past_came.set()
        await past.done

    def _of(self, line: Line) -> _Known:
        """What waits to be written keeps what this gives: of too many instances the first is forgotten meanwhile."""
        instance_id = line.identity.instance_id
        known = self._known.get(instance_id)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            known = self._known[instance_id] = _Known(self._most_points)
            known.shift = _shift(line.skew_seconds)
        return known

    # --- what is written ---------------------------------------------------------------------------------------------

    async def _often(self, came: asyncio.Event, write: Callable[[], Awaitable[None]]) -> None:
        failing_since: float | None = None
        while True:
            await came.wait()
            await asyncio.sleep(BATCH_SECONDS)
            came.clear()
            try:
                await write()
                failing_since = None
            except Exception as error:  # noqa: BLE001 - what has come stays until the database takes it
                self.healthy_since = time.monotonic()
                if failing_since is None:
                    failing_since = self.healthy_since
                    log.warning("What instances send can't be written yet", cause=type(error).__name__)
                came.set()
                await asyncio.sleep(_RETRY_SECONDS)
            self._tell()

    def _tell(self) -> None:
        if self.dropped and time.monotonic() - self._told_at > _TELL_SECONDS:
            log.warning("Some of what instances measured was not taken", **self.dropped)
            self.dropped.clear()
            self._told_at = time.monotonic()

    async def write_beats(self) -> None:
        """Write the heartbeats that wait. Raises what the database raises; they then still wait. May be called while
        another call is at work: while the database writes what one has taken, the other makes the next ready.
        """
        while batch := self._take():
            try:
                await self._ready()
                await self._learn_apps(beat for beat in batch if beat.message.app_measured)
                for beat in batch:
                    self._look_at(beat)
                await self._write_batch(batch)
            except BaseException:
                self._waiting.extendleft(beat for beat in reversed(batch) if self._beats.get(beat.instance_id) is beat)
                raise

    def _take(self) -> list[_Beat]:
        batch: list[_Beat] = []
        size = 0
        while self._waiting and size < _MOST_ROWS:
            beat = self._waiting.popleft()
            batch.append(beat)
            size += len(beat.message.app_measured) + 1
        return batch

    async def _write_batch(self, beats: Sequence[_Beat]) -> None:
        """What can't be written of one instance is found by halves, and nobody else loses anything."""
        try:
            await self._write_together(beats)
        except Exception as error:
            if not _is_wrong(error):
                raise
            if len(beats) > 1:
                middle = len(beats) // 2
                await self._write_batch(beats[:middle])
                await self._write_batch(beats[middle:])
                return
            log.warning("A heartbeat can't be kept", instance=beats[0].instance_id, cause=type(error).__name__)
            beats[0].line.end(CLOSE_MALFORMED, "The message can't be kept")
        for beat in beats:
            del self._beats[beat.instance_id]
            if beat.done is not None:
                beat.done.set()

    async def _write_together(self, beats: Sequence[_Beat]) -> None:
        try:
            await self._write_by(_copy, beats)
        except asyncpg.UniqueViolationError:
            # Seldom: something comes a second time, after a line was cut.
            await self._write_by(_insert, beats)

    async def _write_by(
        self, write: Callable[[AsyncSession, list[Row]], Awaitable[None]], beats: Sequence[_Beat]
    ) -> None:
        async with self.database.begin() as session:
            await see_all_tenants(session)
            driver = await _driver_of(session)
            found = {row[0]: _Before(*row) for row in await driver.fetch(_HEAR, *_signs_of(beats))}
            heard = [beat for beat in beats if beat.instance_id in found]
            samples = [row for beat in heard for row in beat.samples or ()]
            if samples:
                await write(session, samples)
                await _mark_late(session, samples)
            await self._compare(session, heard, found)
        for beat in beats:
            if beat.instance_id not in found:
                beat.line.end(CLOSE_REVOKED, "The instance was revoked")

    async def write_past(self) -> None:
        """Write the measurements of the past that wait. Raises what the database raises; they then still wait."""
        for past in list(self._pasts):
            await self._ready()
            # Once: what is tried again counts no more towards what an instance may send.
            if past.rows is None:
                await self._learn_apps([past])
                past.rows = self._rows_of_past(past)
            try:
                await self._write_rows(past.rows)
            except Exception as error:
                if not _is_wrong(error):
                    raise
                past.line.end(CLOSE_MALFORMED, "The message can't be kept")
            self._pasts.popleft()
            if not past.done.done():
                past.done.set_result(None)

    async def _write_rows(self, rows: Sequence[Row]) -> None:
        for begin in range(0, len(rows), _MOST_ROWS):
            part = rows[begin : begin + _MOST_ROWS]
            async with self.database.begin() as session:
                await see_all_tenants(session)
                await _insert(session, part)
                await _mark_late(session, part)

    async def _ready(self) -> None:
        """There are partitions for what comes, once a day looked after here too: nothing waits for a schedule."""
        now = _now()
        if self._ready_for != now.date():
            async with self.database.begin() as session:
                await keep_partitions(session, now)
            self._ready_for = now.date()

    # --- from messages to rows ---------------------------------------------------------------------------------------

    async def _learn_apps(self, waiting: Iterable[_Beat | _Past]) -> None:
        """Which apps these instances have, where that is not known or another process has been told since."""
        missing = {one.instance_id: one.known for one in waiting if one.known.app_ids is None}
        if not missing:
            return
        async with self.database.begin() as session:
            await see_all_tenants(session)
            await _learn(session, missing)

    def _look_at(self, beat: _Beat) -> None:
        """Find out, once, what of a heartbeat is kept."""
        if beat.samples is not None:
            return
        message, known = beat.message, beat.known
        if message.state is not None:
            known.learn(message.state_hash, _apps_of(message.state))
        beat.measured = self._clean(message.measured or [], len(HOST_METRICS))
        beat.samples = []
        if beat.measured is not None or message.app_measured:
            at = self._taken_at(known, message.sent_at, beat.time)
            if at is not None:
                beat.samples = self._rows_of(beat.line.identity, known, at, beat.measured, message.app_measured)

    def _rows_of_past(self, past: _Past) -> list[Row]:
        known, now = past.known, _now()
        rows: list[Row] = []
        for point in past.message.points:
            at = self._taken_at(known, point.at, now)
            if at is not None:
                measured = self._clean(point.measured, len(HOST_METRICS))
                rows += self._rows_of(past.line.identity, known, at, measured, point.apps)
        return rows

    def _rows_of(
        self,
        identity: Identity,
        known: _Known,
        at: datetime,
        measured: list[float | None] | None,
        apps: Mapping[str, list[float | None]],
    ) -> list[Row]:
        tenant_id, instance_id = identity.tenant_id, identity.instance_id
        rows: list[Row] = [] if measured is None else [(tenant_id, instance_id, "", at, measured)]
        for app_id, values in apps.items():
            if app_id not in (known.app_ids or ()):
                self.dropped["unknown_app"] += 1
            elif (kept := self._clean(values, len(APP_METRICS))) is not None:
                rows.append((tenant_id, instance_id, app_id, at, kept))
        return rows

    def _taken_at(self, known: _Known, told: datetime, now: datetime) -> datetime | None:
        """The moment by this panel's clock, if it lies within what is taken and the instance has not sent more than it
        can have measured.
        """
        try:
            at = told - known.shift
        except OverflowError:
            at = told
        if not now - PAST <= at <= now + AHEAD:
            self.dropped["outside_of_24_hours" if at < now else "in_the_future"] += 1
            return None
        passed, known.looked_at = time.monotonic() - known.looked_at, time.monotonic()
        known.allowance = min(self._most_points, known.allowance + passed * self._each_second)
        if known.allowance < 1:
            self.dropped["too_many"] += 1
            return None
        known.allowance -= 1
        return at

    def _clean(self, values: list[float | None], most: int) -> list[float | None] | None:
        """The values that this release knows, without what is no number; None when nothing is left."""
        known = values if len(values) <= most else values[:most]
        if _are_numbers(known):
            return known
        kept = [value if value is not None and -MOST_VALUE <= value <= MOST_VALUE else None for value in known]
        missing = kept.count(None)
        if odd := missing - known.count(None):
            self.dropped["not_a_number"] += odd
        return kept if missing < len(kept) else None

    # --- what has changed --------------------------------------------------------------------------------------------

    async def _compare(self, session: AsyncSession, beats: Sequence[_Beat], found: Mapping[str, _Before]) -> None:
        """Write what heartbeats show to be other than before, and announce it."""
        now = _now()
        # Another process may have been told more than this one remembers.
        told = [beat for beat in beats if beat.message.state is None]
        unknown = {
            one.instance_id: one.known for one in told if one.known.state_hash != found[one.instance_id].state_hash
        }
        if unknown:
            await _learn(session, unknown)
        changed = []
        for beat in beats:
            before = found[beat.instance_id]
            if beat.message.state is not None and beat.message.state_hash != before.state_hash:
                await _describe(session, beat.line.identity, beat.message)
            checks = failing(
                measures(beat.measured),
                beat.known.bad_apps,
                skew_seconds=beat.line.skew_seconds,
                certificate_expires_at=before.certificate_expires_at,
                now=now,
            )
            if checks or before.status != "online" or before.checks != "[]" or before.status_reason is not None:
                standing = _Standing(beat.line.identity, before, checks)
                if standing.differs:
                    changed.append(standing)
        if changed:
            await _stand(session, changed)


# What tells of a sign of life tells as well how the instance stands. Values are arrays as text: the driver makes arrays
# of texts several times as fast as arrays of rows.
_HEAR: Final = """
    UPDATE fleet_presence AS p SET
        last_seen_at = heard.came_at,
        measured = coalesce(heard.measured::float8[], p.measured),
        measured_at = CASE WHEN heard.measured IS NULL THEN p.measured_at ELSE heard.came_at END
    FROM (
        SELECT tenant_id, instance_id, measured, clock_timestamp() - make_interval(secs => age_seconds) AS came_at
        FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[])
            AS sign (tenant_id, instance_id, measured, age_seconds)
    ) AS heard
    JOIN fleet_instances AS i ON i.id = heard.instance_id AND i.tenant_id = heard.tenant_id
    WHERE p.instance_id = heard.instance_id AND p.tenant_id = heard.tenant_id AND i.status <> 'revoked'
    RETURNING i.id, i.name, i.status, i.status_reason, i.state_hash, i.checks::text, i.certificate_expires_at
"""
_INSERT = text(
    """
    INSERT INTO fleet_samples (tenant_id, instance_id, app_id, at, measured)
    SELECT one.tenant_id, one.instance_id, one.app_id, one.at, CAST(one.measured AS float8[])
    FROM unnest(CAST(:tenants AS text[]), CAST(:instances AS text[]), CAST(:apps AS text[]),
        CAST(:moments AS timestamptz[]), CAST(:measured AS text[]))
        AS one (tenant_id, instance_id, app_id, at, measured)
    JOIN fleet_instances AS i ON i.id = one.instance_id AND i.tenant_id = one.tenant_id
    WHERE i.status <> 'revoked'
    ON CONFLICT DO NOTHING
    """
)
_APPS = text("SELECT id, state_hash, apps FROM fleet_instances WHERE id = ANY(CAST(:ids AS text[]))")
_MARK = text(
    """
    INSERT INTO fleet_late (tenant_id, instance_id, at)
    SELECT i.tenant_id, i.id, mark.at
    FROM unnest(CAST(:instances AS text[]), CAST(:hours AS timestamptz[])) AS mark (instance_id, at)
    JOIN fleet_instances AS i ON i.id = mark.instance_id
    ON CONFLICT DO NOTHING
    """
)
_STAND = text(
    """
    UPDATE fleet_instances AS i SET
        status = now.status,
        status_since = CASE WHEN i.status = now.status THEN i.status_since ELSE clock_timestamp() END,
        status_reason = now.reason, health_score = now.score, checks = CAST(now.checks AS jsonb),
        updated_at = clock_timestamp()
    FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]), CAST(:before AS text[]), CAST(:statuses AS text[]),
        CAST(:reasons AS text[]), CAST(:scores AS integer[]), CAST(:checks AS text[]))
        AS now (tenant_id, id, before, status, reason, score, checks)
    WHERE i.id = now.id AND i.tenant_id = now.tenant_id AND i.status = now.before
    RETURNING i.id
    """
)


async def _driver_of(session: AsyncSession) -> "asyncpg.Connection[Any]":
    """The driver's own connection, in the session's transaction, which must have begun: what is asked for with every
    heartbeat costs half there.
    """
    driver = (await (await session.connection()).get_raw_connection()).driver_connection
    assert driver is not None
    return driver


def _signs_of(beats: Sequence[_Beat]) -> tuple[list[Any], ...]:
    now = time.monotonic()
    return (
        [beat.line.identity.tenant_id for beat in beats],
        [beat.instance_id for beat in beats],
        [None if beat.measured is None else _written(beat.measured) for beat in beats],
        [now - beat.came_at for beat in beats],
    )


async def _copy(session: AsyncSession, samples: list[Row]) -> None:
    """Fast, and not for what may be there already: raises `asyncpg.UniqueViolationError`."""
    driver = await _driver_of(session)
    for day in {row[3].date() for row in samples}:
        rows = [row for row in samples if row[3].date() == day]
        table = f"fleet_samples_{day:%Y%m%d}"
        await driver.copy_to_table(table, source=copying.encode(rows), columns=COLUMNS, format="binary")


async def _insert(session: AsyncSession, samples: Sequence[Row]) -> None:
    """Those of members of a fleet that are not there already."""
    columns = map(list, zip(*samples, strict=True))
    values = dict(zip(("tenants", "instances", "apps", "moments", "measured"), columns, strict=True))
    await session.execute(_INSERT, values | {"measured": [_written(row[4]) for row in samples]})


def _written(values: list[float | None]) -> str:
    """As PostgreSQL writes an array: JSON but for its brackets."""
    return f"{{{_encode(values)[1:-1].decode()}}}"


async def _mark_late(session: AsyncSession, samples: Sequence[Row]) -> None:
    """Samples of what may be summed up already leave a mark, by which that is done again."""
    before = late_before(_now())
    late = sorted({(row[1], began(row[3], HOUR)) for row in samples if row[3] < before})
    if late:
        await session.execute(_MARK, {"instances": [one for one, _ in late], "hours": [at for _, at in late]})


async def _learn(session: AsyncSession, known: Mapping[str, _Known]) -> None:
    """What is written of the apps of these instances, given by their ids."""
    for row in await session.execute(_APPS, {"ids": list(known)}):
        known[row.id].learn(row.state_hash, row.apps)


async def _describe(session: AsyncSession, identity: Identity, message: Heartbeat) -> None:
    """Write down what an instance says of itself."""
    state = message.state
    assert state is not None
    names = ("version", "hostname", "os", "arch", "cpu_cores", "memory_bytes", "disk_bytes", "url")
    facts = {name: getattr(state.facts, name) for name in names}
    await session.execute(
        update(FleetInstance)
        .where(
            FleetInstance.tenant_id == identity.tenant_id,
            FleetInstance.id == identity.instance_id,
            FleetInstance.status != "revoked",
        )
        .values(
            **facts,
            apps=_apps_of(state),
            backup_at=state.backup_at,
            state_hash=message.state_hash,
            updated_at=func.clock_timestamp(),
        )
    )


async def _stand(session: AsyncSession, changed: Sequence[_Standing]) -> None:
    """Where another process or a revocation came in between, the next heartbeat is compared with that."""
    values = {
        "tenants": [one.identity.tenant_id for one in changed],
        "ids": [one.identity.instance_id for one in changed],
        "before": [one.before.status for one in changed],
        "statuses": [one.status for one in changed],
        "reasons": [one.reason for one in changed],
        "scores": [one.score for one in changed],
        "checks": [msgspec.json.encode(one.checks).decode() for one in changed],
    }
    written = set((await session.execute(_STAND, values)).scalars())
    for one in changed:
        if one.identity.instance_id in written and one.status != one.before.status:
            _announce(session, one)


def _announce(session: AsyncSession, standing: _Standing) -> None:
    instance_id, name = standing.identity.instance_id, standing.before.name
    event: InstanceOnline | InstanceDegraded
    if standing.status == "degraded":
        event = InstanceDegraded(instance_id=instance_id, name=name, reason=standing.reason or "")
    else:
        event = InstanceOnline(instance_id=instance_id, name=name)
    publish(session, event, subject=instance_id, realm="panel", tenant_id=standing.identity.tenant_id)


def _apps_of(state: State) -> list[dict[str, Any]]:
    apps: list[AppFacts] = state.apps
    return msgspec.to_builtins(apps)  # type: ignore[no-any-return]


def _are_numbers(values: Any) -> bool:
    """Whether these are measurements, all of them: a look without a loop, since nearly all are."""
    try:
        # One that is not finite makes the sum so.
        return math.isfinite(sum(values)) and min(values) >= -MOST_VALUE and max(values) <= MOST_VALUE
    except (TypeError, ValueError):
        return False  # some were not measured, or there are none


def _shift(skew_seconds: float) -> timedelta:
    """By how much the times that an instance tells are moved: whole minutes, so that what it sends again after a cut
    is known to be the same, although it took a little longer.
    """
    return timedelta(minutes=math.trunc(skew_seconds / 60)) if abs(skew_seconds) < 10**9 else timedelta()


def _is_wrong(error: Exception) -> bool:
    """Whether an error is about what was written, and not about the database."""
    origin = error.orig if isinstance(error, StatementError) else error
    cause = getattr(origin, "__cause__", None) or origin
    if isinstance(cause, asyncpg.PostgresError):
        return str(cause.sqlstate)[:2] in _WRONG
    return isinstance(cause, ValueError | TypeError | OverflowError)
