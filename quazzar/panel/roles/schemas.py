"""What roles take and give."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.core.schema import UNSET, In, Line, Out, Text, UnsetType
from quazzar.panel.tenants.permissions import Permission

Permissions = Annotated[list[Permission], Meta(min_length=1, max_length=100)]


class RoleOut(Out):
    id: Annotated[str, Meta(description="Of a built-in role its name", examples=["rol_23oc77vtak2bdwdlqw5ffwpz33"])]
    name: Annotated[str, Meta(examples=["Night shift"])]
    description: str
    permissions: Annotated[list[str], Meta(examples=[["fleet:operate", "fleet:read"]])]
    built_in: bool
    created_at: datetime | None
    updated_at: datetime | None


class RoleCreate(In):
    name: Line
    permissions: Permissions
    description: Text = ""


class RoleUpdate(In):
    """What is left out stays as it is."""

    name: Line | UnsetType = UNSET
    permissions: Permissions | UnsetType = UNSET
    description: Text | UnsetType = UNSET
