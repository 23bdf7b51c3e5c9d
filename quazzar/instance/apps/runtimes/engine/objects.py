"""Engine objects: how ours are named and labelled, what they are made from, and what an answer says."""

import io
import math
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from posixpath import dirname
from typing import Any, Literal, get_args

import msgspec

from quazzar.instance.apps.runtimes import plan
from quazzar.instance.apps.runtimes.base import (
    DiskUse,
    Health,
    PortState,
    Reading,
    RuntimeEvent,
    ServiceState,
    ServiceStats,
    attachments,
)
from quazzar.instance.apps.spec import AppSpec, DependencySpec, FileSpec, ServiceSpec

APP = "io.quazzar.app"
PROJECT = "io.quazzar.project"
SERVICE = "io.quazzar.service"
SPEC = "io.quazzar.spec"
ORDER = "io.quazzar.order"
DEPENDS = "io.quazzar.depends"
IMAGE = "io.quazzar.image"
"""The image as the template names it; the engine may have been told a digest."""
VOLUME = "io.quazzar.volume"
NETWORK = "io.quazzar.network"
FILES = "io.quazzar.files"
"""On the volume that holds the files of a service, and on the container that fills it."""
SNAPSHOT = "io.quazzar.snapshot"
"""On copies of volumes, and on the empty volume that says that they are whole."""
COPY_OF = "io.quazzar.copy-of"
"""On a copy: the short name of the volume that it is a copy of."""
DOOR = "io.quazzar.door"
"""On the container that never starts, through which a volume is read or filled: the engine's name of the volume."""

LOG_DRIVER: Mapping[str, Any] = {"Name": "json-file", "Options": {"max-size": "10m", "max-file": "3"}}

_NEVER = "0001-01-01"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Held(plan.Held, frozen=True, kw_only=True):
    tty: bool
    stop_seconds: int


def labels(app_id: str, more: Mapping[str, str]) -> dict[str, str]:
    return {APP: app_id, **more}


def filters(app_id: str | None, key: str | None = None) -> dict[str, list[str]]:
    """The engine-side filter for our objects, or those of one app, or those that also carry the label `key`."""
    return {"label": [APP if app_id is None else f"{APP}={app_id}", *([key] if key else [])]}


def engine_name(app_id: str, name: str) -> str:
    """The name of an app's volume or network on the engine; the app id in it keeps it apart from all others."""
    return f"{app_id}_{name}"


def snapshot_name(app_id: str, name: str, volume: str | None = None) -> str:
    """The engine's name of a copy in a snapshot; without a volume that of the mark that says that it is whole.

    No volume of an app can have it: theirs begin with the app id, and `name` has no underscore.
    """
    return f"snapshot_{app_id}_{name}" + (f"_{volume}" if volume is not None else "")


def container_names(spec: AppSpec, service: ServiceSpec) -> tuple[str, str]:
    """The name that people expect, and the one to take when somebody else's container has that."""
    return f"{spec.project}-{service.name}-1", f"{spec.app_id}-{service.name}-1"


def container_labels(spec: AppSpec, service: ServiceSpec, *, order: int, digest: str) -> dict[str, str]:
    ours = {
        PROJECT: spec.project,
        SERVICE: service.name,
        SPEC: digest,
        ORDER: str(order),
        DEPENDS: depends_text(service.depends_on),
        IMAGE: service.image,
    }
    return service.labels | labels(spec.app_id, ours)


