"""What is signed, what is kept of an answer, and when the next attempt comes."""

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.settings import Webhooks as WebhookSettings
from quazzar.webhooks.sending import body_of, delay_before, excerpt
from quazzar.webhooks.signing import shown, sign


def test_the_vector_of_the_specification() -> None:
    """From the Standard Webhooks specification's libraries."""
    import base64  # noqa: PLC0415

    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    made = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_newest_secret_signs_first() -> None:
    one, two = sign([b"a"], "i", 1, b"x"), sign([b"b"], "i", 1, b"x")
    assert sign([b"a", b"b"], "i", 1, b"x") == f"{one} {two}"
    assert shown(bytes(32)) == "whsec_" + "A" * 43 + "="


def test_times_are_in_utc() -> None:
    moment = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    body = body_of("evt_1", "a.b", moment, msgspec.Raw(b'{"n":1}'))
    assert body == b'{"id":"evt_1","type":"a.b","created_at":"2026-01-01T00:00:00Z","data":{"n":1}}'


@pytest.mark.parametrize("tries", range(1, 10))
def test_pauses_are_10_to_20_percent_longer(tries: int) -> None:
    schedule = WebhookSettings().retry_schedule
    for _ in range(50):
        delay = delay_before(schedule, tries)
        assert delay is not None
        assert schedule[tries] * 1.1 <= delay <= schedule[tries] * 1.2


def test_a_wish_to_wait_is_the_least_pause() -> None:
    schedule = WebhookSettings().retry_schedule
    assert delay_before(schedule, 1, 100) == 100
    assert (delay_before(schedule, 9, 100) or 0) > 86400
    assert delay_before(schedule, 10, 100) is None


@given(st.binary(max_size=5000))
def test_an_excerpt_is_short_and_printable(body: bytes) -> None:
    text = excerpt(body)
    assert len(text.encode()) <= 1024
    assert all(ord(letter) >= 32 for letter in text)
    assert excerpt(body) == text


def test_an_excerpt_shows_no_secret() -> None:
    text = excerpt(b'{"password": "hunter2hunter2", "key": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}\n')
    assert "hunter2" not in text
    assert "MfKQ9" not in text


def test_an_excerpt_is_cut_between_letters() -> None:
    assert excerpt("ä".encode() * 1000) == "ä" * 512
    assert datetime.now(UTC).tzinfo is UTC
