"""What members and invitations of a tenant take and give."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from msgspec import Meta

from quazzar.accounts.schemas import NewPassword, OpaqueToken
from quazzar.core.schema import UNSET, Email, In, Line, Out, UnsetType
from quazzar.invitations.schemas import InvitationLink
from quazzar.panel.accounts.schemas import PanelUserOut
from quazzar.panel.tenants.schemas import TenantOut

RoleName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=40,
        pattern=r"^[a-z0-9_]*\Z",
        description="A built-in role, or the id of an own one",
        examples=["operator"],
    ),
]
_Ids = Annotated[list[Annotated[str, Meta(min_length=1, max_length=60)]], Meta(max_length=200)]


class MemberScope(In):
    """The groups and instances that a member is bound to: others are 404 to them, and so is what is not about any."""

    groups: Annotated[_Ids, Meta(examples=[["grp_23oc77vtak2bdwdlqw5ffwpz33"]])] = []
    instances: Annotated[_Ids, Meta(examples=[["inst_23oc77vtak2bdwdlqw5ffwpz33"]])] = []


class MemberScopeOut(Out):
    groups: Annotated[list[str], Meta(examples=[["grp_23oc77vtak2bdwdlqw5ffwpz33"]])]
    instances: Annotated[list[str], Meta(examples=[["inst_23oc77vtak2bdwdlqw5ffwpz33"]])]

    @classmethod
    def of(cls, resources: list[str] | None) -> "MemberScopeOut | None":
        if resources is None:
            return None
        groups = [one for one in resources if one.startswith("grp_")]
        return cls(groups=groups, instances=[one for one in resources if one not in groups])


class MemberOut(Out):
    id: Annotated[str, Meta(description="`mem_…`, or `inv_…` of who is invited", examples=["mem_23oc77vtak2bdwdlqw5f"])]
    status: Annotated[Literal["active", "invited"], Meta(examples=["active"])]
    user_id: Annotated[str | None, Meta(description="null until the invitation is accepted")]
    email: str
    name: Annotated[str | None, Meta(examples=["Ada Lovelace"])]
    role: Annotated[
        str | None,
        Meta(description="null for a member of the parent tenant: `parent_access` decides", examples=["operator"]),
    ]
    scope: MemberScopeOut | None
    from_parent: Annotated[bool, Meta(description="Whether they come as a member of the parent tenant")]
    totp_enabled: bool
    created_at: datetime
    expires_at: Annotated[datetime | None, Meta(description="End of an invitation that is not accepted")]

    @classmethod
    def of(cls, row: Any, **more: Any) -> Self:
        return cls(
            id=row.id,
            status="active" if row.user_id is not None else "invited",
            user_id=row.user_id,
            email=row.email or "",
            name=row.name,
            role=row.role or row.role_id,
            scope=MemberScopeOut.of(row.resources),
            from_parent=row.parent_id is not None,
            totp_enabled=row.totp_enabled,
            created_at=row.created_at,
            expires_at=row.expires_at,
            **more,
        )


class MemberInvite(In):
    email: Email
    role: RoleName
    scope: MemberScope | None = None


class MemberInvitedOut(MemberOut):
    invitation: Annotated[
        InvitationLink | None,
        Meta(description="null where it was mailed, else shown this once: hand it over to whom it is for"),
    ] = None


class MemberUpdate(In):
    """What is left out stays as it is; `scope: null` lifts the bounds."""

    role: RoleName | UnsetType = UNSET
    scope: MemberScope | None | UnsetType = UNSET


class InvitationAccept(In):
    """Without an account of the invited address, `name` and `password` make one."""

    token: OpaqueToken
    name: Line | UnsetType = UNSET
    password: NewPassword | UnsetType = UNSET


class InvitationAcceptedOut(Out):
    """Where the caller belongs now; logging in, or `auth/switch-tenant`, leads there."""

    user: PanelUserOut
    tenant: TenantOut
    member_id: Annotated[str, Meta(examples=["mem_23oc77vtak2bdwdlqw5ffwpz33"])]
    role: Annotated[str, Meta(examples=["operator"])]