def container_config(
    service: ServiceSpec,
    *,
    container_labels: Mapping[str, str],
    volumes: Iterable[Mapping[str, Any]],
    runs_once: bool = False,
) -> dict[str, Any]:
    """The body of `POST /containers/create`, without networks; `volumes` are entries of `HostConfig.Mounts`.

    `runs_once` is for a service that others wait to complete, which it never would if it were started again.
    """
    config: dict[str, Any] = {
        "Image": service.image,
        "Cmd": list(service.command) if service.command is not None else None,
        # An empty list is none, not even that of the image, whose command then runs by itself.
        "Entrypoint": list(service.entrypoint) if service.entrypoint is not None else None,
        "Env": [f"{name}={value}" for name, value in service.environment.items()],
        "Labels": dict(container_labels),
        "User": service.user,
        "WorkingDir": service.working_dir,
        "Hostname": service.hostname,
        "StopSignal": service.stop_signal,
        "StopTimeout": math.ceil(service.stop_grace_seconds),
        "ExposedPorts": {f"{one.container_port}/{one.protocol}": {} for one in service.ports},
        "Healthcheck": healthcheck(service),
        "HostConfig": _host_config(service, list(volumes), runs_once=runs_once),
    }
    return {key: value for key, value in config.items() if value is not None}


def healthcheck(service: ServiceSpec) -> dict[str, Any] | None:
    check = service.healthcheck
    if check is None:
        return None
    if check.test[:1] == ("NONE",):
        return {"Test": ["NONE"]}
    return {
        "Test": list(check.test),
        "Interval": int(check.interval_seconds * 1e9),
        "Timeout": int(check.timeout_seconds * 1e9),
        "StartPeriod": int(check.start_period_seconds * 1e9),
        "Retries": check.retries,
    }


def _host_config(service: ServiceSpec, volumes: list[Mapping[str, Any]], *, runs_once: bool) -> dict[str, Any]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in service.ports:
        bindings.setdefault(f"{port.container_port}/{port.protocol}", []).append(
            {"HostIp": port.host_ip, "HostPort": str(port.host_port)}
        )
    limits = service.resources
    # An engine starts `always` containers at its own start even when the user stopped the app before.
    policy = "unless-stopped" if service.restart.policy == "always" else service.restart.policy
    if runs_once and policy == "unless-stopped":
        policy = "no"
    retries = service.restart.max_retries if policy == "on-failure" else 0
    host = service.host
    config: dict[str, Any] = {
        "Privileged": host.privileged,
        "SecurityOpt": _security_opts(host.security_opts),
        "CapDrop": ["ALL"],
        "CapAdd": sorted(set(service.cap_add) - set(service.cap_drop)),
        "ReadonlyRootfs": service.read_only,
        "Init": service.init,
        "IpcMode": "host" if host.ipc else "private",
        "PidsLimit": limits.pids,
        "RestartPolicy": {"Name": policy, "MaximumRetryCount": retries},
        "LogConfig": {"Type": LOG_DRIVER["Name"], "Config": LOG_DRIVER["Options"]},
        "PortBindings": bindings,
        "Mounts": volumes,
        "Tmpfs": {one.target: f"size={one.size_bytes}" if one.size_bytes is not None else "" for one in service.tmpfs},
        "Ulimits": [{"Name": one.name, "Soft": one.soft, "Hard": one.hard} for one in service.ulimits],
    }
    if host.pid:
        config["PidMode"] = "host"
    if host.groups:
        config["GroupAdd"] = list(host.groups)
    if host.sysctls:
        config["Sysctls"] = host.sysctls
    if host.devices:
        config["Devices"] = [
            {"PathOnHost": one.source, "PathInContainer": one.target, "CgroupPermissions": one.permissions}
            for one in host.devices
        ]
    if limits.memory_bytes is not None:
        # Equal values mean no swap on top: the limit is the limit on every machine.
        config |= {"Memory": limits.memory_bytes, "MemorySwap": limits.memory_bytes}
    if limits.memory_reservation_bytes is not None:
        config["MemoryReservation"] = limits.memory_reservation_bytes
    if limits.cpus is not None:
        # Not NanoCpus: with it an engine refuses a limit above its number of cores, which limits nothing.
        config |= {"CpuPeriod": 100_000, "CpuQuota": max(1000, int(limits.cpus * 100_000))}
    if service.shm_size_bytes is not None:
        config["ShmSize"] = service.shm_size_bytes
    return config


def _security_opts(wanted: Sequence[str]) -> list[str]:
    free = "no-new-privileges=false"
    return [*([] if free in wanted else ["no-new-privileges"]), *(one for one in wanted if one != free)]


