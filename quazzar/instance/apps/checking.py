"""What newer there is of the installed apps: versions in the catalogue, and images whose tags have moved.

A registry is asked through the container engine, which knows how it is reached. It counts such a question like a pull,
so each image is asked for once a day, some at a time, and a registry that wants none or does not answer is left alone
for a time that doubles.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.crypto import SealBroken
from quazzar.core.errors import Invalid
from quazzar.core.jobs import KEYRING, SETTINGS, JobFailed, JobRun, Resources, enqueue, job, schedule
from quazzar.core.records import publish
from quazzar.instance.apps import store, updates_store
from quazzar.instance.apps.building import build_spec
from quazzar.instance.apps.errors import AppBusy, AppNotFound
from quazzar.instance.apps.events import AppUpdateAvailable
from quazzar.instance.apps.images import is_pinned, registry_of
from quazzar.instance.apps.runtimes.base import RegistryUnreachable, RuntimeFailure, RuntimeUnavailable
from quazzar.instance.apps.schemas import AvailableUpdate, NewImage
from quazzar.instance.apps.service import AppService
from quazzar.instance.apps.updates_store import Checked, Pause
from quazzar.instance.apps.work import RUNTIME
from quazzar.instance.registries.service import logins_for
from quazzar.instance.templates.service import newest_versions
from quazzar.instance.templates.versions import reads_older

log = structlog.get_logger(__name__)

Begin = Callable[[], AbstractAsyncContextManager[AsyncSession]]

LOOK_SECONDS: Final = 1800.0
MOST_QUESTIONS: Final = 10
"""How many images one registry is asked for in one go; the others have to wait for the next."""
_AT_ONCE: Final = 2
"""Questions to one registry at once."""
_REGISTRIES_AT_ONCE: Final = 4
_FIRST_PAUSE: Final = timedelta(minutes=15)
_LONGEST_PAUSE: Final = timedelta(hours=24)
_PAUSING: Final = "registry_rate_limited"


@schedule(every_seconds=LOOK_SECONDS)
@job("apps.check_updates", concurrency=1, max_attempts=1, timeout_seconds=1500)
async def check_updates(run: JobRun) -> None:
    """Looks at every app: at the catalogue each time, at the registries of its images when that is due."""
    async with run.begin() as session:
        apps = await updates_store.find_checked(session)
    hours = run.resources[SETTINGS].apps.update_check_hours
    if hours == 0:
        apps = [msgspec.structs.replace(one, is_due=False) for one in apps]
    await _Check(run.begin, run.resources, run.log, timedelta(hours=hours or 24)).look_at(apps)


@job("apps.check_update", concurrency=4, max_attempts=1, timeout_seconds=300)
async def check_update(run: JobRun, app_id: str) -> None:
    """Looks at one app now, but leaves a registry alone that wants to be."""
    async with run.begin() as session:
        apps = await updates_store.find_checked(session, app_id)
    hours = run.resources[SETTINGS].apps.update_check_hours or 24
    check = _Check(run.begin, run.resources, run.log, timedelta(hours=hours))
    await check.look_at([msgspec.structs.replace(one, is_due=True) for one in apps])


async def look_at_catalogue(begin: Begin) -> None:
    """Note what the catalogue has that is newer, of the apps of which that is another thing than before."""
    async with begin() as session:
        apps = await updates_store.find_catalogued(session)
        # Without apps the catalogue, which takes its time and memory, need not be read.
        newest = await newest_versions(session, {one.template for one in apps}) if apps else {}
    check = _Check(begin, Resources(), _log, timedelta(0))
    for one in apps:
        newer = _newer(newest.get((one.template, one.publisher)), one.version)
        if newer == one.known:
            continue
        async with begin() as session:
            found = await updates_store.find_checked(session, one.id)
        for app in found:
            await check.note(app, newer, None)


def _log(line: str) -> None:
    log.info("apps.update_available", found=line)


def _newer(newest: str | None, version: str | None) -> str | None:
    """The newest version of a template where it is newer than the one that an app has."""
    if newest is None or version is None or newest == version or reads_older(newest, version):
        return None
    return newest


class _Check:
    def __init__(self, begin: Begin, resources: Resources, tell: Callable[[str], object], every: timedelta) -> None:
        self.begin = begin
        self.resources = resources
        self.tell = tell
        self.every = every
        self.digests: dict[str, str] = {}
        """What the registries said, by image."""
        self.reasons: dict[str, str] = {}
        """Why one of them said nothing, by image."""
        self.pauses: dict[str, Pause] = {}
        self.away: RuntimeUnavailable | None = None
        """Why no registry can be asked at all."""

    async def look_at(self, apps: Sequence[Checked]) -> None:
        """Raises `JobFailed` while the engine is away, through which registries are asked."""
        newest = await self._newest(apps)
        newer = {one.held.id: self._newer_version(one, newest) for one in apps}
        images = {one.held.id: self._images(one) for one in apps if one.is_due and newer[one.held.id] is None}
        await self._ask(dict.fromkeys(name for names in images.values() for name in names))
        for one in apps:
            await self.note(one, newer[one.held.id], images.get(one.held.id))
        if self.away is not None:
            raise JobFailed(self.away.message) from self.away

    async def _newest(self, apps: Iterable[Checked]) -> Mapping[tuple[str, str | None], str]:
        slugs = {one.held.template for one in apps if one.held.template is not None}
        async with self.begin() as session:
            return await newest_versions(session, slugs)

    @staticmethod
    def _newer_version(app: Checked, newest: Mapping[tuple[str, str | None], str]) -> str | None:
        held = app.held
        return _newer(newest.get((held.template or "", held.definition.get("publisher"))), held.version)

    def _images(self, app: Checked) -> list[str]:
        """The images of an app whose tags could move, and of which it is known which ones they were."""
        try:
            spec = build_spec(app.held, self.resources[KEYRING])
        except (Invalid, SealBroken):
            return []  # what can't be read can't be updated either, and says so when it is tried
        names = {service.image for service in spec.services}
        return sorted(name for name in names if not is_pinned(name) and name in app.held.images)

    # Questions

    async def _ask(self, images: Iterable[str]) -> None:
        async with self.begin() as session:
            self.pauses = await updates_store.find_pauses(session)
        by_host: dict[str, list[str]] = {}
        for name in images:
            by_host.setdefault(registry_of(name), []).append(name)
        gate = asyncio.Semaphore(_REGISTRIES_AT_ONCE)

        async def one(host: str, names: list[str]) -> None:
            async with gate:
                await self._ask_registry(host, names)

        async with asyncio.TaskGroup() as tasks:
            for host, names in by_host.items():
                tasks.create_task(one(host, names))

    async def _ask_registry(self, host: str, names: list[str]) -> None:
        pause = self.pauses.get(host)
        if pause is not None and pause.until_at > datetime.now(UTC):
            reason = (
                f"The registry {host} is left alone until {pause.until_at:%Y-%m-%d %H:%M} UTC, since it gave no answer"
            )
            self.reasons |= dict.fromkeys(names, reason)
            return
        left = names[MOST_QUESTIONS - 1 :: -1]
        failed: list[RuntimeFailure] = []

        async def ask() -> None:
            while left and not failed and self.away is None:
                name = left.pop()
                try:
                    self.digests[name] = await self._ask_for(name)
                except RuntimeUnavailable as error:
                    self.away = error
                except RuntimeFailure as failure:
                    self.reasons[name] = failure.reason
                    self.tell(failure.reason)
                    if isinstance(failure, RegistryUnreachable) or failure.code == _PAUSING:
                        failed.append(failure)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_AT_ONCE):
                tasks.create_task(ask())
        if failed:
            # What is asked for by many apps is said of all of them.
            self.reasons |= {name: failed[0].reason for name in names if name not in self.digests}
            await self._pause(host, (pause.failures if pause is not None else 0) + 1)
        elif pause is not None and self.away is None:
            async with self.begin() as session:
                await updates_store.end_pauses(session, [host])

    async def _ask_for(self, name: str) -> str:
        async with self.begin() as session:
            logins = await logins_for(session, self.resources[KEYRING], [name])
        return await self.resources[RUNTIME].remote_digest(name, logins.get(registry_of(name)))

    async def _pause(self, host: str, failures: int) -> None:
        # An engine does not pass on how long a registry wants to be left alone.
        length = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, 10))
        pause = Pause(failures, datetime.now(UTC) + _jittered(length))
        self.pauses[host] = pause
        async with self.begin() as session:
            await updates_store.set_pause(session, host, pause)

    # Answers

    async def note(self, app: Checked, version: str | None, images: Sequence[str] | None) -> None:
        """Write down what there is of an app; `images` are those that were to be asked for, None for not at all."""
        if images is None and version == _other_version(app):
            return
        known = [name for name in images or () if name in self.digests]
        reason = next((self.reasons[name] for name in images or () if name in self.reasons), None)
        moved = [
            NewImage(image=name, digest=self.digests[name])
            for name in known
            if self.digests[name] != app.held.images[name]
        ]
        asked_all = images is not None and len(known) == len(images)
        async with self.begin() as session:
            now = await updates_store.lock_checked(session, app.held)
            if now is None:
                return
            if version is not None:
                await self._found(session, now, version, [])
            elif moved and (asked_all or now.available is None):
                await self._found(session, now, app.held.version, moved)
            elif now.available is not None and (asked_all or _other_version(now) is not None):
                await updates_store.set_available(session, app.held.id, None, announced=now.announced)
            if asked_all or reason is not None:
                await updates_store.set_checked(session, app.held.id, again=self._again(images or ()), error=reason)

    async def _found(self, session: AsyncSession, app: Checked, version: str | None, images: list[NewImage]) -> None:
        held, known = app.held, app.available
        if known is not None and (known.version, known.images) == (version, images):
            return
        found = AvailableUpdate(version=version, images=images, since=datetime.now(UTC))
        key = _key(found)
        news = key not in app.announced
        await updates_store.set_available(
            session, held.id, found, announced=[*app.announced, key] if news else app.announced
        )
        if news:
            self.tell(f"{held.name}: {version if not images else ', '.join(one.image for one in images)}")
            event = AppUpdateAvailable(
                app_id=held.id,
                name=held.name,
                version=held.version,
                available_version=version,
                images=[one.image for one in images],
            )
            publish(session, event, subject=held.id)

    def _again(self, images: Iterable[str]) -> timedelta:
        """In how long the images are to be asked for again: as always, or once their registry may be asked."""
        now = datetime.now(UTC)
        pauses = [self.pauses[registry_of(name)].until_at - now for name in images if registry_of(name) in self.pauses]
        paused = [one for one in pauses if one > timedelta(0)]
        return min(paused) if paused else _jittered(self.every)


def _other_version(app: Checked) -> str | None:
    """The version that is known to be there for an app, None where it is only other images."""
    known = app.available
    return known.version if known is not None and known.version != app.held.version else None


def _jittered(length: timedelta) -> timedelta:
    return length * random.uniform(0.9, 1.1)  # noqa: S311 - spreads questions over time


def _key(found: AvailableUpdate) -> str:
    """What makes one news of an update another one."""
    return " ".join([found.version or "", *sorted(one.digest for one in found.images)]).strip()


async def begin_check(apps: AppService, app_id: str) -> str:
    """Have one app looked at now; gives the id of the job. Raises `AppNotFound`, `AppBusy`."""
    app = await store.get_state(apps.session, app_id) if apps.may_see(app_id) else None
    if app is None:
        raise AppNotFound
    if app.status not in updates_store.AT_REST or app.installed_at is None:
        raise AppBusy.with_status(app.status)
    return await enqueue(apps.session, check_update, subject=app_id, app_id=app_id)
