"""What the API takes and shows of webhooks."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from quazzar.core.outbound import origin_of
from quazzar.core.schema import UNSET, In, Meta, Out, UnsetType

DeliveryStatus = Literal["pending", "delivered", "failed"]

_WEBHOOK_ID = Meta(examples=["wh_3k2m4v7q3n5t2ac6xk2m4v7q3n"])
_DELIVERY_ID = Meta(examples=["whd_3k2m4v7q3n5t2ac6xk2m4v7q3n"])
Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        description="Where to send: a public address, https, port 443 or 8443 unless a setting allows more.",
        examples=["https://example.com/hooks/quazzar"],
    ),
]
EventName = Annotated[str, Meta(min_length=1, max_length=100, examples=["app.installed"])]
Events = Annotated[
    list[EventName],
    Meta(
        min_length=1,
        max_length=100,
        description="Types of events, whole areas as `app.*`, or `*` for everything.",
        examples=[["app.installed", "backup.*"]],
    ),
]


class WebhookCreate(In):
    url: Url
    events: Events
    active: bool = True


class WebhookUpdate(In):
    """What is left out stays as it is. Making a webhook active again also clears why it was disabled."""

    url: Url | UnsetType = UNSET
    events: Events | UnsetType = UNSET
    active: bool | UnsetType = UNSET


class RedeliverSince(In):
    """`status` narrows to deliveries that failed; `any` sends again what had arrived, too."""

    since: Annotated[datetime, Meta(tz=True)]
    status: Literal["any", "failed"] = "any"


class WebhookOut(Out):
    """An endpoint. `url` ends in `/…` for who may not lead webhooks elsewhere: what follows is often a secret of its
    receiver. `disabled_reason` says why it was taken out of service, when nobody did so by hand.
    """

    id: Annotated[str, _WEBHOOK_ID]
    url: Url
    events: Events
    active: bool
    disabled_reason: str | None
    disabled_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Any) -> "WebhookOut":
        return cls(**{name: getattr(row, name) for name in WebhookOut.__struct_fields__})

    @classmethod
    def masked(cls, row: Any) -> "WebhookOut":
        return msgspec.structs.replace(cls.of(row), url=origin_of(row.url))


class WebhookSecretOut(WebhookOut):
    """The endpoint with its new signing secret, which is never shown again."""

    secret: Annotated[str, Meta(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="])]


class AttemptOut(Out):
    """One attempt: `status` is the answer's, null without one; `error` says what was wrong, null when it arrived."""

    at: datetime
    status: int | None
    duration_seconds: float
    response_excerpt: Annotated[str, Meta(max_length=1024)] | None
    error: str | None


class DeliveryOut(Out):
    """One event on its way to one endpoint, with every attempt (the newest 100), oldest first."""

    id: Annotated[str, _DELIVERY_ID]
    webhook_id: Annotated[str, _WEBHOOK_ID]
    event_id: Annotated[str, Meta(examples=["evt_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    type: EventName
    status: DeliveryStatus
    attempts: list[AttemptOut]
    next_attempt_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: Any) -> "DeliveryOut":
        values = {name: getattr(row, name) for name in cls.__struct_fields__}
        return cls(**values | {"attempts": msgspec.convert(row.attempts, list[AttemptOut])})


class RedeliveredOut(Out):
    """How many deliveries are on their way again."""

    count: Annotated[int, Meta(ge=0)]