def bind_mounts(service: ServiceSpec) -> list[dict[str, Any]]:
    return [
        {"Type": "bind", "Source": one.source, "Target": one.target, "ReadOnly": one.read_only}
        for one in service.host.binds
    ]


def volume_mount(name: str, target: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"Type": "volume", "Source": name, "Target": target, "ReadOnly": read_only}


def image_volumes(service: ServiceSpec, image: Mapping[str, Any]) -> dict[str, str]:
    """Short name → path, of the folders that an image declares as data and where the service mounts nothing else."""
    mounts = [*(one.target for one in service.mounts), *(one.target for one in service.host.binds)]
    taken = {target.rstrip("/") for target in (*mounts, *(one.target for one in service.tmpfs))}
    declared = sorted((image.get("Config") or {}).get("Volumes") or ())
    return {image_volume_name(service.name, path): path for path in declared if path.rstrip("/") not in taken}


def image_volume_name(service: str, path: str) -> str:
    return f"image-{service}-{sha256(path.encode()).hexdigest()[:8]}"


def endpoints(
    spec: AppSpec, service: ServiceSpec, name_of: Callable[[str, str], str] = engine_name
) -> dict[str, dict[str, Any]]:
    """Network name on the engine → endpoint settings, for every network that the service is on."""
    return {
        name_of(spec.app_id, one.network): {"Aliases": [service.name, *one.aliases]}
        for one in attachments(spec, service)
    }


def files_apart(service: ServiceSpec) -> list[FileSpec]:
    """The files that need a volume of their own: their place is read-only, or a tmpfs will cover it.

    A file in a volume of the app is never one of them.
    """
    places = [(one.target, False) for one in service.mounts] + [(one.target, False) for one in service.host.binds]
    places += [(one.target, True) for one in service.tmpfs]
    places.sort(key=lambda place: len(place[0]))

    def is_apart(file: FileSpec) -> bool:
        apart = service.read_only
        for target, covers in places:
            if file.target.startswith(target.rstrip("/") + "/"):
                apart = covers
        return apart

    return [file for file in service.files if is_apart(file)]


def outermost(files: Iterable[FileSpec]) -> list[str]:
    """The folders of files, without those that lie in another one of them."""
    folders: list[str] = []
    for folder in sorted({dirname(one.target) for one in files}):
        if not any(folder.startswith(outer.rstrip("/") + "/") for outer in folders):
            folders.append(folder)
    return folders


def files_archive(files: Iterable[FileSpec]) -> bytes:
    """A tar of the files, to be unpacked at the root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            content = file.content.encode()
            # No entries for the folders: they would reset the mode and owner of those that the image has.
            entry = tarfile.TarInfo(file.target.lstrip("/"))
            entry.size = len(content)
            entry.mode = file.mode & 0o7777
            entry.uid, entry.gid = file.uid, file.gid
            entry.mtime = 0
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def parse_time(text: str) -> datetime | None:
    """An RFC 3339 time of any precision; None for Go's zero time, which stands for never."""
    if not text or text.startswith(_NEVER):
        return None
    return datetime.fromisoformat(text)


def held(inspected: Mapping[str, Any], *, image_digest: str | None) -> Held:
    """From `GET /containers/{id}/json` of a container that carries our labels."""
    config, state, host = inspected["Config"], inspected["State"], inspected["HostConfig"]
    found: Mapping[str, str] = config["Labels"]
    status = state["Status"]
    over = status in {"exited", "dead", "restarting"}
    service = ServiceState(
        name=found[SERVICE],
        container_id=inspected["Id"],
        image=found.get(IMAGE) or config["Image"],
        image_digest=image_digest,
        status="dead" if status == "removing" else status,
        # An engine keeps the last word on health when a container stops; it says nothing then.
        health=health((state.get("Health") or {}).get("Status")) if status in {"running", "paused"} else "none",
        restarts=inspected.get("RestartCount") or 0,
        exit_code=state.get("ExitCode") if over else None,
        oom_killed=bool(state.get("OOMKilled")),
        started_at=parse_time(state.get("StartedAt", "")),
        finished_at=parse_time(state.get("FinishedAt", "")),
    )
    return Held(
        id=inspected["Id"],
        app_id=found[APP],
        digest=found.get(SPEC, ""),
        order=int(found.get(ORDER, "0")),
        depends_on=tuple(depends_on(found.get(DEPENDS, ""))),
        state=service,
        ports=tuple(_ports(service.name, host.get("PortBindings") or {}, inspected.get("NetworkSettings") or {})),
        tty=bool(config.get("Tty")),
        stop_seconds=config["StopTimeout"] if config.get("StopTimeout") is not None else 10,
        health_deadline_seconds=health_deadline(config.get("Healthcheck")),
    )


