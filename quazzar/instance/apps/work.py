"""One app in the hands of one job: claimed, worked on, and left in a state that its row tells.

Each job owns its app while the row names it and stands in the job's own state, so a job that comes late changes
nothing. Every verb of a runtime may be repeated, so after a crash at any point the job simply runs again. No
transaction is open while the engine works.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from quazzar.core.crypto import SealBroken
from quazzar.core.db import Database
from quazzar.core.errors import Invalid
from quazzar.core.jobs import KEYRING, SETTINGS, JobCancelled, JobFailed, JobRun, Resource
from quazzar.core.records import Event, publish
from quazzar.instance.apps import store
from quazzar.instance.apps.building import auto_fields, build_spec, exchange_ports, url_of
from quazzar.instance.apps.events import (
    AppFailed,
    AppInstalled,
    AppRestarted,
    AppStarted,
    AppStopped,
    AppUnhealthy,
    crash_of,
)
from quazzar.instance.apps.locks import app_lock
from quazzar.instance.apps.models import AppStatus
from quazzar.instance.apps.runtimes.base import (
    PortInUse,
    RegistryLogin,
    Report,
    Runtime,
    RuntimeFailure,
    RuntimeUnavailable,
)
from quazzar.instance.apps.runtimes.plan import UP
from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.apps.truth import Expected, Verdict, judge, services_view, views_of
from quazzar.instance.registries.service import logins_for

T = TypeVar("T")

log = structlog.get_logger(__name__)

RUNTIME: Resource[Runtime] = Resource("container runtime")

HEALTH_SECONDS = 120.0
"""How long a start waits for health checks; an app whose checks take longer is `running` and may change later."""
RESTARTS_SECONDS = 15.0
"""How long a service may restart at the start: some need a few tries until the one that they call is up."""
_UNREADABLE = "What is stored of the app can't be read by this release"
_SEALED = "The app's secrets were sealed with a key that is not there any more"
STOP_SECONDS = 900.0
_CLEAN_UP_SECONDS = 30.0
_AGAIN_UP: tuple[AppStatus, ...] = ("failed", "crashed", "unhealthy")
_AGAIN_DOWN: tuple[AppStatus, ...] = ("failed",)
_ENGINE_PAUSES = (0.5, 1.0, 2.0, 5.0)
_LOOK_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
_PORT_TRIES = 5


class Work:
    """One app in the hands of one job."""

    def __init__(self, run: JobRun, app: store.Held, status: AppStatus) -> None:
        self.run = run
        self.app = app
        self.status: AppStatus = status
        self.runtime: Runtime = run.resources[RUNTIME]
        self.database: Database = run.database
        self.expected = [msgspec.convert(one, Expected) for one in app.expected]
        self.waiting_for: str | None = None
        self.stood_still = False
        """Whether none of its services ran when this job began to start them."""

    def spec(self) -> AppSpec:
        return build_spec(self.app, self.run.resources[KEYRING])

    async def pull(self, spec: AppSpec, report: Report | None = None) -> dict[str, str]:
        """Fetch the images of `spec`, with the logins of their registries; gives their digests."""
        logins = await self.logins(spec)
        told = report or self.within(0.05, 0.6)
        return await self.patiently(lambda: self.runtime.pull(spec, told, logins=logins))

    async def logins(self, spec: AppSpec) -> Mapping[str, RegistryLogin]:
        """The logins that are stored for the registries of the images, by registry."""
        images = [service.image for service in spec.services]
        async with self.database.begin() as session:
            return await logins_for(session, self.run.resources[KEYRING], images)

    async def up(self, spec: AppSpec) -> None:
        await self.patiently(lambda: self.runtime.up(spec, self.within(0.6, 0.9)))

    def step(self, fraction: float, text: str) -> None:
        self.run.progress(fraction, text)
        self.run.log(text)

    def within(self, low: float, high: float) -> Callable[[float, str], Awaitable[None]]:
        """The `report` of a driver's call whose progress is the stretch from `low` to `high` of the job's."""

        async def report(fraction: float, text: str) -> None:
            self.run.check_cancelled()
            if text != self.run.step:
                self.run.log(text)
            self.run.progress(low + (high - low) * fraction, text)

        return report

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """`call`, made again after a pause for as long as the engine is away and the deadline has not come."""
        failures = 0
        while True:
            try:
                result = await call()
            except RuntimeUnavailable as error:
                if failures == 0:
                    await self._say_waiting(error.message)
                pause = _ENGINE_PAUSES[min(failures, len(_ENGINE_PAUSES) - 1)]
                failures += 1
                await asyncio.sleep(pause)
                continue
            if failures:
                self.run.log("The container engine is back")
                await self._say_waiting(None)
            return result

    async def _say_waiting(self, reason: str | None) -> None:
        self.waiting_for = reason
        if reason is not None:
            self.step(self.run.fraction, f"Waiting: {reason}")
        async with self.database.begin() as session:
            await store.set_reason(session, self.app.id, job_id=self.run.job_id, status=self.status, reason=reason)

    async def finish(self, status: AppStatus, reason: str | None, *, installed: bool = False) -> None:
        """The end of the operation, with what the engine holds now."""
        state = await self.patiently(lambda: self.runtime.get(self.app.id))
        await self.end(status, reason, installed=installed, **views_of(state, self.expected))

    async def end(self, status: AppStatus, reason: str | None, *, installed: bool = False, **values: Any) -> None:
        if installed and self.app.installed_at is None:
            values["installed_at"] = store.now()
        async with self.database.begin() as session:
            ended = await store.move_app(
                session,
                self.app.id,
                of=(self.status,),
                to=status,
                job_id=self.run.job_id,
                status_reason=reason,
                **values,
            )
            if ended:
                for event in self._news(status, reason, values.get("services", ())):
                    publish(session, event, subject=self.app.id)
        if ended:
            log.info("apps.operation_done", app_id=self.app.id, job_id=self.run.job_id, status=status)

    def _news(self, status: AppStatus, reason: str | None, services: Sequence[dict[str, Any]]) -> Iterator[Event]:
        """What there is to announce once the operation has left the app in `status`."""
        app_id, name = self.app.id, self.app.name
        up = status in {"running", "unhealthy"}
        if status == "failed":
            yield AppFailed(app_id=app_id, name=name, operation=self.status, reason=reason or "")
        elif self.status == "installing":
            yield AppInstalled(app_id=app_id, name=name, template=self.app.template, version=self.app.version)
        elif self.status == "starting" and up:
            yield AppStarted(app_id=app_id, name=name)
        elif self.status == "restarting" and up:
            yield AppRestarted(app_id=app_id, name=name)
        match status:
            case "crashed":
                yield crash_of(app_id, name, reason, services)
            case "stopped":
                yield AppStopped(app_id=app_id, name=name, reason=reason)
            case "unhealthy":
                yield AppUnhealthy(app_id=app_id, name=name, reason=reason)
            case _:
                pass

    async def fail(self, reason: str) -> None:
        """The operation did not go through. What was never installed whole is taken away, all else stays."""
        self.run.log(reason)
        if self.app.installed_at is None and self.status == "installing":
            self.run.progress(self.run.fraction, "Taking away what was made")
            await self.attempt(lambda: self.runtime.remove(self.app.id, keep_volumes=False))
            await self.end("failed", reason, services=[], volumes=[])
            return
        if self.status == "starting" and self.stood_still:
            await self.attempt(lambda: self.runtime.stop(self.app.id))
        state = await self.attempt(lambda: self.runtime.get(self.app.id))
        views: dict[str, Any] = {"services": services_view(state, self.expected)} if state is not None else {}
        await self.end("failed", reason, **views)

    async def start_again(self) -> None:
        """After a stop that was cancelled.

        The engine goes on with one that it has begun, and would end by it what is started before.
        """
        await self.attempt(lambda: self.runtime.stop(self.app.id), seconds=STOP_SECONDS)
        await self.attempt(lambda: self.runtime.start(self.app.id))

    async def attempt(self, call: Callable[[], Awaitable[T]], *, seconds: float = _CLEAN_UP_SECONDS) -> T | None:
        """Clean-up after a failure: once, not for long; what it can't do now, the reconciler does later."""
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except (RuntimeUnavailable, RuntimeFailure, TimeoutError):
            self.run.log("The container engine did not take part in cleaning up; that is done once it answers")
            return None


