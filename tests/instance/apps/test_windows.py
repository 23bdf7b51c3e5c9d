"""Windows by the clock on the wall: what may be written, and what happens where clocks are put forward and back."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.instance.apps.windows import Window, is_cron, is_zone, next_opening, opening


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NIGHTLY = Window("30 2 * * *", "Europe/Berlin", 60)


@pytest.mark.parametrize(
    ("now", "open_or_next", "following"),
    [
        ("2026-01-10T01:29", "2026-01-10T01:30", "2026-01-10T01:30"),
        ("2026-01-10T01:30", "2026-01-10T01:30", "2026-01-11T01:30"),
        ("2026-01-10T02:29", "2026-01-10T01:30", "2026-01-11T01:30"),
        ("2026-01-10T02:30", "2026-01-11T01:30", "2026-01-11T01:30"),
        # 02:30 is skipped: it stands for 03:30, one hour after 01:30 as always.
        ("2026-03-29T00:59", "2026-03-29T01:30", "2026-03-29T01:30"),
        ("2026-03-29T01:45", "2026-03-29T01:30", "2026-03-30T00:30"),
        # 02:30 is there twice: the first counts, and the hour after it is a whole one.
        ("2026-10-25T00:29", "2026-10-25T00:30", "2026-10-25T00:30"),
        ("2026-10-25T01:29", "2026-10-25T00:30", "2026-10-26T01:30"),
        ("2026-10-25T01:31", "2026-10-26T01:30", "2026-10-26T01:30"),
    ],
)
def test_a_window_of_each_night(now: str, open_or_next: str, following: str) -> None:
    assert opening(NIGHTLY, at(now)) == at(open_or_next)
    assert next_opening(NIGHTLY, at(now)) == at(following)


def test_windows_that_reach_into_each_other() -> None:
    often = Window("0 * * * *", "UTC", 90)
    assert opening(often, at("2026-01-10T01:10")) == at("2026-01-10T01:00")
    assert next_opening(often, at("2026-01-10T01:10")) == at("2026-01-10T02:00")


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu"]
RULES = ["* * * * *", "0 * * * *", "30 2 * * *", "15,45 1-3 * * *", "0 0 * * 0", "0 3 1 * *", "0 0 29 2 *"]


@given(
    now=st.datetimes(at("2020-01-01").replace(tzinfo=None), at("2035-01-01").replace(tzinfo=None)),
    zone=st.sampled_from(ZONES),
    rule=st.sampled_from(RULES),
    minutes=st.integers(1, 1440),
)
def test_what_is_open_has_begun_and_what_is_next_has_not(now: datetime, zone: str, rule: str, minutes: int) -> None:
    moment, window = now.replace(tzinfo=UTC), Window(rule, zone, minutes)
    found, following = opening(window, moment), next_opening(window, moment)
    assert following > moment
    assert found == following or found <= moment < found + timedelta(minutes=minutes)
    # Nothing lies between, and the start is one that the rule names on that wall.
    assert next_opening(window, following - timedelta(seconds=1)) == following
    local = found.astimezone(ZoneInfo(zone))
    shift = local.utcoffset() != (found - timedelta(hours=3)).astimezone(ZoneInfo(zone)).utcoffset()
    if rule == "30 2 * * *" and not shift:
        assert (local.hour, local.minute) == (2, 30)


@pytest.mark.parametrize("rule", ["* * * * *", "30 3 * * 6", "0 3 * MAR FRI", "0 0 29 2 *", "*/15 1-5 * * MON-FRI"])
def test_rules(rule: str) -> None:
    assert is_cron(rule)


@pytest.mark.parametrize(
    "rule",
    [
        *("", "   ", "@daily", "* * * *", "* * * * * *", "61 * * * *", "0 0 31 2 *", "R * * * *", "H 3 * * *"),
        *("a b c d e", "0 3 * * 1#9", "*/0 * * * *", "1-99999999999 * * * *", "٣ * * * *", "0 3 * * ; id"),
    ],
)
def test_what_is_no_rule(rule: str) -> None:
    assert not is_cron(rule)


def test_zones() -> None:
    assert all(is_zone(one) for one in ZONES)
    wrong = ["", "Mars/Phobos", "/etc/passwd", "../../etc/passwd", "America", "Europe/Berlin\0", "x" * 64]
    assert not any(is_zone(one) for one in wrong)
