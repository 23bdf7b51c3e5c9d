"""Bodies of apps, in and out."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quazzar.core.schema import UNSET, In, Name, OptionalIn, Out, UnsetType, message
from quazzar.instance.apps.models import AppStatus
from quazzar.instance.apps.room import Resource
from quazzar.instance.apps.runtimes.base import Health, ServiceStats, Stream, Usage
from quazzar.link.commands import MIB, HostName, ResourcesIn, TemplateName, Version

ConfigValue = Any
"""Text, number, truth value or null; the fields of the template say which."""


class ResourcesPatch(In, kw_only=True):
    """Limits that are left out stay; `null` goes back to what the template says."""

    memory_bytes: Annotated[int, Meta(ge=6 * MIB, le=2**50, examples=[1024 * MIB])] | None | UnsetType = UNSET
    cpus: Annotated[float, Meta(ge=0.01, le=1024, examples=[2.0])] | None | UnsetType = UNSET
    pids: Annotated[int, Meta(ge=1, le=4_194_304, examples=[512])] | None | UnsetType = UNSET


RestartPolicy = Annotated[
    str,
    Meta(
        pattern=r"^(?:no|always|unless-stopped|on-failure(?::[1-9][0-9]{0,3})?)\Z",
        max_length=16,
        extra=message("{label} must be one of: no, always, unless-stopped, on-failure, on-failure:N"),
        examples=["unless-stopped"],
    ),
]
CRON = "{label} must be a cron rule of five fields that fits some time, such as 30 3 * * 6"
ZONE = "{label} must be the name of a time zone such as Europe/Berlin"
MOST_SKIPPED = 200
LabelValue = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*\Z")]


WINDOW_MINUTES = 60
"""How long a window is open that does not say."""


class WindowIn(In, kw_only=True):
    """When an app may be updated by itself: from each time that `cron` names in `timezone`, for `duration_minutes`."""

    cron: Annotated[
        str,
        Meta(min_length=1, max_length=100, extra=message(CRON), examples=["30 3 * * 6"]),
    ]
    timezone: Annotated[str, Meta(min_length=1, max_length=64, extra=message(ZONE), examples=["Europe/Berlin"])]
    duration_minutes: Annotated[int, Meta(ge=1, le=1440)] = WINDOW_MINUTES


SkippedVersion = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=135,
        pattern=r"^(?:[A-Za-z0-9_][A-Za-z0-9._+-]*|sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z",
        extra=message("{label} must be versions such as 1.22.3, or digests of images such as sha256:…"),
        examples=["1.22.3"],
    ),
]


class AutoUpdateIn(In, kw_only=True):
    """What is left out stays; `null` takes a value away. Without a `window` an app may be updated at any time."""

    enabled: bool | UnsetType = UNSET
    window: WindowIn | None | UnsetType = UNSET
    hold_version: Version | None | UnsetType = UNSET
    skip_versions: Annotated[list[SkippedVersion], Meta(max_length=MOST_SKIPPED)] | None | UnsetType = UNSET
    canary_app: Annotated[str, Meta(min_length=1, max_length=63)] | None | UnsetType = UNSET


class AppPatch(In, kw_only=True):
    """What is left out stays as it is; `null` takes a value away.

    `config` is laid over the present one: a field with `null` goes back to its default, and a generated secret is
    generated anew; a mask keeps the secret. `resources`, `labels` and `auto_update` are laid over the present ones in
    the same way.
    """

    config: Annotated[dict[str, ConfigValue], Meta(max_length=500)] | UnsetType = UNSET
    resources: ResourcesPatch | None | UnsetType = UNSET
    restart_policy: RestartPolicy | None | UnsetType = UNSET
    labels: Annotated[dict[str, LabelValue | None], Meta(max_length=64)] | None | UnsetType = UNSET
    auto_update: AutoUpdateIn | None | UnsetType = UNSET


class AppUpdate(OptionalIn, kw_only=True, frozen=True):
    """To `version`, else to the newest. `config` is for fields that the new version has and the present one has not."""

    version: Version | None = None
    config: Annotated[dict[str, ConfigValue], Meta(max_length=500)] = {}


TO_THE_NEWEST = AppUpdate()
"""What an update without a body asks for."""


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
    """A Compose file, and what its `${NAME}`s are filled in from. Values of `env` are secrets: sealed, never shown.

    A `trusted` file may have folders and devices of the host; only an administrator can say so.
    """

    name: Annotated[Name, Meta(examples=["blog"])]
    compose: Annotated[str, Meta(min_length=1, max_length=MIB, examples=[COMPOSE_EXAMPLE])]
    env: Annotated[dict[str, str], Meta(examples=[{"API_TOKEN": "9f86d081884c7d65"}])] = {}
    trusted: bool = False


class AppAdopt(In, kw_only=True):
    """A Compose project as `docker compose ls` names it; the app is called the same, as far as that is a name here.

    A `trusted` one may have folders and devices of the host.
    """

    project: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            pattern=r"^[a-z0-9][a-z0-9_-]*\Z",
            extra=message("{label} must be the name of a Compose project"),
            examples=["shop"],
        ),
    ]
    name: Annotated[Name, Meta(examples=["shop"])] | UnsetType = UNSET
    trusted: bool = False


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


class NewImage(Out, kw_only=True):
    """An image whose tag has moved: `digest` is the one that an update would take."""

    image: str
    digest: str


class AvailableUpdate(Out, kw_only=True):
    """What an update would bring: another version, or of the present one other `images`; seen first at `since`."""

    version: str | None
    images: list[NewImage]
    since: datetime


class UpdateCheckOut(Out, kw_only=True):
    """When the registries of the app's images were asked last, and why one of them gave no answer."""

    checked_at: datetime | None
    error: str | None


