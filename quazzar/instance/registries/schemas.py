"""What the API takes and shows of registries: passwords only go in."""

from datetime import datetime
from typing import Annotated, Any, ClassVar

from quazzar.core.schema import UNSET, In, Meta, Out, UnsetType, message, require_one

Host = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        description="The registry as image names begin with it, with its port if it has one; `docker.io` for names "
        "without a registry.",
        examples=["registry.example.com:5000"],
    ),
]
Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=300,
        description="The registry by its address, such as `https://registry.example.com:5000`; its host and port are "
        "kept.",
    ),
]
Username = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        pattern=r"^[^\x00-\x1f\x7f\x80-\x9f:\u2028\u2029]*\Z",
        examples=["robot"],
        extra=message("{label} must be 1 to 256 characters without ':' and control characters"),
    ),
]
Password = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=8192,
        pattern=r"^[^\x00]*\Z",
        description="A password or an access token; it is never shown again.",
        examples=["correct horse battery staple"],
        extra=message("{label} must be 1 to 8192 characters"),
    ),
]


class RegistryCreate(In):
    """`host`, or in its place the `url` that other tools call the registry by."""

    ONE_OF: ClassVar = ("host", "url")

    username: Username
    password: Password
    host: Host | UnsetType = UNSET
    url: Url | UnsetType = UNSET

    def __post_init__(self) -> None:
        require_one(self, self.ONE_OF)


class RegistryUpdate(In):
    """What is left out stays as it is."""

    username: Username | UnsetType = UNSET
    password: Password | UnsetType = UNSET


class RegistryOut(Out):
    """A registry that pulls log in to. Nothing shows its password."""

    id: Annotated[str, Meta(examples=["reg_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    host: Host
    username: Username
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Any) -> "RegistryOut":
        return cls(**{name: getattr(row, name) for name in cls.__struct_fields__})
