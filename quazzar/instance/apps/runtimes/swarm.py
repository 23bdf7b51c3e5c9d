"""Apps on a Docker swarm, through the Engine API of one of its managers."""

import asyncio
import contextlib
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

import msgspec

from quazzar.instance.apps.images import Image, registry_of
from quazzar.instance.apps.runtimes import plan
from quazzar.instance.apps.runtimes.base import (
    PortInUse,
    Project,
    Reading,
    RegistryLogin,
    Report,
    RuntimeEvent,
    RuntimeFailure,
    RuntimeInfo,
    RuntimeUnavailable,
    ServiceStats,
)
from quazzar.instance.apps.runtimes.configs import DockerConfig, SwarmConfig
from quazzar.instance.apps.runtimes.docker import DockerRuntime, _all
from quazzar.instance.apps.runtimes.engine import objects, services
from quazzar.instance.apps.runtimes.engine.connection import CHANGE_SECONDS, HEAVY_SECONDS
from quazzar.instance.apps.runtimes.engine.containers import delete_container
from quazzar.instance.apps.runtimes.engine.execution import kill_marked
from quazzar.instance.apps.runtimes.engine.failures import Gone, Taken, failure
from quazzar.instance.apps.runtimes.engine.images import login_header
from quazzar.instance.apps.runtimes.engine.logs import Followed
from quazzar.instance.apps.runtimes.engine.services import Held, Task
from quazzar.instance.apps.spec import AppSpec, FileSpec, ServiceSpec