@contextlib.asynccontextmanager
async def operation(run: JobRun, app_id: str, status: AppStatus, seconds: float) -> AsyncIterator[Work | None]:
    """Claims the app for the block, None when it is not this job's any more, and turns every failure into its end."""
    again = _AGAIN_DOWN if status in {"stopping", "uninstalling", "updating"} else _AGAIN_UP
    async with app_lock(app_id):
        async with run.database.begin() as session:
            app = await store.claim_app(session, app_id, job_id=run.job_id, status=status, again=again, seconds=seconds)
        if app is None:
            run.log("Nothing to do: the app is gone, or is in another state by now")
            yield None
            return
        work = Work(run, app, status)
        try:
            async with asyncio.timeout(seconds) as limit:
                yield work
        except RuntimeFailure as failure:
            await work.fail(failure.reason)
            raise JobFailed(failure.reason) from failure
        except (Invalid, SealBroken) as failure:
            reason = _UNREADABLE if isinstance(failure, Invalid) else _SEALED
            await work.fail(reason)
            raise JobFailed(reason) from failure
        except TimeoutError as failure:
            if not limit.expired():
                raise
            reason = work.waiting_for or "The operation did not end in time"
            await work.fail(reason)
            raise JobFailed(reason) from failure
        except asyncio.CancelledError:
            # Without somebody's wish it is the process that ends: the job runs again after the next start.
            if run.cancelled.is_set():
                await work.fail("The operation was cancelled")
            raise
        except JobCancelled:
            await work.fail("The operation was cancelled")
            raise


