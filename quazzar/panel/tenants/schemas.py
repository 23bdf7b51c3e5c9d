"""What tenants take and give."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from msgspec import Meta

from quazzar.core.schema import UNSET, In, Line, Out, UnsetType

TenantId = Annotated[str, Meta(examples=["ten_23oc77vtak2bdwdlqw5ffwpz33"])]
Kind = Annotated[
    Literal["standard", "msp", "client"],
    Meta(description="An `msp` has `client` organizations below it", examples=["standard"]),
]
Access = Annotated[
    Literal["none", "viewer", "operator", "admin"],
    Meta(
        description="In a client organization: the role that members of the parent have in it at most, and never more"
        " than they have in the parent. For the client's own members to change",
        examples=["none"],
    ),
]


class TenantOut(Out):
    id: TenantId
    name: Annotated[str, Meta(examples=["Example"])]
    kind: Kind
    parent_id: Annotated[str | None, Meta(examples=[None])]
    parent_access: Access
    created_at: datetime

    @classmethod
    def of(cls, row: Any, **more: Any) -> Self:
        return cls(**{name: getattr(row, name) for name in TenantOut.__struct_fields__}, **more)


class OwnTenantOut(TenantOut):
    """A tenant that the caller may work in, and as what."""

    role: Annotated[
        str | None,
        Meta(
            description="Built-in role or id of an own one; null where the caller comes as a member of the parent",
            examples=["owner"],
        ),
    ]
    current: Annotated[bool, Meta(description="Whether this session works in it")]


class TenantCreate(In):
    name: Line
    kind: Kind = "standard"
    parent_access: Access | UnsetType = UNSET


class TenantUpdate(In):
    """What is left out stays as it is."""

    name: Line | UnsetType = UNSET
    kind: Annotated[Literal["standard", "msp"], Meta(description="Only of one that is no client")] | UnsetType = UNSET
    parent_access: Access | UnsetType = UNSET
