"""Apps on an engine that exists only in this process: for tests, and for trying Quazzar out without containers.

It keeps the whole promise of `Runtime`, down to order, restarts, logs and events, but runs no program: what a container
does is a `Behaviour`. Tests also break it on purpose (`fail`, `hold`, `crash`, `go_down` …).
"""

import asyncio
import contextlib
import io
import secrets
import tarfile
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec

from quazzar.instance.apps.images import registry_of
from quazzar.instance.apps.runtimes import plan
from quazzar.instance.apps.runtimes.base import (
    DEFAULT_SHELL,
    VOLUME_ROOT,
    AdoptedNetwork,
    AdoptedVolume,
    Adoption,
    AppState,
    DependencyFailed,
    DiskUse,
    Health,
    ImageNotFound,
    LoginRefused,
    LogLine,
    Machine,
    PortInUse,
    PortState,
    Project,
    Reading,
    RegistryLogin,
    Report,
    RuntimeEvent,
    RuntimeFailure,
    RuntimeInfo,
    RuntimeUnavailable,
    ServiceState,
    ServiceStats,
    SnapshotNotFound,
    Stream,
    Usage,
    VolumeNotFound,
    service_digest,
)
from quazzar.instance.apps.runtimes.configs import MemoryConfig
from quazzar.instance.apps.runtimes.memory_execution import MemoryExecution
from quazzar.instance.apps.spec import AppSpec, DependencySpec, NetworkSpec, ServiceSpec

_POLL_SECONDS: Final = 0.01
_RESTART_SECONDS: Final = 0.05
_KEPT_LINES: Final = 20_000
_KEPT_EVENTS: Final = 256
_KILLED: Final = 137
_CHUNK_BYTES: Final = 64 * 1024
_PORTS: Final = range(20000, 32768)

Status = Literal["created", "running", "paused", "restarting", "exited", "dead"]


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What a container does once it is started; by default it runs quietly until it is stopped."""

    lines: tuple[tuple[Stream, str], ...] = ()
    """Printed at the start."""
    exit_code: int | None = None
    """None: it does not end by itself."""
    exit_after_seconds: float = 0
    healthy_after_seconds: float | None = 0
    """For services with a health check; None: unhealthy at once."""
    stop_seconds: float = 0
    """How long it takes to obey; it is killed when its grace period is shorter."""
    stop_exit_code: int = 143


@dataclass(eq=False)
class Container:
    """One container. Tests may read it; changes go through the engine's verbs."""

    app_id: str
    service: ServiceSpec
    digest: str
    order: int
    behaviour: Behaviour
    image_digest: str
    id: str = field(default_factory=lambda: secrets.token_hex(32))
    status: Status = "created"
    health: Health = "none"
    restarts: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    lines: deque[LogLine] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    stats: ServiceStats | None = None
    cpu_seconds: float = 0
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def held(self) -> plan.Held:
        over = self.status in {"exited", "dead", "restarting"}
        state = ServiceState(
            name=self.service.name,
            container_id=self.id,
            image=self.service.image,
            image_digest=self.image_digest,
            status=self.status,
            health=self.health if self.status in {"running", "paused"} else "none",
            restarts=self.restarts,
            exit_code=self.exit_code if over else None,
            oom_killed=self.oom_killed,
            started_at=self.started_at,
            finished_at=self.finished_at,
        )
        ports = tuple(
            PortState(
                service=self.service.name,
                container_port=one.container_port,
                host_port=one.host_port,
                protocol=one.protocol,
            )
            for one in self.service.ports
        )
        return plan.Held(
            id=self.id,
            app_id=self.app_id,
            digest=self.digest,
            order=self.order,
            depends_on=self.service.depends_on,
            state=state,
            ports=ports,
            health_deadline_seconds=60.0 if self.has_health_check else None,
        )

    @property
    def has_health_check(self) -> bool:
        check = self.service.healthcheck
        return check is not None and check.test[:1] != ("NONE",)


