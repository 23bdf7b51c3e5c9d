"""The work behind changes of an app: a patch, an update, a rollback, and the way back from each that fails.

Every step is written into the journal before it is done. A change that fails, is cancelled, or whose process ended in
its middle goes back: containers, config and data are what they were. Until the one transaction that ends it the app's
own row says what it was, so there is nothing of the former state that could be lost.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import msgspec
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.crypto import SealBroken
from quazzar.core.errors import Invalid, Unavailable
from quazzar.core.jobs import KEYRING, SETTINGS, JobCancelled, JobFailed, JobKind, JobRun, job
from quazzar.core.records import publish
from quazzar.instance.apps import changes_store, store, updates_store
from quazzar.instance.apps.building import build_spec, claim_of_app, shown_ports, template_of, url_of
from quazzar.instance.apps.changes_store import Change, Phase
from quazzar.instance.apps.events import AppUpdated, AppUpdateFailed
from quazzar.instance.apps.images import is_pinned, registry_of
from quazzar.instance.apps.locks import app_lock
from quazzar.instance.apps.models import AppStatus
from quazzar.instance.apps.runtimes.base import ImageNotFound, RuntimeFailure, service_digest
from quazzar.instance.apps.skips import new_digests, skip
from quazzar.instance.apps.snapshots import sweep
from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.apps.truth import Expected, Verdict, expected_services, views_of
from quazzar.instance.apps.work import RESTARTS_SECONDS, RUNTIME, Work, operation, settled

CHANGE_SECONDS = 3600.0
BACK_SECONDS = 1800.0
SECONDS = CHANGE_SECONDS + BACK_SECONDS
STEADY_SECONDS = 5.0
"""How long a service without a health check has to stay up before it counts as well."""
KEPT_REVISIONS: Final = 2
"""How many former states are kept, each with a copy of the app's data."""
_BROKEN_OFF = "This system was stopped in the middle of the change"
_CANCELLED = "The operation was cancelled"
_UNREADABLE = "What is stored of the app can't be read by this release, or with the keys that are there"


@job("apps.patch", concurrency=4, timeout_seconds=SECONDS + 60)
async def patch(run: JobRun, app_id: str) -> None:
    """Containers of the new config, or those of the former one again."""
    await _carry_out(run, app_id)


@job("apps.update", concurrency=2, timeout_seconds=SECONDS + 60)
async def update(run: JobRun, app_id: str) -> None:
    """Images, a copy of the data, containers, health; or the former version with its data again."""
    await _carry_out(run, app_id)


@job("apps.rollback", concurrency=2, timeout_seconds=SECONDS + 60)
async def rollback(run: JobRun, app_id: str) -> None:
    """The version before with its config and its data, or the present one again."""
    await _carry_out(run, app_id)


JOBS: Final[dict[changes_store.Kind, JobKind[Any]]] = {"patch": patch, "update": update, "rollback": rollback}


async def _carry_out(run: JobRun, app_id: str) -> None:
    try:
        async with operation(run, app_id, "updating", SECONDS) as work:
            if work is not None:
                await _Changing(work, await _asked(work)).carry_out()
    finally:
        # What does not go now does when the reconciler looks, and must not hide why the change failed: the job would
        # be done again, find nothing to do, and be taken for a success.
        with contextlib.suppress(Unavailable, RuntimeFailure, SQLAlchemyError, OSError, TimeoutError):
            async with app_lock(app_id):
                await sweep(run.database, run.resources[RUNTIME], app_id)


async def _asked(work: Work) -> Change:
    """What is to be done. Who cancels right now is heard by `carry_out`, which ends the change with its journal."""
    while True:
        try:
            async with work.database.begin() as session:
                change = await changes_store.get_change(session, work.app.id)
        except asyncio.CancelledError:
            if not work.run.cancelled.is_set():
                raise
            continue
        if change is None:
            raise RuntimeFailure("The change is not there any more; ask for it again")
        return change


async def go_back_first(work: Work) -> None:
    """Before a start: take back whole what a change left that could not be taken back in its own time."""
    async with work.database.begin() as session:
        change = await changes_store.get_change(session, work.app.id)
    if change is not None:
        await _Changing(work, change).take_back()


