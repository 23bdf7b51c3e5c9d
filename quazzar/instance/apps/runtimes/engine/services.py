"""Services of a swarm: what they are made from, and what a service and its tasks say about an app's service."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec

from quazzar.instance.apps.images import Image
from quazzar.instance.apps.runtimes.base import Health, PortState, RuntimeEvent, RuntimeFailure, ServiceState
from quazzar.instance.apps.runtimes.engine import objects
from quazzar.instance.apps.spec import AppSpec, AttachmentSpec, HostSpec, NetworkSpec, ServiceSpec

DIGEST = "io.quazzar.image-digest"
HEALTH = "io.quazzar.health-seconds"
SECRET = "io.quazzar.secret"  # noqa: S105 - the name of a label

STOPPED: Final = "node.labels.io.quazzar.stopped==true"
"""A placement that no node offers. Under it a swarm ends the task and keeps its container, log and exit code, while
without replicas it forgets all three."""

FILE_LIMIT_BYTES: Final = 500 * 1024 - 1
_EVERYWHERE: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - what a swarm publishes on
_RESTART_DELAY_NS: Final = 2_000_000_000
_NAME_LIMIT: Final = 63

_WAITING: Final = frozenset({"new", "allocated", "pending", "assigned", "accepted", "preparing", "ready"})
_UP: Final = frozenset({"starting", "running"})
_UNHEALTHY: Final = "unhealthy container"
_NOT_STARTED: Final = "starting container failed"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a swarm to run a service."""

    id: str
    service_id: str
    run: int
    """The number of the start that it belongs to."""
    created_at: datetime
    state: str
    desired: str
    at: datetime | None
    error: str
    node: str
    container: str
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        return self.state not in _WAITING and self.state not in _UP

    @property
    def is_waiting(self) -> bool:
        return self.state in _WAITING

    @property
    def is_wanted(self) -> bool:
        return self.desired in {"ready", "running"}

    @property
    def never_ran(self) -> bool:
        """Whether it ended before the program of the service began."""
        return self.state == "rejected" or (self.state == "failed" and _NOT_STARTED in self.error)


def task(found: Mapping[str, Any]) -> Task:
    """From one entry of `GET /tasks`."""
    status = found["Status"]
    container = status.get("ContainerStatus") or {}
    return Task(
        id=found["ID"],
        service_id=found.get("ServiceID", ""),
        run=int(found["Spec"].get("ForceUpdate") or 0),
        created_at=datetime.fromisoformat(found["CreatedAt"]),
        state=status["State"],
        desired=found.get("DesiredState", ""),
        at=objects.parse_time(status.get("Timestamp", "")),
        error=status.get("Err") or "",
        node=found.get("NodeID") or "",
        container=container.get("ContainerID") or "",
        exit_code=container.get("ExitCode"),
    )


class Held(objects.Held, frozen=True, kw_only=True):
    """A service of a swarm; `id` is its own, which outlives all its containers."""

    container: str
    """The container of the task that is told of; empty when there is none on this node."""
    node: str
    stopped: bool


# Making


def unsupported(spec: AppSpec) -> Iterable[RuntimeFailure]:
    """What of a spec no swarm can do, so that leaving it out would be a silent loss."""
    for service in spec.services:
        for port in service.ports:
            if port.host_ip not in _EVERYWHERE:
                reason = f"A swarm can't publish port {port.host_port} on one address alone (ports: {port.host_ip})"
                yield RuntimeFailure(reason, code="unsupported", service=service.name)
        if msgspec.structs.replace(service.host, binds=()) != HostSpec():
            reason = "A swarm gives a service nothing of the host but folders"
            yield RuntimeFailure(reason, code="unsupported", service=service.name)
        for file in service.files:
            if len(file.content.encode()) > FILE_LIMIT_BYTES:
                reason = f"A swarm takes files of at most {FILE_LIMIT_BYTES} bytes (configs, secrets: {file.target})"
                yield RuntimeFailure(reason, code="unsupported", service=service.name)


