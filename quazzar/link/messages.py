"""What travels between an instance and its panel: msgpack maps in binary frames of one WebSocket.

Fields that a side does not know are skipped, new ones have defaults, and a message of an unknown type is passed over,
so that releases next to each other understand one another.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from quazzar.link.metrics import MOST_VALUES

PROTOCOL: Final = 1
"""Grows when a side must know more than to skip what it does not know; neighbours talk to each other."""
MOST_FRAME_BYTES: Final = 1024 * 1024
MOST_APPS: Final = 500
MOST_SAMPLES: Final = 500
MOST_OUTPUT: Final = 64 * 1024
MOST_DEEDS: Final = 200
MOST_ADDRESSES: Final = 32

CLOSE_REVOKED: Final = 4401
"""Close codes: the certificate counts no more; the message is not one; another socket took over; too far apart."""
CLOSE_REFUSED: Final = 4403
CLOSE_MOVED: Final = 4409
CLOSE_PROTOCOL: Final = 4426
CLOSE_MALFORMED: Final = 4400

Short = Annotated[str, Meta(max_length=200)]
Recorded = Annotated[str, Meta(max_length=100, pattern=r"^[^\x00]*\Z")]
"""What goes into an audit log, which has no place for NUL."""
Moment = Annotated[datetime, Meta(tz=True)]
Bytes64 = Annotated[int, Meta(ge=0, le=2**53)]
Values = Annotated[list[float | None], Meta(max_length=MOST_VALUES)]
AppValues = Annotated[dict[Annotated[str, Meta(max_length=64)], Values], Meta(max_length=MOST_APPS)]
Url = Annotated[str, Meta(max_length=500, pattern=r"^https?://[^\s\x00-\x1f\x7f@?#\\]+\Z")]
Address = Annotated[str, Meta(max_length=300, pattern=r"^(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}\Z")]
"""Host and port, IPv6 in brackets."""
OrderStatus = Literal["taken", "running", "completed", "failed", "cancelled", "expired", "refused"]


class LinkProblem(ValueError):
    """A frame that is no message; the text is for a log and a close reason."""


class Facts(msgspec.Struct, kw_only=True):
    """What an instance says of itself at enrolment and whenever it changes."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    hostname: Short
    machine_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    version: Annotated[str, Meta(max_length=50)]
    os: Short
    arch: Annotated[str, Meta(max_length=50)]
    cpu_cores: Annotated[int, Meta(ge=1, le=65536)]
    memory_bytes: Bytes64
    disk_bytes: Bytes64
    url: Url | None = None
    """Where people find it."""


class AppFacts(msgspec.Struct, kw_only=True):
    """An app as the panel shows it."""

    id: Annotated[str, Meta(max_length=64)]
    name: Annotated[str, Meta(max_length=100)]
    status: Annotated[str, Meta(max_length=30)]
    template: Annotated[str, Meta(max_length=100)] | None = None
    version: Annotated[str, Meta(max_length=150)] | None = None


class State(msgspec.Struct, kw_only=True):
    """All that an instance says of itself; sent when it has changed."""

    facts: Facts
    apps: Annotated[list[AppFacts], Meta(max_length=MOST_APPS)] = []
    backup_at: Moment | None = None

    def hash(self) -> str:
        """Equal for equal states."""
        return hashlib.sha256(msgspec.msgpack.encode(self, order="deterministic")).hexdigest()


class Sample(msgspec.Struct, array_like=True):
    """What was measured at one moment: the host's values, and those of apps by their id."""

    at: Moment
    measured: Values
    apps: AppValues = {}


# --- from the instance ---------------------------------------------------------------------------------------------


