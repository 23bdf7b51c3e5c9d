"""One attempt: the signed request, and what is kept of the answer."""

import random
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from quazzar import __version__
from quazzar.core.logs import redact
from quazzar.core.outbound import OutboundRefused
from quazzar.core.outbound_http import Answer, OutboundFailed, OutboundHttp
from quazzar.webhooks.signing import sign

EXCERPT_BYTES = 1024
MOST_RETRY_AFTER_SECONDS = 24 * 3600
_USER_AGENT = f"Quazzar/{__version__} (webhooks)"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_BODY = msgspec.json.Encoder()


class Message(msgspec.Struct, frozen=True):
    """What is sent to an endpoint; `body` are the very bytes that are signed."""

    event_id: str
    type: str
    body: bytes


class Attempt(msgspec.Struct, frozen=True):
    """How one request went, as it is shown later."""

    at: datetime
    status: int | None
    duration_seconds: float
    response_excerpt: str | None
    error: str | None


class Outcome(msgspec.Struct, frozen=True):
    """An attempt and what follows from it. `gone` is an answer of 410; `retry_after` is in seconds."""

    attempt: Attempt
    gone: bool = False
    retry_after: float = 0.0

    @property
    def arrived(self) -> bool:
        return self.attempt.error is None


def body_of(event_id: str, event_type: str, created_at: datetime, data: object) -> bytes:
    """The bytes of a message; `data` is JSON already where it is `msgspec.Raw`."""
    return _BODY.encode({"id": event_id, "type": event_type, "created_at": created_at.astimezone(UTC), "data": data})


async def send(http: OutboundHttp, url: str, secrets: Sequence[bytes], message: Message) -> Outcome:
    """Send `message` once; whatever happens is an outcome, not an error."""
    at, started = datetime.now(UTC), time.monotonic()
    timestamp = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": _USER_AGENT,
        "webhook-id": message.event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secrets, message.event_id, timestamp, message.body),
        "X-Quazzar-Event": message.type,
    }
    try:
        answer = await http.post(url, message.body, headers)
    except OutboundRefused as refused:
        return Outcome(Attempt(at, None, _since(started), None, refused.reason))
    except OutboundFailed as failed:
        return Outcome(Attempt(at, failed.status, _since(started), None, failed.reason))
    return Outcome(
        Attempt(at, answer.status, _since(started), excerpt(answer.body), _problem(answer.status)),
        gone=answer.status == 410,
        retry_after=0.0 if answer.status < 300 else _retry_after(answer),
    )


def delay_before(schedule: Sequence[float], tries: int, retry_after: float = 0.0) -> float | None:
    """Seconds until the next attempt after `tries` of them, None when there is none. Spread by 10 to 20 %."""
    if tries >= len(schedule):
        return None
    return max(schedule[tries] * random.uniform(1.1, 1.2), retry_after)  # noqa: S311 - spreads attempts


def excerpt(body: bytes) -> str:
    """What is kept of an answer: its beginning as one line of text, without what looks like a secret."""
    text = redact(body[: 2 * EXCERPT_BYTES].decode("utf-8", "replace"))
    cleaned = _CONTROL.sub(" ", text).encode()[:EXCERPT_BYTES]
    return cleaned.decode("utf-8", "ignore")


def _problem(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return "The endpoint redirects; redirects are not followed"
    if status == 410:
        return "The endpoint says that it is gone"
    return f"The endpoint answered {status}"


def _retry_after(answer: Answer) -> float:
    """Seconds that the answer asks to wait (RFC 9110, 10.2.3), at most a day; 0 without a wish that can be read."""
    value = answer.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        seconds = float(value)
    else:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MOST_RETRY_AFTER_SECONDS)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 4)
