"""Bodies of apps, in and out."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quazzar.core.schema import UNSET, In, Name, Out, UnsetType, message
from quazzar.instance.apps.models import AppStatus
from quazzar.instance.apps.runtimes.base import Health, ServiceStats, Stream, Usage
from quazzar.link.commands import MIB, ResourcesIn, TemplateName, Version

ConfigValue = Any
"""Text, number, truth value or null; the fields of the template say which."""

HostName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=253,
        pattern=r"^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])\Z",
        extra=message("{label} must be a host name such as cloud.example.com"),
        examples=["cloud.example.com"],
    ),
]


class ResourcesPatch(In, kw_only=True):
    """Limits that are left out stay; `null` goes back to what the template says."""

    memory_bytes: Annotated[int, Meta(ge=6 * MIB, le=2**50)] | None | UnsetType = UNSET
    cpus: Annotated[float, Meta(ge=0.01, le=1024)] | None | UnsetType = UNSET
    pids: Annotated[int, Meta(ge=1, le=4_194_304)] | None | UnsetType = UNSET


RestartPolicy = Annotated[
    str,
    Meta(
        pattern=r"^(?:no|always|unless-stopped|on-failure(?::[1-9][0-9]{0,3})?)\Z",
        max_length=16,
        extra=message("{label} must be one of: no, always, unless-stopped, on-failure, on-failure:N"),
        examples=["unless-stopped"],
    ),
]
LabelValue = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*\Z")]


class AppPatch(In, kw_only=True):
    """What is left out stays as it is; `null` takes a value away.

    `config` is laid over the present one: a field with `null` goes back to its default, and a generated secret is
    generated anew; a mask keeps the secret. `resources` and `labels` are laid over the present ones in the same way.
    """

    config: Annotated[dict[str, ConfigValue], Meta(max_length=500)] | UnsetType = UNSET
    resources: ResourcesPatch | None | UnsetType = UNSET
    restart_policy: RestartPolicy | None | UnsetType = UNSET
    labels: Annotated[dict[str, LabelValue | None], Meta(max_length=64)] | None | UnsetType = UNSET


class AppUpdate(In, kw_only=True):
    """To `version`, else to the newest. `config` is for fields that the new version has and the present one has not."""

    version: Version | None = None
    config: Annotated[dict[str, ConfigValue], Meta(max_length=500)] = {}


class AppCreate(In, kw_only=True):
    """`config` holds values for the template's fields; those that are left out take their defaults."""

    template: TemplateName
    name: Annotated[Name, Meta(examples=["cloud"])]
    config: dict[str, ConfigValue] = {}
    version: Version | None = None
    resources: ResourcesIn | None = None
    domain: HostName | None = None


COMPOSE_EXAMPLE = """\
services:
  web:
    image: nginx:1.27
    ports: ["8088:80"]
    environment: {API_TOKEN: "${API_TOKEN}"}
"""


class AppImport(In, kw_only=True):
    """A Compose file, and what its `${NAME}`s are filled in from. Values of `env` are secrets: sealed, never shown."""

    name: Annotated[Name, Meta(examples=["blog"])]
    compose: Annotated[str, Meta(min_length=1, max_length=MIB, examples=[COMPOSE_EXAMPLE])]
    env: Annotated[dict[str, str], Meta(examples=[{"API_TOKEN": "9f86d081884c7d65"}])] = {}


class AppClone(In, kw_only=True):
    """What the copy is called."""

    name: Annotated[Name, Meta(examples=["cloud-copy"])]


class PortOut(Out, kw_only=True):
    service: str
    container_port: int
    host_port: int
    protocol: Literal["tcp", "udp"]


class ServiceOut(Out, kw_only=True):
    name: str
    image: str
    image_digest: str | None = None
    status: Literal["missing", "created", "running", "paused", "restarting", "exited", "dead"]
    health: Health = "none"
    restarts: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    started_at: datetime | None = None


class VolumeOut(Out, kw_only=True):
    """`size_bytes` is null until it is measured, which is done every quarter of an hour."""

    name: str
    size_bytes: int | None = None


class DiskOut(Out, kw_only=True):
    """What the app has on the disk: its volumes, and what its containers have written beside them."""

    size_bytes: int
    volumes_bytes: int
    containers_bytes: int
    measured_at: datetime


class ResourcesOut(Out, kw_only=True):
    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None


class AppSummary(Out):
    """An app as it stands in the list. The order of the fields is the order of the columns of `store.LIST`."""

    id: str
    name: str
    template: str | None
    version: str | None
    status: AppStatus
    status_reason: str | None
    status_since: datetime
    created_at: datetime
    job_id: str | None
    ports: list[PortOut]
    urls: list[str]
    update_available: bool


class ListedApp(AppSummary):
    """An app of the list; the two times are there for those in the trash, which are gone for good at `purge_at`."""

    trashed_at: datetime | UnsetType = UNSET
    purge_at: datetime | UnsetType = UNSET


class AppOut(AppSummary):
    """An app in full; secrets of `config` are masked."""

    services: list[ServiceOut]
    volumes: list[VolumeOut]
    config: dict[str, ConfigValue]
    resources: ResourcesOut
    domain: str | None
    updated_at: datetime
    disk: DiskOut | None
    restart_policy: str | None
    labels: dict[str, str]


class AppRow(msgspec.Struct):
    """`AppSummary` as it is read: JSON columns pass through as they are."""

    id: str
    name: str
    template: str | None
    version: str | None
    status: str
    status_reason: str | None
    status_since: datetime
    created_at: datetime
    job_id: str | None
    ports: msgspec.Raw
    urls: msgspec.Raw
    update_available: bool


class TrashedRow(AppRow):
    """`ListedApp` as it is read of the trash."""

    trashed_at: datetime
    purge_at: datetime


class FullAppRow(AppRow):
    """`AppOut` as it is read."""

    services: msgspec.Raw
    volumes: msgspec.Raw
    config: msgspec.Raw
    resources: msgspec.Raw
    domain: str | None
    updated_at: datetime
    disk: msgspec.Raw | None
    restart_policy: str | None
    labels: msgspec.Raw


class AppPlan(Out, kw_only=True):
    """What an install would do.

    `refusals` maps a field to the reason why it would not be done; `notes` say what is done in another way than the
    file asks.
    """

    name: str
    template: str | None
    version: str | None
    images: list[str]
    services: list[str]
    ports: list[PortOut]
    volumes: list[VolumeOut]
    memory_limit_bytes: int | None
    refusals: dict[str, str]
    notes: list[str]


class LogLineOut(Out, kw_only=True):
    """`time` is left out with `timestamps=false`."""

    time: datetime | UnsetType = UNSET
    service: str
    stream: Stream
    line: str


class AppStats(Usage, frozen=True, kw_only=True):
    """Sums over the running services; CPU is in percent of one core."""

    cpu_percent: float
    restarts: int
    services: list[ServiceStats]


Range = Literal["1h", "6h", "24h", "7d", "30d", "1y"]


class StatsPoint(Out):
    """What an app used in one step, which begins at `at`; the order of the fields is that of the columns.

    CPU and memory are means over the step, with their peaks; network, disk and restarts are what came in this step.
    """

    at: datetime
    cpu_percent: float
    cpu_percent_max: float
    memory_bytes: int
    memory_bytes_max: int
    memory_limit_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    pids: int
    restarts: int


class AppHistory(Out, kw_only=True):
    """Oldest first. A step in which nothing was measured (the app stood still, or we did) has no point."""

    range: Range
    step_seconds: int
    points: list[StatsPoint]