_POLL_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 1.0
_PLACE_SECONDS: Final = 10.0
"""How long a service waits for a node to run at: what was stopped just now still counts there for a moment."""
_TRIES: Final = 10
_NODE_SECONDS: Final = 30.0
_EMPTY: Final = '{{""}}'
"""What an empty file is made from, since a swarm stores no empty secret."""
_SERVICE_ID: Final = "com.docker.swarm.service.id"
"""The swarm's own label on the containers of its tasks."""
_ELSEWHERE: Final = "task:"
"""What the id of a log begins with that comes through the manager."""
_QUEUED_EVENTS: Final = 1000


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The node that we speak to, and what counts of the others."""

    id: str
    nodes: int
    smallest_cpus: float


class SwarmRuntime(DockerRuntime):
    """One service of a swarm for each service of an app; see `Runtime` for what each verb promises.

    It is the Docker driver wherever a node's own engine has the answer: volumes, images, the logs, numbers and events
    of containers here. Services that have data, publish ports or come from an image without a registry stay on this
    node; the others run where the swarm puts them, and their lines come through the manager.

    All state is the swarm's: a service carries the digest of its part of the spec, its place in the order and its
    dependencies as labels, and runs, or is held back by a placement that no node offers.
    """

    _network_driver: ClassVar = "overlay"

    def __init__(self, config: SwarmConfig) -> None:
        super().__init__(DockerConfig(host=config.host, denied=config.denied))
        self._logins: dict[str, RegistryLogin] = {}
        self._node: tuple[Node, float] | None = None

    async def info(self) -> RuntimeInfo:
        found = await super().info()
        await self._here(at_most_seconds=0)
        return msgspec.structs.replace(found, driver="swarm", capabilities=await self._capabilities())

    async def pull(
        self, spec: AppSpec, report: Report, *, logins: Mapping[str, RegistryLogin] | None = None
    ) -> dict[str, str]:
        _refuse(spec)
        digests = await super().pull(spec, report, logins=logins)
        # Nodes pull for themselves when a service comes to them.
        self._logins |= logins or {}
        return digests

    async def up(self, spec: AppSpec, report: Report) -> None:
        _refuse(spec)
        await super().up(services.isolated(spec), report)

    async def stats(self, app_id: str) -> Sequence[ServiceStats]:
        here = [
            msgspec.structs.replace(one, id=one.container)
            for one in await self._held(app_id)
            if one.state.status in {"running", "paused"} and one.container
        ]
        return [one for one in await _all(self._service_stats(one) for one in here) if one is not None]

    async def events(self, *, since: datetime | None = None) -> AsyncGenerator[RuntimeEvent, None]:
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue(_QUEUED_EVENTS)

        async def tell(events: AsyncGenerator[RuntimeEvent, None]) -> None:
            async with contextlib.aclosing(events):
                async for event in events:
                    await queue.put(event)

        # The engine tells of its own containers only.
        telling = [asyncio.create_task(tell(one)) for one in (super().events(since=since), self._elsewhere(since))]
        try:
            while True:
                reading = asyncio.create_task(queue.get())
                try:
                    await asyncio.wait({reading, *telling}, return_when=asyncio.FIRST_COMPLETED)
                    if not reading.done():
                        next(one for one in telling if one.done()).result()
                    yield await reading
                finally:
                    reading.cancel()
        finally:
            for one in telling:
                one.cancel()
            await asyncio.gather(*telling, return_exceptions=True)

    async def _elsewhere(self, since: datetime | None) -> AsyncGenerator[RuntimeEvent, None]:
        """What happens to tasks on other nodes, found by looking; ends only by raising."""
        told: dict[str, services.Noted] | None = None
        while True:
            here = await self._here()
            if here.nodes > 1:
                notes = {one["ID"]: one["Spec"]["Labels"] for one in await self._services(None)}
                now = {
                    one.id: (one, notes[service_id])
                    for service_id, tasks in (await self._tasks(None)).items()
                    for one in tasks
                    if service_id in notes and one.node not in {"", here.id}
                }
                if told is None:
                    told = {id_: one for id_, one in now.items() if since is None or (one[0].at or since) < since}
                for id_ in told.keys() | now.keys():
                    before, after = told.get(id_), now.get(id_)
                    if (event := services.happened(before, after)) is not None:
                        yield event
                told = now
            await asyncio.sleep(_LOOK_SECONDS)

    async def survey(self, project: str) -> Project | None:
        raise RuntimeFailure(
            f"“{project}” is made of containers, and a swarm runs services: import its file instead", code="unsupported"
        )

    async def free_ports(self, count: int, *, avoid: frozenset[int] = frozenset()) -> list[int]:
        # All services, ours or not: only the numbers of the ports that they hold are looked at.
        held = {port for one in await self._engine.ask("GET", "services") for port in services.host_ports(one)}
        return await super().free_ports(count, avoid=avoid | held)

    # What the swarm holds

    async def _here(self, *, at_most_seconds: float = _NODE_SECONDS) -> Node:
        """The node that we speak to, as it was that long ago at most. Raises `RuntimeUnavailable` without a swarm."""
        if self._node is not None and time.monotonic() - self._node[1] < at_most_seconds:
            return self._node[0]
        nodes = await self._engine.ask("GET", "nodes")
        info = await self._engine.ask("GET", "info")
        cpus = [(one.get("Description") or {}).get("Resources", {}).get("NanoCPUs") or 10**9 for one in nodes]
        node = Node(id=info["Swarm"]["NodeID"], nodes=len(nodes), smallest_cpus=min(cpus, default=10**9) / 1e9)
        self._node = (node, time.monotonic())
        return node

    async def _capabilities(self) -> frozenset[str]:
        # “here” is what holds for services on this node alone.
        found = {"logs", "events", "stats.here", "exec.here", "volumes.here", "oom_killed.here"}
        if len(await self._nodes_up()) > 1:
            found.add("spread")
        if await self._knows_no_new_privileges():
            found.add("no_new_privileges")
        return frozenset(found)

    async def _knows_no_new_privileges(self) -> bool:
        major, minor = (int(part) for part in (await self._engine.api_version()).split("."))
        return (major, minor) >= (1, 44)

    async def _nodes_up(self) -> set[str]:
        nodes = await self._engine.ask("GET", "nodes")
        return {one["ID"] for one in nodes if (one.get("Status") or {}).get("State") == "ready"}

    async def _services(self, app_id: str | None) -> list[dict[str, Any]]:
        filters = msgspec.json.encode(objects.filters(app_id, objects.SERVICE)).decode()
        found = await self._engine.ask("GET", "services", params={"filters": filters})
        return _exactly(found, app_id)

    async def _tasks(self, app_id: str | None) -> dict[str, list[Task]]:
        """The tasks of our services by service, oldest first, also those of services that were just removed."""
        if app_id == "":  # a swarm takes an empty value for: any
            return {}
        filters = msgspec.json.encode(objects.filters(app_id, objects.SERVICE)).decode()
        found = await self._engine.ask("GET", "tasks", params={"filters": filters})
        tasks: dict[str, list[Task]] = {}
        for one in sorted((services.task(one) for one in found), key=lambda one: one.created_at):
            tasks.setdefault(one.service_id, []).append(one)
        return tasks

    async def _tasks_of(self, service_id: str) -> list[Task]:
        filters = msgspec.json.encode({"service": [service_id]}).decode()
        found = await self._engine.ask("GET", "tasks", params={"filters": filters})
        return sorted((services.task(one) for one in found), key=lambda one: one.created_at)

    async def _held(self, app_id: str | None) -> list[Held]:  # type: ignore[override]
        """Services with their tasks and, of those that run here, their containers."""
        found = await self._services(app_id)
        tasks = await self._tasks(app_id) if found else {}
        node = await self._here()
        held = await _all(self._told(one, tasks.get(one["ID"], []), node) for one in found)
        return sorted((one for one in held if one is not None), key=lambda one: (one.order, one.state.name))

    async def _told(self, service: Mapping[str, Any], tasks: Sequence[Task], node: Node) -> Held | None:
        told = services.told_by(service, tasks)
        container = None
        if told is not None and told.container and told.node == node.id:
            with contextlib.suppress(RuntimeFailure):  # gone, or the engine can't tell of it any more
                container = await self._engine.ask("GET", f"containers/{told.container}/json")
        try:
            return services.held(service, tasks, container, node=node.id)
        except (KeyError, ValueError, msgspec.ValidationError):  # labels that we did not write
            return None

    async def _followed(self, app_id: str) -> list[Followed]:
        notes = {one["ID"]: one["Spec"]["Labels"] for one in await self._services(app_id)}
        node = await self._here()
        return [
            Followed(
                id=one.container if one.node == node.id else _ELSEWHERE + one.id,
                service=notes[service_id][objects.SERVICE],
                tty=False,
                running=not one.is_over,
                started_at=one.created_at,
            )
            for service_id, tasks in (await self._tasks(app_id) if notes else {}).items()
            for one in tasks
            if one.container and service_id in notes
        ]

    def _log_path(self, one: Followed) -> str:
        if one.id.startswith(_ELSEWHERE):
            return f"tasks/{one.id.removeprefix(_ELSEWHERE)}/logs"
        return super()._log_path(one)

    async def _inspect(self, service_id: str) -> Held | None:
        try:
            service = await self._engine.ask("GET", f"services/{service_id}")
            tasks = await self._tasks_of(service_id)
        except Gone:
            return None
        return await self._told(service, tasks, await self._here())

    async def _reading(self, summary: Mapping[str, Any]) -> Reading | None:
        service_id = summary["Labels"].get(_SERVICE_ID)
        found = await super()._reading(summary) if service_id else None
        return msgspec.structs.replace(found, container_id=service_id) if found is not None else None

    @staticmethod
    def _container_of(one: objects.Held) -> str:
        if isinstance(one, Held) and one.container:
            return one.container
        reason = f"“{one.state.name}” runs on another node of the swarm, where no terminal reaches"
        raise RuntimeFailure(reason, code="unsupported", service=one.state.name)

    async def end_execution(self, app_id: str, exec_id: str) -> None:
        for one in await self._held(app_id):
            if one.state.status == "running" and one.container:
                await kill_marked(self._engine, one.container, exec_id)

    @staticmethod
    def _is_right(held: objects.Held, once: set[str]) -> bool:
        # One that waits to be started again is started now: it may wait for a node that is no more.
        return plan.is_right(held, once) and held.state.status != "restarting"

    async def _networks(self, app_id: str | None) -> list[dict[str, Any]]:
        return [one for one in await super()._networks(app_id) if one.get("Scope") == "swarm"]

    # Making

    async def _create(
        self,
        spec: AppSpec,
        service: ServiceSpec,
        labels: Mapping[str, str],
        mounts: list[dict[str, Any]],
        image: Mapping[str, Any],
        *,
        runs_once: bool,
    ) -> str:
        node, name = await self._here(at_most_seconds=0), labels[objects.IMAGE]
        body = services.service_body(
            spec,
            service,
            labels=labels,
            image=image,
            image_digest=await self._images.digest(name, service.digest) or "",
            mounts=mounts,
            secrets=[await self._make_secret(spec, service, one, labels[objects.SPEC]) for one in service.files],
            node=node.id,
            node_cpus=node.smallest_cpus,
            no_new_privileges=await self._knows_no_new_privileges(),
            runs_once=runs_once,
        )
        parsed = Image.parse(name)
        login = self._logins.get(registry_of(name))
        headers = login_header(parsed, login) if parsed is not None else {}
        for wished in services.names(spec, service):
            with contextlib.suppress(Taken):
                made = await self._engine.ask(
                    "POST",
                    "services/create",
                    body={"Name": wished, **body},
                    headers=headers,
                    limit=CHANGE_SECONDS,
                    service=service.name,
                )
                return str(made["ID"])
        raise RuntimeFailure("A foreign service has the name of this one", code="name_taken", service=service.name)

    async def _make_secret(self, spec: AppSpec, service: ServiceSpec, file: FileSpec, digest: str) -> services.Secret:
        """A file as a secret of the swarm: encrypted there, in memory on the node, and never given out again."""
        name = services.secret_name(spec.app_id, service, file.target, digest)
        body: dict[str, Any] = {
            "Name": name,
            "Labels": objects.labels(spec.app_id, {services.SECRET: service.name}),
            "Data": b64encode((file.content or _EMPTY).encode()).decode(),
        }
        if not file.content:
            body["Templating"] = {"Name": "golang"}
        try:
            made = await self._engine.ask("POST", "secrets/create", body=body, service=service.name)
            return services.Secret(name, str(made["ID"]))
        except Taken:
            for one in await self._secrets(spec.app_id):
                if one["Spec"]["Name"] == name:
                    return services.Secret(name, str(one["ID"]))
            raise RuntimeFailure(
                "A foreign secret has the name of one of ours", code="name_taken", service=service.name
            ) from None

    async def _secrets(self, app_id: str) -> list[dict[str, Any]]:
        filters = msgspec.json.encode(objects.filters(app_id, services.SECRET)).decode()
        return _exactly(await self._engine.ask("GET", "secrets", params={"filters": filters}), app_id)

    # Starting, stopping, removing

    async def _change(self, service_id: str, change: Callable[[dict[str, Any]], Any], service: str) -> Any:
        """Change the `Spec` of a service, over and over where somebody else changes it meanwhile."""
        for _ in range(_TRIES):
            found = await self._engine.ask("GET", f"services/{service_id}", service=service)
            before = msgspec.json.encode(found["Spec"])
            result = change(found["Spec"])
            if msgspec.json.encode(found["Spec"]) == before:
                return result
            try:
                await self._engine.ask(
                    "POST",
                    f"services/{service_id}/update",
                    params={"version": str(found["Version"]["Index"])},
                    body=found["Spec"],
                    limit=CHANGE_SECONDS,
                    service=service,
                )
            except RuntimeFailure as error:
                if "out of sequence" not in error.reason:
                    raise
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return result
        raise RuntimeFailure("Somebody else keeps changing the service", code="engine_conflict", service=service)

    async def _start(self, service_id: str, service: str, *, paused: bool) -> None:
        if paused:
            held = await self._inspect(service_id)
            if held is not None and held.container:
                await super()._start(held.container, service, paused=True)
            return
        number: int = await self._change(service_id, services.run, service)
        try:
            await self._await_start(service_id, service, number)
        except RuntimeFailure:
            # As an engine leaves a container that could not be started: it stays as it is until somebody says.
            with contextlib.suppress(Gone):
                await self._hold(service_id, service)
            raise

    async def _await_start(self, service_id: str, service: str, number: int) -> None:
        """Return once the first task of a start has run; raise as soon as it is clear that it can't."""
        began = time.monotonic()
        while True:
            first = next((one for one in await self._tasks_of(service_id) if one.run >= number), None)
            waited = time.monotonic() - began
            if first is not None:
                if first.never_ran:
                    raise failure(0, first.error, service)
                if first.is_over or first.state == "running" or await self._is_checked(first):
                    return
                if first.state == "pending" and first.error:
                    await self._judge_place(service_id, service, first, waited)
            if waited > (HEAVY_SECONDS if first is not None and first.state == "preparing" else CHANGE_SECONDS):
                raise RuntimeFailure("The swarm did not start it in time", code="start_timeout", service=service)
            await asyncio.sleep(_POLL_SECONDS)

    async def _is_checked(self, task: Task) -> bool:
        """Whether a task runs that the swarm still calls starting, because its health check has not passed yet."""
        if task.state != "starting" or not task.container:
            return False
        if task.node != (await self._here()).id:
            service = await self._engine.ask("GET", f"services/{task.service_id}")
            return services.HEALTH in service["Spec"]["Labels"]
        with contextlib.suppress(Gone):
            container = await self._engine.ask("GET", f"containers/{task.container}/json")
            return bool(container["State"]["Running"])
        return False

    async def _judge_place(self, service_id: str, service: str, task: Task, waited: float) -> None:
        """Raise when no node can run a task, and not only for a moment."""
        if "port already in use" in task.error:
            found = await self._engine.ask("GET", "services")
            ours = next((one for one in found if one["ID"] == service_id), None)
            wanted = services.host_ports(ours) if ours is not None else set()
            held = {port for one in found if one["ID"] != service_id for port in services.host_ports(one)}
            for port in sorted(wanted & held):
                raise PortInUse(f"Port {port} is already in use", service=service)
        if waited < _PLACE_SECONDS:
            return
        if "port already in use" in task.error:
            raise PortInUse("A port is already in use", service=service)
        if "insufficient resources" in task.error:
            reason = "No node of the swarm has as much memory free as it reserves"
        else:
            reason = "No node of the swarm may run it: see whether they are up, active and not drained"
        raise RuntimeFailure(reason, code="no_node", service=service)

    async def _hold(self, service_id: str, service: str) -> list[Task]:
        """Let nothing of a service run any more; gives the tasks that are to end now, and may not have yet."""
        await self._change(service_id, services.hold, service)
        began = time.monotonic()
        while True:
            tasks = await self._tasks_of(service_id)
            # The swarm takes note of a change in its own time; without replicas before that, it would forget the tasks.
            if not any(one.is_wanted and (one.container or not one.is_waiting) for one in tasks):
                break
            if time.monotonic() - began > CHANGE_SECONDS:
                raise RuntimeUnavailable("The swarm does not carry out changes")
            await asyncio.sleep(_POLL_SECONDS)
        await self._change(service_id, services.rest, service)
        return [one for one in tasks if one.container and not one.is_over]

    async def _stop_one(self, one: objects.Held) -> None:
        with contextlib.suppress(Gone):
            ending = await self._hold(one.id, one.state.name)
            node = await self._here()
            for task in ending:
                if task.node == node.id:
                    # The swarm itself lets two seconds pass first, for its other nodes to take note.
                    await self._stop_container(task.container, one)
            await self._until_over(one)

    async def _stop_container(self, container_id: str, one: objects.Held) -> None:
        with contextlib.suppress(Gone):
            await self._engine.ask(
                "POST",
                f"containers/{container_id}/stop",
                params={"t": str(one.stop_seconds)},
                limit=one.stop_seconds + CHANGE_SECONDS,
                service=one.state.name,
            )

    async def _until_over(self, one: objects.Held) -> None:
        end = time.monotonic() + one.stop_seconds + CHANGE_SECONDS
        while True:
            held = await self._inspect(one.id)
            if held is None or held.state.status not in plan.STOPPABLE:
                return
            if time.monotonic() > end:
                raise RuntimeFailure("It did not stop in time", code="stop_timeout", service=one.state.name)
            await asyncio.sleep(_POLL_SECONDS)

    async def _clear(self, app_id: str, *, keep: set[str]) -> None:
        """Remove the app's services but those of `keep`, their containers here, and the files that nobody has now."""
        for one in await self._services(app_id):
            if one["ID"] not in keep:
                with contextlib.suppress(Gone):
                    await self._engine.ask("DELETE", f"services/{one['ID']}", limit=CHANGE_SECONDS)
        await _all(
            delete_container(self._engine, one["Id"])
            for one in await self._containers(app_id)
            if one["Labels"].get(_SERVICE_ID) not in keep
        )
        await self._until_forgotten(app_id, keep)
        used = {
            secret["SecretID"]
            for one in await self._services(app_id)
            for secret in one["Spec"]["TaskTemplate"]["ContainerSpec"].get("Secrets") or ()
        }
        for one in await self._secrets(app_id):
            if one["ID"] not in used:
                with contextlib.suppress(Gone):
                    await self._engine.ask("DELETE", f"secrets/{one['ID']}", limit=CHANGE_SECONDS)

    async def _remove_network(self, network_id: str) -> None:
        await super()._remove_network(network_id)
        # The nodes take their part of it away a little later, and until then the engine here still tells it.
        end = time.monotonic() + CHANGE_SECONDS
        with contextlib.suppress(Gone):
            while time.monotonic() < end:
                await self._engine.ask("GET", f"networks/{network_id}")
                await asyncio.sleep(_POLL_SECONDS)

    async def _until_forgotten(self, app_id: str, keep: set[str]) -> None:
        """Wait until the tasks of removed services have ended, on all nodes that are there."""
        end = time.monotonic() + HEAVY_SECONDS
        while time.monotonic() < end:
            tasks = [one for id_, some in (await self._tasks(app_id)).items() if id_ not in keep for one in some]
            left = {one.node for one in tasks if not one.is_over and not one.is_waiting}
            if not left or not left & await self._nodes_up():
                return
            await asyncio.sleep(_POLL_SECONDS)
        raise RuntimeFailure("A node of the swarm does not end what it runs of the app", code="node_away")


def _refuse(spec: AppSpec) -> None:
    """Raise for what of a spec a swarm can't do; its first is enough, since nothing is made yet."""
    for refusal in services.unsupported(spec):
        raise refusal


def _exactly(found: Sequence[dict[str, Any]], app_id: str | None) -> list[dict[str, Any]]:
    """Those of the app, since a swarm takes a label's empty value in a filter for: any."""
    return [one for one in found if app_id is None or one["Spec"]["Labels"].get(objects.APP) == app_id]
