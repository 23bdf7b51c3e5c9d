"""What apps have on the disk: measured now and then in the background, since the engine counts every file for it."""

import asyncio
import contextlib
from typing import Final

import msgspec
import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from quazzar.core.db import Database
from quazzar.core.errors import Unavailable
from quazzar.instance.apps.runtimes.base import Runtime, RuntimeFailure

log = structlog.get_logger(__name__)

MEASURE_SECONDS: Final = 900.0
LOOK_SECONDS: Final = 30.0
"""How soon an app is measured that never was."""
REST: Final = 20
"""Measuring takes at most one part in so many of the engine's time."""

# An app that is uninstalled meanwhile gets no row: its own is held until the commit, or is not there any more.
_WRITE = text(
    """
    INSERT INTO app_disks (app_id, volumes, containers_bytes)
    SELECT apps.id, CAST(given.volumes AS jsonb), given.containers
    FROM unnest(CAST(:ids AS text[]), CAST(:volumes AS text[]), CAST(:containers AS bigint[]))
        AS given (id, volumes, containers)
    JOIN apps ON apps.id = given.id FOR KEY SHARE OF apps
    ON CONFLICT (app_id) DO UPDATE SET volumes = excluded.volumes, containers_bytes = excluded.containers_bytes,
        measured_at = now()
    """
)
_UNKNOWN = text(
    "SELECT EXISTS (SELECT FROM apps LEFT JOIN app_disks ON app_id = id "
    "WHERE app_id IS NULL AND installed_at IS NOT NULL AND jsonb_array_length(apps.volumes) > 0)"
)


class DiskMeter:
    """One per process. `start` and `stop` are for the lifespan, `measure` for tests too."""

    def __init__(self, database: Database, runtime: Runtime) -> None:
        self._database = database
        self._runtime = runtime
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._measure_often(), name="apps-disks")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _measure_often(self) -> None:
        loop = asyncio.get_running_loop()
        due = earliest = loop.time() + LOOK_SECONDS
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            began = loop.time()
            try:
                if began >= due or (began >= earliest and await self.is_one_unknown()):
                    await self.measure()
                    due = loop.time() + MEASURE_SECONDS
                    earliest = loop.time() + REST * (loop.time() - began)
            except Unavailable:
                pass  # the reconciler says that the engine is away
            except (RuntimeFailure, SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("apps.disks_failed", error=type(error).__name__)
            except Exception as error:
                log.error("apps.disks_failed", exc_info=error)

    async def is_one_unknown(self) -> bool:
        """Whether there is an app with data that was never measured."""
        async with self._database.begin() as session:
            return bool((await session.execute(_UNKNOWN)).scalar_one())

    async def measure(self) -> None:
        """Ask the engine what every app has on the disk, and write it down."""
        found = await self._runtime.measure_disks()
        values = {
            "ids": [one.app_id for one in found],
            "volumes": [msgspec.json.encode(one.volumes).decode() for one in found],
            "containers": [one.containers_bytes for one in found],
        }
        async with self._database.begin() as session:
            await session.execute(_WRITE, values)
