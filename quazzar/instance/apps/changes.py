"""What may be changed of an app, and what is written down before a job does it."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from quazzar.core.db import unique_or
from quazzar.core.errors import Invalid
from quazzar.core.records import audit
from quazzar.core.schema import UNSET, UnsetType, given
from quazzar.instance.apps import auto_update, changes_store, changing, room_store, store, updates_store
from quazzar.instance.apps.building import (
    Reshaped,
    build_spec,
    claim_of_app,
    open_config,
    reshape,
    shown_ports,
    template_of,
    url_of,
)
from quazzar.instance.apps.changes_store import new_snapshot
from quazzar.instance.apps.dry_run import PlannedUpdate
from quazzar.instance.apps.errors import (
    AppBusy,
    AppNotFound,
    AppNotInstalled,
    ChangePending,
    NothingToRollBack,
    PortTaken,
)
from quazzar.instance.apps.models import AppStatus
from quazzar.instance.apps.room import IMAGE_BYTES, Claim, larger, refusals
from quazzar.instance.apps.runtimes.base import RegistryLogin, RuntimeFailure, service_digest
from quazzar.instance.apps.schemas import AppPatch, AppUpdate, FullAppRow, PortOut, UpdatePlan
from quazzar.instance.apps.service import AppService, outline
from quazzar.instance.registries.service import logins_for
from quazzar.instance.templates.config import check_config
from quazzar.instance.templates.errors import TemplateNotFound, TemplateVersionNotFound
from quazzar.instance.templates.service import TemplateService
from quazzar.instance.templates.template import Template

_SETTLED: Final[tuple[AppStatus, ...]] = ("running", "unhealthy", "stopped", "crashed", "failed")
_SHOWN: Final = ("template", "version", "config", "resources", "restart_policy")
_MOST_LABELS: Final = 64
_LABEL_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._/-")


async def patch(apps: AppService, app_id: str, data: AppPatch) -> FullAppRow:
    """Change an app. What needs other containers is done by a job, and undone when it fails; the rest at once.

    Raises `AppNotFound`, `AppBusy`, `AppNotInstalled`, `PortTaken`, `DoesNotFit`, and `Invalid` with every
    `config.<field>` that fails.
    """
    settled = await _lock(apps, app_id)
    app = settled.held
    await store.lock_ports(apps.session)
    template = template_of(app)
    former = open_config(app, apps.keyring)
    labels = _labels(settled.labels, data.labels)
    problems = _label_problems(labels)
    if data.auto_update is not UNSET:
        problems |= await auto_update.problems_of(apps, app, data.auto_update)
    try:
        config = check_config(template, {} if data.config is UNSET else data.config, previous=former)
    except Invalid as error:
        raise Invalid(details={**error.details, **problems}) from None
    if problems:
        raise Invalid(details=problems)
    restart_policy = app.restart_policy if data.restart_policy is UNSET else data.restart_policy
    becomes = await _reshape(
        apps, app, template, config, resources=_laid_over(app.resources, data.resources), restart_policy=restart_policy
    )
    claim = claim_of_app(becomes.app, apps.keyring)
    former_claim = await room_store.get_claim(apps.session, app_id)
    await apps.require_room(claim, app_id=app_id, former=former_claim)
    before, after = _shown(app) | {"labels": settled.labels}, _shown(becomes.app) | {"labels": labels}
    if data.auto_update is not UNSET:
        policy = await updates_store.get_policy(apps.session, app_id, lock=True)
        becoming = auto_update.with_opening(policy, auto_update.laid_over(policy, data.auto_update))
        await updates_store.put_policy(apps.session, app_id, becoming)
        before["auto_update"], after["auto_update"] = auto_update.shown(policy), auto_update.shown(becoming)
    audit(apps.session, "app.patch", subject=app_id, before=before, after=after)
    await changes_store.set_app(apps.session, app_id, {"labels": labels})
    await _hold_ports(apps, app_id, becomes)
    if settled.status != "stopped" and _differs(apps, app, becomes):
        await _begin(apps, settled, becomes, kind="patch")
    else:
        await room_store.set_claim(apps.session, app_id, msgspec.to_builtins(claim))
        values = changes_store.shape_of(becomes.app) | {"expected": becomes.app.expected}
        values |= shown_ports(template, becomes.spec, url_of(apps.settings))
        await changes_store.set_app(apps.session, app_id, values)
        await changes_store.keep_ports(apps.session, app_id, [(one.host_port, one.protocol) for one in becomes.ports])
    return await apps.show(app_id)


async def update(apps: AppService, app_id: str, data: AppUpdate, *, automatic: bool = False) -> FullAppRow:
    """Have the app updated, or its images made current where it has the newest version. Raises as `patch`.

    An `automatic` one nobody asked for; when it does not go through it is not begun a second time by itself.
    """
    settled, becomes = await _updated(apps, app_id, data)
    if becomes.refusals:
        raise PortTaken(details=becomes.refusals)
    claim, former = await _claims_of_update(apps, settled.held, becomes)
    await apps.require_room(claim, app_id=app_id, former=former)
    before, after = {"version": settled.held.version}, {"version": becomes.app.version}
    audit(apps.session, "app.update", subject=app_id, before=before, after=after)
    await _hold_ports(apps, app_id, becomes)
    await _begin(apps, settled, becomes, kind="update", snapshot=new_snapshot(), automatic=automatic)
    return await apps.show(app_id)


async def plan_update(apps: AppService, app_id: str, data: AppUpdate) -> PlannedUpdate:
    """What `update` would do, as far as that can be said without asking registries; nothing is done.

    Raises as `update`, but tells in `refusals` of ports that are taken and of what there is no room for.
    """
    settled, becomes = await _updated(apps, app_id, data)
    template, spec = template_of(becomes.app), becomes.spec
    claim, former = await _claims_of_update(apps, settled.held, becomes)
    room = await apps.rooms(claim, but=app_id)
    plan = UpdatePlan(
        name=becomes.app.name,
        template=becomes.app.template,
        version=becomes.app.version,
        former_version=settled.held.version,
        ports=[msgspec.convert(port, PortOut) for port in shown_ports(template, spec, url_of(apps.settings))["ports"]],
        snapshot_bytes=await updates_store.get_data_bytes(apps.session, app_id),
        notes=list(template.notes),
        refusals=becomes.refusals | refusals(claim, room, former=former),
        **outline(spec, room),
    )
    logins: dict[str, RegistryLogin] = {}
    try:
        logins = await logins_for(apps.session, apps.keyring, plan.images)
    except RuntimeFailure as failure:
        plan.notes.append(failure.reason)
    return PlannedUpdate(
        plan=plan,
        former=build_spec(settled.held, apps.keyring),
        spec=spec,
        images=settled.held.images,
        logins=logins,
    )


async def roll_back(apps: AppService, app_id: str) -> FullAppRow:
    """Have the app go back to what it was before its last update or rollback: images, config and data together.

    What it is now is kept in the same way, so that a rollback can be taken back. Raises `NothingToRollBack`,
    `AppNotFound`, `AppBusy`, `AppNotInstalled`, `PortTaken`.
    """
    settled = await _lock(apps, app_id)
    revision = await changes_store.get_revision(apps.session, app_id)
    if revision is None:
        raise NothingToRollBack
    await store.lock_ports(apps.session)
    former = msgspec.structs.replace(settled.held, **changes_store.shape_of(revision))
    becomes = await _reshape(apps, former, template_of(former), open_config(former, apps.keyring))
    before, after = {"version": settled.held.version}, {"version": revision.version}
    audit(apps.session, "app.rollback", subject=app_id, before=before, after=after)
    await _hold_ports(apps, app_id, becomes)
    await _begin(apps, settled, becomes, kind="rollback", snapshot=new_snapshot(), revision=revision.number)
    return await apps.show(app_id)


async def _claims_of_update(apps: AppService, app: store.Held, becomes: Reshaped) -> tuple[Claim, Claim]:
    """What an update needs, and what of that the app has already: of the disk nothing.

    It takes images that the app has not yet, and a copy of the data as it was measured last.
    """
    fresh = {service.image for service in becomes.spec.services} - app.images.keys()
    data_bytes = await updates_store.get_data_bytes(apps.session, app.id) or 0
    claim, former = claim_of_app(becomes.app, apps.keyring), await room_store.get_claim(apps.session, app.id)
    return (
        msgspec.structs.replace(claim, disk_bytes=IMAGE_BYTES * len(fresh) + data_bytes),
        msgspec.structs.replace(former, disk_bytes=0),
    )


async def _lock(apps: AppService, app_id: str) -> changes_store.Settled:
    settled = await changes_store.lock_app(apps.session, app_id) if apps.may_see(app_id) else None
    if settled is None:
        raise AppNotFound
    if settled.status not in _SETTLED:
        raise AppBusy.with_status(settled.status)
    if settled.held.installed_at is None:
        raise AppNotInstalled
    if await changes_store.has_change(apps.session, app_id):
        raise ChangePending
    return settled


async def _updated(apps: AppService, app_id: str, data: AppUpdate) -> tuple[changes_store.Settled, Reshaped]:
    settled = await _lock(apps, app_id)
    app = settled.held
    template = await _newer(apps, app, data.version)
    await store.lock_ports(apps.session)
    config = check_config(template, data.config, previous=open_config(app, apps.keyring))
    becomes = await _reshape(
        apps,
        app,
        template,
        config,
        refuse=False,
        version=app.version if app.template is None else template.version,
        # Which images these are by now the job finds out.
        images={},
    )
    return settled, becomes


async def _newer(apps: AppService, app: store.Held, version: str | None) -> Template:
    """The template to update to; an app without one, or whose version is gone from there, keeps its own."""
    if app.template is None:
        if version is not None:
            raise Invalid(details={"version": "An app that is not from the catalogue has no versions"})
        return template_of(app)
    try:
        return await TemplateService(apps.session).find_newer(template_of(app), version)
    except TemplateVersionNotFound:
        if version != app.version:
            raise Invalid(details={"version": "The template has no such version"}) from None
    except TemplateNotFound:
        if version not in {None, app.version}:
            raise Invalid(details={"version": "The template is not there any more"}) from None
    return template_of(app)


async def _reshape(
    apps: AppService,
    app: store.Held,
    template: Template,
    config: Mapping[str, Any],
    *,
    refuse: bool = True,
    **values: Any,
) -> Reshaped:
    becomes = reshape(
        app,
        template,
        dict(config),
        keyring=apps.keyring,
        held=await store.find_ports(apps.session),
        reserved=apps.reserved_ports,
        **values,
    )
    if refuse and becomes.refusals:
        raise PortTaken(details=becomes.refusals)
    return becomes


async def _hold_ports(apps: AppService, app_id: str, becomes: Reshaped) -> None:
    """Besides those that it has: which of them it keeps is known at the end."""
    own = {(one.host_port, one.protocol) for one in await store.find_ports(apps.session, app_id)}
    async with unique_or(PortTaken()):
        await store.hold_ports(apps.session, [one for one in becomes.ports if (one.host_port, one.protocol) not in own])


async def _begin(
    apps: AppService, settled: changes_store.Settled, becomes: Reshaped, *, kind: changes_store.Kind, **values: Any
) -> None:
    app_id = settled.held.id
    shape = changes_store.shape_of(becomes.app)
    stopped = settled.status == "stopped"
    claims = claim_of_app(becomes.app, apps.keyring), await room_store.get_claim(apps.session, app_id)
    await room_store.set_claim(apps.session, app_id, msgspec.to_builtins(larger(*claims)))
    await changes_store.add_change(apps.session, {"app_id": app_id, "kind": kind, "stopped": stopped} | shape | values)
    await store.move_app(
        apps.session, app_id, of=(settled.status,), to="updating", seconds=changing.SECONDS, status_reason=None
    )
    await apps.enqueue(changing.JOBS[kind], app_id)


def _differs(apps: AppService, app: store.Held, becomes: Reshaped) -> bool:
    """Whether the change needs other containers, networks or volumes."""
    former, spec = build_spec(app, apps.keyring), becomes.spec
    if (former.networks, former.volumes) != (spec.networks, spec.volumes):
        return True
    made = {one.name: service_digest(former, one) for one in former.services}
    return made != {one.name: service_digest(spec, one) for one in spec.services}


def _laid_over(former: Mapping[str, Any], resources: Any) -> dict[str, Any]:
    if resources is UNSET:
        return dict(former)
    if resources is None:
        return {}
    return _without_none({**former, **given(resources)})


def _labels(former: Mapping[str, str], labels: dict[str, str | None] | None | UnsetType) -> dict[str, str]:
    if labels is None:
        return {}
    return dict(former) if isinstance(labels, UnsetType) else _without_none({**former, **labels})


def _label_problems(labels: Mapping[str, str]) -> dict[str, str]:
    problems = {
        f"labels.{name[:63]}": "The name of a label must be 1 to 63 of a-z, 0-9, '.', '_', '/' and '-'"
        for name in labels
        if not 1 <= len(name) <= 63 or set(name) - _LABEL_LETTERS
    }
    if len(labels) > _MOST_LABELS:
        problems["labels"] = f"An app can have at most {_MOST_LABELS} labels"
    return problems


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _shown(app: store.Held) -> dict[str, Any]:
    """For the audit log; secrets are masked in the config."""
    return {name: getattr(app, name) for name in _SHOWN}
