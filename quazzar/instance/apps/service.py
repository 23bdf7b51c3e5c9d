"""The rules of apps: what may be asked for when, and what is written down before a job does it."""

import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database, unique_or
from quazzar.core.errors import Forbidden, Invalid
from quazzar.core.ids import new_id
from quazzar.core.jobs import JobKind, enqueue, wait_for
from quazzar.core.records import audit
from quazzar.instance.apps import changes_store, jobs, purging, room_store, store, trash_store
from quazzar.instance.apps.building import Draft, draft_app, in_use, sealed_anew, url_of
from quazzar.instance.apps.errors import (
    AppBusy,
    AppNameTaken,
    AppNotFound,
    AppNotInstalled,
    DoesNotFit,
    PortTaken,
    UninstallFailed,
)
from quazzar.instance.apps.host_paths import told
from quazzar.instance.apps.models import AppStatus, Desired
from quazzar.instance.apps.room import Claim, MachineWatch, Room, refusals, rooms
from quazzar.instance.apps.schemas import AppCreate, AppPlan, AppRow, FullAppRow, PortOut, RoomOut, VolumeOut
from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.apps.truth import stands_still
from quazzar.instance.apps.work import STOP_SECONDS
from quazzar.instance.templates.errors import TemplateNotFound, TemplateVersionNotFound
from quazzar.instance.templates.service import TemplateService, slug_of
from quazzar.instance.templates.template import Template
from quazzar.settings import Settings

_APP_ID = re.compile(r"app_[a-z2-7]{26}\Z")

DELETE_WAIT_SECONDS = 20.0
"""How long a DELETE waits for the app to be gone before it answers with the app on its way out."""


class _Operation(msgspec.Struct, frozen=True):
    """From which states an operation leads into which, and who does it."""

    job: JobKind[Any]
    to: AppStatus
    of: tuple[AppStatus, ...]
    done: tuple[AppStatus, ...]
    desired: Desired
    seconds: float


_START: Final = _Operation(
    jobs.start,
    "starting",
    ("stopped", "crashed", "failed", "unhealthy"),
    ("running", "unhealthy"),
    "running",
    jobs.START_SECONDS,
)
_STOP: Final = _Operation(
    jobs.stop, "stopping", ("running", "unhealthy", "crashed", "failed"), ("stopped",), "stopped", STOP_SECONDS
)
_RESTART: Final = _Operation(
    jobs.restart,
    "restarting",
    ("running", "unhealthy", "stopped", "crashed", "failed"),
    (),
    "running",
    jobs.START_SECONDS,
)
_REINSTALL: Final = _Operation(jobs.install, "installing", ("failed",), (), "running", jobs.INSTALL_SECONDS)
# The config is as it is shown: secrets are masked in it.
_AUDITED: Final = ("name", "template", "version", "config", "resources", "domain")
_REMOVABLE: Final[tuple[AppStatus, ...]] = ("running", "unhealthy", "stopped", "crashed", "failed")


class Planned(msgspec.Struct, frozen=True):
    """What would be done, and the spec that it would be done by."""

    plan: AppPlan
    spec: AppSpec


def outline(spec: AppSpec, room: Sequence[Room]) -> dict[str, Any]:
    """The fields of a plan that follow from a spec and from whether there is room for it."""
    limits = [service.resources.memory_bytes for service in spec.services]
    return {
        "images": sorted({service.image for service in spec.services}),
        "services": [service.name for service in spec.services],
        "volumes": [VolumeOut(name=name) for name in spec.volumes],
        "memory_limit_bytes": sum(one for one in limits if one is not None) if all(limits) else None,
        "host_access": [text for service in spec.services for text in told(service.name, service.host)],
        "room": [RoomOut(**msgspec.structs.asdict(one)) for one in room],
    }


def visible(principal: Principal) -> list[str] | None:
    """The ids of the apps that a bound key may see; None for a caller that may see all."""
    return sorted(principal.resources) if principal.resources is not None else None


