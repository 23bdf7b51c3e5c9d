"""What the API takes and shows of template sources, and what an index is."""

from datetime import datetime
from typing import Annotated, Any

import msgspec

from quazzar.core.schema import In, Meta, Name, OptionalIn, Out

MOST_TEMPLATES = 1000

Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        description="Address of the index; a signed one has its signature at the same address with `.sig` behind it.",
        examples=["https://example.com/templates/index.json"],
    ),
]
Key = Annotated[
    str,
    Meta(
        max_length=100,
        description="Ed25519 public key in base64 that signs the index.",
        examples=["11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="],
    ),
]
Digest = Annotated[
    str,
    Meta(
        pattern=r"^sha256:[0-9a-f]{64}\Z",
        description="What the bytes of an index without signature must give.",
        examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    ),
]


class TemplateSourceCreate(In):
    """Either `public_key` or `digest`."""

    name: Name
    url: Url
    public_key: Key | None = None
    digest: Digest | None = None


class TemplateSourceSync(OptionalIn, frozen=True):
    """`digest` names the new index of a source that is pinned by digest."""

    digest: Digest | None = None


AS_IT_IS = TemplateSourceSync()
"""What a sync without a body asks for."""


class TemplateSourceOut(Out):
    """`problems` maps templates that were not taken to the reason; `error` is why the last sync took nothing at all."""

    id: Annotated[str, Meta(examples=["tsrc_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    name: str
    url: str
    public_key: str | None
    digest: str | None
    serial: int | None
    job_id: str | None
    error: str | None
    problems: dict[str, str]
    synced_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: Any) -> "TemplateSourceOut":
        return cls(**{name: getattr(row, name) for name in cls.__struct_fields__})


class Entry(msgspec.Struct, frozen=True):
    """A template of an index; `url` may be relative to the index."""

    slug: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,63}\Z")]
    url: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Index(msgspec.Struct, frozen=True):
    serial: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    templates: Annotated[list[Entry], msgspec.Meta(max_length=MOST_TEMPLATES)]
