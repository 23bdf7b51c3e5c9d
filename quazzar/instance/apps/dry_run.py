"""What an update would do: what the registries have of its images by now, and what that means for its services."""

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from quazzar.instance.apps.images import is_pinned, registry_of
from quazzar.instance.apps.runtimes.base import (
    ImageNotFound,
    RegistryLogin,
    Runtime,
    RuntimeFailure,
    RuntimeUnavailable,
    service_digest,
)
from quazzar.instance.apps.schemas import ImageChange, UpdatePlan
from quazzar.instance.apps.spec import AppSpec

ASKING_SECONDS: Final = 20.0
"""How long a request waits for all registries together."""


class PlannedUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """An update that is not begun: what the app is (`former`, with its `images` and their digests) and would become."""

    plan: UpdatePlan
    former: AppSpec
    spec: AppSpec
    images: Mapping[str, str]
    logins: Mapping[str, RegistryLogin]


async def asked(planned: PlannedUpdate, runtime: Runtime) -> UpdatePlan:
    """The plan with what the registries say. What can't be had stands in `refusals`, what can't be asked in `notes`."""
    plan, digests = planned.plan, dict[str, str | None]()
    refusals, notes = dict(plan.refusals), dict.fromkeys(plan.notes)

    async def ask(name: str) -> None:
        try:
            digests[name] = await runtime.remote_digest(name, planned.logins.get(registry_of(name)))
        except ImageNotFound as failure:
            # What the app has already is taken as it is here.
            if name in planned.images:
                notes[failure.reason] = None
            else:
                refusals[f"images.{name}"] = failure.reason
        except RuntimeFailure as failure:
            notes[failure.reason] = None
        except RuntimeUnavailable as error:
            notes[f"{error.message}, and no registry without it"] = None

    try:
        async with asyncio.timeout(ASKING_SECONDS), asyncio.TaskGroup() as tasks:
            for name in plan.images:
                if not is_pinned(name):
                    tasks.create_task(ask(name))
    except TimeoutError:
        notes["Not all registries have answered in time"] = None
    digests |= {name: name.partition("@")[2] for name in plan.images if is_pinned(name)}
    changes = [
        ImageChange(image=name, former_digest=planned.images.get(name), digest=digests.get(name))
        for name in plan.images
    ]
    held = {name: digests.get(name) or planned.images.get(name) for name in plan.images}
    services = [msgspec.structs.replace(one, digest=held[one.image]) for one in planned.spec.services]
    spec = msgspec.structs.replace(planned.spec, services=tuple(services))
    former = {one.name: service_digest(planned.former, one) for one in planned.former.services}
    return msgspec.structs.replace(
        plan,
        image_changes=changes,
        recreated=[one.name for one in spec.services if former.get(one.name) != service_digest(spec, one)],
        removed=[name for name in former if name not in plan.services],
        refusals=refusals,
        notes=list(notes),
    )