async def bring_up(work: Work) -> None:
    spec = work.spec()
    if work.app.installed_at is not None:
        await _look_before(work, spec)
    digests = await work.pull(spec)
    if work.app.installed_at is None and digests != work.app.images:
        await _hold_images(work, digests)
        spec = work.spec()
    for attempt in range(_PORT_TRIES):
        try:
            await work.up(spec)
            break
        except PortInUse:
            if attempt == _PORT_TRIES - 1 or not await _exchange_ports(work):
                raise
            spec = work.spec()
    work.step(0.9, "Waiting for the services to be ready")
    verdict = await settled(work)
    if verdict.reason is not None:
        work.run.log(verdict.reason)
    await work.finish(verdict.status, verdict.reason, installed=True)
    if verdict.status == "crashed":
        raise JobFailed(verdict.reason or "The app crashed")


async def _hold_images(work: Work, digests: dict[str, str]) -> None:
    """From its install on an app keeps to its images, whatever their tags come to mean, until it is updated."""
    async with work.database.begin() as session:
        await store.change_app(session, work.app.id, job_id=work.run.job_id, values={"images": digests})
    work.app = msgspec.structs.replace(work.app, images=digests)


async def _look_before(work: Work, spec: AppSpec) -> None:
    """What runs of the app already is nothing that a start which fails may stop. And whoever finds it without its data
    has to find out why: somebody has removed a volume on the engine.
    """
    state = await work.patiently(lambda: work.runtime.get(work.app.id))
    work.stood_still = state is None or all(one.status not in UP for one in state.services)
    for name in sorted({*spec.volumes} - {*(state.volumes if state is not None else ())}):
        work.run.log(f"The volume {name} is not there any more, and with it its data; an empty one is made")


async def _exchange_ports(work: Work) -> bool:
    """Give an app that is being installed other ports for its `auto` ones; False when it has none to exchange.

    An app that has been installed keeps its ports: people and proxies know them.
    """
    if work.app.installed_at is not None:
        return False
    async with work.database.begin() as session:
        own = await store.find_ports(session, work.app.id)
        avoid = frozenset(port.host_port for port in await store.find_ports(session))
    fields = auto_fields(own)
    if not fields:
        return False
    found = await work.patiently(lambda: work.runtime.free_ports(len(fields), avoid=avoid))
    work.run.log("A port was taken by another program; trying others")
    url = url_of(work.run.resources[SETTINGS])
    columns, ports = exchange_ports(work.app, work.run.resources[KEYRING], own, found, url)
    async with work.database.begin() as session:
        await store.lock_ports(session)
        held = await store.find_ports(session)
        if {port.host_port for port in held if port.app_id != work.app.id} & set(found):
            return True  # another install was faster; the next try picks again
        await store.release_ports(session, work.app.id)
        await store.hold_ports(session, ports)
        await store.change_app(session, work.app.id, job_id=work.run.job_id, values=columns)
    work.app = msgspec.structs.replace(work.app, config=columns["config"], secrets=columns["secrets"])
    return True


async def settled(work: Work) -> Verdict:
    """The verdict on an app that was just started, once health checks and restarts have come to rest."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    looks = 0
    while True:
        state = await work.patiently(lambda: work.runtime.get(work.app.id))
        verdict = judge(state, work.expected, "running")
        limit = HEALTH_SECONDS if verdict.status == "running" else RESTARTS_SECONDS
        if verdict.settled or loop.time() - begun > limit:
            return verdict
        await asyncio.sleep(_LOOK_SECONDS[min(looks, len(_LOOK_SECONDS) - 1)])
        looks += 1