def isolated(spec: AppSpec) -> AppSpec:
    """`spec` with a network of its own for each service that is on none.

    A swarm has no service without a network: it would put them all on the node's common bridge.
    """
    default = any(one.name == "default" for one in spec.networks)
    alone = [one.name for one in spec.services if not one.networks and not default]
    return msgspec.structs.replace(
        spec,
        networks=(*spec.networks, *(NetworkSpec(name=f"alone-{name}", internal=True) for name in alone)),
        services=tuple(
            msgspec.structs.replace(one, networks=(AttachmentSpec(network=f"alone-{one.name}"),))
            if one.name in alone
            else one
            for one in spec.services
        ),
    )


def names(spec: AppSpec, service: ServiceSpec) -> tuple[str, ...]:
    """The name that people expect, and the one to take when somebody else's service has that."""
    short = sha256(service.name.encode()).hexdigest()[:8]
    wished = f"{spec.project}-{service.name}".replace(".", "-")
    return (*([wished] if len(wished) <= _NAME_LIMIT else []), f"{spec.app_id}-{short}")


def pinned_image(inspected: Mapping[str, Any], name: str, digest: str | None = None) -> tuple[str, bool]:
    """What every node runs exactly that image by, and whether other nodes can get it.

    By a tag each node would ask the registry anew at each start and might get another image than this one.
    """
    image = Image.parse(name)
    known = [str(one) for one in inspected.get("RepoDigests") or ()]
    shared = [one for one in known if image is not None and one.rpartition("@")[0] == image.repository]
    exact = [one for one in shared if one.rpartition("@")[2] == digest]
    return ((exact or shared)[0], True) if shared else (str(inspected["Id"]), False)


class Secret(msgspec.Struct, frozen=True):
    name: str
    id: str


def secret_name(app_id: str, service: ServiceSpec, target: str, digest: str) -> str:
    """One name for one content: the digest is that of the service and all its files."""
    return f"{app_id}_{sha256(f'{service.name} {target} {digest}'.encode()).hexdigest()[:24]}"


