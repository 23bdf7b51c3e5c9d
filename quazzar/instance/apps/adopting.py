"""A Compose project that runs becomes an app as it stands: no container is made anew, stopped or touched.

It is judged like a file that is imported. What would stand on the labels of its containers, networks and volumes is
kept in the database, since an engine can't label what is there; a driver is told at the start of each process.
"""

import asyncio
import re
from functools import partial
from typing import Any

import msgspec

from quazzar.core.db import Database, after_commit, unique_or
from quazzar.core.errors import Conflict, Invalid
from quazzar.core.records import audit, publish
from quazzar.core.schema import UnsetType
from quazzar.instance.apps import adoption_store, store
from quazzar.instance.apps.building import Draft
from quazzar.instance.apps.errors import (
    AppNameTaken,
    ComposeInvalid,
    PortTaken,
    ProjectAdopted,
    ProjectInvalid,
    ProjectNotFound,
)
from quazzar.instance.apps.events import AppAdopted
from quazzar.instance.apps.importing import read_file
from quazzar.instance.apps.models import Desired
from quazzar.instance.apps.runtimes.base import Project, Runtime, RuntimeFailure
from quazzar.instance.apps.runtimes.plan import STOPPABLE
from quazzar.instance.apps.schemas import AppAdopt, AppCreate, AppImport, FullAppRow
from quazzar.instance.apps.service import AppService
from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.apps.truth import expected_services, judge, views_of
from quazzar.instance.templates.writing import yaml_text

_NO_NAME = re.compile(r"[^a-z0-9]+")
_LINE = re.compile(r" \(line \d+\)")


async def look(runtime: Runtime, data: AppAdopt) -> Project:
    """What the engine has of the project. Raises `ProjectNotFound`, `RuntimeUnavailable`, and `Conflict` where there
    is nothing to be adopted at all.
    """
    try:
        found = await runtime.survey(data.project)
    except RuntimeFailure as failure:
        raise Conflict(failure.reason, code=failure.code) from failure
    if found is None:
        raise ProjectNotFound
    return found


async def adopt(apps: AppService, runtime: Runtime, project: Project, data: AppAdopt) -> FullAppRow:
    """Write the project down as an app, whose objects are its own from then on.

    Raises `ProjectInvalid` with everything that stands against it, `ProjectAdopted`, `AppNameTaken`, `PortTaken`, and
    `Forbidden` for a key that is bound to apps.
    """
    apps.require_unbound()
    session = apps.session
    await store.lock_ports(session)
    if project.taken or await adoption_store.is_adopted(session, project.name):
        raise ProjectAdopted
    name = _name_of(project.name) if isinstance(data.name, UnsetType) else data.name
    draft = await _draft(apps, project, name, trusted=data.trusted)
    if draft.refusals:
        raise PortTaken(details=draft.refusals)
    spec = _as_it_runs(draft.spec, project)
    adoption = project.adoption(spec)
    async with unique_or(AppNameTaken(details={"name": f"The name {name} is taken"})):
        await store.add_app(session, draft.row | _standing(project, spec), seconds=None)
    async with unique_or(PortTaken()):
        await store.hold_ports(session, draft.held_ports)
    async with unique_or(ProjectAdopted()):
        await adoption_store.add_adoption(session, spec.app_id, adoption)
    trusted = {"trusted": True} if data.trusted else {}
    after = {"name": name, "project": project.name, "services": sorted(project.containers)} | trusted
    audit(session, "app.adopt", subject=spec.app_id, after=after)
    publish(session, AppAdopted(app_id=spec.app_id, name=name, project=project.name), subject=spec.app_id)
    after_commit(session, partial(runtime.own, spec.app_id, adoption))
    return await apps.show(spec.app_id)


def _name_of(project: str) -> str:
    return _NO_NAME.sub("-", project)[:63].strip("-")


async def _draft(apps: AppService, project: Project, name: str, *, trusted: bool) -> Draft:
    problems = dict(project.problems)
    file = AppImport(name=name, compose=yaml_text(project.compose), trusted=trusted)
    try:
        template, config = await asyncio.to_thread(read_file, file)
        if not problems:
            return await apps.draft(template, AppCreate(template=name, name=name, config=config), catalogued=False)
    except (ComposeInvalid, Invalid) as error:
        problems |= {_place(project, where): _LINE.sub("", said) for where, said in error.details.items()}
    raise ProjectInvalid(details=problems)


def _place(project: Project, where: str) -> str:
    """What of which container it is, in place of a file that nobody has written."""
    section, _, rest = where.partition(".")
    service, dot, key = rest.partition(".")
    found = project.containers.get(service) if section == "services" else None
    return f"containers.{found[1]}{dot}{key}" if found is not None else where


def _as_it_runs(spec: AppSpec, project: Project) -> AppSpec:
    """`spec` held to the images that the containers were made from."""
    services = [msgspec.structs.replace(one, digest=project.images.get(one.image)) for one in spec.services]
    return msgspec.structs.replace(spec, services=tuple(services))


def _standing(project: Project, spec: AppSpec) -> dict[str, Any]:
    """The columns of an app that is on the engine already."""
    state, expected = project.state(spec), expected_services(spec)
    desired: Desired = "running" if any(one.status in STOPPABLE for one in state.services) else "stopped"
    verdict = judge(state, expected, desired)
    return {
        "status": verdict.status,
        "status_reason": verdict.reason,
        "desired": desired,
        "installed_at": store.now(),
        "images": {service.image: service.digest for service in spec.services if service.digest},
        **views_of(state, expected),
    }


class Adoptions:
    """Tells the driver what apps have that carries no label; before anything works on apps."""

    def __init__(self, database: Database, runtime: Runtime) -> None:
        self._database = database
        self._runtime = runtime

    async def start(self) -> None:
        async with self._database.begin() as session:
            found = await adoption_store.find_adoptions(session)
        for app_id, adoption in found.items():
            self._runtime.own(app_id, adoption)

    async def stop(self) -> None:
        return
