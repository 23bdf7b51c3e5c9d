"""The promise of a container runtime: whole apps in, the engine's truth out."""

import hashlib
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from quazzar.core.errors import Unavailable
from quazzar.core.secret import Secret
from quazzar.instance.apps.spec import AppSpec, AttachmentSpec, DependencySpec, ServiceSpec

LINE_LIMIT_BYTES = 64 * 1024

VOLUME_ROOT = "volume"
"""The folder in which the tar of a volume has everything."""

Health = Literal["none", "starting", "healthy", "unhealthy"]
Stream = Literal["stdout", "stderr"]

Report = Callable[[float, str], Awaitable[None]]
"""Called with progress from 0 to 1 and one sentence on the step; may raise to abort between steps."""


class RuntimeUnavailable(Unavailable):
    """The engine does not answer: absent, frozen or gone in the middle."""

    code = "runtime_unavailable"
    message = "The container engine is not reachable"

    def __init__(self, message: str | None = None, *, retry_after: int = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class RuntimeFailure(Exception):
    """The engine refused or failed one step. `reason` is a sentence fit for the user; `code` is stable."""

    def __init__(self, reason: str, *, code: str = "runtime_failed", service: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.service = service


class ImageNotFound(RuntimeFailure):
    """No such image, or none that this caller may know of: many registries don't tell the two apart."""

    def __init__(self, reason: str, *, service: str | None = None) -> None:
        super().__init__(reason, code="image_not_found", service=service)


class LoginRefused(RuntimeFailure):
    """The registry of an image takes no pull without a login, or not with the one that it got."""

    def __init__(self, reason: str, *, service: str | None = None) -> None:
        super().__init__(reason, code="registry_login_refused", service=service)


class RegistryUnreachable(RuntimeFailure):
    """The engine is there, but the registry of an image does not answer it."""

    def __init__(self, reason: str, *, service: str | None = None) -> None:
        super().__init__(reason, code="registry_unreachable", service=service)


class PortInUse(RuntimeFailure):
    def __init__(self, reason: str, *, service: str | None = None) -> None:
        super().__init__(reason, code="port_in_use", service=service)


class DependencyFailed(RuntimeFailure):
    """A service was not started because one that it waits for did not get there."""

    def __init__(self, reason: str, *, service: str | None = None) -> None:
        super().__init__(reason, code="dependency_failed", service=service)


class SnapshotNotFound(RuntimeFailure):
    def __init__(self) -> None:
        super().__init__("The saved copy of the app's data is not there", code="snapshot_not_found")


class VolumeNotFound(RuntimeFailure):
    def __init__(self, volume: str) -> None:
        super().__init__(f"The app has no volume “{volume}”", code="volume_not_found")


class RegistryLogin(msgspec.Struct, frozen=True, kw_only=True):
    username: str
    password: Secret


class RuntimeInfo(msgspec.Struct, frozen=True, kw_only=True):
    driver: str
    version: str
    api_version: str
    capabilities: frozenset[str] = frozenset()


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine of the engine has; None for what can't be known from here, as the disk of another machine.

    `data_root` is the folder of the engine's data where it can be seen from here.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk_free_bytes: int | None = None
    data_root: str | None = None


class ServiceState(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    container_id: str
    image: str
    image_digest: str | None
    status: Literal["created", "running", "paused", "restarting", "exited", "dead"]
    health: Health = "none"
    restarts: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None


class PortState(msgspec.Struct, frozen=True, kw_only=True):
    service: str
    container_port: int
    host_port: int
    protocol: Literal["tcp", "udp"]


class AppState(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine holds of one app; an app of which nothing is left is not reported at all.

    `services` come in the order in which they start. `volumes` are short names: those of the spec, and those that a
    driver made for folders that an image declares as its data.
    """

    app_id: str
    services: tuple[ServiceState, ...]
    ports: tuple[PortState, ...] = ()
    volumes: tuple[str, ...] = ()


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    time: datetime
    service: str
    stream: Stream
    line: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What containers hold now, and what they have sent and received, read and written since they started."""

    memory_bytes: int
    memory_limit_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    pids: int


class ServiceStats(Usage, frozen=True, kw_only=True):
    """One service now; CPU is in percent of one core, `restarts` are the engine's own since the last start."""

    name: str
    cpu_percent: float
    restarts: int = 0


class Reading(Usage, frozen=True, kw_only=True):
    """The counters of one running container at the moment `at` of the engine's clock."""

    app_id: str
    service: str
    container_id: str
    at: datetime
    cpu_seconds: float


class DiskUse(msgspec.Struct, frozen=True, kw_only=True):
    """What an app has on the engine's disk: each volume by its short name, and what its containers have written."""

    app_id: str
    volumes: dict[str, int] = {}
    containers_bytes: int = 0


class RuntimeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened to a container of an app, behind our back or not."""

    app_id: str
    service: str
    action: Literal["create", "start", "die", "oom", "stop", "kill", "restart", "pause", "unpause", "destroy", "health"]
    at: datetime
    exit_code: int | None = None
    health: Health | None = None


class AdoptedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container that is a service's, with what a driver would note on it when it makes one."""

    service: str
    digest: str
    order: int
    depends_on: tuple[DependencySpec, ...]
    image: str


class AdoptedNetwork(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    engine_name: str


class AdoptedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the app's own; the labels are those that the volume has, by which it is known again."""

    name: str
    labels: dict[str, str] = {}


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """What of a Compose project became an app's as it was: containers and networks by id, volumes by their name.

    The engine can't tell it, so it is kept outside of it.
    """

    project: str
    containers: dict[str, AdoptedContainer]
    networks: dict[str, AdoptedNetwork] = {}
    volumes: dict[str, AdoptedVolume] = {}


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A Compose project as it is on an engine, in Compose's own words, so that the one validator can judge it.

    `containers` maps a service to its container's id and name, `states` and `ports` tell them as those of an app,
    `images` the name of an image to the digest (or id) of what runs. `problems` are what can't be said in Compose's
    words, by place. `taken` says that it is an app's.
    """

    name: str
    compose: dict[str, Any]
    containers: dict[str, tuple[str, str]]
    states: dict[str, ServiceState]
    ports: tuple[PortState, ...]
    images: dict[str, str]
    networks: dict[str, AdoptedNetwork]
    volumes: dict[str, AdoptedVolume]
    problems: dict[str, str]
    taken: bool = False

    def state(self, spec: AppSpec) -> AppState:
        """What the engine holds of an app of that spec that is made of it."""
        volumes = sorted(volume.name for volume in self.volumes.values())
        services = tuple(self.states[service.name] for service in spec.services)
        return AppState(app_id=spec.app_id, services=services, ports=self.ports, volumes=tuple(volumes))

    def adoption(self, spec: AppSpec) -> Adoption:
        """What an app of that spec has of it: its containers count as made from their parts of the spec."""
        containers = {
            self.containers[service.name][0]: AdoptedContainer(
                service=service.name,
                digest=service_digest(spec, service),
                order=order,
                depends_on=service.depends_on,
                image=service.image,
            )
            for order, service in enumerate(spec.services)
        }
        return Adoption(project=self.name, containers=containers, networks=self.networks, volumes=self.volumes)


DEFAULT_SHELL: Final = ("sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash; exec sh")
"""What a terminal runs when nothing is named: the better shell of the image, which has to have one."""


class Execution(Protocol):
    """A command in the container of a service, beside what runs there; made by `Runtime.execute`.

    Reading and writing may go on at the same time, each by one task. All but `close` raise `RuntimeUnavailable` when
    the engine goes away.
    """

    container_id: str

    async def read(self) -> tuple[Stream, bytes] | None:
        """What the command prints next, None once it has ended; with a terminal all of it comes as stdout.

        The engine is read no faster than this is called, and a command that prints more has to wait.
        """

    async def write(self, data: bytes) -> None:
        """Give the command input; waits while it takes none. Input for a command that has ended is lost."""

    async def end_input(self) -> None:
        """No more input comes: the command reads an end of file. With a terminal that is a key (Ctrl-D) instead."""

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the command's terminal its size; without a terminal, or once the command has ended, nothing."""

    async def exit_code(self) -> int | None:
        """The exit code of a command that has ended; None while it runs, and when the engine has forgotten it."""

    async def close(self) -> None:
        """Let go of the command: its connection is gone afterwards, the command itself may run on."""


class Runtime(Protocol):
    """A container engine, spoken to in whole apps.

    Every call raises `RuntimeUnavailable` when the engine does not answer within its time limit, and `RuntimeFailure`
    when it refuses. Only objects that carry our labels are ever listed, changed or removed. Every verb may be repeated:
    after a crash in its middle, calling it again ends in the same state.
    """

    async def info(self) -> RuntimeInfo:
        """The engine's own word on itself; the cheap check whether it is there."""

    async def machine(self) -> Machine:
        """What there is for all apps together."""

    async def present(self, spec: AppSpec) -> Mapping[str, str | None]:
        """Image → the digest of what is there under its name (or its id where it came from no registry), else None."""

    async def pull(
        self, spec: AppSpec, report: Report, *, logins: Mapping[str, RegistryLogin] | None = None
    ) -> dict[str, str]:
        """Make all images of `spec` present. Gives image → digest (or image id where the image has no digest).

        An image that is present is not pulled again; for a service with a digest it is that image and no other.
        `logins` are keyed by registry host as image names carry it (`docker.io` for names without one). Raises
        `ImageNotFound`, `LoginRefused`, `RegistryUnreachable`.
        """

    async def remote_digest(self, image: str, login: RegistryLogin | None = None) -> str:
        """The digest that the registry has for `image` now; nothing is pulled.

        It differs from what `pull` gave exactly when the tag has moved since. Raises `ImageNotFound`, `LoginRefused`,
        `RegistryUnreachable`.
        """

    async def up(self, spec: AppSpec, report: Report) -> None:
        """Networks, volumes and containers as in `spec`, started in the order of their dependencies' conditions.

        A container that matches its part of the spec is left as it is; one that differs is recreated (volumes stay);
        services that the spec no longer has are removed. A service that others wait to complete and that has
        completed is not run again. Waits for the conditions that dependencies name, not for the health of the others.
        Images are not pulled. Raises `PortInUse`, `ImageNotFound`, `DependencyFailed`.
        """

    async def start(self, app_id: str) -> None:
        """Start the stopped containers of an app in the order and under the conditions of its last `up`.

        A container that somebody has removed since is waited for by no other: they ran without it, too. Nothing to
        start is no error. Raises `PortInUse`, `DependencyFailed`.
        """

    async def stop(self, app_id: str) -> None:
        """Stop the running containers, each within its own grace period, dependents before what they depend on."""

    async def remove(self, app_id: str, *, keep_volumes: bool) -> None:
        """Remove containers and networks, and volumes too unless kept. What is gone already is no error.

        With kept volumes the containers are stopped as `stop` does, so that their data is whole; else they are killed.
        """

    async def find(self) -> Sequence[AppState]:
        """All apps of which the engine holds anything."""

    async def get(self, app_id: str) -> AppState | None:
        """One app, or None when the engine holds nothing of it."""

    def logs(
        self,
        app_id: str,
        *,
        services: Sequence[str] | None = None,
        tail: int | None = 200,
        since: datetime | None = None,
        until: datetime | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[LogLine, None]:
        """Lines of all (or the named) services, merged in order of time; `tail` counts over the merged result.

        With `follow` the iterator goes on, over restarts too, until it is closed or the containers are gone. Lines
        that are longer than `LINE_LIMIT_BYTES` come in pieces; bytes that are not UTF-8 become U+FFFD.
        """

    async def stats(self, app_id: str) -> Sequence[ServiceStats]:
        """One sample for each running service; CPU is in percent of one core."""

    async def execute(
        self,
        app_id: str,
        service: str,
        command: Sequence[str] | None,
        *,
        exec_id: str,
        tty: bool = True,
        columns: int = 80,
        rows: int = 24,
    ) -> Execution:
        """Start a command (`DEFAULT_SHELL` when None) in the running container of a service, as the service's user.

        `exec_id` marks the command and all that it starts, for `end_execution`. Raises `RuntimeFailure` with the code
        `service_not_running`, `command_not_found` or `command_not_runnable`.
        """

    async def end_execution(self, app_id: str, exec_id: str) -> None:
        """End the command marked `exec_id` and what it has started, by hanging up and after a second by force.

        No engine ends a command, so this is done by another one, which needs `sh` in the image and the rights of the
        service's user. A command that is gone, or whose container is, is no error.
        """

    async def measure_disks(self) -> Sequence[DiskUse]:
        """What every app has on the disk. Slow: the engine counts every file; seldom and never for a request."""

    async def measure(self) -> Sequence[Reading]:
        """The counters of every running service of all apps, in a few cheap calls: one that is gone is left out."""

    def events(self, *, since: datetime | None = None) -> AsyncGenerator[RuntimeEvent, None]:
        """Events of labelled containers, live; ends by raising `RuntimeUnavailable` when the line breaks.

        `since` first repeats what the engine still remembers from that time on (a few hundred events): take the time,
        call `find`, then follow from that time, and nothing falls in between.
        """

    async def snapshot(self, app_id: str, name: str, report: Report) -> None:
        """Copy every volume of the app aside under `name` (of `[a-z0-9-]`): a whole copy, or none that counts.

        What was begun before is begun anew, what is whole already stays as it is. The data is that of one moment only
        if the app does not run. Copies are no volumes of the app: `find` and `get` don't tell them.
        """

    async def restore(self, app_id: str, name: str, report: Report) -> None:
        """Give the app's volumes the content of a snapshot, and no other volumes than it has.

        The app's containers are stopped and removed. The snapshot stays. Raises `SnapshotNotFound` where there is no
        whole one, before anything is changed; broken off in the middle, it must be called again before an `up`.
        """

    async def discard(self, app_id: str, name: str) -> None:
        """Remove a snapshot, whole or not. What is gone already is no error."""

    async def snapshots(self, app_id: str) -> Sequence[str]:
        """The names of all snapshots of the app, also of those that are not whole."""

    async def find_snapshots(self) -> Mapping[str, Sequence[str]]:
        """App → names of its snapshots, for all apps that have any."""

    async def tidy(self) -> None:
        """Remove what copies of data that were broken off have left besides the data; a copy in progress goes on."""

    async def clone_volumes(self, source_app_id: str, target: AppSpec, report: Report) -> None:
        """Make copies of all volumes of one app the volumes of another, of which no container is there yet."""

    async def image_folders(self, spec: AppSpec) -> Mapping[str, Mapping[str, str]]:
        """Service → volume → path, of the volumes that `up` makes for folders that an image declares as its data.

        Of images that are not present nothing is told.
        """

    def read_volume(self, app_id: str, volume: str) -> AsyncGenerator[bytes, None]:
        """The volume as a tar, uncompressed, in chunks of any size.

        All entries lie in one folder, `VOLUME_ROOT`, whose own entry comes first and is the volume's root. Owners are
        numbers, times are in seconds; of extended attributes only capabilities are there. Raises `VolumeNotFound`, and
        `RuntimeFailure` where it could not be read to its end.
        """

    async def write_volume(self, app_id: str, volume: str, chunks: AsyncIterator[bytes]) -> None:
        """Make the volume anew, with what a tar in the form of `read_volume` says and nothing else.

        No container may be there that mounts it. Entries outside of `VOLUME_ROOT` are lost. Whoever takes a tar from
        outside checks it first: devices are made as it says. Broken off in the middle, the volume is to be written
        again.
        """

    async def survey(self, project: str) -> Project | None:
        """A Compose project that is on the engine, known by Compose's own labels; None when there is none.

        Nothing is changed. Raises `RuntimeFailure` with the code `unsupported` where no such thing can be taken over.
        """

    def own(self, app_id: str, adoption: Adoption) -> None:
        """From now on these objects are the app's as if they carried its labels; what is not there (any more) is not.

        It holds until `disown` or the end of the process. Containers that are made anew are labelled as any; volumes
        and networks keep their names.
        """

    def disown(self, app_id: str) -> None:
        """Forget what `own` said of an app; for one that it never said anything of, nothing."""

    async def free_ports(self, count: int, *, avoid: frozenset[int] = frozenset()) -> list[int]:
        """`count` TCP host ports that nothing listens on now, outside `avoid`."""

    async def close(self) -> None:
        """Release connections; the containers run on."""


def free_bytes(folder: str) -> int | None:
    """What a process without rights can still write where `folder` is; None when that can't be seen."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def attachments(spec: AppSpec, service: ServiceSpec) -> tuple[AttachmentSpec, ...]:
    """The networks that a service is on: those that it names, else the app's network `default`, if there is one.

    One that is on the host's own is on none.
    """
    if service.networks or service.host.network:
        return service.networks
    return tuple(AttachmentSpec(network=one.name) for one in spec.networks if one.name == "default")


def service_digest(spec: AppSpec, service: ServiceSpec) -> str:
    """A hash over everything that makes a container of `service` what it is; another value means: recreate it.

    Fields that have their default value don't count, so a field that is added later changes no digest of today.
    """
    networks = {one.name: one for one in spec.networks}
    wanted = [(one, networks.get(one.network)) for one in attachments(spec, service)]
    canonical = msgspec.json.encode([spec.project, _canonical(service), _canonical(wanted)], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()[:32]


def _canonical(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {
            field.name: _canonical(getattr(value, field.name))
            for field in msgspec.structs.fields(value)
            if getattr(value, field.name) != _default(field)
        }
    if isinstance(value, list | tuple):
        return [_canonical(one) for one in value]
    return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