def listed(summary: Mapping[str, Any]) -> Held:
    """From one entry of `GET /containers/json`. It is as no spec wants it, so the next `up` makes it anew."""
    found, status = summary["Labels"], summary["State"]
    service = ServiceState(
        name=found[SERVICE],
        container_id=summary["Id"],
        image=found.get(IMAGE) or summary["Image"],
        image_digest=None,
        status="dead" if status == "removing" else status,
    )
    return Held(
        id=summary["Id"],
        app_id=found[APP],
        digest="",
        order=0,
        depends_on=(),
        state=service,
        ports=(),
        tty=False,
        stop_seconds=10,
        health_deadline_seconds=None,
    )


def health(text: str | None) -> Health:
    match text:
        case "starting" | "healthy" | "unhealthy":
            return text
        case _:
            return "none"


def depends_text(found: Iterable[DependencySpec]) -> str:
    """The text of the label; `depends_on` reads it."""
    return ",".join(f"{one.service}:{one.condition}:{'required' if one.required else 'optional'}" for one in found)


def depends_on(text: str) -> Iterable[DependencySpec]:
    for one in text.split(",") if text else ():
        service, condition, need = one.split(":")
        yield msgspec.convert(
            {"service": service, "condition": condition, "required": need == "required"}, DependencySpec
        )


def _ports(
    service: str, bindings: Mapping[str, Sequence[Mapping[str, str]] | None], now: Mapping[str, Any]
) -> Iterable[PortState]:
    """Published ports; where an adopted container leaves the number to the engine, the present one, if there is one."""
    for key, hosts in sorted(bindings.items()):
        number, _, protocol = key.partition("/")
        asked = {one.get("HostPort") or "0" for one in hosts or ()}
        if "0" in asked:
            asked |= {one["HostPort"] for one in (now.get("Ports") or {}).get(key) or ()}
        for host_port in sorted(int(one) for one in asked - {"0"}):
            yield PortState(
                service=service,
                container_port=int(number),
                host_port=host_port,
                protocol="udp" if protocol == "udp" else "tcp",
            )


def health_deadline(check: Mapping[str, Any] | None) -> float | None:
    if not check or not check.get("Test") or check["Test"][0] == "NONE":
        return None
    interval = (check.get("Interval") or 30e9) / 1e9
    timeout = (check.get("Timeout") or 30e9) / 1e9
    return float((check.get("StartPeriod") or 0) / 1e9 + (interval + timeout) * ((check.get("Retries") or 3) + 1))


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The CPU time that a container had used at a moment of the engine's clock, in nanoseconds both."""

    at: int
    used: int


def sample(stats: Mapping[str, Any]) -> Sample:
    at = parse_time(stats.get("read", "")) or datetime.now(UTC)
    used = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage") or 0
    return Sample(at=int(at.timestamp() * 1e6) * 1000, used=int(used))


def cpu_percent(before: Sample, after: Sample) -> float:
    """In percent of one core between two samples of one container; 0 when it was started anew in between."""
    if after.at <= before.at or after.used < before.used:
        return 0.0
    return round((after.used - before.used) / (after.at - before.at) * 100, 2)


def service_stats(name: str, stats: Mapping[str, Any], *, cpu: float, restarts: int = 0) -> ServiceStats:
    """From `GET /containers/{id}/stats`, as `usage` reads it."""
    return ServiceStats(name=name, cpu_percent=cpu, restarts=restarts, **usage(stats))


