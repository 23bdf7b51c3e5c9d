"""What registration, login and profile of the panel take and give."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.accounts.schemas import NewPassword, OpaqueToken, Password, UserId
from quazzar.accounts.store import Person
from quazzar.core.schema import UNSET, Email, In, Line, OptionalIn, Out, UnsetType
from quazzar.panel.tenants.schemas import TenantId, TenantOut

TimezoneName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*\Z",
        description="A name of the IANA time zone database",
        examples=["Europe/Berlin"],
    ),
]


class Register(In):
    email: Email
    password: NewPassword
    name: Line
    organization: Line


class PanelLogin(In):
    email: Annotated[str, Meta(min_length=1, max_length=254)]
    password: Password


class ForgottenPassword(In):
    email: Email


class PasswordReset(In):
    password: NewPassword
    token: Annotated[OpaqueToken | UnsetType, Meta(description="Of the link; without it: 401")] = UNSET


class EmailVerification(OptionalIn, frozen=True):
    """With the token of a link: confirms the address. Without, by a caller who is logged in: sends a link."""

    token: OpaqueToken | UnsetType = UNSET


SEND_A_LINK = EmailVerification()
"""What a call without a body asks for."""


class ProfileUpdate(In):
    """What is left out stays as it is."""

    name: Line | UnsetType = UNSET
    timezone: TimezoneName | UnsetType = UNSET


class TenantSwitch(In):
    tenant_id: Annotated[TenantId, Meta(min_length=1, max_length=100)]


class PanelUserOut(Out):
    id: UserId
    email: str
    name: Annotated[str, Meta(examples=["Ada Lovelace"])]
    timezone: Annotated[str, Meta(examples=["Europe/Berlin"])]
    created_at: datetime
    last_login_at: datetime | None
    totp_enabled: bool
    email_verified: Annotated[bool, Meta(description="Whether a link that was sent to the address came back")]

    @classmethod
    def of(cls, person: Person) -> "PanelUserOut":
        return cls(
            id=person.id,
            email=person.email or "",
            name=person.name or "",
            timezone=person.timezone,
            created_at=person.created_at,
            last_login_at=person.last_login_at,
            totp_enabled=person.totp_enabled,
            email_verified=person.email_verified,
        )


class RegisterOut(Out):
    user: PanelUserOut
    tenant: TenantOut


class PanelMeOut(Out):
    """Who is calling, in which tenant, as what."""

    user: PanelUserOut
    tenant: TenantOut
    role: Annotated[str, Meta(examples=["owner"])]
    permissions: Annotated[list[str], Meta(examples=[["*"]])]