class MemoryEngine:
    """The engine behind one or several `MemoryRuntime`s: what outlives our process on a real server."""

    def __init__(self) -> None:
        self.containers: list[Container] = []
        self.volumes: dict[str, set[str]] = {}
        self.contents: dict[tuple[str, str], bytes] = {}
        """What is in a volume of an app, as a tar; nothing where it is not told."""
        self.snapshots: dict[tuple[str, str], dict[str, bytes]] = {}
        """Whole copies of an app's volumes by its id and their name."""
        self.networks: dict[str, tuple[NetworkSpec, ...]] = {}
        self.images: dict[str, str] = {}
        """Present images with their digests."""
        self.moved_tags: dict[str, str] = {}
        """Digests that registries have for names now, where they are no longer the first ones."""
        self.unknown_images: set[str] = set()
        """Names that no registry knows; every other name can be pulled."""
        self.private_images: dict[str, tuple[str, str]] = {}
        """Names that need a login, with the user name and password that it takes."""
        self.foreign_ports: set[int] = set()
        """Host ports that something else listens on."""
        self.behaviours: dict[str, Behaviour] = {}
        """By service name or by image; the former counts first."""
        self.calls: list[str] = []
        """Every step that was reached, in order: `list`, `pull:IMAGE`, `create:SERVICE`, `start:SERVICE`, …"""
        self.is_down = False
        self.projects: dict[str, Project] = {}
        """Compose projects by name, see `compose_up`."""
        self.machine = Machine()
        """What there is for apps; nothing of it is known where it is not told."""
        self.volume_bytes: dict[tuple[str, str], int] = {}
        """What lies in a volume, by app and name; nothing where it is not told."""
        self.executions: dict[str, MemoryExecution] = {}
        """Commands in containers, by the id that they were started with."""
        self.stops: dict[str, asyncio.Task[None]] = {}
        """Containers, by id, that were told to stop and have not ended yet."""
        self._faults: dict[str, list[Exception]] = {}
        self._holds: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}
        self._events: deque[RuntimeEvent] = deque(maxlen=_KEPT_EVENTS)
        self._changed = asyncio.Event()
        self._event_number = 0

    # For tests

    def fail(self, step: str, error: Exception, *, times: int = 1) -> None:
        """Let the next `times` arrivals at a step raise `error`."""
        self._faults.setdefault(step, []).extend([error] * times)

    def hold(self, step: str) -> tuple[asyncio.Event, asyncio.Event]:
        """Let the next arrival at a step wait. Gives the event of the arrival and the one that lets it go on."""
        self._holds[step] = (asyncio.Event(), asyncio.Event())
        return self._holds[step]

    def go_down(self) -> None:
        """The engine is gone: every call fails and every stream breaks, while the containers run on."""
        self.is_down = True
        for execution in self.executions.values():
            execution.lose()
        self._wake()

    def come_back(self) -> None:
        self.is_down = False

    def container(self, app_id: str, service: str) -> Container:
        """Raises StopIteration when there is none."""
        return next(one for one in self.containers if (one.app_id, one.service.name) == (app_id, service))

    def write(self, app_id: str, service: str, text: str, *, stream: Stream = "stdout") -> None:
        """Let a container print lines."""
        container = self.container(app_id, service)
        for line in text.splitlines():
            container.lines.append(LogLine(time=datetime.now(UTC), service=service, stream=stream, line=line))
        self._wake()

    def set_health(self, app_id: str, service: str, health: Health) -> None:
        self._set_health(self.container(app_id, service), health)

    def set_stats(self, app_id: str, stats: ServiceStats) -> None:
        self.container(app_id, stats.name).stats = stats

    def crash(self, app_id: str, service: str, *, exit_code: int = 1, oom: bool = False) -> None:
        """A container ends by itself; its restart policy then decides."""
        container = self.container(app_id, service)
        if oom:
            container.oom_killed = True
            self._tell(container, "oom")
        self._ended(container, _KILLED if oom else exit_code)

    def stop_behind_our_back(self, app_id: str, service: str) -> None:
        """What `docker stop` by hand does."""
        self.stopped(self.container(app_id, service))

    def remove_behind_our_back(self, app_id: str, service: str) -> None:
        """What `docker rm -f` by hand does."""
        self.delete(self.container(app_id, service))

    def compose_up(self, project: str, compose: dict[str, Any], **fields: Any) -> Project:
        """What Compose would make of a file; `fields` are those of the `Project` that are told otherwise."""
        containers = {}
        for name, service in compose["services"].items():
            made = Container(
                app_id="",
                service=ServiceSpec(name=name, image=service["image"]),
                digest="",
                order=0,
                behaviour=self.behaviours.get(name) or Behaviour(),
                image_digest=self.images.setdefault(service["image"], self.remote_digest(service["image"], None)),
            )
            self.create(made)
            self.start(made)
            containers[name] = (made.id, f"{project}-{name}-1")
        found = Project(
            name=project,
            compose=compose,
            containers=containers,
            states={one.service.name: one.held().state for one in self.containers if one.id in _ids(containers)},
            ports=(),
            images={one["image"]: self.images[one["image"]] for one in compose["services"].values()},
            networks={f"{project}-network": AdoptedNetwork(name="default", engine_name=f"{project}_default")},
            volumes={f"{project}_{name}": AdoptedVolume(name=name) for name in compose.get("volumes", ())},
            problems={},
        )
        self.projects[project] = msgspec.structs.replace(found, **fields)
        return self.projects[project]

    # For the driver

    async def reach(self, step: str) -> None:
        """Every step of the driver begins here, so that a test can break it there."""
        self.calls.append(step)
        if (hold := self._holds.pop(step, None)) is not None:
            arrived, let_go = hold
            arrived.set()
            await let_go.wait()
        if self.is_down:
            raise RuntimeUnavailable
        if faults := self._faults.get(step):
            raise faults.pop(0)
        await asyncio.sleep(0)

    def remote_digest(self, name: str, login: RegistryLogin | None) -> str:
        """What the registry of an image says. Raises `ImageNotFound`, `LoginRefused`."""
        registry = registry_of(name)
        wanted = self.private_images.get(name)
        given = (login.username, login.password.reveal()) if login else None
        if wanted is not None and given != wanted:
            raise LoginRefused(f"The registry {registry} asks for a login")
        if name in self.unknown_images:
            raise ImageNotFound(f"The registry {registry} has no image {name}")
        pinned = name.rpartition("@")[2] if "@" in name else None
        return pinned or self.moved_tags.get(name) or f"sha256:{sha256(name.encode()).hexdigest()}"

    def present(self, name: str, digest: str | None) -> str | None:
        """The digest of a present image, of exactly that one where a digest is given; None when it is not there."""
        found = self.images.get(name)
        return found if digest in {None, found} else self.images.get(f"{name}@{digest}")

    @property
    def changed(self) -> asyncio.Event:
        """Set as soon as something is printed, happens or breaks after now."""
        return self._changed

    def events_since(self, number: int) -> list[tuple[int, RuntimeEvent]]:
        first = self._event_number - len(self._events)
        return [(first + index + 1, event) for index, event in enumerate(self._events) if first + index >= number]

    @property
    def event_number(self) -> int:
        return self._event_number

    def create(self, container: Container) -> None:
        self.containers.append(container)
        self._tell(container, "create")

    def start(self, container: Container) -> None:
        """Raises `PortInUse`."""
        for port in container.service.ports:
            if port.host_port in self.held_ports():
                raise PortInUse(f"Port {port.host_port} is already in use", service=container.service.name)
        container.restarts = 0
        self._run(container)

    def unpause(self, container: Container) -> None:
        container.status = "running"
        self._tell(container, "unpause")

    def pause(self, container: Container) -> None:
        container.status = "paused"
        self._tell(container, "pause")

    def stopped(self, container: Container, *, exit_code: int | None = None) -> None:
        self._cancel(container)
        was_up = container.status in plan.STOPPABLE
        container.status = "exited"
        container.exit_code = container.behaviour.stop_exit_code if exit_code is None else exit_code
        container.finished_at = datetime.now(UTC)
        if was_up:
            self._tell(container, "kill")
            self._tell(container, "die", exit_code=container.exit_code)
            self._tell(container, "stop")

    def delete(self, container: Container) -> None:
        self._cancel(container)
        if container in self.containers:
            self.containers.remove(container)
            if container.status in plan.STOPPABLE:
                self._tell(container, "kill")
                self._tell(container, "die", exit_code=_KILLED)
            self._tell(container, "destroy")

    def held_ports(self) -> set[int]:
        up = [one for one in self.containers if one.status in plan.STOPPABLE]
        return self.foreign_ports | {port.host_port for one in up for port in one.service.ports}

    def _run(self, container: Container) -> None:
        loop, behaviour = asyncio.get_running_loop(), container.behaviour
        container.status, container.started_at = "running", datetime.now(UTC)
        container.exit_code, container.oom_killed = None, False
        self._tell(container, "start")
        for stream, text in behaviour.lines:
            self.write(container.app_id, container.service.name, text, stream=stream)
        if container.has_health_check:
            container.health = "starting"
            if behaviour.healthy_after_seconds is None:
                container.timers.append(loop.call_later(0, self._set_health, container, "unhealthy"))
            else:
                wait = behaviour.healthy_after_seconds
                container.timers.append(loop.call_later(wait, self._set_health, container, "healthy"))
        if behaviour.exit_code is not None:
            wait = behaviour.exit_after_seconds
            container.timers.append(loop.call_later(wait, self._ended, container, behaviour.exit_code))

    def _ended(self, container: Container, exit_code: int) -> None:
        self._cancel(container)
        container.exit_code, container.finished_at = exit_code, datetime.now(UTC)
        again = _restarts(container, exit_code)
        container.status = "restarting" if again else "exited"
        self._tell(container, "die", exit_code=exit_code)
        if again:
            container.restarts += 1
            loop = asyncio.get_running_loop()
            container.timers.append(loop.call_later(_RESTART_SECONDS, self._run, container))

    def _set_health(self, container: Container, health: Health) -> None:
        container.health = health
        self._tell(container, "health", health=health)

    def _cancel(self, container: Container) -> None:
        for execution in self.executions.values():
            if execution.container_id == container.id:
                execution.kill()
        for timer in container.timers:
            timer.cancel()
        container.timers.clear()

    def _tell(
        self,
        container: Container,
        action: Literal["create", "start", "die", "oom", "stop", "kill", "pause", "unpause", "destroy", "health"],
        *,
        exit_code: int | None = None,
        health: Health | None = None,
    ) -> None:
        self._event_number += 1
        self._events.append(
            RuntimeEvent(
                app_id=container.app_id,
                service=container.service.name,
                action=action,
                at=datetime.now(UTC),
                exit_code=exit_code,
                health=health,
            )
        )
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryRuntime:
    """The driver over a `MemoryEngine`. See `Runtime` for what each verb promises."""

    def __init__(self, config: MemoryConfig | None = None, *, engine: MemoryEngine | None = None) -> None:
        self.config = config or MemoryConfig()
        self.engine = engine or MemoryEngine()

    async def info(self) -> RuntimeInfo:
        await self.engine.reach("info")
        return RuntimeInfo(
            driver="memory", version="1", api_version="1", capabilities=frozenset({"logs", "stats", "events"})
        )

    async def close(self) -> None:
        return

    async def machine(self) -> Machine:
        await self.engine.reach("machine")
        return self.engine.machine

    async def present(self, spec: AppSpec) -> Mapping[str, str | None]:
        await self.engine.reach("present")
        return {one.image: self.engine.present(one.image, one.digest) for one in spec.services}

    async def pull(
        self, spec: AppSpec, report: Report, *, logins: Mapping[str, RegistryLogin] | None = None
    ) -> dict[str, str]:
        images = sorted({service.image: service.digest for service in spec.services}.items())
        digests: dict[str, str] = {}
        for index, (name, wanted) in enumerate(images):
            if self.engine.present(name, wanted) is None:
                await report(index / len(images), f"Pulling {name}")
                await self.engine.reach(f"pull:{name}")
                digest = self.engine.remote_digest(name, (logins or {}).get(registry_of(name)))
                if f"{name}@{wanted}" in self.engine.unknown_images:
                    raise ImageNotFound(f"The registry {registry_of(name)} has no such image any more")
                self.engine.images[name if wanted is None else f"{name}@{wanted}"] = wanted or digest
            digests[name] = self.engine.present(name, wanted) or ""
            await report((index + 1) / len(images), f"Pulling {name}")
        return digests

    async def remote_digest(self, image: str, login: RegistryLogin | None = None) -> str:
        await self.engine.reach(f"remote:{image}")
        return self.engine.remote_digest(image, login)

    async def up(self, spec: AppSpec, report: Report) -> None:
        await report(0, "Looking at what is there")
        present = await self._present(spec.app_id)
        digests = {service.name: service_digest(spec, service) for service in spec.services}
        kept = plan.kept((one.held() for one in present), digests)
        for service in spec.services:
            if service.name not in kept and self.engine.present(service.image, service.digest) is None:
                raise ImageNotFound(f"The image {service.image} is not present", service=service.name)
        stays = {one.id for one in kept.values()}
        stale = [one for one in present if one.id not in stays]
        await self._stop(stale)
        for one in stale:
            await self.engine.reach(f"delete:{one.service.name}")
            self.engine.delete(one)
        self.engine.networks[spec.app_id] = spec.networks
        mounted = {mount.volume for service in spec.services for mount in service.mounts}
        self.engine.volumes.setdefault(spec.app_id, set()).update(spec.volumes, mounted)

        once = plan.awaited(service.depends_on for service in spec.services)
        for order, service in enumerate(spec.services):
            done = order / len(spec.services)

            async def tick(step: str, done: float = done) -> None:
                await report(done, step)

            if service.name in kept and plan.is_right(kept[service.name], once):
                continue
            if service.name not in kept:
                await tick(f"Creating {service.name}")
                await self.engine.reach(f"create:{service.name}")
                self.engine.create(
                    self._made(spec, service, digests[service.name], order, runs_once=service.name in once)
                )
            await self._await_dependencies(spec.app_id, service, tick)
            await tick(f"Starting {service.name}")
            await self._start(self.engine.container(spec.app_id, service.name))
        await report(1, "Started")

    async def start(self, app_id: str) -> None:
        async def tick(_: str) -> None:
            return

        present = await self._present(app_id)
        once = plan.awaited(one.service.depends_on for one in present)
        names = {one.service.name for one in present}
        for one in present:
            if not plan.is_right(one.held(), once):
                wanted = plan.still_there(one.service.depends_on, names)
                await self._await_dependencies(
                    app_id, msgspec.structs.replace(one.service, depends_on=tuple(wanted)), tick
                )
                await self._start(one)

    async def stop(self, app_id: str) -> None:
        await self._stop(await self._present(app_id))

    async def remove(self, app_id: str, *, keep_volumes: bool) -> None:
        if keep_volumes:
            await self._stop(await self._present(app_id))
        for one in await self._present(app_id):
            await self.engine.reach(f"delete:{one.service.name}")
            self.engine.delete(one)
        self.engine.networks.pop(app_id, None)
        if not keep_volumes:
            for snapshot in await self.snapshots(app_id):
                await self.discard(app_id, snapshot)
            self._set_volumes(app_id, {})

    async def snapshot(self, app_id: str, name: str, report: Report) -> None:
        await self.engine.reach("snapshot")
        if (app_id, name) in self.engine.snapshots:
            return
        copies: dict[str, bytes] = {}
        for volume in sorted(self.engine.volumes.get(app_id, ())):
            await report(len(copies) / len(self.engine.volumes[app_id]), f"Saving the data of {volume}")
            await self.engine.reach(f"copy:{volume}")
            copies[volume] = self._content(app_id, volume)
        self.engine.snapshots[app_id, name] = copies
        await report(1, "Saved all data")

    async def restore(self, app_id: str, name: str, report: Report) -> None:
        await self.engine.reach("restore")
        copies = self.engine.snapshots.get((app_id, name))
        if copies is None:
            raise SnapshotNotFound
        await self._stop(await self._present(app_id))
        for one in self._containers(app_id):
            await self.engine.reach(f"delete:{one.service.name}")
            self.engine.delete(one)
        self._set_volumes(app_id, dict.fromkeys(copies, _EMPTY))
        for index, (volume, content) in enumerate(copies.items()):
            await report(index / len(copies), f"Putting back the data of {volume}")
            await self.engine.reach(f"copy:{volume}")
            self.engine.contents[app_id, volume] = content
        await report(1, "Put back all data")

    async def discard(self, app_id: str, name: str) -> None:
        await self.engine.reach("discard")
        self.engine.snapshots.pop((app_id, name), None)

    async def snapshots(self, app_id: str) -> Sequence[str]:
        await self.engine.reach("list")
        return sorted(name for owner, name in self.engine.snapshots if owner == app_id)

    async def find_snapshots(self) -> Mapping[str, Sequence[str]]:
        await self.engine.reach("list")
        owners = {owner for owner, _ in self.engine.snapshots}
        return {one: sorted(name for owner, name in self.engine.snapshots if owner == one) for one in owners}

    async def tidy(self) -> None:
        await self.engine.reach("tidy")

    async def clone_volumes(self, source_app_id: str, target: AppSpec, report: Report) -> None:
        volumes = sorted(self.engine.volumes.get(source_app_id, ()))
        for index, volume in enumerate(volumes):
            await report(index / len(volumes), f"Copying the data of {volume}")
            await self.engine.reach(f"copy:{volume}")
            self.engine.volumes.setdefault(target.app_id, set()).add(volume)
            self.engine.contents[target.app_id, volume] = self._content(source_app_id, volume)
        await report(1, "Copied all data")

    async def image_folders(self, spec: AppSpec) -> Mapping[str, Mapping[str, str]]:
        await self.engine.reach("image_folders")
        return {one.name: {} for one in spec.services if self.engine.present(one.image, one.digest) is not None}

    async def read_volume(self, app_id: str, volume: str) -> AsyncGenerator[bytes, None]:
        await self.engine.reach(f"read:{volume}")
        if volume not in self.engine.volumes.get(app_id, ()):
            raise VolumeNotFound(volume)
        content = self._content(app_id, volume)
        for start in range(0, len(content), _CHUNK_BYTES):
            yield content[start : start + _CHUNK_BYTES]

    async def write_volume(self, app_id: str, volume: str, chunks: AsyncIterator[bytes]) -> None:
        await self.engine.reach(f"write:{volume}")
        if any(volume in {mount.volume for mount in one.service.mounts} for one in self._containers(app_id)):
            raise RuntimeFailure("A volume of the app is in use by a container", code="volume_in_use")
        self.engine.volumes.setdefault(app_id, set()).add(volume)
        self.engine.contents[app_id, volume] = _EMPTY
        self.engine.contents[app_id, volume] = _checked(b"".join([chunk async for chunk in chunks]))

    def _content(self, app_id: str, volume: str) -> bytes:
        return self.engine.contents.get((app_id, volume), _EMPTY)

    def _set_volumes(self, app_id: str, contents: Mapping[str, bytes]) -> None:
        for volume in self.engine.volumes.pop(app_id, set()):
            self.engine.contents.pop((app_id, volume), None)
        if contents:
            self.engine.volumes[app_id] = set(contents)
            self.engine.contents |= {(app_id, volume): content for volume, content in contents.items()}

    async def find(self) -> Sequence[AppState]:
        await self.engine.reach("list")
        held = [one.app_id for one in self.engine.containers]
        kept = [app_id for app_id, names in self.engine.volumes.items() if names]
        return [self._state(app_id) for app_id in sorted({*held, *kept, *self.engine.networks})]

    async def get(self, app_id: str) -> AppState | None:
        return next((one for one in await self.find() if one.app_id == app_id), None)

    async def logs(
        self,
        app_id: str,
        *,
        services: Sequence[str] | None = None,
        tail: int | None = 200,
        since: datetime | None = None,
        until: datetime | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[LogLine, None]:
        def wanted() -> list[Container]:
            return [one for one in self._containers(app_id) if services is None or one.service.name in services]

        await self.engine.reach("list")
        given: dict[int, LogLine] = {}
        lines = sorted((line for one in wanted() for line in one.lines), key=lambda line: line.time)
        for line in lines:
            given[id(line)] = line
        fit = [
            line for line in lines if (since is None or line.time >= since) and (until is None or line.time <= until)
        ]
        for line in fit if tail is None else fit[max(0, len(fit) - tail) :]:
            yield line
        while follow and until is None and (present := wanted()):
            changed = self.engine.changed  # before looking, so that nothing falls in between
            for line in [line for one in present for line in one.lines if id(line) not in given]:
                given[id(line)] = line
                yield line
            await changed.wait()
            if self.engine.is_down:
                raise RuntimeUnavailable

    async def stats(self, app_id: str) -> Sequence[ServiceStats]:
        await self.engine.reach("list")
        return [_stats(one) for one in self._containers(app_id) if one.status in {"running", "paused"}]

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
    ) -> MemoryExecution:
        await self.engine.reach("execute")
        found = next((one for one in self._containers(app_id) if one.service.name == service), None)
        if found is None or found.status != "running":
            raise RuntimeFailure(f'The service "{service}" does not run', code="service_not_running", service=service)
        started = MemoryExecution(found.id, command or DEFAULT_SHELL, tty=tty, size=(columns, rows))
        self.engine.executions[exec_id] = started
        return started

    async def end_execution(self, app_id: str, exec_id: str) -> None:  # noqa: ARG002 - ids are enough here
        await self.engine.reach("end_execution")
        if (execution := self.engine.executions.get(exec_id)) is not None:
            execution.end()

    async def measure_disks(self) -> Sequence[DiskUse]:
        await self.engine.reach("measure_disks")
        return [
            DiskUse(app_id=one, volumes={name: self.engine.volume_bytes.get((one, name), 0) for name in names})
            for one, names in self.engine.volumes.items()
        ]

    async def measure(self) -> Sequence[Reading]:
        await self.engine.reach("measure")
        now = datetime.now(UTC)
        running = [one for one in self.engine.containers if one.status in {"running", "paused"}]
        usages = [(one, _stats(one)) for one in running]
        return [
            Reading(
                app_id=one.app_id,
                service=one.service.name,
                container_id=one.id,
                at=now,
                cpu_seconds=one.cpu_seconds,
                **{name: getattr(usage, name) for name in Usage.__struct_fields__},
            )
            for one, usage in usages
        ]

    async def events(self, *, since: datetime | None = None) -> AsyncGenerator[RuntimeEvent, None]:
        number = self.engine.event_number
        if since is not None:
            number = next((at - 1 for at, one in self.engine.events_since(0) if one.at >= since), number)
        await self.engine.reach("events")
        while True:
            changed = self.engine.changed
            for at, event in self.engine.events_since(number):
                number = at
                yield event
            if self.engine.is_down:
                raise RuntimeUnavailable
            await changed.wait()

    async def survey(self, project: str) -> Project | None:
        await self.engine.reach("survey")
        return self.engine.projects.get(project)

    def own(self, app_id: str, adoption: Adoption) -> None:
        for container in self.engine.containers:
            if (one := adoption.containers.get(container.id)) is not None and container.app_id in {"", app_id}:
                container.app_id, container.digest, container.order = app_id, one.digest, one.order
                container.service = msgspec.structs.replace(container.service, depends_on=one.depends_on)
                held = {volume.name for volume in adoption.volumes.values()}
                self.engine.volumes.setdefault(app_id, set()).update(held)

    def disown(self, app_id: str) -> None:
        for container in self.engine.containers:
            if container.app_id == app_id and container.id in self._adopted_ids():
                container.app_id = ""

    def _adopted_ids(self) -> set[str]:
        return {one for project in self.engine.projects.values() for one in _ids(project.containers)}

    async def free_ports(self, count: int, *, avoid: frozenset[int] = frozenset()) -> list[int]:
        await self.engine.reach("list")
        free = [port for port in _PORTS if port not in avoid and port not in self.engine.held_ports()]
        if len(free) < count:
            raise RuntimeFailure("There are not enough free ports", code="ports_exhausted")
        return secrets.SystemRandom().sample(free, count)

    def _containers(self, app_id: str) -> list[Container]:
        return sorted((one for one in self.engine.containers if one.app_id == app_id), key=lambda one: one.order)

    async def _present(self, app_id: str) -> list[Container]:
        await self.engine.reach("list")
        return self._containers(app_id)

    def _state(self, app_id: str) -> AppState:
        held = [one.held() for one in self._containers(app_id)]
        return AppState(
            app_id=app_id,
            services=tuple(one.state for one in held),
            ports=tuple(port for one in held for port in one.ports),
            volumes=tuple(sorted(self.engine.volumes.get(app_id, ()))),
        )

    def _made(self, spec: AppSpec, service: ServiceSpec, digest: str, order: int, *, runs_once: bool) -> Container:
        behaviours = self.engine.behaviours
        made = Container(
            app_id=spec.app_id,
            service=service,
            digest=digest,
            order=order,
            behaviour=behaviours.get(service.name) or behaviours.get(service.image) or Behaviour(),
            image_digest=self.engine.present(service.image, service.digest) or "",
        )
        if runs_once and service.restart.policy in {"always", "unless-stopped"}:
            made.service = msgspec.structs.replace(
                service, restart=msgspec.structs.replace(service.restart, policy="no")
            )
        return made

    async def _start(self, container: Container) -> None:
        await self.engine.reach(f"start:{container.service.name}")
        if container.status == "paused":
            self.engine.unpause(container)
        else:
            self.engine.start(container)

    async def _stop(self, containers: Sequence[Container]) -> None:
        by_id = {one.id: one for one in containers}
        left = [one.held() for one in containers if one.status in plan.STOPPABLE]
        while left:
            free = plan.next_to_stop(left)
            for one in free:
                await self._stop_one(by_id[one.id])
            left = [one for one in left if one not in free]

    async def _stop_one(self, container: Container) -> None:
        await self.engine.reach(f"stop:{container.service.name}")
        # As in a real engine it goes on when nobody waits for it any more, and a second one waits for the same end.
        stops = self.engine.stops
        if container.id not in stops:
            stops[container.id] = asyncio.create_task(self._end(container))
            stops[container.id].add_done_callback(lambda _: stops.pop(container.id))
        await asyncio.shield(stops[container.id])

    async def _end(self, container: Container) -> None:
        grace, needed = container.service.stop_grace_seconds, container.behaviour.stop_seconds
        await asyncio.sleep(min(grace, needed))
        self.engine.stopped(container, exit_code=_KILLED if needed > grace else None)

    async def _await_dependencies(
        self, app_id: str, service: ServiceSpec, tick: Callable[[str], Awaitable[None]]
    ) -> None:
        for wanted in service.depends_on:
            try:
                await self._await_condition(app_id, wanted, service.name, tick)
            except DependencyFailed:
                if wanted.required:
                    raise

    async def _await_condition(
        self, app_id: str, wanted: DependencySpec, service: str, tick: Callable[[str], Awaitable[None]]
    ) -> None:
        loop = asyncio.get_running_loop()
        began, restarts = loop.time(), None
        while True:
            await self.engine.reach("list")
            with contextlib.suppress(StopIteration):
                held = self.engine.container(app_id, wanted.service).held()
                restarts = held.state.restarts if restarts is None else restarts
                crashes = held.state.restarts - restarts
                problem = plan.problem(held, wanted, waited=loop.time() - began, crashes=crashes)
                if problem is None:
                    return
                if problem:
                    raise DependencyFailed(
                        f"“{wanted.service}” {problem}, and “{service}” waits for it", service=service
                    )
                await tick(f"{service} waits for {wanted.service}")
                await asyncio.sleep(_POLL_SECONDS)
                continue
            raise DependencyFailed(f"“{service}” waits for “{wanted.service}”, which is not there", service=service)


