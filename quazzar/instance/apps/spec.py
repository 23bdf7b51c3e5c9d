"""What a container runtime is told to run: plain data, made from a template and its config."""

from typing import Literal

import msgspec


class PortSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A published port. `host_port` is fixed before the spec reaches a driver (`auto` is resolved by then).

    Without a `host_ip` it is published on all addresses of the host, those of IPv6 too; `0.0.0.0` is all of IPv4.
    """

    container_port: int
    host_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    host_ip: str = ""


class MountSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A named volume of this app at a path of the container."""

    volume: str
    target: str
    read_only: bool = False


class BindSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of the host, or a file, at a path of the container: only a trusted template has one."""

    source: str
    target: str
    read_only: bool = False


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the host: only a trusted template has one."""

    source: str
    target: str
    permissions: str = "rwm"


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a service has of the host beyond its own container: nothing, unless its template is trusted.

    `security_opts` are the engine's own words (`seccomp=unconfined`).
    """

    binds: tuple[BindSpec, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    groups: tuple[str, ...] = ()
    privileged: bool = False
    network: bool = False
    pid: bool = False
    ipc: bool = False
    security_opts: tuple[str, ...] = ()
    sysctls: dict[str, str] = {}


class TmpfsSpec(msgspec.Struct, frozen=True, kw_only=True):
    target: str
    size_bytes: int | None = None


class FileSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is written into the container before it starts (Compose `configs` and `secrets` with content)."""

    target: str
    content: str
    mode: int = 0o444
    uid: int = 0
    gid: int = 0


class HealthSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`test` is in the engine's list form: ("CMD", …), ("CMD-SHELL", line) or ("NONE",)."""

    test: tuple[str, ...]
    interval_seconds: float = 30
    timeout_seconds: float = 30
    start_period_seconds: float = 0
    retries: int = 3


class DependencySpec(msgspec.Struct, frozen=True, kw_only=True):
    service: str
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"] = "service_started"
    required: bool = True


class UlimitSpec(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    soft: int
    hard: int


class RestartSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`max_retries` only counts for `on-failure`; 0 means without end."""

    policy: Literal["no", "always", "on-failure", "unless-stopped"] = "unless-stopped"
    max_retries: int = 0


class ResourceSpec(msgspec.Struct, frozen=True, kw_only=True):
    memory_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    cpus: float | None = None
    pids: int = 512


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    internal: bool = False


class AttachmentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A service on a network of its app, with the names that it answers to besides its own."""

    network: str
    aliases: tuple[str, ...] = ()


class ServiceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`digest` says which image is meant, whatever the tag in `image` has come to mean since."""

    name: str
    image: str
    digest: str | None = None
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    environment: dict[str, str] = {}
    ports: tuple[PortSpec, ...] = ()
    mounts: tuple[MountSpec, ...] = ()
    tmpfs: tuple[TmpfsSpec, ...] = ()
    files: tuple[FileSpec, ...] = ()
    depends_on: tuple[DependencySpec, ...] = ()
    healthcheck: HealthSpec | None = None
    restart: RestartSpec = RestartSpec()
    user: str | None = None
    working_dir: str | None = None
    hostname: str | None = None
    read_only: bool = False
    cap_drop: tuple[str, ...] = ()
    cap_add: tuple[str, ...] = ()
    init: bool = True
    stop_grace_seconds: float = 10
    stop_signal: str | None = None
    ulimits: tuple[UlimitSpec, ...] = ()
    shm_size_bytes: int | None = None
    labels: dict[str, str] = {}
    networks: tuple[AttachmentSpec, ...] = ()
    resources: ResourceSpec = ResourceSpec()
    host: HostSpec = HostSpec()


class AppSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One app: its services in an order in which they can start, and the volumes and networks that it owns.

    Volume and network names are the app's own short names; a driver makes them unique on the engine with `app_id`.
    `project` is the human name that engine objects carry (`project-service-1`).
    """

    app_id: str
    project: str
    services: tuple[ServiceSpec, ...]
    volumes: tuple[str, ...] = ()
    networks: tuple[NetworkSpec, ...] = (NetworkSpec(name="default"),)