class _Changing:
    def __init__(self, work: Work, change: Change) -> None:
        self.work = work
        self.change = change
        self.target = msgspec.structs.replace(work.app, **changes_store.shape_of(change))
        self.image_missing = False

    async def carry_out(self) -> None:
        """Raises `JobFailed` with the reason after the app is again what it was; so does what else ends it."""
        run = self.work.run
        cause: BaseException | None = None
        reason = self.change.reason or _BROKEN_OFF
        if self.change.phase == "asked":
            try:
                async with asyncio.timeout(CHANGE_SECONDS) as limit:
                    await self._go_on()
                return
            except RuntimeFailure as failure:
                cause, reason = failure, failure.reason
                self.image_missing = isinstance(failure, ImageNotFound)
            except (Invalid, SealBroken) as failure:
                cause, reason = failure, _UNREADABLE
            except TimeoutError as failure:
                if not limit.expired():
                    raise
                cause, reason = failure, self.work.waiting_for or "The operation did not end in time"
            except JobCancelled as cancelled:
                cause, reason = cancelled, _CANCELLED
            except asyncio.CancelledError as cancelled:
                # Without somebody's wish it is the process that ends: the next one goes back.
                if not run.cancelled.is_set():
                    raise
                cause, reason = cancelled, _CANCELLED
        run.log(reason)
        async with self.work.database.begin() as session:
            done = await changes_store.get_change(session, self.change.app_id) is None
        if not done:
            try:
                await self._go_back(reason)
            except asyncio.CancelledError as cancelled:
                # Whoever cancels only now wants what happens already, and must not stop it half way.
                if not run.cancelled.is_set() or isinstance(cause, asyncio.CancelledError):
                    raise
                cause = cancelled
                await self._go_back(reason)
        if isinstance(cause, asyncio.CancelledError | JobCancelled):
            raise cause
        if done:  # what came too late did not undo it
            return
        raise JobFailed(reason) from cause

    # Forward

    async def _go_on(self) -> None:
        work, app_id, runtime = self.work, self.work.app.id, self.work.runtime
        work.run.check_cancelled()
        await self._phase("pulling")
        spec = await self._target_spec()
        await work.pull(spec, work.within(0.05, 0.4))
        if self.change.kind == "update" and _same(work.spec(), spec) and self._same_shape():
            work.run.log("It is up to date already")
            await self._end_unchanged(None)
            return
        await self._phase("stopping")
        work.step(0.4, "Stopping")
        await work.patiently(lambda: runtime.stop(app_id))
        if (snapshot := self.change.snapshot) is not None:
            await self._phase("saving")
            await work.patiently(lambda: runtime.snapshot(app_id, snapshot, work.within(0.45, 0.6)))
        await self._phase("starting")
        if self.change.revision is not None:
            former = await self._revision_snapshot(self.change.revision)
            await work.patiently(lambda: runtime.restore(app_id, former, work.within(0.6, 0.7)))
        await work.patiently(lambda: runtime.up(spec, work.within(0.7, 0.85)))
        work.step(0.85, "Waiting for the services to be well")
        work.expected = expected_services(spec)
        verdict = await self._well(spec)
        if verdict.status != "running":
            raise RuntimeFailure(verdict.reason or "The app did not get healthy in time")
        if self.change.stopped:
            await work.patiently(lambda: runtime.stop(app_id))
        await self._commit(spec)

    async def _target_spec(self) -> AppSpec:
        """The spec with every image held to what its tag means now, for an update; else to what is written down."""
        keyring = self.work.run.resources[KEYRING]
        spec = build_spec(self.target, keyring)
        if self.change.kind != "update":
            return spec
        logins = await self.work.logins(spec)
        images: dict[str, str] = {}
        for name in sorted({service.image for service in spec.services if not is_pinned(service.image)}):

            async def ask(name: str = name) -> str:
                return await self.work.runtime.remote_digest(name, logins.get(registry_of(name)))

            try:
                images[name] = await self.work.patiently(ask)
            except RuntimeFailure as failure:
                self.work.run.log(f"{failure.reason}; the image is taken as it is here")
        self.target = msgspec.structs.replace(self.target, images=images)
        digests = await self.work.pull(build_spec(self.target, keyring), self.work.within(0.02, 0.05))
        self.target = msgspec.structs.replace(self.target, images=digests)
        await self._write(images=digests)
        return build_spec(self.target, keyring)

    async def _well(self, spec: AppSpec) -> Verdict:
        """The verdict once the app has settled and, where nothing checks its health, stayed up without a restart."""
        verdict = await settled(self.work)
        finite = {one.name for one in self.work.expected if one.finite}
        checked = all(service.healthcheck is not None or service.name in finite for service in spec.services)
        if verdict.settled and not checked:
            verdict = await self._steady(verdict)
        if verdict.status == "running" and not verdict.settled:
            return Verdict("unhealthy", "The app did not get healthy in time")
        return verdict

    async def _steady(self, verdict: Verdict) -> Verdict:
        """The verdict after `STEADY_SECONDS` without a restart; between two restarts everything looks well."""
        loop = asyncio.get_running_loop()
        since, limit = loop.time(), loop.time() + STEADY_SECONDS + RESTARTS_SECONDS
        counted = await self._restarts()
        while verdict.status == "running" and loop.time() < since + STEADY_SECONDS:
            if loop.time() > limit:
                return Verdict("crashed", f'Service "{max(counted, key=lambda name: counted[name])}" keeps restarting')
            await asyncio.sleep(0.25)
            restarts, verdict = await self._restarts(), await settled(self.work)
            if restarts != counted:
                since, counted = loop.time(), restarts
        return verdict

    async def _restarts(self) -> dict[str, int]:
        state = await self.work.patiently(lambda: self.work.runtime.get(self.work.app.id))
        return {one.name: one.restarts for one in state.services} if state is not None else {}

    async def _commit(self, spec: AppSpec) -> None:
        """The one transaction that makes it what it was to become."""
        work, change, app = self.work, self.change, self.work.app
        state = await work.patiently(lambda: work.runtime.get(app.id))
        expected = expected_services(spec)
        url = url_of(work.run.resources[SETTINGS])
        values: dict[str, Any] = changes_store.shape_of(self.target) | {
            "expected": msgspec.to_builtins(expected),
            "claim": self._claim(self.target),
            **shown_ports(template_of(self.target), spec, url),
            **views_of(state, expected),
        }
        async with work.run.begin() as session:
            ended = await store.move_app(
                session,
                app.id,
                of=("updating",),
                to="stopped" if change.stopped else "running",
                job_id=work.run.job_id,
                status_reason=None,
                **values,
            )
            if not ended:
                raise RuntimeFailure("The operation was ended by somebody else")
            if change.snapshot is not None:
                if change.revision is not None:
                    await changes_store.drop_revision(session, app.id, change.revision)
                await changes_store.add_revision(session, app, snapshot=change.snapshot, keep=KEPT_REVISIONS)
                news = AppUpdated(
                    app_id=app.id,
                    name=app.name,
                    former_version=app.version,
                    version=self.target.version,
                    rollback=change.kind == "rollback",
                    automatic=change.automatic,
                )
                publish(session, news, subject=app.id)
                await updates_store.forget_available(session, app.id)
            if change.kind == "rollback":
                # Else it would be updated to that again in its next window.
                await self._skip(session, former=self.target, left=app, reason="The app was rolled back from it")
            await changes_store.end_change(session, app.id)
            await changes_store.keep_ports(session, app.id, _ports(spec))

    # Back

    async def _go_back(self, reason: str) -> None:
        await self.take_back(reason)
        if self.change.stopped:
            await self._end_unchanged(reason, failed=True)
            return
        self.work.step(0.95, "Waiting for the former services")
        verdict = await settled(self.work)
        self.work.run.log(verdict.reason or "What ran before runs again, with its data")
        await self._end_unchanged(reason, verdict, failed=True)

    async def take_back(self, reason: str | None = None) -> None:
        """Containers and data as they were; the journal stays until that is done."""
        work, change, app_id = self.work, self.change, self.work.app.id
        touched = change.phase in {"starting", "reverting"}
        if change.phase not in changes_store.UNTOUCHED:
            await self._phase("reverting", reason=reason or change.reason)
            work.expected = [msgspec.convert(one, Expected) for one in work.app.expected]
            if touched:
                snapshot = change.snapshot
                if snapshot is not None:
                    await work.patiently(lambda: work.runtime.restore(app_id, snapshot, _told(work, 0.85)))
                elif change.stopped:
                    await work.patiently(lambda: work.runtime.remove(app_id, keep_volumes=True))
            if not change.stopped:
                spec = work.spec()
                await work.pull(spec, _told(work, 0.9))
                # A stop that nobody waits for any more goes on in the engine: what runs still would end by it later.
                # What can't be stopped runs on, as it did.
                with contextlib.suppress(RuntimeFailure):
                    await work.patiently(lambda: work.runtime.stop(app_id))
                await work.patiently(lambda: work.runtime.up(spec, _told(work, 0.9)))
        if work.status != "updating":
            async with work.run.begin() as session:
                await self._skip_failed(session, reason or change.reason or _BROKEN_OFF)
                await changes_store.end_change(session, app_id)
                await changes_store.keep_ports(session, app_id, _ports(work.spec()))

    async def _end_unchanged(self, reason: str | None, verdict: Verdict | None = None, *, failed: bool = False) -> None:
        work, app = self.work, self.work.app
        state = await work.patiently(lambda: work.runtime.get(app.id))
        values = views_of(state, work.expected) | {"claim": self._claim(app)}
        stands: AppStatus = "stopped" if self.change.stopped else "running"
        async with work.run.begin() as session:
            await store.move_app(
                session,
                app.id,
                of=("updating",),
                to=verdict.status if verdict is not None else stands,
                job_id=work.run.job_id,
                status_reason=verdict.reason if verdict is not None else None,
                **values,
            )
            await changes_store.end_change(session, app.id)
            await changes_store.keep_ports(session, app.id, _ports(work.spec()))
            if failed:
                news = AppUpdateFailed(
                    app_id=app.id,
                    name=app.name,
                    version=self.target.version,
                    reason=reason or _BROKEN_OFF,
                    automatic=self.change.automatic,
                )
                publish(session, news, subject=app.id)
                await self._skip_failed(session, reason or _BROKEN_OFF)
            elif self.change.kind == "update":
                await updates_store.forget_available(session, app.id)

    async def _skip_failed(self, session: AsyncSession, reason: str) -> None:
        """After an update that nobody asked for and for which the app was stopped in vain: not each night again.

        What failed before, such as for want of a registry, is tried again in the next window.
        """
        if self.change.automatic and (self.change.phase not in changes_store.UNTOUCHED or self.image_missing):
            await self._skip(session, former=self.work.app, left=self.target, reason=reason)

    async def _skip(self, session: AsyncSession, *, former: Any, left: Any, reason: str) -> None:
        """Have the app not updated by itself from what it is (`former`) to what it came back from (`left`)."""
        app, same = self.work.app, former.version == left.version
        digests = new_digests(former.images, left.images) if same else []
        if digests or not same:
            await skip(session, app.id, app.name, version=left.version, digests=digests, reason=reason)

    # Journal

    async def _phase(self, phase: Phase, **values: Any) -> None:
        await self._write(phase=phase, **values)

    async def _write(self, **values: Any) -> None:
        async with self.work.database.begin() as session:
            await changes_store.set_change(session, self.change.app_id, **values)
        self.change = msgspec.structs.replace(self.change, **values)

    async def _revision_snapshot(self, number: int) -> str:
        async with self.work.database.begin() as session:
            revision = await changes_store.get_revision(session, self.work.app.id, number)
        if revision is None:
            raise RuntimeFailure("The version before is not there any more")
        return revision.snapshot

    def _claim(self, app: store.Held) -> dict[str, Any]:
        claim: dict[str, Any] = msgspec.to_builtins(claim_of_app(app, self.work.run.resources[KEYRING]))
        return claim

    def _same_shape(self) -> bool:
        names = [name for name in changes_store.Shape.__struct_fields__ if name != "secrets"]
        return all(getattr(self.work.app, name) == getattr(self.target, name) for name in names)


def _told(work: Work, done: float) -> Callable[[float, str], Any]:
    """The report of a step on the way back, which nobody can cancel."""

    async def report(_: float, text: str) -> None:
        if text != work.run.step:
            work.run.log(text)
        work.run.progress(done, text)

    return report


def _same(former: AppSpec, spec: AppSpec) -> bool:
    made = {one.name: service_digest(former, one) for one in former.services}
    return made == {one.name: service_digest(spec, one) for one in spec.services}


def _ports(spec: AppSpec) -> list[tuple[int, str]]:
    return [(port.host_port, port.protocol) for service in spec.services for port in service.ports]
