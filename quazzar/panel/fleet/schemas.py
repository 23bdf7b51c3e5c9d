"""Bodies of the fleet: tokens, groups and instances, in and out."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quazzar.core.schema import UNSET, In, Line, Out, UnsetType, message
from quazzar.panel.fleet.models import InstanceStatus

TenantRef = Annotated[
    str,
    Meta(
        pattern=r"^ten_[a-z2-7]{20,40}\Z",
        extra=message("{label} must be the id of a tenant"),
        examples=["ten_23oc77vtak2bdwdlqw5ffwpz33"],
    ),
]
GroupRef = Annotated[
    str,
    Meta(
        pattern=r"^grp_[a-z2-7]{20,40}\Z",
        extra=message("{label} must be the id of a group"),
        examples=["grp_23oc77vtak2bdwdlqw5ffwpz33"],
    ),
]
Tag = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9][a-z0-9_.:=/-]*\Z",
        extra=message("Tags must be 1 to 63 of a-z, 0-9 and _.:=/-, beginning with a letter or digit"),
        examples=["site:berlin"],
    ),
]
Tags = Annotated[list[Tag], Meta(max_length=50, examples=[["site:berlin", "web"]])]
InstanceId = Annotated[str, Meta(examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"])]
TokenId = Annotated[str, Meta(examples=["tok_23oc77vtak2bdwdlqw5ffwpz33"])]
Severity = Literal["critical", "warning", "info"]


class TokenCreate(In):
    """Whoever has the token may add servers to the tenant: `max_uses` of them until `expires_at` (in an hour)."""

    name: Line
    expires_at: Annotated[datetime, Meta(tz=True, description="At most 30 days ahead; default: in an hour")] | None = (
        None
    )
    max_uses: Annotated[int, Meta(ge=1, le=1000)] = 1
    tags: Tags = []
    group_id: GroupRef | None = None
    tenant_id: TenantRef | None = None


class TokenOut(Out):
    """A registration token, without its secret."""

    id: TokenId
    name: Annotated[str, Meta(examples=["Berlin"])]
    tenant_id: TenantRef
    tags: Tags
    group_id: GroupRef | None
    max_uses: Annotated[int, Meta(examples=[1])]
    uses: Annotated[int, Meta(examples=[0])]
    created_by: str | None
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None

    @classmethod
    def of(cls, row: Any) -> "TokenOut":
        return cls(**{name: getattr(row, name) for name in TokenOut.__struct_fields__})


class TokenCreated(TokenOut):
    """The token itself is here and never again; it also says where the panel is and how to know it."""

    token: Annotated[str, Meta(examples=["qze_l69wYW5lbC5leGFtcGxlLmNvbc0g-8QgQ0FGRQ…"])]
    agent_address: Annotated[str, Meta(examples=["panel.example.com:8443"])]
    ca_fingerprint: Annotated[str, Meta(description="SHA-256 of the panel's CA certificate, in hex")]


class GroupCreate(In):
    name: Line
    parent_id: GroupRef | None = None


class GroupUpdate(In):
    """What is left out stays as it is; `parent_id: null` makes it a group at the top."""

    name: Line | UnsetType = UNSET
    parent_id: GroupRef | None | UnsetType = UNSET


class GroupOut(Out):
    """`instances` are those of the group itself, without those of the groups below it."""

    id: GroupRef
    name: Annotated[str, Meta(examples=["Berlin"])]
    parent_id: GroupRef | None
    instances: Annotated[int, Meta(examples=[3])]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Any) -> "GroupOut":
        return cls(**{name: getattr(row, name) for name in GroupOut.__struct_fields__})


class InstanceUpdate(In):
    """What is left out stays as it is; `group_id: null` takes the instance out of its group."""

    name: Line | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    group_id: GroupRef | None | UnsetType = UNSET


class InstanceAppOut(Out):
    """An app as its instance told of it last."""

    id: Annotated[str, Meta(examples=["app_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    name: Annotated[str, Meta(examples=["cloud"])]
    status: Annotated[str, Meta(examples=["running"])]
    template: str | None = None
    version: str | None = None


class CheckOut(Out):
    """A check of an instance's health that fails now, and what it takes off the score."""

    check: Annotated[str, Meta(examples=["disk"])]
    severity: Severity
    reason: Annotated[str, Meta(examples=["The disk is 94 % full"])]
    penalty: Annotated[int, Meta(examples=[30])]