class WindowOut(Out, kw_only=True):
    cron: str
    timezone: str
    duration_minutes: int


class AutoUpdateOut(Out, kw_only=True):
    """Whether the app is updated by itself; what a PATCH takes."""

    enabled: bool
    window: WindowOut | None
    hold_version: str | None
    skip_versions: list[str]
    canary_app: str | None


class SkippedOut(Out, kw_only=True):
    """A version, or new images of the present one, that the app came back from and is not updated to any more.

    It can be tried again by taking it out of `auto_update.skip_versions`.
    """

    version: str | None
    digests: list[str]
    reason: str
    skipped_at: datetime


class AutoUpdateState(Out, kw_only=True):
    """`opens_at` is the start of the window that is open or of the next one; null for at any time, or never.

    `waits_for` says what keeps the app from an update that is there, as far as that was looked at.
    """

    opens_at: datetime | None
    waits_for: str | None
    skipped: list[SkippedOut]


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
    available_update: AvailableUpdate | None
    update_check: UpdateCheckOut
    auto_update: AutoUpdateOut
    auto_update_state: AutoUpdateState


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
    available_update: msgspec.Raw | None
    update_check: msgspec.Raw
    auto_update: msgspec.Raw
    auto_update_state: msgspec.Raw


class ImagePlan(Out, kw_only=True):
    """What the engine has under the name of an image; both are null while the engine does not answer."""

    image: str
    present: bool | None
    digest: str | None


class RoomOut(Out, kw_only=True):
    """What an app needs of a resource, what all other apps reserve, and what there is for apps.

    Limits of memory, CPU time and processes may be promised more than once, and `available` is larger by that.
    """

    resource: Resource
    needed: float
    reserved: float
    available: float


class AppPlan(Out, kw_only=True):
    """What an install would do.

    `host_access` names what a trusted file has of the host, `pulls` say of each image whether it is there already,
    `room` whether the machine has room, as far as its size is known. `refusals` maps a field to the reason why it would
    not be done; `notes` say what is done in another way than the file asks.
    """

    name: str
    template: str | None
    version: str | None
    images: list[str]
    services: list[str]
    ports: list[PortOut]
    volumes: list[VolumeOut]
    memory_limit_bytes: int | None
    host_access: list[str] = []
    pulls: list[ImagePlan] = []
    room: list[RoomOut] = []
    refusals: dict[str, str]
    notes: list[str]


class ImageChange(Out, kw_only=True):
    """An image of the app before and after; `digest` is null where its registry could not be asked."""

    image: str
    former_digest: str | None
    digest: str | None


class UpdatePlan(AppPlan, kw_only=True):
    """What an update would do; nothing at all where neither `recreated` nor `removed` name a service.

    The app would stand still while its data is copied aside, for which `snapshot_bytes` are needed on the disk (null
    until they are measured), and its `recreated` services are made anew. Services that are not named there run on as
    they are, or are started again.
    """

    former_version: str | None
    image_changes: list[ImageChange] = []
    recreated: list[str] = []
    removed: list[str] = []
    snapshot_bytes: int | None


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