def service_body(
    spec: AppSpec,
    service: ServiceSpec,
    *,
    labels: Mapping[str, str],
    image: Mapping[str, Any],
    image_digest: str,
    mounts: Sequence[Mapping[str, Any]],
    secrets: Sequence[Secret],
    node: str,
    node_cpus: float,
    no_new_privileges: bool,
    runs_once: bool,
) -> dict[str, Any]:
    """The body of `POST /services/create`, without a name; `secrets` go with `service.files` one by one.

    A service that has data, publishes ports or comes from an image that only this node has stays on this node.
    `node_cpus` is what the smallest node has: an engine refuses a limit above that, which would limit nothing.
    """
    reference, is_shared = pinned_image(image, labels[objects.IMAGE], service.digest)
    stays = not is_shared or bool(mounts) or bool(service.ports)
    check = objects.healthcheck(service)
    deadline = objects.health_deadline(check or (image.get("Config") or {}).get("Healthcheck"))
    notes = {DIGEST: image_digest, **({HEALTH: str(deadline)} if deadline is not None else {})}
    ours = {key: value for key, value in labels.items() if key.startswith("io.quazzar.")}
    limits = service.resources
    container: dict[str, Any] = {
        "Image": reference,
        "Labels": dict(labels),
        "Command": list(service.entrypoint or ("",)) if service.entrypoint is not None else None,
        "Args": _arguments(service, image),
        "Env": [f"{name}={value}" for name, value in service.environment.items()],
        "Dir": service.working_dir,
        "User": service.user,
        "Hostname": service.hostname,
        "StopSignal": service.stop_signal,
        "StopGracePeriod": math.ceil(service.stop_grace_seconds) * 10**9,
        "HealthCheck": check,
        "Init": service.init,
        "ReadOnly": service.read_only,
        "CapabilityDrop": ["ALL"],
        "CapabilityAdd": sorted(set(service.cap_add) - set(service.cap_drop)),
        "Ulimits": [{"Name": one.name, "Soft": one.soft, "Hard": one.hard} for one in service.ulimits],
        "Mounts": [*mounts, *_tmpfs(service)],
        "Secrets": [
            {
                "SecretID": secret.id,
                "SecretName": secret.name,
                "File": {"Name": file.target, "UID": str(file.uid), "GID": str(file.gid), "Mode": file.mode},
            }
            for file, secret in zip(service.files, secrets, strict=True)
        ],
        "Privileges": {"NoNewPrivileges": True} if no_new_privileges else None,
    }
    return {
        "Labels": {**ours, **notes},
        "TaskTemplate": {
            "ContainerSpec": {key: value for key, value in container.items() if value is not None},
            "Resources": {
                "Limits": _known(
                    MemoryBytes=limits.memory_bytes,
                    NanoCPUs=int(min(limits.cpus, node_cpus) * 10**9) if limits.cpus is not None else None,
                    Pids=limits.pids,
                ),
                "Reservations": _known(MemoryBytes=limits.memory_reservation_bytes),
            },
            "RestartPolicy": _restart_policy(service, runs_once=runs_once),
            "Placement": {"Constraints": [f"node.id=={node}"] if stays else []},
            "Networks": [
                {"Target": name, "Aliases": endpoint["Aliases"]}
                for name, endpoint in objects.endpoints(spec, service).items()
            ],
            "LogDriver": objects.LOG_DRIVER,
        },
        "Mode": {"Replicated": {"Replicas": 0}},
        "UpdateConfig": {"Parallelism": 0, "FailureAction": "continue", "Order": "stop-first"},
        # Not the swarm's virtual addresses and its mesh: they need IPVS in the kernel, hide who calls, and open the
        # port on every node.
        "EndpointSpec": {
            "Mode": "dnsrr",
            "Ports": [
                {
                    "Protocol": port.protocol,
                    "TargetPort": port.container_port,
                    "PublishedPort": port.host_port,
                    "PublishMode": "host",
                }
                for port in service.ports
            ],
        },
    }