class InstanceOut(Out):
    """`status_reason` says why the status is what it is; `last_seen_at` is by the panel's clock. `url` is what the
    instance has as `server.public_url`.
    """

    id: InstanceId
    name: Annotated[str, Meta(examples=["berlin-1"])]
    status: InstanceStatus
    status_reason: str | None
    status_since: datetime
    version: Annotated[str, Meta(examples=["0.1.0"])]
    hostname: str
    os: Annotated[str, Meta(examples=["Debian GNU/Linux 12"])]
    arch: Annotated[str, Meta(examples=["x86_64"])]
    cpu_cores: Annotated[int, Meta(examples=[4])]
    memory_bytes: Annotated[int, Meta(examples=[8_321_499_136])]
    disk_bytes: Annotated[int, Meta(examples=[105_089_261_568])]
    ip: Annotated[str | None, Meta(examples=["203.0.113.7"])]
    url: Annotated[str | None, Meta(examples=["https://berlin-1.example.com"])]
    tags: Tags
    group_id: GroupRef | None
    apps: list[InstanceAppOut]
    last_seen_at: datetime | None
    health_score: Annotated[int, Meta(ge=0, le=100, examples=[100])]
    certificate_expires_at: datetime
    created_at: datetime

    @classmethod
    def of(cls, row: Any) -> "InstanceOut":
        values = {name: getattr(row, name) for name in cls.__struct_fields__}
        return cls(**values | {"apps": msgspec.convert(row.apps, list[InstanceAppOut])})


class HealthOut(Out):
    """The score is 100 less the penalties of the checks that fail; an instance that is not heard has none left."""

    instance_id: InstanceId
    name: Annotated[str, Meta(examples=["berlin-1"])]
    status: InstanceStatus
    status_reason: str | None
    score: Annotated[int, Meta(ge=0, le=100, examples=[70])]
    checks: list[CheckOut]

    @classmethod
    def of(cls, row: Any) -> "HealthOut":
        return cls(
            instance_id=row.id,
            name=row.name,
            status=row.status,
            status_reason=row.status_reason,
            score=row.health_score,
            checks=msgspec.convert(row.checks, list[CheckOut]),
        )


class StatusCounts(Out):
    online: int = 0
    degraded: int = 0
    offline: int = 0
    revoked: int = 0


class SeverityCounts(Out):
    critical: int = 0
    warning: int = 0
    info: int = 0


class Amount(Out):
    """What there is and what of it is in use, over the instances that are heard now."""

    total: Annotated[float, Meta(examples=[64.0])] = 0
    used: Annotated[float, Meta(examples=[12.5])] = 0


class Capacity(Out):
    cpu_cores: Amount
    memory_bytes: Amount
    disk_bytes: Amount


class BackupsOut(Out):
    """Instances whose newest backup is older than 24 hours, or that have none."""

    stale_instances: Annotated[int, Meta(examples=[2])]


class SummaryOut(Out):
    """`alerts` counts those that are not over, by severity; revoked instances count in `status` alone."""

    instances: Annotated[int, Meta(examples=[12])]
    status: StatusCounts
    versions: Annotated[dict[str, int], Meta(examples=[{"0.1.0": 12}])]
    apps: Annotated[int, Meta(examples=[40])]
    capacity: Capacity
    alerts: SeverityCounts
    backups: BackupsOut
