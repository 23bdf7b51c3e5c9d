"""What the API takes and shows of channels, and what other domains send to them."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from quazzar.channels.models import ChannelKind
from quazzar.core.outbound import origin_of
from quazzar.core.schema import UNSET, Email, In, Line, Meta, Out, UnsetType

_CHANNEL_ID = Meta(examples=["chn_3k2m4v7q3n5t2ac6xk2m4v7q3n"])
Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        description="Where to send: a public address, https, port 443 or 8443 unless a setting allows more.",
        examples=["https://example.com/hooks/alerts"],
    ),
]
Addresses = Annotated[list[Email], Meta(min_length=1, max_length=20, examples=[["ops@example.com"]])]


class WebhookChannelCreate(In, tag_field="kind", tag="webhook", kw_only=True):
    name: Line
    url: Url
    enabled: bool = True


class EmailChannelCreate(In, tag_field="kind", tag="email", kw_only=True):
    """Each address gets a mail of its own."""

    name: Line
    to: Addresses
    enabled: bool = True


ChannelCreate = WebhookChannelCreate | EmailChannelCreate


class ChannelUpdate(In):
    """What is left out stays as it is. `url` is for webhooks, `to` for mail; the kind of a channel does not change."""

    name: Line | UnsetType = UNSET
    url: Url | UnsetType = UNSET
    to: Addresses | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class ChannelOut(Out):
    """`url` ends in `/…` for who may not change channels: what follows is often a secret of its receiver. `last_error`
    says why the newest notification did not arrive; it is null once one has arrived again.
    """

    id: Annotated[str, _CHANNEL_ID]
    name: Annotated[str, Meta(examples=["On call"])]
    kind: ChannelKind
    enabled: bool
    url: Url | None
    to: Addresses | None
    last_delivered_at: datetime | None
    last_failed_at: datetime | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Any) -> "ChannelOut":
        values = {name: getattr(row, name) for name in ChannelOut.__struct_fields__ if name != "to"}
        return cls(**values, to=row.to_addresses)

    @classmethod
    def masked(cls, row: Any) -> "ChannelOut":
        shown = cls.of(row)
        return shown if shown.url is None else msgspec.structs.replace(shown, url=origin_of(shown.url))


class ChannelSecretOut(ChannelOut, kw_only=True):
    """`secret` signs what is sent to a webhook and is never shown again; null for mail."""

    secret: Annotated[str | None, Meta(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="])]


class ChannelTestOut(Out):
    """`status` is `delivered` or `failed` for a webhook, which is asked once, at once; a mail is `queued`."""

    status: Literal["delivered", "failed", "queued"]
    response_status: Annotated[int | None, Meta(examples=[204])] = None
    duration_seconds: float | None = None
    response_excerpt: Annotated[str, Meta(max_length=1024)] | None = None
    error: str | None = None


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel is told: `subject` and `text` are what people read, `data` is what a webhook gets."""

    type: str
    subject: str
    text: str
    data: dict[str, Any]
