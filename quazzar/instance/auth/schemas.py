"""What setup and login of an instance take and give."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.accounts.schemas import NewPassword, OpaqueToken, Password, UserId
from quazzar.core.schema import UNSET, In, Out, UnsetType, message

Username = Annotated[
    str,
    Meta(
        min_length=3,
        max_length=32,
        pattern=r"^[a-z0-9_-]*\Z",
        extra=message("{label} must be 3 to 32 of a-z, 0-9, '_' and '-'"),
    ),
]


class Setup(In):
    username: Username
    password: NewPassword
    setup_token: (
        Annotated[OpaqueToken, Meta(description="The one-time token; only needed from another machine")] | UnsetType
    ) = UNSET


class UserOut(Out):
    id: UserId
    username: str
    created_at: datetime


class SetupOut(Out):
    message: Annotated[str, Meta(examples=["The server is set up; log in now"])]
    user: UserOut


class Login(In):
    username: Annotated[str, Meta(min_length=1, max_length=64)]
    password: Password