def _known(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


def _arguments(service: ServiceSpec, image: Mapping[str, Any]) -> list[str] | None:
    """With an entrypoint taken away the image's command runs; a swarm would take that away too."""
    if service.command is None and service.entrypoint == ():
        return (image.get("Config") or {}).get("Cmd")
    return list(service.command) if service.command is not None else None


def _tmpfs(service: ServiceSpec) -> list[dict[str, Any]]:
    sizes = {one.target: one.size_bytes for one in service.tmpfs}
    if service.shm_size_bytes is not None:
        # A swarm has no field for it, but what is mounted there takes the place of the engine's own.
        sizes["/dev/shm"] = service.shm_size_bytes  # noqa: S108
    return [
        {"Type": "tmpfs", "Target": target, "TmpfsOptions": {"SizeBytes": size, "Mode": 0o1777} if size else {}}
        for target, size in sizes.items()
    ]


def _restart_policy(service: ServiceSpec, *, runs_once: bool) -> dict[str, Any]:
    condition: Literal["none", "any", "on-failure"]
    match service.restart.policy:
        case "no":
            condition = "none"
        case "on-failure":
            condition = "on-failure"
        case "always" | "unless-stopped":
            condition = "none" if runs_once else "any"
    retries = service.restart.max_retries if condition == "on-failure" else 0
    return {"Condition": condition, "Delay": _RESTART_DELAY_NS, "MaxAttempts": retries}


# Changing: each takes the `Spec` of a service as the engine gave it


def run(spec: dict[str, Any]) -> int:
    """Let one task run, a new one; gives the number of this start."""
    template = spec["TaskTemplate"]
    template["ForceUpdate"] = int(template.get("ForceUpdate") or 0) + 1
    template.setdefault("Placement", {})["Constraints"] = [one for one in _constraints(spec) if one != STOPPED]
    spec["Mode"] = {"Replicated": {"Replicas": 1}}
    return int(template["ForceUpdate"])


def hold(spec: dict[str, Any]) -> None:
    """Let no task run any more, and keep what the last one left."""
    if STOPPED not in _constraints(spec):
        spec["TaskTemplate"].setdefault("Placement", {})["Constraints"] = [*_constraints(spec), STOPPED]


def rest(spec: dict[str, Any]) -> None:
    """After `hold`: don't even wait for a place to run at."""
    spec["Mode"] = {"Replicated": {"Replicas": 0}}


def is_stopped(spec: Mapping[str, Any]) -> bool:
    return STOPPED in _constraints(spec) or replicas(spec) == 0


def replicas(spec: Mapping[str, Any]) -> int:
    """How many tasks of a service a swarm wants; a global one counts as one."""
    replicated = (spec.get("Mode") or {}).get("Replicated")
    return int(replicated.get("Replicas") or 0) if replicated is not None else 1


def host_ports(service: Mapping[str, Any]) -> set[int]:
    """The ports of nodes that a service takes while it runs, whoever's it is."""
    spec = service["Spec"]
    wanted = (spec.get("EndpointSpec") or {}).get("Ports") or ()
    given = (service.get("Endpoint") or {}).get("Ports") or ()
    return {
        int(one["PublishedPort"])
        for one in (*wanted, *given)
        # Those of the mesh are held by the service itself, whether it runs or not.
        if one.get("PublishedPort") and not (one.get("PublishMode") == "host" and is_stopped(spec))
    }


def _constraints(spec: Mapping[str, Any]) -> list[str]:
    return list((spec["TaskTemplate"].get("Placement") or {}).get("Constraints") or ())


# Telling


def told_by(service: Mapping[str, Any], tasks: Sequence[Task]) -> Task | None:
    """The task that says how a service is: the one that runs, else the last that did.

    `tasks` are those of the service, oldest first.
    """
    if not is_stopped(service["Spec"]):
        current = [one for one in tasks if one.run == _run_of(service)]
        if current and not current[-1].is_waiting:
            return current[-1]
    ran = [one for one in tasks if one.container]
    return ran[-1] if ran else None


def held(service: Mapping[str, Any], tasks: Sequence[Task], container: Mapping[str, Any] | None, *, node: str) -> Held:
    """From `GET /services`, the service's tasks, oldest first, and the container of the one that `told_by` gives.

    `container` is what this node, `node`, says of it, None when it has it not.
    """
    spec = service["Spec"]
    notes: Mapping[str, str] = spec["Labels"]
    told = told_by(service, tasks)
    stopped = is_stopped(spec)
    current = [one for one in tasks if one.run == _run_of(service)]
    deadline = float(notes[HEALTH]) if HEALTH in notes else None
    status = _status(spec, told, current, container, stopped=stopped)
    state = (container or {}).get("State") or {}
    over = status in {"exited", "dead", "restarting"}
    name = notes[objects.SERVICE]
    return Held(
        id=service["ID"],
        app_id=notes[objects.APP],
        digest=notes.get(objects.SPEC, ""),
        order=int(notes.get(objects.ORDER, "0")),
        depends_on=tuple(objects.depends_on(notes.get(objects.DEPENDS, ""))),
        state=ServiceState(
            name=name,
            container_id=service["ID"],
            image=notes.get(objects.IMAGE, ""),
            image_digest=notes.get(DIGEST) or None,
            status=status,
            health=_health(status, told, current, state) if deadline is not None and not stopped else "none",
            restarts=max(0, len(current) - 1),
            exit_code=_exit_code(told, state) if over else None,
            oom_killed=bool(state.get("OOMKilled")),
            started_at=_started_at(told, state),
            finished_at=_finished_at(told, state),
        ),
        ports=tuple(
            PortState(
                service=name,
                container_port=one["TargetPort"],
                host_port=one["PublishedPort"],
                protocol="udp" if one.get("Protocol") == "udp" else "tcp",
            )
            for one in (spec.get("EndpointSpec") or {}).get("Ports") or ()
        ),
        health_deadline_seconds=deadline,
        tty=False,
        stop_seconds=math.ceil((spec["TaskTemplate"]["ContainerSpec"].get("StopGracePeriod") or 10**10) / 1e9),
        container=told.container if told is not None and told.node == node else "",
        node=told.node if told is not None else "",
        stopped=stopped,
    )


def _run_of(service: Mapping[str, Any]) -> int:
    return int(service["Spec"]["TaskTemplate"].get("ForceUpdate") or 0)


Status = Literal["created", "running", "paused", "restarting", "exited", "dead"]


def _status(
    spec: Mapping[str, Any],
    told: Task | None,
    current: Sequence[Task],
    container: Mapping[str, Any] | None,
    *,
    stopped: bool,
) -> Status:
    if not stopped and (not current or current[-1].is_waiting):
        return "restarting"  # it is about to run, or waits for a node that may run it
    if told is None:
        return "created"
    # What the node says is newer than what the swarm knows.
    now = ((container or {}).get("State") or {}).get("Status")
    if now == "paused":
        return "paused"
    if not told.is_over and now in {None, "created", "running", "restarting"}:
        return "running"
    if stopped:
        return "exited"
    code = _exit_code(told, (container or {}).get("State") or {})
    return "restarting" if _is_restarted(spec, code, restarts=len(current) - 1) else "exited"


def _is_restarted(spec: Mapping[str, Any], exit_code: int | None, *, restarts: int) -> bool:
    policy = spec["TaskTemplate"].get("RestartPolicy") or {}
    attempts = int(policy.get("MaxAttempts") or 0)
    if attempts and restarts >= attempts:
        return False
    match policy.get("Condition", "any"):
        case "none":
            return False
        case "on-failure":
            return exit_code != 0
        case _:
            return True


def _exit_code(told: Task | None, state: Mapping[str, Any]) -> int | None:
    if state.get("Status") in {"exited", "dead"}:
        return int(state["ExitCode"])
    return told.exit_code if told is not None and told.is_over else None


def _health(status: Status, told: Task | None, current: Sequence[Task], state: Mapping[str, Any]) -> Health:
    """A swarm ends a task whose check fails, so its successor is unhealthy until it has shown the contrary."""
    seen = objects.health((state.get("Health") or {}).get("Status")) if status in {"running", "paused"} else "none"
    if seen == "none" and told is not None and status in {"running", "paused"}:
        seen = "healthy" if told.state == "running" else "starting"
    if seen in {"starting", "none"} and any(_UNHEALTHY in one.error for one in current[-2:]):
        return "unhealthy"
    return seen


def _started_at(told: Task | None, state: Mapping[str, Any]) -> datetime | None:
    if state:
        return objects.parse_time(state.get("StartedAt", ""))
    return told.at if told is not None and told.state in _UP else None


def _finished_at(told: Task | None, state: Mapping[str, Any]) -> datetime | None:
    if state:
        return objects.parse_time(state.get("FinishedAt", ""))
    return told.at if told is not None and told.is_over else None


Noted = tuple[Task, Mapping[str, str]]
"""A task, and the labels of its service."""


def happened(before: Noted | None, after: Noted | None) -> RuntimeEvent | None:
    """What of interest lies between two looks at a task; None is for one that is not there (any more)."""
    found = after or before
    if found is None or (before is not None and after is not None and before[0].state == after[0].state):
        return None
    task, labels = found
    action: Literal["start", "die", "destroy"]
    if after is None:
        action = "destroy"
    elif task.is_over:
        action = "die"
    elif task.state in _UP:
        action = "start"
    else:
        return None
    return RuntimeEvent(
        app_id=labels[objects.APP],
        service=labels[objects.SERVICE],
        action=action,
        at=task.at or task.created_at,
        exit_code=task.exit_code if action == "die" else None,
    )
