"""Apps on one Docker engine, through its Engine API."""

import asyncio
import contextlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from quazzar.instance.apps.host_paths import host_path
from quazzar.instance.apps.images import pinned, registry_of
from quazzar.instance.apps.ports import is_free
from quazzar.instance.apps.runtimes import plan
from quazzar.instance.apps.runtimes.base import (
    DEFAULT_SHELL,
    Adoption,
    AppState,
    DependencyFailed,
    DiskUse,
    ImageNotFound,
    LogLine,
    Machine,
    Project,
    Reading,
    RegistryLogin,
    Report,
    RuntimeEvent,
    RuntimeFailure,
    RuntimeInfo,
    RuntimeUnavailable,
    ServiceStats,
    free_bytes,
    service_digest,
)
from quazzar.instance.apps.runtimes.configs import DockerConfig
from quazzar.instance.apps.runtimes.engine import objects
from quazzar.instance.apps.runtimes.engine.adopted import Adopted
from quazzar.instance.apps.runtimes.engine.connection import CHANGE_SECONDS, HEAVY_SECONDS, Engine, engine_url
from quazzar.instance.apps.runtimes.engine.containers import delete_container
from quazzar.instance.apps.runtimes.engine.execution import (
    DockerExecution,
    kill_marked,
    not_running,
    start_execution,
)
from quazzar.instance.apps.runtimes.engine.failures import Gone, Taken
from quazzar.instance.apps.runtimes.engine.images import Images, messages
from quazzar.instance.apps.runtimes.engine.logs import Followed, Follower, Line, Memory, merged, read_lines
from quazzar.instance.apps.runtimes.engine.objects import Held
from quazzar.instance.apps.runtimes.engine.projects import survey
from quazzar.instance.apps.runtimes.engine.volumes import Volumes
from quazzar.instance.apps.spec import AppSpec, DependencySpec, FileSpec, NetworkSpec, ServiceSpec

T = TypeVar("T")

_AT_ONCE: Final = 8
_MEASURED_AT_ONCE: Final = 32
"""More, since an engine lets each wait for its next sample, up to a second, at no cost."""
_POLL_SECONDS: Final = 0.25
_PING_SECONDS: Final = 10.0
_LOG_SILENCE_SECONDS: Final = 20.0
_CACHED: Final = 1024
_SAMPLES_APART_SECONDS: Final = 0.5
_SAMPLE_FRESH_SECONDS: Final = 15.0
_PID_MAX: Final = Path("/proc/sys/kernel/pid_max")
_PORTS: Final = range(20000, 32768)
"""Below the range that Linux hands out for outgoing connections."""


