"""What is told of alerts: together, not at night, again until somebody is at it, and where the rule says."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.panel.alerts.quiet import is_quiet
from quazzar.panel.alerts.schemas import AlertMute, QuietHours
from tests.panel.alerts.conftest import Lab


async def test_many_that_fire_together_are_told_once(lab: Lab) -> None:
    await lab.channel()
    await lab.rule(name="Disk", severity="critical")
    many = [await lab.instance(f"n{number:02}") for number in range(30)]
    for number, each in enumerate(many):
        lab.set(each, disk_percent=95)
        if number % 15 == 0:
            await lab.look()
    assert await lab.told() == []
    await lab.look()
    (told,) = await lab.told()
    assert (told["name"], told["severity"], told["firing_count"], len(told["firing"])) == ("Disk", "critical", 30, 12)
    assert told["firing"][0]["reason"] == "Disk use is 95 %: 90 % or more"
    assert told["panel_url"] == "https://panel.example.com"
    await lab.looks(600)
    assert len(await lab.told()) == 1
    # What fires later is told by itself.
    late = await lab.instance("late", disk_percent=95)
    await lab.looks(60)
    assert [each["instance_id"] for each in (await lab.told())[-1]["firing"]] == [late]


async def test_a_rule_tells_where_it_says(lab: Lab) -> None:
    channels = [await lab.channel() for _ in range(3)]
    await lab.rows("UPDATE notification_channels SET enabled = false WHERE id = :id RETURNING id", id=channels[2])
    await lab.rule(name="all")
    await lab.rule(name="one", channels=channels[1:])
    await lab.rule(name="none", channels=[])
    await lab.instance(disk_percent=95)
    await lab.looks(60)
    rows = await lab.rows("SELECT subject, args FROM jobs WHERE kind = 'channels.deliver' ORDER BY id")
    sent = sorted((row["subject"], '"name":"all"' in row["args"]["body"]) for row in rows)
    assert sent == sorted([(channels[0], True), (channels[1], True), (channels[1], False)])
    # All of them are told of one message by its id.
    assert len({row["args"]["message_id"] for row in rows if row["subject"] != channels[2]}) == 2


@pytest.mark.usefixtures("by_the_lab")
async def test_it_is_told_again_until_somebody_is_at_it(lab: Lab) -> None:
    await lab.channel()
    await lab.rule(repeat_seconds=600)
    await lab.instance(disk_percent=95)
    await lab.looks(2_000, 60)
    told = await lab.told()
    assert [each["firing_count"] for each in told] == [1, 1, 1, 1]
    (alert,) = await lab.alerts()
    await lab.act("mute", alert["id"], AlertMute(1_200))
    await lab.looks(1_140, 60)
    assert len(await lab.told()) == 4
    await lab.looks(120, 60)
    assert len(await lab.told()) == 5
    await lab.act("acknowledge", alert["id"])
    await lab.looks(3_600, 60)
    assert len(await lab.told()) == 5


@pytest.mark.usefixtures("by_the_lab")
async def test_nothing_is_told_of_what_is_muted(lab: Lab) -> None:
    await lab.channel()
    await lab.rule()
    one = await lab.instance(disk_percent=95)
    await lab.look()
    (alert,) = await lab.alerts()
    await lab.act("mute", alert["id"], AlertMute(3_600))
    await lab.looks(120)
    lab.set(one, disk_percent=1)
    await lab.looks(600)
    await lab.looks(3_600, 100)
    # Nobody was told that it began, so nobody is told that it is over.
    assert await lab.told() == []
    assert await lab.rows("SELECT * FROM alert_notices") == []


@pytest.mark.usefixtures("by_the_lab")
async def test_what_happens_in_quiet_hours_is_told_when_they_end(lab: Lab) -> None:
    await lab.channel()
    hours = {"start": "22:00", "end": "07:00", "time_zone": "Europe/Berlin"}
    await lab.rule(name="patient", quiet_hours=hours)
    await lab.rule(name="urgent", severity="critical", quiet_hours=hours | {"critical_passes": True})
    await lab.rule(name="critical", severity="critical", quiet_hours=hours)
    # 1 o'clock in Berlin.
    going, over = await lab.instance("going", disk_percent=95), await lab.instance("over", disk_percent=95)
    await lab.looks(60)
    assert [each["name"] for each in await lab.told()] == ["urgent"]
    lab.set(over, disk_percent=1)
    while lab.now < datetime(2030, 1, 1, 5, 59, tzinfo=UTC):
        await lab.look(100)
    names = [each["name"] for each in await lab.told()]
    assert names == ["urgent", "urgent"]
    await lab.look(100)
    morning = {each["name"]: each for each in (await lab.told())[2:]}
    assert morning.keys() == {"patient", "critical"}
    told = morning["patient"]
    assert [row["instance_id"] for row in told["firing"]] == [going]
    assert [row["instance_id"] for row in told["resolved"]] == [over]
    assert await lab.rows("SELECT * FROM alert_notices") == []


async def test_quiet_hours_may_be_changed_while_they_keep_something_back(lab: Lab) -> None:
    await lab.channel()
    rule_id = await lab.rule(quiet_hours={"start": "23:00", "end": "08:00", "time_zone": "UTC"})
    await lab.instance(disk_percent=95)
    await lab.looks(600, 60)
    assert await lab.told() == []
    await lab.change(rule_id, quiet_hours=None)
    await lab.look()
    assert len(await lab.told()) == 1


BERLIN = QuietHours(start="22:00", end="07:00", time_zone="Europe/Berlin")


@pytest.mark.parametrize(
    ("moment", "quiet"),
    [
        # Winter: Berlin is an hour ahead; summer: two.
        ("2030-01-10T20:59:59Z", False),
        ("2030-01-10T21:00:00Z", True),
        ("2030-01-11T05:59:59Z", True),
        ("2030-01-11T06:00:00Z", False),
        ("2030-07-10T19:59:59Z", False),
        ("2030-07-10T20:00:00Z", True),
        ("2030-07-11T04:59:59Z", True),
        ("2030-07-11T05:00:00Z", False),
        # The night in which the clocks go forward (31 March 2030, 1:00 UTC) is an hour shorter.
        ("2030-03-30T21:00:00Z", True),
        ("2030-03-31T04:59:59Z", True),
        ("2030-03-31T05:00:00Z", False),
        # The one in which they go back (27 October 2030, 1:00 UTC) is an hour longer.
        ("2030-10-26T20:00:00Z", True),
        ("2030-10-27T05:59:59Z", True),
        ("2030-10-27T06:00:00Z", False),
    ],
)
def test_quiet_hours_go_by_the_clocks_of_their_zone(moment: str, quiet: bool) -> None:
    assert is_quiet(BERLIN, "warning", datetime.fromisoformat(moment)) is quiet
    assert is_quiet(None, "warning", datetime.fromisoformat(moment)) is False


@pytest.mark.parametrize(
    ("hours", "quiet_minutes"),
    [(("02:15", "02:45"), (0, 60)), (("01:30", "03:30"), (60, 180)), (("12:00", "13:00"), (60, 60))],
)
def test_hours_that_a_change_of_the_clock_leaves_out_or_repeats(
    hours: tuple[str, str], quiet_minutes: tuple[int, int]
) -> None:
    quiet = QuietHours(start=hours[0], end=hours[1], time_zone="Europe/Berlin")
    for day, minutes in zip(
        (datetime(2030, 3, 31, tzinfo=UTC), datetime(2030, 10, 27, tzinfo=UTC)), quiet_minutes, strict=True
    ):
        start = day - timedelta(hours=1)
        moments = (start + timedelta(minutes=minute) for minute in range(24 * 60))
        assert sum(is_quiet(quiet, "info", moment) for moment in moments) == minutes


@given(st.datetimes(timezones=st.just(UTC)).filter(lambda moment: 1900 < moment.year < 2200))
def test_hours_over_midnight_are_the_others_of_the_day(moment: datetime) -> None:
    day = QuietHours(start="07:00", end="22:00", time_zone="America/Los_Angeles")
    night = QuietHours(start="22:00", end="07:00", time_zone="America/Los_Angeles", critical_passes=True)
    assert is_quiet(day, "critical", moment) is not is_quiet(night, "warning", moment)
    assert not is_quiet(night, "critical", moment)