class Message(msgspec.Struct, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of all messages: its class is known by the field `type`."""


class Hello(Message, tag="hello"):
    """The first message of a connection. `sent_at` is the instance's clock."""

    instance_id: Annotated[str, Meta(max_length=64)]
    protocol: Annotated[int, Meta(ge=1, le=2**31)]
    version: Annotated[str, Meta(max_length=50)]
    sent_at: Moment
    state_hash: Annotated[str, Meta(max_length=64)]


class Heartbeat(Message, tag="heartbeat"):
    """A sign of life with what was measured just now (of the host, and of each app by its id), in the order of
    `quazzar.link.metrics`, and the state when the panel does not know it yet.
    """

    sent_at: Moment
    state_hash: Annotated[str, Meta(max_length=64)]
    measured: Values | None = None
    app_measured: AppValues = {}
    state: State | None = None


class Renew(Message, tag="renew"):
    """Asks for a new certificate; that the old one opened this line is the proof."""

    csr: Annotated[str, Meta(max_length=4096)]


class Leave(Message, tag="leave"):
    """The instance leaves the fleet for good."""


class Report(Message, tag="report"):
    """How far an order has come, sent again until it is `Reported`. `sequence` grows with each report of an order; the
    first final status stands. `refused` is an order that was not begun: its signature, its kind or its time.
    """

    order_id: Annotated[str, Meta(max_length=64)]
    sequence: Annotated[int, Meta(ge=1, le=2**31)]
    status: OrderStatus
    at: Moment
    progress: Annotated[int, Meta(ge=0, le=100)] | None = None
    step: Short | None = None
    output: Annotated[str, Meta(max_length=MOST_OUTPUT)] | None = None
    error: Annotated[str, Meta(max_length=2000)] | None = None
    error_code: Annotated[str, Meta(max_length=100)] | None = None


class Samples(Message, tag="samples"):
    """Measurements of the past, oldest first, kept while there was no line; the next are sent once these are `Kept`."""

    batch: Annotated[int, Meta(ge=1, le=2**53)]
    points: Annotated[list[Sample], Meta(max_length=MOST_SAMPLES)]


class Deed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An audit record of the instance; `number` is its place there. `by_guest`: the panel's user has done it."""

    number: Annotated[int, Meta(ge=1, le=2**53)]
    at: Moment
    action: Recorded
    subject: Recorded | None = None
    outcome: Literal["done", "refused", "failed"] = "done"
    by_guest: bool = True


class Deeds(Message, tag="deeds"):
    """What was done in a session that a panel's user has opened, for the panel's audit log: in the order of their
    numbers, sent again until they are `Noted`.
    """

    impersonation_id: Recorded
    deeds: Annotated[list[Deed], Meta(max_length=MOST_DEEDS)]


# --- from the panel ------------------------------------------------------------------------------------------------


class Welcome(Message, tag="welcome"):
    """The answer to `Hello`. `want_state`: the panel does not know the state of that hash. `addresses` are those at
    which the panel's processes listen, where they are told: each is as good as the one that was dialled.
    """

    protocol: int
    version: str
    heartbeat_seconds: float
    panel_url: str | None = None
    want_state: bool = False
    addresses: Annotated[list[Address], Meta(max_length=MOST_ADDRESSES)] = []


class Certificate(Message, tag="certificate"):
    """The answer to `Renew`."""

    certificate: str


class Order(Message, tag="order"):
    """A command for this instance: `body` is an `OrderBody`, signed as `quazzar.link.orders` says. An instance that has
    it already answers with its last report and does nothing else.
    """

    body: Annotated[bytes, Meta(max_length=256 * 1024)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Cancel(Message, tag="cancel"):
    """End an order if it has not ended: one that is not begun never begins."""

    order_id: Annotated[str, Meta(max_length=64)]


class Reported(Message, tag="reported"):
    """A report is durable on the panel."""

    order_id: Annotated[str, Meta(max_length=64)]
    sequence: int


class Kept(Message, tag="kept"):
    """A batch of samples is durable on the panel."""

    batch: int


class Noted(Message, tag="noted"):
    """Deeds up to this number are durable on the panel."""

    impersonation_id: Annotated[str, Meta(max_length=64)]
    number: int


FromInstance = Hello | Heartbeat | Renew | Leave | Report | Samples | Deeds
FromPanel = Welcome | Certificate | Order | Cancel | Reported | Kept | Noted

_encode = msgspec.msgpack.Encoder().encode
_from_instance = msgspec.msgpack.Decoder(FromInstance)
_from_panel = msgspec.msgpack.Decoder(FromPanel)
_tag = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_known = {kind.__struct_config__.tag for kind in (*FromInstance.__args__, *FromPanel.__args__)}


def pack(message: Message) -> bytes:
    return _encode(message)


def unpack_from_instance(frame: object) -> FromInstance | None:
    """The message, None for a type that only a later release knows. Raises `LinkProblem`."""
    return _unpack(frame, _from_instance)  # type: ignore[no-any-return]


def unpack_from_panel(frame: object) -> FromPanel | None:
    """As `unpack_from_instance`, for what a panel sends."""
    return _unpack(frame, _from_panel)  # type: ignore[no-any-return]


def _unpack(frame: object, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    if not isinstance(frame, bytes):
        raise LinkProblem("A message is a binary frame")
    if len(frame) > MOST_FRAME_BYTES:
        raise LinkProblem("The message is too large")
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError, ValueError) as error:
        if _is_unknown_type(frame):
            return None
        # The text names the field and its type, never a value.
        raise LinkProblem(str(error)[:100]) from None


def _is_unknown_type(frame: bytes) -> bool:
    try:
        kind = msgspec.msgpack.decode(_tag.decode(frame)["type"], type=str)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, KeyError, ValueError):
        return False
    return kind not in _known


# --- over HTTPS, before there is a certificate ---------------------------------------------------------------------


class Enrol(msgspec.Struct, kw_only=True, forbid_unknown_fields=False):
    """`POST /agent/enroll`. A lost answer costs nothing: the same token with the same key is answered again."""

    token: Annotated[str, Meta(min_length=1, max_length=1000)]
    csr: Annotated[str, Meta(min_length=1, max_length=4096)]
    facts: Facts


class Enrolled(msgspec.Struct, kw_only=True):
    """`signing_key` is the panel's Ed25519 key, by which an instance knows what the panel has ordered."""

    instance_id: str
    certificate: str
    panel_url: str
    heartbeat_seconds: float
    signing_key: bytes