class DockerRuntime:
    """The Engine API driver. See `Runtime` for what each verb promises.

    The engine's objects are the only state: containers carry the digest of their part of the spec, their place in the
    order and their dependencies as labels, so any process can go on where another was killed.
    """

    _network_driver: ClassVar = "bridge"

    def __init__(self, config: DockerConfig) -> None:
        self._engine = Engine(engine_url(config.host))
        self._denied = config.denied
        self._images = Images(self._engine)
        self._adopted = Adopted()
        self._volumes = Volumes(self._engine, self._adopted)
        self._samples: OrderedDict[str, tuple[objects.Sample, float]] = OrderedDict()

    async def info(self) -> RuntimeInfo:
        version = await self._engine.version()
        return RuntimeInfo(
            driver="docker",
            version=str(version.get("Version", "")),
            api_version=await self._engine.api_version(),
            capabilities=frozenset({"logs", "stats", "events"}),
        )

    async def close(self) -> None:
        await self._engine.close()

    async def machine(self) -> Machine:
        info = await self._engine.ask("GET", "info")
        # What the kernel and the disk have can be seen from here only where the engine runs here.
        root = str(info.get("DockerRootDir") or "") if self._engine.is_local else ""
        free = await asyncio.to_thread(free_bytes, root) if root else None
        return Machine(
            memory_bytes=int(info.get("MemTotal") or 0) or None,
            cpus=float(info.get("NCPU") or 0) or None,
            pids=await asyncio.to_thread(_most_pids) if self._engine.is_local else None,
            disk_free_bytes=free,
            data_root=root if free is not None else None,
        )

    async def present(self, spec: AppSpec) -> Mapping[str, str | None]:
        return {one.image: await self._images.digest(one.image, one.digest) for one in spec.services}

    async def pull(
        self, spec: AppSpec, report: Report, *, logins: Mapping[str, RegistryLogin] | None = None
    ) -> dict[str, str]:
        images = sorted({service.image: service.digest for service in spec.services}.items())
        digests: dict[str, str] = {}
        for index, (name, wanted) in enumerate(images):
            step = f"Pulling {name}" + (f" ({index + 1} of {len(images)})" if len(images) > 1 else "")

            async def progress(done: float, index: int = index, step: str = step) -> None:
                await report((index + done) / len(images), step)

            digest = await self._images.digest(name, wanted)
            if digest is None:
                await progress(0)
                source = name if wanted is None else pinned(name, wanted)
                await self._images.pull(source, (logins or {}).get(registry_of(name)), progress)
                # Raises when somebody removed it in the same moment.
                await self._images.resolve(name, wanted)
                digest = await self._images.digest(name, wanted)
            digests[name] = digest or ""
            await progress(1)
        return digests

    async def remote_digest(self, image: str, login: RegistryLogin | None = None) -> str:
        return await self._images.remote_digest(image, login)

    async def up(self, spec: AppSpec, report: Report) -> None:
        await report(0, "Looking at what is there")
        await self._check_binds(spec)
        present = await self._held(spec.app_id)
        digests = {service.name: service_digest(spec, service) for service in spec.services}
        networks = await self._networks(spec.app_id)
        # A container can't be started without a network that it was made with.
        whole = {service.name for service in spec.services if self._is_whole(spec, service, networks)}
        kept = plan.kept((one for one in present if one.state.name in whole), digests)
        # Before anything is stopped: an app must not go down for an update that can't come up.
        images = {
            service.name: await self._images.resolve(service.image, service.digest, service=service.name)
            for service in spec.services
            if service.name not in kept
        }
        stale = [one for one in present if kept.get(one.state.name) is not one]
        if stale:
            await report(0.02, "Stopping what has changed")
        await self._stop(stale)
        await self._clear(spec.app_id, keep={one.id for one in kept.values()})
        await report(0.05, "Preparing networks and volumes")
        await self._make_networks(spec, networks)
        volumes = await self._make_volumes(spec)

        ids = {name: one.id for name, one in kept.items()}
        awaited = plan.awaited(service.depends_on for service in spec.services)
        for index, service in enumerate(spec.services):
            done = 0.1 + 0.9 * index / len(spec.services)

            async def tick(step: str, done: float = done) -> None:
                await report(done, step)

            held = kept.get(service.name)
            if held is not None and self._is_right(held, awaited):
                continue
            if held is None:
                await tick(f"Creating {service.name}")
                labels = objects.container_labels(spec, service, order=index, digest=digests[service.name])
                reference, image = images[service.name]
                made = msgspec.structs.replace(service, image=reference)
                mounts = await self._mounts(spec, made, volumes, image)
                ids[service.name] = await self._create(
                    spec, made, labels, mounts, image, runs_once=service.name in awaited
                )
            await self._await_dependencies(service.name, service.depends_on, ids, tick)
            await tick(f"Starting {service.name}")
            await self._start(ids[service.name], service.name, paused=_is_paused(held))
        await report(1, "Started")

    async def start(self, app_id: str) -> None:
        present = await self._held(app_id)
        ids = {one.state.name: one.id for one in present}
        awaited = plan.awaited(one.depends_on for one in present)

        async def tick(_: str) -> None:
            return

        for one in present:
            if not self._is_right(one, awaited):
                wanted = plan.still_there(one.depends_on, ids)
                await self._await_dependencies(one.state.name, wanted, ids, tick)
                await self._start(one.id, one.state.name, paused=_is_paused(one))

    async def stop(self, app_id: str) -> None:
        await self._stop(await self._held(app_id))

    async def remove(self, app_id: str, *, keep_volumes: bool) -> None:
        if keep_volumes:
            await self._stop(await self._held(app_id))
        await self._clear(app_id, keep=set())
        for network in await self._networks(app_id):
            with _left_to_its_users(adopted=bool(self._adopted.network(network["Id"]))):
                await self._remove_network(network["Id"])
        if not keep_volumes:
            for snapshot in await self.snapshots(app_id):
                await self.discard(app_id, snapshot)
            adopted = self._adopted.volume_names(app_id)
            for volume in await self._volumes.find(app_id, objects.VOLUME):
                with _left_to_its_users(adopted=volume["Name"] in adopted):
                    await self._volumes.remove(volume["Name"])

    async def snapshot(self, app_id: str, name: str, report: Report) -> None:
        await self._volumes.snapshot(app_id, name, report)

    async def restore(self, app_id: str, name: str, report: Report) -> None:
        await self._volumes.require(app_id, name)
        await self._stop(await self._held(app_id))
        await self._clear(app_id, keep=set())
        await self._volumes.restore(app_id, name, report)

    async def discard(self, app_id: str, name: str) -> None:
        await self._volumes.discard(app_id, name)

    async def snapshots(self, app_id: str) -> Sequence[str]:
        return await self._volumes.snapshots(app_id)

    async def find_snapshots(self) -> Mapping[str, Sequence[str]]:
        return await self._volumes.find_snapshots()

    async def tidy(self) -> None:
        await self._volumes.close_doors()

    async def clone_volumes(self, source_app_id: str, target: AppSpec, report: Report) -> None:
        await self._volumes.clone(source_app_id, target.app_id, report)

    async def image_folders(self, spec: AppSpec) -> Mapping[str, Mapping[str, str]]:
        found: dict[str, Mapping[str, str]] = {}
        for service in spec.services:
            with contextlib.suppress(ImageNotFound):
                _, image = await self._images.resolve(service.image, service.digest, service=service.name)
                found[service.name] = objects.image_volumes(service, image)
        return found

    def read_volume(self, app_id: str, volume: str) -> AsyncGenerator[bytes, None]:
        return self._volumes.read(app_id, volume)

    async def write_volume(self, app_id: str, volume: str, chunks: AsyncIterator[bytes]) -> None:
        await self._volumes.write(app_id, volume, chunks)

    async def find(self) -> Sequence[AppState]:
        return await self._states(None)

    async def get(self, app_id: str) -> AppState | None:
        states = await self._states(app_id)
        return states[0] if states else None

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
        async def wanted() -> list[Followed]:
            return [one for one in await self._followed(app_id) if services is None or one.service in services]

        start = _nanoseconds(since)
        present = await wanted()
        memories = {one.id: Memory(start if tail != 0 else time.time_ns()) for one in present}
        past = self._past(present, memories, tail=tail, since=start, until=_nanoseconds(until))
        async with contextlib.aclosing(past) as lines:
            async for one, line in lines:
                yield line.of(one.service)
        if not follow or until is not None:
            return
        follower = Follower(wanted, self._open_log, memories)
        async with contextlib.aclosing(follower.lines()) as live:
            async for service, line in live:
                yield line.of(service)

    async def stats(self, app_id: str) -> Sequence[ServiceStats]:
        running = [one for one in await self._held(app_id) if one.state.status in {"running", "paused"}]
        return [one for one in await _all(self._service_stats(one) for one in running) if one is not None]

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
    ) -> DockerExecution:
        held = next((one for one in await self._held(app_id) if one.state.name == service), None)
        if held is None or held.state.status != "running":
            raise not_running(service)
        started = await start_execution(
            self._engine,
            self._container_of(held),
            command or DEFAULT_SHELL,
            exec_id=exec_id,
            size=(columns, rows) if tty else None,
            service=service,
        )
        # What the state calls it: a swarm's containers come and go, its service stays.
        started.container_id = held.state.container_id
        return started

    async def end_execution(self, app_id: str, exec_id: str) -> None:
        for one in await self._held(app_id):
            if one.state.status == "running":
                await kill_marked(self._engine, self._container_of(one), exec_id)

    async def measure_disks(self) -> Sequence[DiskUse]:
        async with self._engine.call(HEAVY_SECONDS) as client:
            told = await client._query_json("system/df")  # noqa: SLF001 - the library has no door
        for section, kind in (("Volumes", "volume"), ("Containers", "container")):
            told[section] = [*(told.get(section) or ()), *self._adopted.labelled(told.get(section) or (), None, kind)]
        return objects.disk_use(told)

    async def measure(self) -> Sequence[Reading]:
        running = await self._containers(None, objects.SERVICE, status=["running", "paused"])
        summaries = [one for one in running if one["Labels"].get(objects.SERVICE)]
        readings = await _all((self._reading(one) for one in summaries), at_once=_MEASURED_AT_ONCE)
        return [one for one in readings if one is not None]

    async def _reading(self, summary: Mapping[str, Any]) -> Reading | None:
        labels = summary["Labels"]
        with contextlib.suppress(Gone):
            return objects.reading(summary["Id"], labels, await self._stats(summary["Id"], labels[objects.SERVICE]))
        return None

    async def events(self, *, since: datetime | None = None) -> AsyncGenerator[RuntimeEvent, None]:
        # Of all containers, since an adopted one carries no label of ours: whose they are is looked at here.
        params = {"filters": _json({"type": ["container"], "event": objects.EVENTS})}
        if (start := _nanoseconds(since)) is not None:
            params["since"] = _engine_time(start)
        async with contextlib.aclosing(messages(self._engine.chunks("GET", "events", params=params))) as told:
            while True:
                following = asyncio.ensure_future(anext(told))
                try:
                    # Nothing to tell and nobody there look the same on this line, so ask on another.
                    while not (await asyncio.wait({following}, timeout=_PING_SECONDS))[0]:
                        await self._engine.version()
                    message = following.result()
                except StopAsyncIteration:
                    raise RuntimeUnavailable from None
                finally:
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                if (event := objects.event(message, self._adopted_labels(message))) is not None:
                    yield event

    def _adopted_labels(self, message: Mapping[str, Any]) -> Mapping[str, str]:
        return self._adopted.container((message.get("Actor") or {}).get("ID", ""))

    async def survey(self, project: str) -> Project | None:
        return await survey(self._engine, self._images, project)

    def own(self, app_id: str, adoption: Adoption) -> None:
        self._adopted.own(app_id, adoption)

    def disown(self, app_id: str) -> None:
        self._adopted.disown(app_id)

    async def free_ports(self, count: int, *, avoid: frozenset[int] = frozenset()) -> list[int]:
        async with self._engine.call() as client:
            # All containers, ours or not: only the numbers of the ports that they hold are looked at.
            running = await client.containers.list()
        held = {port.get("PublicPort") for one in running for port in one["Ports"] or ()}
        free: list[int] = []
        candidates = [port for port in _PORTS if port not in avoid and port not in held]
        for port in secrets.SystemRandom().sample(candidates, len(candidates)):
            if len(free) == count:
                break
            if is_free(port):
                free.append(port)
        if len(free) < count:
            raise RuntimeFailure("There are not enough free ports", code="ports_exhausted")
        return free

    # What the engine holds

    @staticmethod
    def _container_of(one: Held) -> str:
        return one.id

    @staticmethod
    def _is_right(held: Held, once: set[str]) -> bool:
        return plan.is_right(held, once)

    async def _containers(
        self, app_id: str | None, key: str | None = None, *, status: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Summaries of our containers, also of those that only carry files; those with a label `key`, in a status."""
        more = {"status": list(status)} if status else {}
        found = [one for one in await self._listed(objects.filters(app_id, key) | more) if not await self._is_copy(one)]
        if (adopted := self._adopted.filters(app_id)) is not None:
            found += self._adopted.labelled(await self._listed(adopted | more), app_id, "container")
        return found

    async def _is_copy(self, summary: Mapping[str, Any]) -> bool:
        """Whether a container has our labels of its image alone: it is somebody's own, run from what they have made of
        one of ours (`docker commit`).
        """
        found = summary["Labels"]
        if not found.get(objects.SPEC):
            return False
        told = await self._images.labels_of(summary["ImageID"])
        return all(told.get(key) == found.get(key) for key in (objects.APP, objects.SERVICE, objects.SPEC))

    async def _listed(self, filters: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        async with self._engine.call() as client:
            listed = await client.containers.list(all=True, filters=_json(filters))
        return [one._container for one in listed]  # noqa: SLF001 - the summary has no other door

    async def _held(self, app_id: str | None) -> list[Held]:
        """The services' containers, inspected, in the order of their start; those that go meanwhile are left out."""
        listed = [one for one in await self._containers(app_id) if one["Labels"].get(objects.SERVICE)]
        found = await _all(self._inspect_listed(one) for one in listed)
        return sorted((one for one in found if one is not None), key=lambda one: (one.order, one.state.name))

    async def _followed(self, app_id: str) -> list[Followed]:
        """Where the lines of an app's services are."""
        return [
            Followed(
                id=one.id,
                service=one.state.name,
                tty=one.tty,
                running=one.state.status in {"running", "paused"},
                started_at=one.state.started_at,
            )
            for one in await self._held(app_id)
        ]

    async def _inspect_listed(self, summary: Mapping[str, Any]) -> Held | None:
        """As `_inspect`; of a container that the engine lists but can't tell more of, what the list says.

        An engine whose disk has lost a layer answers so for ever, which must not hide the app's other containers, nor
        all other apps.
        """
        try:
            return await self._inspect(summary["Id"])
        except RuntimeFailure:
            return objects.listed(summary)

    async def _inspect(self, container_id: str) -> Held | None:
        """One of our containers; None when it is gone, or only looks like one of ours."""
        try:
            async with self._engine.call() as client:
                inspected = await client.containers.container(container_id).show()
        except Gone:
            return None
        config = inspected["Config"]
        config["Labels"] = {**(config.get("Labels") or {}), **self._adopted.container(inspected["Id"])}
        digest = await self._images.digest_of(inspected["Image"], inspected["Config"]["Image"])
        try:
            return objects.held(inspected, image_digest=digest)
        except (KeyError, ValueError, msgspec.ValidationError):  # labels that we did not write
            return None

    async def _networks(self, app_id: str | None) -> list[dict[str, Any]]:
        async with self._engine.call() as client:
            found = await client.networks.list(filters=objects.filters(app_id, objects.NETWORK))
            if (adopted := self._adopted.filters(app_id)) is not None:
                found += self._adopted.labelled(await client.networks.list(filters=adopted), app_id, "network")
        return found

    async def _states(self, app_id: str | None) -> list[AppState]:
        held = await self._held(app_id)
        networks = await self._networks(app_id)
        volumes = await self._volumes.find(app_id, objects.VOLUME)
        services: dict[str, list[Held]] = {}
        names: dict[str, list[str]] = {}
        for one in held:
            services.setdefault(one.app_id, []).append(one)
        for volume in volumes:
            names.setdefault(volume["Labels"][objects.APP], []).append(volume["Labels"][objects.VOLUME])
        ids = {*services, *names, *(one["Labels"][objects.APP] for one in networks)}
        return [
            AppState(
                app_id=one,
                services=tuple(found.state for found in services.get(one, ())),
                ports=tuple(port for found in services.get(one, ()) for port in found.ports),
                volumes=tuple(sorted(names.get(one, ()))),
            )
            for one in sorted(ids)
        ]

    # Making

    def _is_whole(self, spec: AppSpec, service: ServiceSpec, networks: Sequence[Mapping[str, Any]]) -> bool:
        """Whether all networks of a service are there as the spec wants them."""
        wanted = {self._adopted.network_name(spec.app_id, one.name): one for one in spec.networks}
        right = {one["Name"] for one in networks if _fits(one, wanted.get(one["Name"]))}
        return right.issuperset(objects.endpoints(spec, service, self._adopted.network_name))

    async def _check_binds(self, spec: AppSpec) -> None:
        """Raises `RuntimeFailure` for a folder of the host that is none to be mounted, wherever its name leads to."""
        binds = [(service.name, one) for service in spec.services for one in service.host.binds]
        if not binds:
            return
        root = (await self.machine()).data_root
        denied = (*self._denied, *((root,) if root is not None else ()))
        for service, bind in binds:
            try:
                # Another machine's folders, or those outside of the container that we are in, can't be looked at.
                path = await asyncio.to_thread(os.path.realpath, bind.source) if root is not None else bind.source
                if host_path(path, denied=denied) != bind.source:
                    raise ValueError("must not lead through a link")
            except ValueError as error:
                reason = f"The folder {bind.source} of the host can't be mounted: it {error}"
                raise RuntimeFailure(reason, code="host_path_refused", service=service) from None

    async def _make_networks(self, spec: AppSpec, networks: Sequence[Mapping[str, Any]]) -> None:
        """The spec's networks and only these; one that differs is made anew, which nothing is attached to by now."""
        wanted = {self._adopted.network_name(spec.app_id, one.name): one for one in spec.networks}
        right = {one["Name"] for one in networks if _fits(one, wanted.get(one["Name"]))}
        for network in networks:
            if network["Name"] not in right:
                await self._remove_network(network["Id"])
        for name, one in wanted.items():
            if name in right:
                continue
            config = {
                "Name": name,
                "Driver": self._network_driver,
                "CheckDuplicate": True,
                "Internal": one.internal,
                "Labels": objects.labels(spec.app_id, {objects.NETWORK: one.name}),
            }
            async with self._engine.call(CHANGE_SECONDS) as client:
                await client.networks.create(config)

    async def _make_volumes(self, spec: AppSpec) -> set[str]:
        """All volumes of the spec; gives the short names of all that the app has now."""
        present = {one["Labels"][objects.VOLUME] for one in await self._volumes.find(spec.app_id, objects.VOLUME)}
        mounted = {mount.volume for service in spec.services for mount in service.mounts}
        for name in sorted({*spec.volumes, *mounted} - present):
            await self._make_volume(spec.app_id, name, {objects.VOLUME: name})
        return {*spec.volumes, *mounted, *present}

    async def _make_volume(self, app_id: str, name: str, labels: Mapping[str, str]) -> str:
        return await self._volumes.make(app_id, self._adopted.volume_name(app_id, name), labels)

    async def _mounts(
        self, spec: AppSpec, service: ServiceSpec, volumes: set[str], image: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Volumes of the spec, and of folders that the image declares as data."""
        mounts = objects.bind_mounts(service) + [
            objects.volume_mount(
                self._adopted.volume_name(spec.app_id, one.volume), one.target, read_only=one.read_only
            )
            for one in service.mounts
        ]
        for name, path in objects.image_volumes(service, image).items():
            # Left to the engine these would be nameless: lost at the next update, and never cleaned up.
            if name not in volumes:
                await self._make_volume(spec.app_id, name, {objects.VOLUME: name})
            mounts.append(objects.volume_mount(self._adopted.volume_name(spec.app_id, name), path))
        return mounts

    async def _file_mounts(
        self, spec: AppSpec, service: ServiceSpec, mounts: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Read-only volumes with the files that can't be put into the container itself.

        An engine writes nothing into a container with a read-only root, and a tmpfs would cover what it wrote. So a
        container that never starts fills a volume: first from the folder of the image (the engine does that), then
        with the files.
        """
        apart = objects.files_apart(service)
        by_keeper = service.files if service.read_only else apart
        if not by_keeper:
            return []
        filled: list[dict[str, Any]] = []
        for folder in objects.outermost(apart):
            if folder == "/":
                raise RuntimeFailure(
                    "A file in the root folder needs a root that is not read-only",
                    code="read_only",
                    service=service.name,
                )
            name = f"files-{service.name}-{sha256(folder.encode()).hexdigest()[:8]}"
            made = await self._make_volume(spec.app_id, name, {objects.FILES: service.name})
            filled.append(objects.volume_mount(made, folder))
        config: dict[str, Any] = {
            "Image": service.image,
            "Cmd": ["none"],
            # A container has the labels of its image too: no image may make this one a service.
            "Labels": objects.labels(spec.app_id, {objects.FILES: service.name, objects.SERVICE: ""}),
            "HostConfig": {"NetworkMode": "none", "Mounts": [*mounts, *filled]},
        }
        async with self._engine.call(HEAVY_SECONDS, service=service.name) as client:
            keeper = await client.containers.create(config)
        await self._put_files(keeper.id, service.name, by_keeper)
        await delete_container(self._engine, keeper.id)
        return [one | {"ReadOnly": True} for one in filled]

    async def _create(
        self,
        spec: AppSpec,
        service: ServiceSpec,
        labels: Mapping[str, str],
        mounts: list[dict[str, Any]],
        image: Mapping[str, Any],  # noqa: ARG002 - a swarm is told more of it
        *,
        runs_once: bool,
    ) -> str:
        """What runs the service, not started yet; gives its id. `image` is the engine's word on its image."""
        mounts = mounts + await self._file_mounts(spec, service, mounts)
        config = objects.container_config(service, container_labels=labels, volumes=mounts, runs_once=runs_once)
        endpoints = list(objects.endpoints(spec, service, self._adopted.network_name).items())
        first, others = endpoints[:1], endpoints[1:]
        config["HostConfig"]["NetworkMode"] = first[0][0] if first else "host" if service.host.network else "none"
        # Engines before API 1.44 take one network here; the others are added before the start.
        config["NetworkingConfig"] = {"EndpointsConfig": dict(first)}
        container_id = await self._create_named(config, objects.container_names(spec, service), service.name)
        for name, endpoint in others:
            async with self._engine.call(CHANGE_SECONDS, service=service.name) as client:
                network = await client.networks.get(name)
                await network.connect({"Container": container_id, "EndpointConfig": endpoint})
        if not service.read_only:
            apart = objects.files_apart(service)
            await self._put_files(container_id, service.name, [one for one in service.files if one not in apart])
        return container_id

    async def _create_named(self, config: dict[str, Any], names: Iterable[str], service: str) -> str:
        for name in names:
            with contextlib.suppress(Taken):
                async with self._engine.call(HEAVY_SECONDS, service=service) as client:
                    return (await client.containers.create(config, name=name)).id
        raise RuntimeFailure("A foreign container has the name of the service's", code="name_taken", service=service)

    async def _put_files(self, container_id: str, service: str, files: Sequence[FileSpec]) -> None:
        if not files:
            return
        async with self._engine.call(CHANGE_SECONDS, service=service) as client:
            container = client.containers.container(container_id)
            await container.put_archive("/", objects.files_archive(files))  # type: ignore[no-untyped-call]

    # Starting, stopping, removing

    async def _start(self, container_id: str, service: str, *, paused: bool) -> None:
        async with self._engine.call(CHANGE_SECONDS, service=service) as client:
            container = client.containers.container(container_id)
            await (container.unpause() if paused else container.start())

    async def _await_dependencies(
        self,
        service: str,
        depends_on: Sequence[DependencySpec],
        ids: Mapping[str, str],
        tick: Callable[[str], Awaitable[None]],
    ) -> None:
        for one in depends_on:
            try:
                if one.service not in ids:
                    raise DependencyFailed(f"“{service}” waits for “{one.service}”, which the app has not")
                await self._await_condition(one, ids[one.service], service, tick)
            except DependencyFailed as error:
                if one.required:
                    error.service = service
                    raise

    async def _await_condition(
        self, wanted: DependencySpec, container_id: str, service: str, tick: Callable[[str], Awaitable[None]]
    ) -> None:
        if wanted.condition == "service_started":
            return
        began, restarts = time.monotonic(), None
        while True:
            held = await self._inspect(container_id)
            if held is None:
                raise DependencyFailed(f"“{wanted.service}” was removed while “{service}” waited for it")
            restarts = held.state.restarts if restarts is None else restarts
            problem = plan.problem(
                held, wanted, waited=time.monotonic() - began, crashes=held.state.restarts - restarts
            )
            if problem is None:
                return
            if problem:
                raise DependencyFailed(f"“{wanted.service}” {problem}, and “{service}” waits for it")
            await tick(f"{service} waits for {wanted.service}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _stop(self, present: Sequence[Held]) -> None:
        left = [one for one in present if one.state.status in plan.STOPPABLE]
        while left:
            free = plan.next_to_stop(left)
            await _all(self._stop_one(one) for one in free)
            left = [one for one in left if one not in free]

    async def _stop_one(self, one: Held) -> None:
        with contextlib.suppress(Gone):
            async with self._engine.call(one.stop_seconds + CHANGE_SECONDS, service=one.state.name) as client:
                await client.containers.container(one.id).stop()

    async def _clear(self, app_id: str, *, keep: set[str]) -> None:
        """Delete the app's containers but those of `keep`, and the volumes of files that none of these mounts."""
        present = await self._containers(app_id)
        await _all(self._delete(one["Id"]) for one in present if one["Id"] not in keep)
        mounted = {mount.get("Name") for one in present if one["Id"] in keep for mount in one.get("Mounts") or ()}
        for volume in await self._volumes.find(app_id, objects.FILES):
            if volume["Name"] not in mounted:
                await self._volumes.remove(volume["Name"])

    async def _delete(self, container_id: str) -> None:
        # What was nameless of an adopted container is a volume of the app.
        is_ours = not self._adopted.container(container_id)
        await delete_container(self._engine, container_id, nameless_volumes=is_ours)

    async def _remove_network(self, network_id: str) -> None:
        with contextlib.suppress(Gone):
            async with self._engine.call(CHANGE_SECONDS) as client:
                await (await client.networks.get(network_id)).delete()

    # Logs and numbers

    async def _past(
        self,
        present: Sequence[Followed],
        memories: Mapping[str, Memory],
        *,
        tail: int | None,
        since: int | None,
        until: int | None,
    ) -> AsyncGenerator[tuple[Followed, Line], None]:
        """The lines up to now, merged; holds `tail` of them, or none but one of each container."""
        if tail == 0:
            return
        params: dict[str, str] = {}
        # An engine takes the tail first and compares the times then, so with an end the tail is ours to take.
        if tail is not None and until is None:
            params["tail"] = str(tail)
        if until is not None:
            params["until"] = _engine_time(until)
        by_id = {one.id: one for one in present}
        sources = [
            (one.id, read_lines(self._open_log(one, since, follow=False, **params), tty=one.tty)) for one in present
        ]
        async with contextlib.aclosing(merged(sources)) as lines:
            if tail is None:
                async for key, line in lines:
                    memories[key].note(line)
                    yield by_id[key], line
                return
            kept: OrderedDict[int, tuple[str, Line]] = OrderedDict()
            number = 0
            async for key, line in lines:
                kept[number] = (key, line)
                number += 1
                memories[key].note(line)
                if len(kept) > tail:
                    kept.popitem(last=False)
        for key, line in kept.values():
            yield by_id[key], line

    def _log_path(self, one: Followed) -> str:
        return f"containers/{one.id}/logs"

    def _open_log(
        self, one: Followed, since: int | None, *, follow: bool = True, **params: str
    ) -> AsyncGenerator[bytes, None]:
        params |= {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0"}
        if since is not None:
            params["since"] = _engine_time(since)
        silence = None if follow else _LOG_SILENCE_SECONDS
        return self._engine.chunks("GET", self._log_path(one), params=params, silence=silence, service=one.service)

    async def _service_stats(self, one: Held) -> ServiceStats | None:
        """CPU needs two samples: the last one if it is recent, else another one shortly after the first.

        An engine takes samples once a second at most, so the one takes up to a second and the other two.
        """
        try:
            before, percent = self._samples.get(one.id, (None, 0.0))
            stats = await self._stats(one.id, one.state.name)
            after = objects.sample(stats)
            age = (after.at - before.at) / 1e9 if before is not None else float("inf")
            if not 0 <= age <= _SAMPLE_FRESH_SECONDS:
                await asyncio.sleep(_SAMPLES_APART_SECONDS)
                before, stats = after, await self._stats(one.id, one.state.name)
                after, age = objects.sample(stats), _SAMPLES_APART_SECONDS
        except Gone:
            return None
        if before is not None and age >= _SAMPLES_APART_SECONDS / 2:
            percent = objects.cpu_percent(before, after)
            self._samples[one.id] = (after, percent)
            self._samples.move_to_end(one.id)
            if len(self._samples) > _CACHED:
                self._samples.popitem(last=False)
        return objects.service_stats(one.state.name, stats, cpu=percent, restarts=one.state.restarts)

    async def _stats(self, container_id: str, service: str) -> dict[str, Any]:
        params = {"stream": "0", "one-shot": "1"}
        path = f"containers/{container_id}/stats"
        chunks = self._engine.chunks("GET", path, params=params, silence=CHANGE_SECONDS, service=service)
        async with contextlib.aclosing(messages(chunks)) as told:
            async for stats in told:
                return stats
        raise Gone("The container stopped")


def _fits(network: Mapping[str, Any], wanted: NetworkSpec | None) -> bool:
    return wanted is not None and bool(network.get("Internal")) == wanted.internal


@contextlib.contextmanager
def _left_to_its_users(*, adopted: bool) -> Iterator[None]:
    """What is adopted and in use by others, for Compose has made its project anew beside us, stays theirs."""
    try:
        yield
    except RuntimeFailure as failure:
        if not adopted or failure.code not in {"network_in_use", "volume_in_use"}:
            raise


def _is_paused(held: Held | None) -> bool:
    return held is not None and held.state.status == "paused"


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]], *, at_once: int = _AT_ONCE) -> list[T]:
    """The results of all, some at once; every one has ended when this returns or raises the first error."""
    gate = asyncio.Semaphore(at_once)

    async def gated(one: Coroutine[Any, Any, T]) -> T:
        async with gate:
            return await one

    results = await asyncio.gather(*(gated(one) for one in coroutines), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _most_pids() -> int | None:
    """How many processes the kernel runs at once."""
    try:
        return int(_PID_MAX.read_text())
    except (OSError, ValueError):
        return None


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _nanoseconds(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1e6) * 1000


def _engine_time(nanoseconds: int) -> str:
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"
