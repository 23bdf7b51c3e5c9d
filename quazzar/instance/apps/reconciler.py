"""Keeps the rows of apps in step with the engine, and ends operations that nobody carries out any more.

It only looks and writes down: the engine's own restart policies act, and jobs do what users ask for. All that it
removes are remains: of installs that failed while the engine was away, and of copies that were broken off.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError

from quazzar.core.db import Database
from quazzar.core.errors import Unavailable
from quazzar.core.records import publish
from quazzar.instance.apps import store
from quazzar.instance.apps.events import AppFailed, change_of
from quazzar.instance.apps.locks import app_lock, is_locked
from quazzar.instance.apps.models import TRANSITIONAL
from quazzar.instance.apps.runtimes.base import AppState, Runtime, RuntimeEvent, RuntimeFailure
from quazzar.instance.apps.snapshots import sweep_all
from quazzar.instance.apps.truth import Expected, judge, ports_view, services_view, volumes_view

log = structlog.get_logger(__name__)

FULL_PASS_SECONDS = 30.0
REAP_SECONDS = 5.0
GATHER_SECONDS = 0.1
"""Events of one moment (die, stop, destroy) are looked at together."""
BUSY_SECONDS = 1.0
"""How soon an app is looked at again that a job had when something happened to it."""
_PASSING = (SQLAlchemyError, OSError, TimeoutError, RuntimeFailure)
"""What passes by itself: the database or the engine is away for a moment."""
_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0)


class Reconciler:
    """One per process. `start` and `stop` are for the lifespan; `full_pass`, `look_at` and `reap` for tests too."""

    def __init__(self, database: Database, runtime: Runtime) -> None:
        self._database = database
        self._runtime = runtime
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._stopped: dict[str, set[str]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.engine_reachable = False

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._follow_events(), name="apps-events"),
            asyncio.create_task(self._look_at_dirty(), name="apps-reconcile"),
            asyncio.create_task(self._reap_often(), name="apps-reaper"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    async def _follow_events(self) -> None:
        """A full pass, then events from before that pass on; again after every loss and every `FULL_PASS_SECONDS`."""
        failures = 0
        while True:
            try:
                since = datetime.now(UTC) - timedelta(seconds=1)
                await self.full_pass()
                self.engine_reachable = True
                failures = 0
                await self._follow(since)
            except Unavailable as error:
                self.engine_reachable = False
                if failures == 0:  # once for each loss, the first time at the start
                    log.warning("apps.engine_unavailable", reason=error.message)
            except Exception as error:  # noqa: BLE001 - this loop must outlive every fault
                self._report("apps.reconcile_failed", error)
            pause = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]
            failures += 1
            await asyncio.sleep(pause)

    async def _follow(self, since: datetime) -> None:
        """Mark apps of events as dirty until the line breaks, with a full pass now and then in between."""

        async def listen() -> None:
            async with contextlib.aclosing(self._runtime.events(since=since)) as events:
                async for event in events:
                    self.note(event)

        listening = asyncio.create_task(listen(), name="apps-event-stream")
        try:
            while not listening.done():
                await asyncio.wait({listening}, timeout=FULL_PASS_SECONDS)
                if not listening.done():
                    await self.full_pass()
            listening.result()
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await listening

    def note(self, event: RuntimeEvent) -> None:
        """An event says only where to look; who was stopped on purpose is all that the engine can't tell later."""
        by_hand = self._stopped.setdefault(event.app_id, set())
        if event.action == "stop":
            by_hand.add(event.service)
        elif event.action in {"start", "destroy"}:
            by_hand.discard(event.service)
        self._dirty.add(event.app_id)
        self._wake.set()

    async def _look_at_dirty(self) -> None:
        busy: set[str] = set()
        while True:
            with contextlib.suppress(TimeoutError):
                # What happens while a job has an app may come after the job's own last look.
                async with asyncio.timeout(BUSY_SECONDS if busy else None):
                    await self._wake.wait()
                    await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            ids, self._dirty = sorted(self._dirty | busy), set()
            try:
                busy = await self.look_at(ids)
            except Unavailable:
                busy = set()  # a full pass follows as soon as the engine is back
            except Exception as error:  # noqa: BLE001 - as above
                # What passes is looked at again, what does not waits for the next full pass.
                busy = set(ids) if self._report("apps.reconcile_failed", error) else set()

    @staticmethod
    def _report(event: str, error: Exception) -> bool:
        """Log why a round failed; true when that passes by itself. These loops outlive every fault."""
        passing = isinstance(error, (Unavailable, *_PASSING))
        if passing:
            log.warning(event, error=type(error).__name__)
        else:
            log.error(event, exc_info=error)
        return passing

    async def _reap_often(self) -> None:
        while True:
            await asyncio.sleep(REAP_SECONDS)
            try:
                await self.reap()
            except Exception as error:  # noqa: BLE001 - as above
                self._report("apps.reap_failed", error)

    async def full_pass(self) -> None:
        """Compare every app with the engine. Raises `RuntimeUnavailable` when it is away."""
        async with self._database.begin() as session:
            apps = await store.watch_apps(session)
        # Rows first, engine second: what an operation changes after we read a row makes our write of it void.
        states = {state.app_id: state for state in await self._runtime.find()}
        for app in apps:
            try:
                await self._settle(app, states.get(app.id))
            except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
                # One row that this release can't read must not hide the others.
                log.error("apps.reconcile_failed", app_id=app.id, exc_info=error)
        known = {app.id for app in apps}
        for app_id in [app_id for app_id in self._stopped if app_id not in known]:
            del self._stopped[app_id]
        await self._runtime.tidy()
        await sweep_all(self._database, self._runtime)

    async def look_at(self, ids: Sequence[str]) -> set[str]:
        """Compare these apps with the engine; ids that are not ours are passed over. Gives those that a job has."""
        async with self._database.begin() as session:
            apps = await store.watch_apps(session, ids)
        for app in apps:
            if app.status not in TRANSITIONAL:
                await self._settle(app, await self._runtime.get(app.id))
        return {app.id for app in apps if app.status in TRANSITIONAL}

    async def _settle(self, app: store.Watched, state: AppState | None) -> None:
        if app.status in TRANSITIONAL:
            return
        if app.installed_at is None:
            if state is not None:
                await self._remove_remains(app)
            return
        values = self._changes(app, state)
        if not values:
            return
        async with self._database.begin() as session:
            recorded = await store.record_truth(session, app, values)
            if recorded and (now := values.get("status", app.status)) != app.status:
                services, reason = values.get("services", app.services), values["status_reason"]
                news = change_of(app.id, app.name, was=app.status, now=now, reason=reason, services=services)
                if news is not None:
                    publish(session, news, subject=app.id)
        if recorded and values.get("status") not in {None, app.status}:
            log.info("apps.status_changed", app_id=app.id, was=app.status, now=values["status"])

    def _changes(self, app: store.Watched, state: AppState | None) -> dict[str, Any]:
        """What of the row differs from the engine's word; empty when all is as it stands there."""
        expected = [msgspec.convert(one, Expected) for one in app.expected]
        stopped = set(self._stopped.get(app.id, ()))
        if app.status == "stopped":
            # Exit codes alone don't tell a stop from a kill; what was a stop yesterday still is one.
            stopped |= {one["name"] for one in app.services if one.get("status") == "exited"}
        verdict = judge(state, expected, app.desired, stopped=stopped)
        values: dict[str, Any] = {}
        failed = app.status == "failed" and verdict.status in {"stopped", "crashed"}
        if not failed and (verdict.status, verdict.reason) != (app.status, app.status_reason):
            values |= {"status": verdict.status, "status_reason": verdict.reason}
            if verdict.status != app.status:
                values["status_since"] = store.now()
        views = {
            "services": services_view(state, expected),
            "volumes": volumes_view(state),
            "ports": ports_view(state),
        }
        for name, view in views.items():
            # A stopped engine object tells no ports and, once removed, no volumes: what was known stays.
            if view and view != getattr(app, name):
                values[name] = view
        return values

    async def _remove_remains(self, app: store.Watched) -> None:
        """Take away what an install left that failed while the engine was away."""
        if is_locked(app.id):
            return  # it is tried again already, and that may take long
        async with app_lock(app.id):
            async with self._database.begin() as session:
                current = await store.get_state(session, app.id)
            if current is None or current.status != "failed" or current.installed_at is not None:
                return
            await self._runtime.remove(app.id, keep_volumes=False)
            log.info("apps.remains_removed", app_id=app.id)

    async def reap(self) -> None:
        """End transitional states whose job has ended without ending them, or whose deadline has passed."""
        async with self._database.begin() as session:
            for app in await store.find_abandoned(session):
                reason = _ABANDONED.get(app.job_status or "", "The operation did not end in time")
                if await store.move_app(
                    session, app.id, of=(app.status,), to="failed", job_id=app.job_id, status_reason=reason
                ):
                    failed = AppFailed(app_id=app.id, name=app.name, operation=app.status, reason=reason)
                    publish(session, failed, subject=app.id)
                    log.warning("apps.operation_ended", app_id=app.id, was=app.status, job_id=app.job_id)


_ABANDONED = {
    "cancelled": "The operation was cancelled",
    "failed": "The operation failed; its job says why",
    "completed": "The operation ended without a result",
    "missing": "The operation was lost",
}
