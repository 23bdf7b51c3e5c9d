"""What API keys of a tenant take and give."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from quazzar.accounts.schemas import KeyId, UserId
from quazzar.core.schema import In, Line, Out
from quazzar.core.tokens import PANEL_KEY_PATTERN
from quazzar.panel.tenants.permissions import Permission

Resource = Annotated[str, Meta(pattern=r"^(?:grp|inst)_[a-z2-7]{20,40}\Z")]


class TenantKeyCreate(In):
    name: Line
    scopes: Annotated[
        list[Literal["*"] | Permission],
        Meta(min_length=1, max_length=100, description="No more than its maker has; `*` is all of that"),
    ] = field(name="permissions")
    expires_at: Annotated[datetime, Meta(tz=True, description="Default: in 365 days")] | None = None
    allowed_ips: (
        Annotated[
            list[Annotated[str, Meta(min_length=2, max_length=50)]],
            Meta(min_length=1, max_length=50, description="Addresses and networks; from elsewhere the key is refused"),
        ]
        | None
    ) = None
    resources: (
        Annotated[
            list[Resource],
            Meta(
                min_length=1,
                max_length=200,
                description="The groups and instances that the key may touch; others are 404 to it",
                examples=[["grp_23oc77vtak2bdwdlqw5ffwpz33"]],
            ),
        ]
        | None
    ) = None


class TenantKeyOut(Out):
    id: KeyId
    user_id: Annotated[UserId, Meta(description="Who made it; the key goes when they leave")]
    name: Annotated[str, Meta(examples=["Night shift"])]
    prefix: Annotated[str, Meta(description="How the key begins", examples=["qzp_eMuOEMlj"])]
    suffix: Annotated[str, Meta(description="How it ends", examples=["rZrh"])]
    scopes: Annotated[list[str], Meta(examples=[["fleet:read"]])] = field(name="permissions")
    resources: Annotated[list[str] | None, Meta(examples=[None])]
    allowed_ips: Annotated[list[str] | None, Meta(examples=[["192.0.2.0/24"]])]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    last_used_ip: str | None

    @classmethod
    def of(cls, row: Any) -> "TenantKeyOut":
        return TenantKeyOut(**{name: getattr(row, name) for name in TenantKeyOut.__struct_fields__})


class TenantKeyCreated(TenantKeyOut):
    key: Annotated[
        str,
        Meta(
            description=f"Sent as `Authorization: Bearer qzp_…`; shown this once. Its form is `{PANEL_KEY_PATTERN}`;"
            " the last six characters are the CRC-32 of the 36 before them, in base 62",
            examples=["qzp_eMuOEMlj…rZrh"],
        ),
    ] = ""
