"""Whether the machine has room for an app: what apps reserve of it, and how much of it may be promised twice.

Memory counts in two ways. What an app needs at least (the template's `needs`, else what its services reserve) is never
promised twice. What its services may use at most is, up to a factor: few apps use all that they may. The same holds of
CPU time and processes. The disk has to hold what is not on it yet: that of apps which are installed is told by how much
is free.
"""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any, Final, Literal

import msgspec
import psutil
import structlog

from quazzar.core.errors import Unavailable
from quazzar.instance.apps.runtimes.base import Machine, Runtime, RuntimeFailure, free_bytes
from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.templates.rendering import Limits
from quazzar.instance.templates.template import Needs
from quazzar.settings import Apps

log = structlog.get_logger(__name__)

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
MEMORY_RESERVE_PART: Final = 0.1
MOST_MEMORY_RESERVE_BYTES: Final = GIB
"""What of the memory is left to the system: a tenth, at most this much."""
DISK_RESERVE_BYTES: Final = GIB
"""What of the disk no app gets by an install."""
IMAGE_BYTES: Final = 256 * MIB
"""What an image that no app has yet takes on the disk, where the template does not say what the app needs."""
PIDS_OVERCOMMIT: Final = 16
MOST_PIDS: Final = 32_768
"""What a service counts for at most: what a kernel runs at once, unless somebody has told it otherwise."""
LOOK_SECONDS: Final = 60.0
Resource = Literal["memory_bytes", "memory_limit_bytes", "cpus", "pids", "disk_bytes"]
_AGAIN_SECONDS: Final = 5.0


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What an app reserves; `disk_bytes` until it is installed."""

    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    cpus: float = 0
    pids: int = 0
    disk_bytes: int = 0


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """One sum: what is needed, what all other apps reserve, and what there is for apps."""

    resource: Resource
    needed: float
    reserved: float
    available: float

    @property
    def is_enough(self) -> bool:
        return self.needed + self.reserved <= self.available

    def sentence(self) -> str:
        show = _bytes if self.resource.endswith("_bytes") else _number
        return (
            f"{show(self.needed)} needed, {show(self.reserved)} reserved by other apps, "
            f"{show(self.available)} available for apps"
        )


def claim_of(spec: AppSpec, needs: Needs, *, asked: Limits | None = None, known_images: Collection[str] = ()) -> Claim:
    """What an app reserves, by its spec without limits of our own choosing; `known_images` are on the disk already.

    A limit above what this machine has limits nothing, and counts as all that there is; but one that the app's owner
    has `asked` for counts whole, so that it can be refused.
    """
    asked = asked or Limits()
    memory = max(psutil.virtual_memory().total, asked.memory_bytes or 0)
    cores = max(psutil.cpu_count() or 1, asked.cpus or 0)
    limits = [service.resources for service in spec.services]
    reserved = sum(one.memory_reservation_bytes or 0 for one in limits)
    limited = sum(min(one.memory_bytes or one.memory_reservation_bytes or 0, memory) for one in limits)
    least = needs.memory_bytes or reserved
    images = {service.image for service in spec.services} - set(known_images)
    return Claim(
        memory_bytes=least,
        memory_limit_bytes=max(limited, least),
        cpus=sum(min(one.cpus or 0, cores) for one in limits),
        pids=sum(min(one.pids, MOST_PIDS) for one in limits),
        disk_bytes=needs.disk_bytes or IMAGE_BYTES * len(images),
    )


def rooms(needed: Claim, reserved: Claim, machine: Machine, policy: Apps) -> list[Room]:
    """Every sum that can be made; what of the machine is not known has none, nor what the settings leave unchecked."""
    available: dict[Resource, float | None] = {
        "memory_bytes": None,
        "memory_limit_bytes": None,
        "cpus": machine.cpus and machine.cpus * policy.cpu_overcommit,
        "pids": machine.pids and machine.pids * PIDS_OVERCOMMIT,
        "disk_bytes": None if machine.disk_free_bytes is None else machine.disk_free_bytes - DISK_RESERVE_BYTES,
    }
    if machine.memory_bytes is not None and policy.memory_overcommit:
        usable = int(machine.memory_bytes - min(machine.memory_bytes * MEMORY_RESERVE_PART, MOST_MEMORY_RESERVE_BYTES))
        available |= {"memory_bytes": usable, "memory_limit_bytes": int(usable * policy.memory_overcommit)}
    return [
        Room(
            resource=name,
            needed=getattr(needed, name),
            reserved=getattr(reserved, name),
            available=max(0, most),
        )
        for name, most in available.items()
        if most is not None and (most or name == "disk_bytes")
    ]


def refusals(needed: Claim, found: Collection[Room], *, former: Claim | None = None) -> dict[str, str]:
    """Resource → the sum that does not work out. What an app has already (`former`) is never refused it."""
    return {
        one.resource: one.sentence()
        for one in found
        if not one.is_enough and getattr(needed, one.resource) > (getattr(former, one.resource) if former else 0)
    }


def larger(one: Claim, other: Claim) -> Claim:
    """Of each resource the larger claim: what an app reserves while it changes from the one to the other."""
    return Claim(**{name: max(getattr(one, name), getattr(other, name)) for name in Claim.__struct_fields__})


def _bytes(value: float) -> str:
    return f"{value / GIB:.2f} GiB" if value >= GIB else f"{value / MIB:.0f} MiB"


def _number(value: float) -> str:
    return f"{value:g}"


class MachineWatch:
    """Knows the machine without asking the engine in a request. One per process; `look` is for tests too."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._machine = Machine()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._look_often(), name="apps-machine")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def now(self) -> Machine:
        """What is known of the machine, with what is free on its disk at this moment; nothing before the first look."""
        if self._machine.data_root is None:
            return self._machine
        free = await asyncio.to_thread(free_bytes, self._machine.data_root)
        return msgspec.structs.replace(self._machine, disk_free_bytes=free)

    async def look(self) -> None:
        """Raises what `Runtime.machine` does; what was known then stays."""
        self._machine = await self._runtime.machine()

    async def _look_often(self) -> None:
        while True:
            pause = LOOK_SECONDS
            try:
                await self.look()
            except (Unavailable, RuntimeFailure, OSError):
                pause = _AGAIN_SECONDS  # the reconciler says that the engine is away
            except Exception as error:
                log.error("apps.machine_failed", exc_info=error)
            await asyncio.sleep(pause)


def claim_from(stored: Any) -> Claim:
    """A claim as it stands in a row; nothing where it could not be worked out."""
    return msgspec.convert(stored or {}, Claim)