def reading(container_id: str, labels: Mapping[str, str], stats: Mapping[str, Any]) -> Reading:
    """From `GET /containers/{id}/stats` of a container that carries our labels."""
    found = sample(stats)
    return Reading(
        app_id=labels[APP],
        service=labels[SERVICE],
        container_id=container_id,
        at=_EPOCH + timedelta(microseconds=found.at // 1000),
        cpu_seconds=found.used / 1e9,
        **usage(stats),
    )


def disk_use(told: Mapping[str, Any]) -> list[DiskUse]:
    """From `GET /system/df`, of what carries our labels."""
    volumes: dict[str, dict[str, int]] = {}
    written: dict[str, int] = {}
    for one in told.get("Volumes") or ():
        found = one.get("Labels") or {}
        if APP in found and found.get(VOLUME):
            # An engine that could not count says -1.
            size = max(0, (one.get("UsageData") or {}).get("Size") or 0)
            volumes.setdefault(found[APP], {})[found[VOLUME]] = size
    for one in told.get("Containers") or ():
        found = one.get("Labels") or {}
        if APP in found:
            written[found[APP]] = written.get(found[APP], 0) + (one.get("SizeRw") or 0)
    return [
        DiskUse(app_id=app_id, volumes=volumes.get(app_id, {}), containers_bytes=written.get(app_id, 0))
        for app_id in sorted({*volumes, *written})
    ]


def usage(stats: Mapping[str, Any]) -> dict[str, int]:
    """The fields of `Usage`, from the shape of cgroup v1 or v2; a section that the kernel has not counts 0."""
    memory = stats.get("memory_stats") or {}
    details = memory.get("stats") or {}
    # What `docker stats` shows: pages of files that can be dropped at any time are not the app's need.
    cache = details.get("total_inactive_file", details.get("inactive_file", 0)) or 0
    networks: Iterable[Mapping[str, int]] = (stats.get("networks") or {}).values()
    disk = (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    received = sent = read = written = 0
    for one in networks:
        received += one.get("rx_bytes", 0)
        sent += one.get("tx_bytes", 0)
    for entry in disk:
        match str(entry.get("op", "")).lower():
            case "read":
                read += int(entry.get("value") or 0)
            case "write":
                written += int(entry.get("value") or 0)
            case _:
                pass
    return {
        "memory_bytes": max(0, int(memory.get("usage") or 0) - int(cache)),
        "memory_limit_bytes": int(memory.get("limit") or 0),
        "network_rx_bytes": received,
        "network_tx_bytes": sent,
        "disk_read_bytes": read,
        "disk_write_bytes": written,
        "pids": int((stats.get("pids_stats") or {}).get("current") or 0),
    }


_ACTIONS = frozenset(get_args(RuntimeEvent.__annotations__["action"]))


EVENTS = [*sorted(_ACTIONS - {"health"}), "health_status"]
"""What an engine is asked to tell: not each run of a health check's command."""


def event(message: Mapping[str, Any], more: Mapping[str, str]) -> RuntimeEvent | None:
    """From one message of `GET /events`; None for what is not about a service's container or not of interest.

    `more` are labels that an adopted container would carry.
    """
    attributes: Mapping[str, str] = {**((message.get("Actor") or {}).get("Attributes") or {}), **more}
    action, _, detail = str(message.get("Action", "")).partition(":")
    seen: Health | None = None
    if action == "health_status":
        action, seen = "health", health(detail.strip())
    if APP not in attributes or not attributes.get(SERVICE) or action not in _ACTIONS:
        return None
    code = attributes.get("exitCode", "")
    kind: Literal["create"] = action  # type: ignore[assignment]
    return RuntimeEvent(
        app_id=attributes[APP],
        service=attributes[SERVICE],
        action=kind,
        at=datetime.fromtimestamp(int(message.get("timeNano") or int(message.get("time", 0)) * 10**9) / 1e9, UTC),
        exit_code=int(code) if code.lstrip("-").isdigit() else None,
        health=seen,
    )