def _ids(containers: Mapping[str, tuple[str, str]]) -> set[str]:
    return {one for one, _ in containers.values()}


def _checked(content: bytes) -> bytes:
    """A tar with what of `content` lies in `VOLUME_ROOT`. Raises `RuntimeFailure` for what is no whole tar."""
    kept = io.BytesIO()
    try:
        if content[-1024:] != bytes(1024):
            raise tarfile.TarError
        with tarfile.open(fileobj=io.BytesIO(content)) as given, tarfile.open(fileobj=kept, mode="w") as made:
            for entry in given:
                if entry.name.split("/", 1)[0] == VOLUME_ROOT:
                    made.addfile(entry, given.extractfile(entry) if entry.isreg() else None)
    except tarfile.TarError:
        raise RuntimeFailure("The data of a volume could not be read to its end", code="volume_unreadable") from None
    return kept.getvalue()


def _empty_volume() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        root = tarfile.TarInfo(VOLUME_ROOT)
        root.type, root.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(root)
    return content.getvalue()


_EMPTY: Final = _empty_volume()


def _restarts(container: Container, exit_code: int) -> bool:
    restart = container.service.restart
    match restart.policy:
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            return exit_code != 0 and (restart.max_retries == 0 or container.restarts < restart.max_retries)
        case "no":
            return False


def _stats(container: Container) -> ServiceStats:
    if container.stats is not None:
        return container.stats
    return ServiceStats(
        name=container.service.name,
        cpu_percent=0.5,
        restarts=container.restarts,
        memory_bytes=16 * 1024 * 1024,
        memory_limit_bytes=container.service.resources.memory_bytes or 1024**3,
        network_rx_bytes=0,
        network_tx_bytes=0,
        disk_read_bytes=0,
        disk_write_bytes=0,
        pids=1,
    )
