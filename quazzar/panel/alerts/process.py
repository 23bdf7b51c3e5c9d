"""The part of a panel process that watches. Any number of processes may; a tenant is evaluated by one at a time."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count
from time import monotonic
from typing import Final

import structlog

from quazzar.core.db import Database
from quazzar.panel.alerts import store, upkeep
from quazzar.panel.alerts.evaluation import Pace, evaluate
from quazzar.panel.alerts.notices import tell_due
from quazzar.settings import Settings

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 15.0
_BATCH: Final = 50
_ADOPT_EACH: Final = 100
"""Steps."""


class Watch:
    """One per process. `start` and `stop` are for the lifespan, `step` and `look` for tests too.

    All that it knows is in the database. `panel_url` gives where people find the panel.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        panel_url: Callable[[], str],
        *,
        every_seconds: float | None = None,
    ) -> None:
        # Values come with heartbeats: to look much more often than those finds nothing new.
        usual = min(EVERY_SECONDS, max(1.0, settings.agent.heartbeat_seconds / 2))
        every = usual if every_seconds is None else every_seconds
        self._pace = Pace(timedelta(seconds=every), timedelta(seconds=2 * usual))
        self._database = database
        self._settings = settings
        self._panel_url = panel_url
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._step_often(), name="alerts-watch")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _step_often(self) -> None:
        pause = min(5.0, self._pace.every.total_seconds() / 3)
        steps = count()
        while True:
            await asyncio.sleep(pause)
            try:
                if next(steps) % _ADOPT_EACH == 0:
                    await self.adopt()
                await self.step()
            except Exception as error:  # noqa: BLE001 - the database is away for a moment; the next step makes up for it
                log.warning("alerts.step_failed", cause=type(error).__name__)

    async def adopt(self) -> None:
        """See to it that no tenant with instances is forgotten."""
        async with self._database.begin() as session:
            await upkeep.adopt(session)

    async def step(self, now: datetime | None = None) -> None:
        """Evaluate every tenant that is due; `now` is the database's clock unless given. One that fails holds up no
        other, and has its next turn like them; one that another process is at is passed over.
        """
        last: upkeep.Due | None = None
        while True:
            async with self._database.begin() as session:
                at = now if now is not None else await upkeep.database_time(session)
                due = await upkeep.find_due(session, at, _BATCH, after=last)
            for tenant_id, _ in due:
                began = monotonic()
                try:
                    await self.look(tenant_id, at)
                except Exception as error:
                    log.warning("alerts.evaluation_failed", tenant_id=tenant_id, exc_info=error)
                    await self._postpone(tenant_id, at + self._pace.until_next(monotonic() - began))
            if len(due) < _BATCH:
                return
            last = due[-1]

    async def _postpone(self, tenant_id: str, due_at: datetime) -> None:
        async with self._database.begin(tenant=tenant_id) as session:
            await store.end_turn(session, tenant_id, due_at=due_at)

    async def look(self, tenant_id: str, now: datetime) -> None:
        """Evaluate one tenant if it is due and nobody else does, and tell what is to be told."""
        async with self._database.begin(tenant=tenant_id) as session:
            something = await evaluate(session, tenant_id, now, self._pace)
        if something:
            async with self._database.begin(tenant=tenant_id) as session:
                await store.lock_turn(session, tenant_id)
                await tell_due(session, tenant_id, now, self._settings, self._panel_url())
