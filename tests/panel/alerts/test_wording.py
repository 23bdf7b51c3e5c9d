"""What alerts say to people."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest

from quazzar.panel.alerts.judging import Change
from quazzar.panel.alerts.schemas import Metric
from quazzar.panel.alerts.wording import duration, label, notification_of, reason_of
from tests.panel.alerts.conftest import START


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (0.4, "0 seconds"),
        (1, "1 second"),
        (60, "1 minute"),
        (61, "1 minute 1 second"),
        (3_600, "1 hour"),
        (3_660, "1 hour 1 minute"),
        (3_661, "1 hour 1 minute"),
        (86_400, "1 day"),
        (90_000, "1 day 1 hour"),
        (86_460, "1 day"),
        (-120, "-2 minutes"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("metric", "found", "text"),
    [
        ("disk_percent", 93.14, "Disk use is 93.1 %: 1 % or more"),
        ("memory_used_bytes", 7.5e9, "Memory used is 7.5 GB: 1 bytes or more"),
        ("network_rx_bytes_per_second", 3e6, "Network rx is 3 MB/s: 1 bytes/s or more"),
        ("load_5", 4.25, "Load 5 is 4.2: 1 or more"),
        ("uptime_seconds", 90, "Uptime is 1 minute 30 seconds: 1 second or more"),
        ("temperature_celsius", 81, "Temperature is 81 °C: 1 °C or more"),
        ("disk_used_bytes", -5.0, "Disk used is -5 bytes: 1 bytes or more"),
    ],
)
def test_values_have_their_units(metric: str, found: float, text: str) -> None:
    rule = SimpleNamespace(kind="threshold", metric=metric, operator=">=", limit_value=1, for_seconds=0)
    assert reason_of(rule, change(found), START) == text


def change(found: float) -> Change:
    return Change("r", "i", "berlin-1", found, found, True, START, True, None, True, None)


def test_every_metric_has_words() -> None:
    for metric in get_args(Metric):
        assert label(metric)[0].isupper()
        assert "_" not in label(metric)


def row(name: str, **values: Any) -> Any:
    usual = {
        "id": "alr_1",
        "instance_id": "inst_1",
        "instance_name": name,
        "status": "firing",
        "value": 95.0,
        "limit_value": 90.0,
        "reason": "Disk use is 95 %: 90 % or more",
        "count": 1,
        "fired_at": START,
        "resolved_at": None,
        "resolved_reason": None,
    }
    return SimpleNamespace(**usual | values)


def test_a_notification_reads_well() -> None:
    rule = SimpleNamespace(id="rul_1", name="Disk 90 % full", severity="warning")
    over = row("paris-1", resolved_at=START + timedelta(minutes=5), resolved_reason="It is within its limit again")
    both = notification_of(rule, [row("berlin-1")], [over], "https://panel.example.com")
    assert both.subject == "[warning] Disk 90 % full: berlin-1"
    assert both.text == (
        "Disk 90 % full (warning)\n\n"
        "- berlin-1: Disk use is 95 %: 90 % or more (since 2030-01-01 00:00 UTC)\n\n"
        "Over:\n"
        "- paris-1: It is within its limit again (2030-01-01 00:00 UTC to 2030-01-01 00:05 UTC)\n\n"
        "https://panel.example.com\n"
    )
    assert notification_of(rule, [], [over], "").subject == "[resolved] Disk 90 % full: paris-1"


def test_a_notification_of_many_stays_small() -> None:
    rule = SimpleNamespace(id="rul_1", name="x" * 200, severity="warning")
    many = [row("n" * 200, reason="r" * 330, count=number) for number in range(5_000)]
    over = [row("n" * 200, resolved_at=START, resolved_reason="It is within its limit again")] * 30
    told = notification_of(rule, many, over, "")
    assert told.subject.endswith(": 5000 servers")
    assert "\n- and 4988 more\n" in told.text
    assert "\n- and 18 more\n" in told.text
    assert len(told.text.encode()) < 20_000
    assert len(msgspec.json.encode(told.data)) < 20_000
    assert (told.data["firing_count"], len(told.data["firing"]), told.data["resolved_count"]) == (5_000, 12, 30)