async def read_app(database: Database, principal: Principal, app_id: str) -> FullAppRow:
    """One app as it is shown. Raises `AppNotFound`, also for what a bound key may not see."""
    row = await store.read_app(database, app_id, ids=visible(principal)) if _APP_ID.match(app_id) else None
    if row is None:
        raise AppNotFound
    return row


async def require_app(database: Database, principal: Principal, app_id: str) -> None:
    """Raises `AppNotFound` as `read_app` does."""
    if not _APP_ID.match(app_id) or not await store.has_app(database, app_id, ids=visible(principal)):
        raise AppNotFound


async def list_apps(
    database: Database,
    principal: Principal,
    *,
    limit: int,
    before: str = store.NEWEST,
    statuses: Sequence[str] = (),
    template: str | None = None,
    q: str | None = None,
) -> list[AppRow]:
    """The newest apps before the id `before` that fit all filters; a `template` is given by slug or id."""
    ids = visible(principal)
    if ids is None and not statuses and template is None and q is None:
        return await store.list_apps(database, limit=limit, before=before)
    template = await slug_of(database, template) if template is not None else None
    return await store.find_apps(
        database, limit=limit, before=before, ids=ids, statuses=statuses or None, template=template, q=q
    )


class AppService:
    """Built per request from its session and actor; without `machine` nothing is known of how much room there is."""

    def __init__(
        self,
        session: AsyncSession,
        actor: Principal,
        *,
        keyring: Keyring,
        settings: Settings,
        machine: MachineWatch | None = None,
    ) -> None:
        self.session = session
        self.actor = actor
        self.keyring = keyring
        self.settings = settings
        self.machine = machine

    # --- install ---------------------------------------------------------------------------------------------------

    async def create(self, data: AppCreate) -> FullAppRow:
        """Write the app down and have it installed.

        Raises `Invalid` with every field that fails, `AppNameTaken`, `PortTaken`, `DoesNotFit`.
        """
        return await self.add(await self._draft_of(data), action="app.install")

    async def plan(self, data: AppCreate) -> Planned:
        """What `create` would do; nothing is made. Raises as `create` does for a body that does not validate."""
        return await self.plan_of(await self._draft_of(data))

    async def add(self, draft: Draft, *, action: str) -> FullAppRow:
        """Write a draft down and have it installed. Raises `AppNameTaken`, `PortTaken`, `DoesNotFit`."""
        if draft.refusals:
            raise PortTaken(details=draft.refusals)
        await self.require_room(draft.claim)
        async with unique_or(AppNameTaken(details={"name": f"The name {draft.row['name']} is taken"})):
            await store.add_app(self.session, draft.row, seconds=jobs.INSTALL_SECONDS)
        async with unique_or(PortTaken()):
            await store.hold_ports(self.session, draft.held_ports)
        trusted = {"trusted": True} if draft.template.trusted else {}
        after = {name: draft.row[name] for name in _AUDITED} | trusted
        audit(self.session, action, subject=draft.app_id, after=after)
        await self.enqueue(jobs.install, draft.app_id)
        return await self.show(draft.app_id)

    async def plan_of(self, draft: Draft) -> Planned:
        """What `add` would do with a draft."""
        name, refused = draft.row["name"], in_use(draft.held_ports) | draft.refusals
        if await store.find_name(self.session, name) is not None:
            refused["name"] = f"The name {name} is taken"
        found = await self.rooms(draft.claim)
        refused |= refusals(draft.claim, found)
        plan = AppPlan(
            name=name,
            template=draft.row["template"],
            version=draft.row["version"],
            ports=[msgspec.convert(port, PortOut) for port in draft.row["ports"]],
            refusals=refused,
            notes=list(draft.template.notes),
            **outline(draft.spec, found),
        )
        return Planned(plan, draft.spec)

    async def rooms(self, claim: Claim, *, but: str = "") -> list[Room]:
        """The sums that decide whether the machine has room for `claim` beside all apps (without the app `but`)."""
        if self.machine is None:
            return []
        reserved = await room_store.sum_claims(self.session, but=but)
        return rooms(claim, reserved, await self.machine.now(), self.settings.apps)

    async def require_room(self, claim: Claim, *, app_id: str = "", former: Claim | None = None) -> None:
        """Raises `DoesNotFit`. `former` is what the app `app_id` reserves already; see `store.lock_ports`."""
        if found := refusals(claim, await self.rooms(claim, but=app_id), former=former):
            raise DoesNotFit(details=found)

    async def draft(self, template: Template, data: AppCreate, *, catalogued: bool = True) -> Draft:
        """An app that is not written down yet; whether it can be had stands in `refusals`.

        One that is not `catalogued` names no template. Raises `Invalid` with every `config.<field>` that fails.
        """
        await store.lock_ports(self.session)
        return draft_app(
            template,
            data,
            app_id=new_id("app"),
            keyring=self.keyring,
            held=await store.find_ports(self.session),
            reserved=self.reserved_ports,
            url=url_of(self.settings),
            catalogued=catalogued,
            known_images=await room_store.find_images(self.session),
        )

    @property
    def reserved_ports(self) -> frozenset[int]:
        """Host ports of this process itself."""
        return frozenset({self.settings.server.port, self.settings.agent.port})

    def require_unbound(self) -> None:
        """Raises `Forbidden` for a key that is bound to certain apps: it can't make others."""
        if self.actor.resources is not None:
            raise Forbidden("This key is bound to certain apps and can't install others")

    async def _draft_of(self, data: AppCreate) -> Draft:
        self.require_unbound()
        try:
            template = await TemplateService(self.session).find(data.template, data.version)
        except TemplateNotFound:
            raise Invalid(details={"template": "There is no such template"}) from None
        except TemplateVersionNotFound:
            raise Invalid(details={"version": "The template has no such version"}) from None
        return await self.draft(template, data)

    # --- operations ------------------------------------------------------------------------------------------------

    async def start(self, app_id: str) -> FullAppRow:
        """Have the app running. An app whose install failed is installed again.

        Raises `AppNotFound`, `AppBusy`, `DoesNotFit`.
        """
        return await self._operate(app_id, _START)

    async def stop(self, app_id: str) -> FullAppRow:
        return await self._operate(app_id, _STOP)

    async def restart(self, app_id: str) -> FullAppRow:
        return await self._operate(app_id, _RESTART)

    async def _operate(self, app_id: str, operation: _Operation) -> FullAppRow:
        app = await self._state(app_id)
        partly_down = app.status == "unhealthy" and stands_still(app.services, app.expected)
        if app.status in operation.done and not (operation is _START and partly_down):
            return await self.show(app_id)
        if app.installed_at is None and app.status == "failed":
            if operation is _STOP:
                raise AppNotInstalled
            if app.copies_from is not None:
                raise AppNotInstalled("The data was never copied; try the job again, or delete this clone")
            operation = _REINSTALL
            await store.lock_ports(self.session)
            await self.require_room(await room_store.get_claim(self.session, app_id), app_id=app_id)
        moved = await store.move_app(
            self.session,
            app_id,
            of=operation.of,
            to=operation.to,
            seconds=operation.seconds,
            status_reason=None,
            desired=operation.desired,
        )
        if not moved:
            await self._refuse(app_id)
        verb = operation.job.kind.rpartition(".")[2]
        before, after = {"status": app.status}, {"status": operation.to}
        audit(self.session, f"app.{verb}", subject=app_id, before=before, after=after)
        await self.enqueue(operation.job, app_id)
        return await self.show(app_id)

    async def uninstall(self, app_id: str, *, keep_data: bool, purge: bool) -> str:
        """Begin to remove the app, and give the id of the job that does. Raises `AppNotFound`, `AppBusy`.

        It goes into the trash with its data unless its volumes are to stay or to go at once, there is no trash, or
        there is no data yet. With `purge` one that is in the trash already goes for good.
        """
        if purge and await self._purge(app_id):
            return await self.enqueue(purging.purge, app_id)
        app = await self._state(app_id)
        to_trash = not keep_data and not purge and app.installed_at is not None and self.settings.apps.trash_days > 0
        # What comes back from the trash is as it was: whether it is to run stays written down.
        values = {} if to_trash else {"desired": "stopped"}
        moved = await store.move_app(
            self.session,
            app_id,
            of=_REMOVABLE,
            to="uninstalling",
            seconds=jobs.UNINSTALL_SECONDS,
            status_reason=None,
            **values,
        )
        if not moved:
            await self._refuse(app_id)
        before, after = {"name": app.name, "status": app.status}, {"keep_data": keep_data, "trash": to_trash}
        audit(self.session, "app.uninstall", subject=app_id, before=before, after=after)
        if to_trash:
            return await self.enqueue(jobs.trash, app_id)
        return await self.enqueue(jobs.uninstall, app_id, keep_data=keep_data)

    async def _purge(self, app_id: str) -> bool:
        """Whether the app is in the trash, from where it then goes for good."""
        name = await trash_store.begin_purge(self.session, app_id) if self.may_see(app_id) else None
        if name is None:
            return False
        audit(self.session, "app.uninstall", subject=app_id, before={"name": name}, after={"purge": True})
        return True

    async def enqueue(self, kind: JobKind[Any], app_id: str, **args: Any) -> str:
        job_id = await enqueue(
            self.session,
            kind,
            subject=app_id,
            app_id=app_id,
            **args,
        )
        await store.set_job(self.session, app_id, job_id)
        return job_id

    async def _state(self, app_id: str) -> store.Standing:
        app = await store.get_state(self.session, app_id) if self.may_see(app_id) else None
        if app is None:
            raise AppNotFound
        return app

    def may_see(self, app_id: str) -> bool:
        """Whether this is the id of an app, and the caller is not bound to others."""
        ids = visible(self.actor)
        return _APP_ID.match(app_id) is not None and (ids is None or app_id in ids)

    async def _refuse(self, app_id: str) -> NoReturn:
        """Another request was faster: say what it left."""
        app = await store.get_state(self.session, app_id)
        if app is None:
            raise AppNotFound
        raise AppBusy.with_status(app.status)

    async def id_of(self, app: str) -> str:
        """The id of an app that is meant by its name or its id. Raises `AppNotFound`."""
        app_id = app if _APP_ID.match(app) else await store.find_name(self.session, app)
        if app_id is None:
            raise AppNotFound
        return app_id

    async def show(self, app_id: str) -> FullAppRow:
        row = await store.show_app(self.session, app_id)
        if row is None:
            raise AppNotFound
        return row


async def wait_until_gone(database: Database, app_id: str, job_id: str) -> FullAppRow | None:
    """Wait for an uninstall; None once the app is gone, the app itself when that takes longer.

    Raises `UninstallFailed` with the reason.
    """
    job = await wait_for(database, job_id, DELETE_WAIT_SECONDS)
    row = await store.read_app(database, app_id)
    if row is None:
        return None
    if job is not None and job.finished:
        raise UninstallFailed(f"The app could not be removed: {row.status_reason or job.error}")
    return row


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal the secrets of every app anew under the ring's current key; gives how many apps. Raises `SealBroken`."""
    rows = await store.find_sealed(session)
    for app_id, sealed in rows:
        await store.replace_sealed(session, app_id, sealed_anew(app_id, sealed, keyring))
    former = await changes_store.find_sealed(session)
    for app_id, number, sealed in former:
        await changes_store.replace_sealed(session, app_id, number, sealed_anew(app_id, sealed, keyring))
    return len(rows) + len(former)
