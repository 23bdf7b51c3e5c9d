"""What account endpoints take and give."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from msgspec import Meta

from quazzar.accounts.roles import Scope
from quazzar.core.schema import UNSET, In, Line, Out, UnsetType, message
from quazzar.core.tokens import API_KEY_PATTERN

# Whether a new password is good enough is for the policy to say, in its own words; these bounds come first.
NewPassword = Annotated[
    str,
    Meta(
        min_length=12,
        max_length=128,
        description="12 to 128 characters, not one of the common passwords",
        extra=message("{label} must be 12 to 128 characters long"),
    ),
]
Password = Annotated[str, Meta(min_length=1, max_length=128)]
Code = Annotated[
    str,
    Meta(min_length=6, max_length=32, description="Six digits of the authenticator app, or a recovery code"),
]
OpaqueToken = Annotated[str, Meta(min_length=1, max_length=4096)]

# Fields of answers, with what they look like.
UserId = Annotated[str, Meta(examples=["usr_23oc77vqmysv7i37gqokvwnub4"])]
SessionId = Annotated[str, Meta(examples=["ses_23oc77uaycj2w7ptpelxikk33k"])]
KeyId = Annotated[str, Meta(examples=["key_23oc77vrikh73ha56d3775z6vm"])]
ScopeNames = Annotated[list[str], Meta(examples=[["apps:read", "jobs:read"]])]


class TokenPair(Out):
    access_token: Annotated[str, Meta(examples=["eyJhbGciOiJIUzI1NiIs…"])]
    refresh_token: Annotated[str, Meta(examples=["qzt_mJ3vKq0x…"])]
    expires_in: Annotated[int, Meta(description="Life of the access token in seconds", examples=[900])]
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - a word of RFC 6749


class TotpRequired(Out):
    """The password was right; the second step is `totp/verify` with `temp_token`, within five minutes."""

    temp_token: str
    totp_required: Literal[True] = True


class Refresh(In):
    refresh_token: OpaqueToken


class TotpVerify(In):
    """With `temp_token`: the second step of a login. Without, by a caller who is logged in: confirms enabling."""

    code: Code
    temp_token: OpaqueToken | UnsetType = UNSET


class TotpEnable(In):
    password: Password


class TotpSetup(Out):
    secret: Annotated[str, Meta(description="Base32; shown this once", examples=["GEZDGNBVGY3TQOJQ…"])]
    otpauth_url: Annotated[str, Meta(examples=["otpauth://totp/Quazzar:admin?secret=GEZDGNBVGY3TQOJQ…&issuer=Quazzar"])]
    qr_svg: Annotated[str, Meta(description="The address as a QR code", examples=["<svg …>"])]


class TotpConfirmed(Out):
    recovery_codes: Annotated[
        list[str],
        Meta(description="Ten codes, each good once; shown this once", examples=[["4545-fkk6-tuch-drir"]]),
    ]
    totp_enabled: Literal[True] = True


class TotpDisable(In):
    password: Password
    code: Code


class PasswordChange(In):
    current_password: Password
    new_password: NewPassword


class GuestOut(Out):
    """The panel's user who has opened a session here, and why."""

    user_id: UserId
    name: Annotated[str, Meta(examples=["Ada Lovelace <ada@example.com>"])]
    reason: Annotated[str, Meta(examples=["Ticket 4711: the backup does not run"])]


class SessionOut(Out, omit_defaults=True):
    """`impersonation` is there for a session that was opened from a panel; admins see these besides their own."""

    id: SessionId
    created_at: datetime
    last_used_at: datetime
    expires_at: Annotated[datetime, Meta(description="Its end if it is not used again")]
    ip: str
    user_agent: str
    current: Annotated[bool, Meta(description="Whether this very call came in this session")]
    impersonation: GuestOut | None = None

    @classmethod
    def of(cls, row: Any, current: str | None) -> Self:
        return cls(
            id=row.id,
            created_at=row.created_at,
            last_used_at=row.last_used_at,
            expires_at=row.expires_at,
            ip=row.ip,
            user_agent=row.user_agent,
            current=row.id == current,
            impersonation=getattr(row, "impersonation", None),
        )


class MeOut(Out, omit_defaults=True):
    """Who is calling; `scopes` are those of this credential. `impersonation` is there in a session that was opened from
    a panel.
    """

    id: UserId
    username: str
    role: Annotated[str, Meta(examples=["admin"])]
    created_at: datetime
    last_login_at: datetime | None
    totp_enabled: bool
    scopes: ScopeNames
    impersonation: GuestOut | None = None


KeyExpiry = Annotated[datetime, Meta(tz=True, description="Default: in 365 days")]
AllowedIps = Annotated[
    list[Annotated[str, Meta(min_length=2, max_length=50)]],
    Meta(min_length=1, max_length=50, description="Addresses and networks; from elsewhere the key is refused"),
]


class ApiKeyCreate(In):
    name: Line
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=50)]
    expires_at: KeyExpiry | None = None
    allowed_ips: AllowedIps | None = None
    resources: (
        Annotated[
            list[Annotated[str, Meta(pattern=r"^app_[a-z2-7]{20,40}\Z")]],
            Meta(min_length=1, max_length=200, description="The apps that the key may touch; others are 404 to it"),
        ]
        | None
    ) = None


class ApiKeyOut(Out):
    id: KeyId
    name: str
    prefix: Annotated[str, Meta(description="How the key begins", examples=["qzr_eMuOEMlj"])]
    suffix: Annotated[str, Meta(description="How it ends", examples=["rZrh"])]
    scopes: ScopeNames
    resources: Annotated[list[str] | None, Meta(examples=[None])]
    allowed_ips: Annotated[list[str] | None, Meta(examples=[["192.0.2.0/24"]])]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    last_used_ip: str | None

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(**{name: getattr(row, name) for name in cls.__struct_fields__})


class ApiKeyCreated(ApiKeyOut):
    key: Annotated[
        str,
        Meta(
            description=f"Sent as `Authorization: Bearer qzr_…`; shown this once. Its form is `{API_KEY_PATTERN}`;"
            " the last six characters are the CRC-32 of the 36 before them, in base 62",
            examples=["qzr_eMuOEMlj…rZrh"],
        ),
    ] = ""
