"""A copy of an app: its config with its secrets, its data, and host ports of its own."""

import re
from typing import Any

import msgspec

from quazzar.core.db import unique_or
from quazzar.core.records import audit
from quazzar.instance.apps import changes_store, clone_store, copying, jobs, store
from quazzar.instance.apps.building import Draft, build_spec, open_config, template_of
from quazzar.instance.apps.errors import (
    AppBusy,
    AppNameTaken,
    AppNotFound,
    AppNotInstalled,
    ChangePending,
    HostFoldersShared,
    PortTaken,
)
from quazzar.instance.apps.models import TRANSITIONAL
from quazzar.instance.apps.schemas import AppClone, AppCreate, FullAppRow
from quazzar.instance.apps.service import AppService, Planned
from quazzar.instance.templates.fields import AUTO, Field
from quazzar.instance.templates.ports import open_name
from quazzar.instance.templates.template import Template
from quazzar.link.commands import ResourcesIn

_WHOLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


async def clone(apps: AppService, app_id: str, data: AppClone) -> FullAppRow:
    """Write the copy down and have it made.

    Raises `AppNotFound`, `AppNotInstalled`, `AppBusy`, `AppNameTaken`, `DoesNotFit`, and `Forbidden` for a key that is
    bound to apps.
    """
    session = apps.session
    source, draft = await _draft(apps, app_id, data)
    app = source.held
    if draft.refusals:
        raise PortTaken(details=draft.refusals)
    await apps.require_room(draft.claim)
    copies = bool(source.volumes or draft.spec.volumes)
    async with unique_or(AppNameTaken(details={"name": f"The name {data.name} is taken"})):
        row = draft.row | {"copies_from": app_id if copies else None}
        row |= {"images": app.images, "restart_policy": app.restart_policy}
        await store.add_app(session, row, seconds=jobs.INSTALL_SECONDS)
    async with unique_or(PortTaken()):
        await store.hold_ports(session, draft.held_ports)
    audit(session, "app.clone", subject=draft.app_id, after={"name": data.name, "source": app_id})
    if not copies:
        await apps.enqueue(jobs.install, draft.app_id)
        return await apps.show(draft.app_id)
    job_id = await apps.enqueue(copying.clone, draft.app_id, source_id=app_id)
    if await clone_store.hold_source(session, app_id, job_id=job_id, seconds=jobs.INSTALL_SECONDS) is None:
        raise AppBusy
    return await apps.show(draft.app_id)


async def plan(apps: AppService, app_id: str, data: AppClone) -> Planned:
    """What `clone` would do; nothing is done."""
    _, draft = await _draft(apps, app_id, data)
    return await apps.plan_of(draft)


async def _draft(apps: AppService, app_id: str, data: AppClone) -> tuple[clone_store.Source, Draft]:
    source = await clone_store.find_source(apps.session, app_id) if apps.may_see(app_id) else None
    if source is None:
        raise AppNotFound
    apps.require_unbound()
    if source.held.installed_at is None:
        raise AppNotInstalled
    if source.status in TRANSITIONAL:
        raise AppBusy.with_status(source.status)
    if await changes_store.has_change(apps.session, app_id):
        raise ChangePending
    app = source.held
    template = with_own_ports(template_of(app))
    if any(service.host.binds for service in build_spec(app, apps.keyring).services):
        raise HostFoldersShared
    known = {field.name: field for field in template.fields}
    config: dict[str, Any] = {
        name: AUTO if known[name].type == "port" else value
        for name, value in open_config(app, apps.keyring).items()
        if name in known
    }
    wanted = AppCreate(
        template=app.template or data.name, name=data.name, config=config, resources=ResourcesIn(**app.resources)
    )
    return source, await apps.draft(template, wanted, catalogued=app.template is not None)


def with_own_ports(template: Template) -> Template:
    """`template` with a field for each host port that it says itself: a copy can't have the same ones."""
    fields = {field.name: field for field in template.fields}

    def opened(service: str, port: dict[str, Any]) -> dict[str, Any]:
        whole = _WHOLE.fullmatch(str(port["published"]))
        if whole is not None and whole[1] in fields and fields[whole[1]].type == "port":
            return port
        wanted = open_name(service, str(port["target"]), str(port.get("protocol", "tcp")))
        name, number = wanted, 2
        while name in fields:
            name, number = f"{wanted}_{number}", number + 1
        fields[name] = Field(name=name, label=f"Port {port['target']} of {service}"[:100], type="port", default=AUTO)
        return {**port, "published": f"${{{name}}}"}

    services = {
        name: {**one, "ports": [opened(name, port) for port in one["ports"]]} if one.get("ports") else one
        for name, one in template.services.items()
    }
    return msgspec.structs.replace(template, services=services, fields=tuple(fields.values()))
