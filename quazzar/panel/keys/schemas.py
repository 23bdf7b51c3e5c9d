"""What API keys of a tenant take and give."""

from typing import Annotated, Literal

from msgspec import Meta, field

from quazzar.accounts.schemas import AllowedIps, ApiKeyOut, KeyExpiry, UserId
from quazzar.core.schema import In, Line
from quazzar.core.tokens import PANEL_KEY_PATTERN
from quazzar.panel.tenants.permissions import Permission

Resource = Annotated[str, Meta(pattern=r"^(?:grp|inst)_[a-z2-7]{20,40}\Z")]


class TenantKeyCreate(In):
    name: Line
    scopes: Annotated[
        list[Literal["*"] | Permission],
        Meta(min_length=1, max_length=100, description="No more than its maker has; `*` is all of that"),
    ] = field(name="permissions")
    expires_at: KeyExpiry | None = None
    allowed_ips: AllowedIps | None = None
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


class TenantKeyOut(ApiKeyOut):
    user_id: Annotated[UserId, Meta(description="Who made it; the key goes when they leave")]
    prefix: Annotated[str, Meta(description="How the key begins", examples=["qzp_eMuOEMlj"])]
    scopes: Annotated[list[str], Meta(examples=[["fleet:read"]])] = field(name="permissions")


class TenantKeyCreated(TenantKeyOut):
    key: Annotated[
        str,
        Meta(
            description=f"Sent as `Authorization: Bearer qzp_…`; shown this once. Its form is `{PANEL_KEY_PATTERN}`;"
            " the last six characters are the CRC-32 of the 36 before them, in base 62",
            examples=["qzp_eMuOEMlj…rZrh"],
        ),
    ] = ""
