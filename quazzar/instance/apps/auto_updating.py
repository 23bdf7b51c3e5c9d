"""Begins the updates of apps that are to be updated by themselves: in their windows, and one at a time. What the
catalogue has of newer versions is noted before, so that they show soon after they were published.

What decides is in the database: an update, the end of the window for its app, and the job that does it are written in
one transaction. A window that passed while nothing ran is not made up for.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.db import Database
from quazzar.core.errors import AppError, Invalid
from quazzar.core.records import SYSTEM
from quazzar.instance.apps import changes, updates_store
from quazzar.instance.apps.checking import look_at_catalogue
from quazzar.instance.apps.room import MachineWatch
from quazzar.instance.apps.schemas import AppUpdate, NewImage
from quazzar.instance.apps.service import AppService
from quazzar.instance.apps.skips import skip
from quazzar.instance.apps.updates_store import Canary, Candidate
from quazzar.instance.apps.windows import next_opening, opening
from quazzar.instance.templates.versions import reads_older
from quazzar.settings import Settings

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 10.0
CANARY_HOURS: Final = 24
"""How long an app has to be well with an update before those that wait for it get it too."""
WINDOWLESS_PAUSE: Final = timedelta(hours=1)
"""How soon an app without a window may be updated again, or is tried again after images could not be had."""
_SELF: Final = Principal(realm="instance", user_id="system", client="system", scopes=frozenset({"apps:deploy"}))


class Target(msgspec.Struct, frozen=True):
    """A version, or with `images` other images of the present one."""

    version: str | None
    images: Sequence[NewImage] = ()

    @property
    def digests(self) -> list[str]:
        return [one.digest for one in self.images]

    @property
    def keys(self) -> set[str | None]:
        """What `skip_versions` may name of it."""
        return {*self.digests} if self.images else {self.version}


class Waits(Exception):
    """Why an update that is there is not begun, for the user."""


class AutoUpdater:
    """One per process. `start` and `stop` are for the lifespan, `look` for tests too."""

    def __init__(
        self, database: Database, keyring: Keyring, settings: Settings, machine: MachineWatch | None = None
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._settings = settings
        self._machine = machine
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._look_often(), name="apps-auto-update")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._attempt(look_at_catalogue, self._transaction)
            await self._attempt(self.look, datetime.now(UTC))

    async def _attempt(self, look: Callable[..., Awaitable[object]], given: object) -> None:
        """What goes wrong with the one look is nothing that the other waits for."""
        try:
            await look(given)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("apps.auto_update_failed", error=type(error).__name__)
        except Exception as error:
            log.error("apps.auto_update_failed", exc_info=error)

    async def look(self, now: datetime) -> str | None:
        """Begin at most one update, and none while one is being made; gives the id of the app."""
        async with self._transaction() as session:
            due = await updates_store.find_due(session, now)
        for app_id in due:
            try:
                if await self._begin(app_id, now):
                    return app_id
            except (AppError, SealBroken) as error:
                await self._refused(app_id, error)
            except (LookupError, TypeError, ValueError) as error:
                # One row that this release can't read must not keep the others from their updates.
                log.error("apps.auto_update_failed", app_id=app_id, exc_info=error)
        return None

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncSession]:
        async with self._database.begin() as session:
            session.info["caller"] = SYSTEM
            yield session

    async def _begin(self, app_id: str, now: datetime) -> bool:
        """Raises what `changes.update` does; nothing is written then."""
        async with self._transaction() as session:
            if await updates_store.is_one_running(session):
                return False
            app = await updates_store.lock_candidate(session, app_id)
            if app is None:
                return False
            window = app.policy.window
            if window is not None and (opens_at := opening(window, now)) > now:
                await updates_store.set_policy_state(session, app_id, opens_at=opens_at)
                return False
            try:
                target = target_of(app)
                await self._await_canary(session, app, target, now)
            except Waits as reason:
                if str(reason) != app.policy.waits_for:
                    await updates_store.set_policy_state(session, app_id, waits_for=str(reason))
                return False
            apps = AppService(session, _SELF, keyring=self._keyring, settings=self._settings, machine=self._machine)
            await changes.update(apps, app_id, AppUpdate(version=target.version), automatic=True)
            again = next_opening(window, now) if window is not None else now + WINDOWLESS_PAUSE
            await updates_store.set_policy_state(session, app_id, opens_at=again, waits_for=None)
        log.info("apps.auto_update_begun", app_id=app_id, version=target.version)
        return True

    @staticmethod
    async def _await_canary(session: AsyncSession, app: Candidate, target: Target, now: datetime) -> None:
        if app.policy.canary_app is not None:
            check_canary(await updates_store.get_canary(session, app.policy.canary_app), target, now)

    async def _refused(self, app_id: str, error: AppError | SealBroken) -> None:
        """An update that can't even begin: one that needs something from the owner is not tried again."""
        async with self._transaction() as session:
            app = await updates_store.lock_candidate(session, app_id)
            if app is None:
                return
            details = "; ".join((error.details or {}).values()) if isinstance(error, AppError) else ""
            if not isinstance(error, Invalid):
                said = error.message if isinstance(error, AppError) else "The app's secrets can't be read"
                reason = f"{said}: {details}" if details else said
                await updates_store.set_policy_state(session, app_id, waits_for=reason)
                return
            target = target_of(app)
            reason = f"It can't be updated without you: {details or error.message}"
            await skip(session, app_id, app.name, version=target.version, digests=target.digests, reason=reason)


def target_of(app: Candidate) -> Target:
    """What an app is to be updated to. Raises `Waits`."""
    hold, target = app.policy.hold_version, Target(app.available.version, app.available.images)
    if hold is not None:
        if app.version is None or hold == app.version or reads_older(hold, app.version):
            raise Waits(f"It is held at version {hold}")
        target = Target(hold) if hold != target.version else target
    if target.keys & {*app.policy.skip_versions}:
        raise Waits(f"{'Its new images are' if target.images else f'Version {target.version} is'} to be skipped")
    return target


def check_canary(canary: Canary | None, target: Target, now: datetime) -> None:
    """Raises `Waits` until the app that another one waits for has been well with the update for long enough."""
    if canary is None:
        raise Waits("Its canary is not there any more")
    has_it = (
        all(canary.images.get(one.image) == one.digest for one in target.images)
        if target.images
        else canary.version == target.version
    )
    if not has_it:
        raise Waits(f"Its canary {canary.name} has not been updated to that")
    if canary.status != "running":
        raise Waits(f"Its canary {canary.name} is {canary.status}")
    until = canary.since + timedelta(hours=CANARY_HOURS)
    if now < until:
        raise Waits(f"Its canary {canary.name} has to be well with that until {until:%Y-%m-%d %H:%M} UTC")
