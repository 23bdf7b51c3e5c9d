"""What rules find and when: each kind of rule, for-duration, flapping, ends, and several evaluators at once."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from quazzar.core.db import Database, see_all_tenants
from quazzar.core.jobs import JobRun, Resources
from quazzar.panel.alerts import evaluation, judging, process
from quazzar.panel.alerts.defaults import DEFAULTS
from quazzar.panel.alerts.evaluation import Pace
from quazzar.panel.alerts.jobs import prune
from quazzar.panel.alerts.process import Watch
from quazzar.panel.alerts.schemas import AlertMute
from quazzar.panel.fleet.service import revoke
from quazzar.panel.tenants import store as tenants
from tests.factories.accounts import make_member
from tests.factories.panel import make_instance
from tests.panel.alerts.conftest import START, Lab


async def test_a_value_must_be_beyond_its_limit_for_as_long_as_the_rule_says(lab: Lab) -> None:
    rule_id = await lab.rule(name="Disk 90 % full", for_seconds=60, severity="critical")
    one = await lab.instance(disk_percent=89.9)
    other = await lab.instance("paris-1", disk_percent=95)
    await lab.looks(45)
    assert await lab.alerts() == []
    await lab.look(30)
    (alert,) = await lab.alerts()
    assert (alert["rule_id"], alert["instance_id"], alert["status"]) == (rule_id, other, "firing")
    assert (alert["name"], alert["severity"], alert["instance_name"]) == ("Disk 90 % full", "critical", "paris-1")
    assert (alert["value"], alert["limit_value"], alert["metric"]) == (95, 90, "disk_percent")
    assert alert["reason"] == "Disk use is 95 %: 90 % or more, for 1 minute"
    assert alert["fired_at"] == lab.now
    # A dip begins the time anew, and what fired does not fire again.
    lab.set(one, disk_percent=95)
    await lab.looks(45)
    lab.set(one, disk_percent=50)
    await lab.look()
    lab.set(one, disk_percent=95)
    await lab.looks(60)
    assert len(await lab.alerts()) == 1
    await lab.look()
    assert [row["instance_id"] for row in await lab.alerts()] == [other, one]
    lab.set(other, disk_percent=50)
    await lab.look()
    assert [row["status"] for row in await lab.alerts()] == ["resolved", "firing"]
    over = (await lab.alerts())[0]
    assert (over["resolved_at"], over["resolved_by"]) == (lab.now, None)
    assert over["resolved_reason"] == "It is within its limit again"
    assert await lab.happened() == ["alert.fired", "alert.fired", "alert.resolved"]


@pytest.mark.parametrize(
    ("operator", "fires"), [(">", [91]), (">=", [90, 91]), ("<", [89]), ("<=", [89, 90])], ids=["gt", "ge", "lt", "le"]
)
async def test_operators(lab: Lab, operator: str, fires: list[float]) -> None:
    await lab.rule(operator=operator)
    for value in (89, 90, 91):
        await lab.instance(str(value), disk_percent=value)
    await lab.look()
    assert sorted(row["value"] for row in await lab.alerts()) == fires


async def test_targets_are_instances_any_of_the_tags_and_groups_with_those_below(lab: Lab) -> None:
    async with lab.database.begin(tenant=lab.tenant_id) as session:
        for group_id, parent in (("grp_" + "a" * 26, None), ("grp_" + "b" * 26, "grp_" + "a" * 26)):
            await session.execute(
                text("INSERT INTO fleet_groups (id, tenant_id, name, parent_id) VALUES (:id, :tenant, :id, :parent)"),
                {"id": group_id, "tenant": lab.tenant_id, "parent": parent},
            )
    named = await lab.instance("named", disk_percent=95)
    tagged = await lab.instance("tagged", values={"tags": ["web", "db"]}, disk_percent=95)
    grouped = await lab.instance("grouped", values={"group_id": "grp_" + "b" * 26}, disk_percent=95)
    other = await lab.instance("other", values={"tags": ["mail"]}, disk_percent=95)
    await lab.rule(name="n", targets={"instances": [named]})
    await lab.rule(name="t", targets={"tags": ["db", "none"]})
    await lab.rule(name="g", targets={"groups": ["grp_" + "a" * 26]})
    mixed = await lab.rule(name="m", targets={"instances": [named], "tags": ["web"]})
    await lab.look()
    found = {(row["name"], row["instance_id"]) for row in await lab.alerts()}
    assert found == {("n", named), ("t", tagged), ("g", grouped), ("m", named), ("m", tagged)}
    # Who is not watched any more has no alert any more, and one who comes back begins anew.
    await lab.change(mixed, targets={"instances": [other]})
    await lab.describe(tagged, tags=[])
    await lab.look()
    still = {(row["name"], row["instance_id"]) for row in await lab.alerts("firing")}
    assert still == {("n", named), ("g", grouped), ("m", other)}
    assert {row["resolved_reason"] for row in await lab.alerts("resolved")} == {"The rule does not watch it any more"}
    await lab.describe(named, status="revoked")
    await lab.look()
    assert {(row["name"], row["instance_id"]) for row in await lab.alerts("firing")} == {("g", grouped), ("m", other)}
    assert len(await lab.rows("SELECT * FROM alert_states")) == 2


async def test_who_is_not_heard_is_absent_and_nothing_else_is_known_of_it(lab: Lab) -> None:
    await lab.rule(kind="absence", name="Offline", severity="critical", for_seconds=300)
    await lab.rule(name="Disk", for_seconds=0)
    one = await lab.instance(disk_percent=95)
    await lab.look()
    lab.silent.add(one)
    await lab.looks(60)
    await lab.describe(one, status="offline")
    await lab.looks(225)
    assert [row["name"] for row in await lab.alerts()] == ["Disk"]
    await lab.look()
    disk, offline = await lab.alerts()
    assert (offline["name"], offline["reason"]) == ("Offline", "Nothing was heard of it for 5 minutes")
    assert (offline["value"], offline["limit_value"]) == (300, 300)
    # Its disk is not taken for empty because nobody hears of it.
    assert disk["status"] == "firing"
    lab.silent.clear()
    await lab.describe(one, status="online")
    await lab.look()
    assert [row["status"] for row in await lab.alerts()] == ["firing", "resolved"]


async def test_while_the_panel_was_away_nobody_could_be_heard(lab: Lab) -> None:
    await lab.rule(kind="absence", for_seconds=300)
    one = await lab.instance()
    await lab.look()
    lab.silent.add(one)
    await lab.look(3_600)
    assert await lab.alerts() == []
    await lab.looks(285)
    assert await lab.alerts() == []
    await lab.look()
    (alert,) = await lab.alerts()
    assert alert["reason"] == "Nothing was heard of it for 1 hour 5 minutes"


async def test_an_instance_that_was_never_heard_counts_from_its_joining(lab: Lab) -> None:
    await lab.rule(kind="absence", for_seconds=60)
    lab.silent.add(await lab.instance())
    await lab.looks(60)
    assert await lab.alerts() == []
    await lab.look()
    assert len(await lab.alerts()) == 1


async def test_a_value_that_is_not_measured_any_more_is_absent(lab: Lab) -> None:
    await lab.rule(kind="absence", metric="temperature_celsius", for_seconds=120)
    one = await lab.instance(temperature_celsius=40)
    await lab.looks(60)
    lab.set(one, temperature_celsius=None)
    await lab.looks(120)
    assert await lab.alerts() == []
    await lab.look()
    (alert,) = await lab.alerts()
    assert alert["reason"] == "Temperature was not measured for 2 minutes"
    lab.set(one, temperature_celsius=41)
    await lab.look()
    assert await lab.alerts("firing") == []


async def test_backups_apps_certificates_and_clocks(lab: Lab) -> None:
    await lab.rule(kind="absence", name="backup", metric="backup", for_seconds=86_400)
    await lab.rule(name="old", metric="backup_age_seconds", operator=">", value=3_600)
    await lab.rule(name="apps", metric="apps_down", operator=">", value=0)
    await lab.rule(name="certificate", metric="certificate_left_seconds", operator="<", value=14 * 86_400)
    await lab.rule(name="health", metric="health_score", operator="<", value=50)
    apps = [{"name": "cloud", "status": "crashed"}, {"name": "mail", "status": "running"}]
    await lab.instance("never", values={"created_at": START - timedelta(days=2)})
    await lab.instance("two hours", values={"backup_at": START - timedelta(hours=2)})
    ends = START + timedelta(days=3)
    await lab.instance("bad", values={"apps": apps, "certificate_expires_at": ends, "health_score": 0})
    await lab.look(0)
    found = {(row["name"], row["instance_name"]): row["reason"] for row in await lab.alerts()}
    assert found == {
        ("backup", "never"): "There was no backup for 2 days",
        ("old", "two hours"): "The age of its newest backup is 2 hours: more than 1 hour",
        ("apps", "bad"): "The number of apps that are down is 1 (cloud): more than 0",
        ("certificate", "bad"): "The time that its certificate is still good for is 3 days: less than 14 days",
        ("health", "bad"): "Its health score is 0: less than 50",
    }


async def test_a_rate_is_a_change_within_its_window(lab: Lab) -> None:
    await lab.rule(kind="rate", metric="disk_used_bytes", value=10**9, window_seconds=600)
    await lab.rule(kind="rate", name="fall", metric="load_1", operator="<=", value=-5, window_seconds=600)
    steady = await lab.instance("steady", disk_used_bytes=10**9, load_1=1)
    growing = await lab.instance("growing", disk_used_bytes=10**9, load_1=9)
    for minute in range(9):
        lab.set(growing, disk_used_bytes=(1 + minute * 0.2) * 10**9)
        await lab.looks(60)
    (alert,) = await lab.alerts()
    assert alert["instance_id"] == growing
    assert alert["reason"].startswith("Disk used has changed by 1.")
    assert alert["reason"].endswith("GB within 10 minutes: 1 GB or more")
    lab.set(growing, load_1=3)
    await lab.look()
    assert [row["name"] for row in await lab.alerts("firing")] == ["Rule", "fall"]
    await lab.looks(900, 60)
    assert await lab.alerts("firing") == []
    windows = await lab.rows("SELECT instance_id, cardinality(points) AS size FROM alert_states")
    assert {row["instance_id"] for row in windows} == {steady, growing}
    assert all(row["size"] <= 25 for row in windows)


async def test_a_forecast_goes_on_as_it_went(lab: Lab) -> None:
    hour = 3_600
    await lab.rule(
        kind="forecast", name="full", value=100, window_seconds=6 * hour, horizon_seconds=48 * hour, severity="critical"
    )
    filling = await lab.instance("filling", disk_percent=70)
    await lab.instance("steady", disk_percent=80)
    noisy = await lab.instance("noisy", disk_percent=50)
    for step in range(24):
        # 0.7 percent an hour: full in some 41 hours; the noise leads nowhere.
        lab.set(filling, disk_percent=70 + 0.7 * step / 4)
        lab.set(noisy, disk_percent=50 + 5 * (step % 2))
        await lab.look(900)
        if step == 10:
            assert await lab.alerts() == []
    (alert,) = await lab.alerts()
    assert (alert["instance_id"], alert["severity"]) == (filling, "critical")
    assert "and, going on so, will be 10" in alert["reason"]
    assert alert["reason"].endswith("% in 2 days: 100 % or more")


async def test_what_an_instance_makes_up_does_no_harm(lab: Lab) -> None:
    await lab.rule(name="t")
    await lab.rule(kind="rate", name="r", value=1, window_seconds=300)
    await lab.rule(kind="forecast", name="f", value=100, window_seconds=300)
    one, good = await lab.instance("evil"), await lab.instance("good", disk_percent=95)
    for value in (float("inf"), 1e308, -1e308, float("nan"), 1e19, 1e17, -1e17, 5e-324) * 3:
        async with lab.database.begin(tenant=lab.tenant_id) as session:
            sql = text("UPDATE fleet_presence SET measured[6] = :value, measured_at = :now WHERE instance_id = :id")
            await session.execute(sql, {"value": value, "now": lab.now, "id": one})
        lab.silent.add(one)
        await lab.look(30)
    assert good in {row["instance_id"] for row in await lab.alerts("firing")}
    async with lab.database.begin(tenant=lab.tenant_id) as session:
        await session.execute(text("UPDATE fleet_presence SET measured = '{}' WHERE instance_id = :id"), {"id": one})
    await lab.look()


async def test_what_comes_back_soon_is_the_same_alert(lab: Lab) -> None:
    await lab.channel()
    await lab.rule()
    one = await lab.instance(disk_percent=95)
    await lab.look()
    for _ in range(5):
        lab.set(one, disk_percent=50)
        await lab.looks(60)
        lab.set(one, disk_percent=96)
        await lab.looks(30)
    (alert,) = await lab.alerts()
    assert (alert["status"], alert["count"], alert["value"], alert["resolved_at"]) == ("firing", 6, 96, None)
    assert await lab.happened() == ["alert.fired", "alert.resolved"] * 5 + ["alert.fired"]
    (told,) = await lab.told()
    assert (told["firing_count"], told["resolved_count"]) == (1, 0)
    lab.set(one, disk_percent=50)
    await lab.looks(300)
    assert len(await lab.told()) == 1
    await lab.look()
    assert [(each["firing_count"], each["resolved_count"]) for each in await lab.told()] == [(1, 0), (0, 1)]
    # Later it is another one.
    lab.set(one, disk_percent=95)
    await lab.looks(60)
    assert [row["count"] for row in await lab.alerts()] == [6, 1]
    assert len(await lab.told()) == 3


async def test_an_alert_that_was_acknowledged_stays_so_when_it_comes_back(lab: Lab) -> None:
    await lab.rule()
    one = await lab.instance(disk_percent=95)
    await lab.look()
    await lab.act("acknowledge", (await lab.alerts())[0]["id"])
    lab.set(one, disk_percent=50)
    await lab.look()
    lab.set(one, disk_percent=95)
    await lab.look()
    (alert,) = await lab.alerts()
    assert (alert["status"], alert["count"]) == ("acknowledged", 2)


@pytest.mark.usefixtures("by_the_lab")
async def test_what_is_ended_by_hand_and_goes_on_fires_anew_after_its_time(lab: Lab) -> None:
    await lab.rule(for_seconds=60)
    await lab.instance(disk_percent=95)
    await lab.looks(75)
    (alert,) = await lab.alerts()
    await lab.act("resolve", alert["id"])
    await lab.looks(45)
    (alert,) = await lab.alerts()
    assert (alert["status"], alert["resolved_by"]) == ("resolved", lab.principal.user_id)
    await lab.look()
    assert [row["status"] for row in await lab.alerts()] == ["resolved", "firing"]


@pytest.mark.usefixtures("by_the_lab")
async def test_a_rule_that_is_switched_off_changed_or_deleted_ends_its_alerts(lab: Lab) -> None:
    await lab.channel()
    rule_id = await lab.rule(name="first")
    await lab.instance(disk_percent=95)
    await lab.looks(60)
    await lab.change(rule_id, name="second", severity="critical")
    (alert,) = await lab.alerts()
    assert (alert["status"], alert["name"], alert["severity"]) == ("firing", "second", "critical")
    await lab.change(rule_id, enabled=False)
    (alert,) = await lab.alerts()
    assert (alert["status"], alert["resolved_reason"]) == ("resolved", "The rule was switched off")
    await lab.looks(30)
    assert [(each["firing_count"], each["resolved_count"]) for each in await lab.told()] == [(1, 0), (0, 1)]
    await lab.change(rule_id, enabled=True)
    await lab.looks(60)
    await lab.change(rule_id, value=94)
    assert [row["status"] for row in await lab.alerts()] == ["resolved", "resolved"]
    await lab.looks(60)
    assert [row["limit_value"] for row in await lab.alerts("firing")] == [94]
    await lab.drop(rule_id)
    last = (await lab.alerts())[-1]
    assert (last["status"], last["rule_id"], last["resolved_reason"]) == ("resolved", None, "The rule was deleted")
    assert (await lab.told())[-1]["resolved"][0]["alert_id"] == last["id"]
    assert await lab.happened() == ["alert.fired", "alert.resolved"] * 3
    assert await lab.rows("SELECT * FROM alert_states") == []


async def test_two_evaluators_at_once_find_each_change_once(lab: Lab) -> None:
    await lab.channel()
    await lab.rule()
    instances = [await lab.instance(f"n{number}", disk_percent=95) for number in range(20)]
    await lab.heard()
    watchers = [lab.watcher() for _ in range(4)]
    for _ in range(5):
        lab.now += timedelta(seconds=15)
        await asyncio.gather(*(one.look(lab.tenant_id, lab.now) for one in watchers))
    assert len(await lab.alerts()) == 20
    assert await lab.happened() == ["alert.fired"] * 20
    (told,) = await lab.told()
    assert told["firing_count"] == 20
    for each in instances:
        lab.set(each, disk_percent=1)
    await lab.heard()
    for _ in range(30):
        lab.now += timedelta(seconds=15)
        await asyncio.gather(*(one.look(lab.tenant_id, lab.now) for one in watchers))
    assert [each["resolved_count"] for each in await lab.told()] == [0, 20]
    assert len(await lab.happened()) == 40


async def test_an_evaluation_that_dies_leaves_everything_as_it_was(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.channel()
    await lab.rule(for_seconds=60)
    await lab.instance(disk_percent=95)
    await lab.looks(60)

    async def die(*_: Any, **__: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr("quazzar.panel.alerts.store.end_turn", die)
        with pytest.raises(ConnectionError):
            await lab.look()
    assert await lab.alerts() == []
    assert await lab.happened() == []
    # Another process goes on, and the time that was pending is not forgotten.
    lab.watch = lab.watcher()
    await lab.look(1)
    assert len(await lab.alerts()) == 1
    # Fired and not told yet: the process that comes next tells.
    with monkeypatch.context() as patched:
        patched.setattr("quazzar.panel.alerts.process.tell_due", die)
        with pytest.raises(ConnectionError):
            await lab.looks(60)
    assert await lab.told() == []
    await lab.look()
    assert [each["firing_count"] for each in await lab.told()] == [1]
    assert await lab.happened() == ["alert.fired"]


async def test_one_tenant_that_fails_holds_up_no_other(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    other = await make_member(lab.database)
    assert other.tenant_id is not None
    await make_instance(lab.database, other.tenant_id, certificate_expires_at=START)
    await lab.rule()
    await lab.instance(disk_percent=95)
    await lab.heard()
    usual = evaluation.evaluate

    async def fails(session: Any, tenant_id: str, *args: Any) -> Any:
        if tenant_id == other.tenant_id:
            raise ValueError
        return await usual(session, tenant_id, *args)

    monkeypatch.setattr("quazzar.panel.alerts.process.evaluate", fails)
    watch = lab.watcher()
    watch._pace = Pace(timedelta(seconds=15), timedelta(seconds=30))
    await watch.step(lab.now)
    assert len(await lab.alerts()) == 1
    monkeypatch.undo()
    async with lab.database.begin(tenant=other.tenant_id) as session:
        (due,) = (await session.execute(text("SELECT due_at FROM alert_turns"))).scalars()
    assert due == lab.now + timedelta(seconds=15)


@pytest.mark.parametrize(("took", "rests"), [(0.5, 15), (8, 32), (1_000, 60)])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_tenant_that_takes_long_gives_others_their_turns(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, took: float, rests: float, fails: bool
) -> None:
    """Never so seldom that the panel would seem to have been away."""
    clock = 0.0
    usual = judging.find_changes

    async def slow(*args: Any) -> Any:
        nonlocal clock
        clock += took
        if fails:
            raise ValueError
        return await usual(*args)

    await lab.rule()
    await lab.instance()
    async with lab.database.begin(tenant=lab.tenant_id) as session:
        await session.execute(text("DELETE FROM alert_rules WHERE name <> 'Rule'"))
    monkeypatch.setattr(judging, "find_changes", slow)
    for module in (evaluation, process):
        monkeypatch.setattr(module, "monotonic", lambda: clock)
    watch = lab.watcher()
    watch._pace = Pace(timedelta(seconds=15), timedelta(seconds=30))
    await watch.step(lab.now)
    assert [row["due_at"] for row in await lab.rows("SELECT due_at FROM alert_turns")] == [
        lab.now + timedelta(seconds=rests)
    ]


async def test_tenants_that_another_process_is_at_hold_up_no_other(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BATCH", 2)
    for _ in range(3):
        member = await make_member(lab.database)
        assert member.tenant_id is not None
        await make_instance(lab.database, member.tenant_id)
    await lab.instance()
    lab.now += timedelta(days=1)
    await lab.rows("UPDATE alert_turns SET due_at = :now RETURNING due_at", now=lab.now)
    async with lab.database.begin() as other:
        await see_all_tenants(other)
        others = text("SELECT tenant_id FROM alert_turns WHERE tenant_id <> :own FOR UPDATE")
        assert len((await other.execute(others, {"own": lab.tenant_id})).all()) >= 3
        # The longest waiting first, and each of them once: it ends although they are due still.
        async with asyncio.timeout(60):
            await lab.watch.step(lab.now)
    (turn,) = await lab.rows("SELECT evaluated_at FROM alert_turns")
    assert turn["evaluated_at"] == lab.now


async def test_a_tenant_begins_with_rules_and_an_older_one_is_given_them(database: Database, lab: Lab) -> None:
    member = await make_member(database)
    assert member.tenant_id is not None
    async with database.begin(tenant=member.tenant_id) as session:
        names = (await session.execute(text("SELECT name FROM alert_rules"))).scalars().all()
        assert sorted(names) == sorted(rule.name for rule in DEFAULTS)
        await session.execute(text("DELETE FROM alert_rules"))
        await session.execute(text("UPDATE alert_turns SET seeded = false"))
    await lab.watch.step(START)
    async with database.begin(tenant=member.tenant_id) as session:
        count = text("SELECT count(*) FROM alert_rules")
        assert (await session.execute(count)).scalar_one() == len(DEFAULTS)
        await session.execute(text("DELETE FROM alert_rules"))
    await lab.watch.step(START + timedelta(minutes=1))
    async with database.begin(tenant=member.tenant_id) as session:
        assert (await session.execute(count)).scalar_one() == 0


async def test_a_tenant_that_an_older_release_made_is_not_forgotten(lab: Lab) -> None:
    await lab.instance()
    await lab.rows("DELETE FROM alert_turns RETURNING tenant_id")
    for _ in range(2):
        await lab.watch.adopt()
    await lab.watch.step(lab.now + timedelta(seconds=15))
    assert len(await lab.rows("SELECT id FROM alert_rules")) == len(DEFAULTS)


@pytest.mark.usefixtures("by_the_lab")
async def test_a_mute_holds_for_the_next_alert_too(lab: Lab) -> None:
    await lab.channel()
    await lab.rule()
    one = await lab.instance(disk_percent=95)
    await lab.look()
    await lab.act("mute", (await lab.alerts())[0]["id"], AlertMute(3_600))
    lab.set(one, disk_percent=1)
    await lab.looks(600)
    lab.set(one, disk_percent=95)
    await lab.looks(60)
    first, second = await lab.alerts()
    assert first["muted_until"] == second["muted_until"]
    assert await lab.told() == []
    # Who ends it on one ends it for those that follow.
    await lab.act("mute", second["id"], AlertMute(0))
    lab.set(one, disk_percent=1)
    await lab.looks(600)
    lab.set(one, disk_percent=95)
    await lab.looks(60)
    assert (await lab.alerts())[-1]["muted_until"] is None
    assert [each["firing_count"] for each in await lab.told()] == [1]


async def test_users_and_evaluators_do_not_wait_for_each_other_in_a_ring(lab: Lab) -> None:
    rule_id = await lab.rule()
    many = [await lab.instance(f"n{number}", disk_percent=95) for number in range(20)]
    await lab.look()
    watchers = [lab.watcher() for _ in range(2)]

    async def evaluate(watch: Watch) -> None:
        for _ in range(20):
            await watch.look(lab.tenant_id, lab.now)

    async def resolve() -> None:
        for row in reversed(await lab.alerts("firing")):
            await lab.act("resolve", row["id"])

    async def leave() -> None:
        for each in many[:5]:
            async with lab.database.begin(tenant=lab.tenant_id) as session:
                await revoke(session, lab.tenant_id, each, "n", "It was deleted")

    async def change() -> None:
        for value in range(50, 60):
            await lab.change(rule_id, value=value)

    await asyncio.gather(*(evaluate(one) for one in watchers), resolve(), leave(), change())
    await lab.looks(30)
    assert {row["instance_id"] for row in await lab.alerts("firing")} == set(many[5:])


async def test_a_tenant_may_be_deleted_while_it_is_evaluated(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.rule()
    await lab.instance(disk_percent=95)
    await lab.heard()
    judged, deleting = asyncio.Event(), asyncio.Event()
    usual = judging.begin

    async def slowly(*args: Any) -> None:
        judged.set()
        await deleting.wait()
        await asyncio.sleep(0.1)
        await usual(*args)

    async def delete() -> None:
        await judged.wait()
        async with lab.database.begin(tenant=lab.tenant_id) as session:
            deleting.set()
            await tenants.get_tenant(session, lab.tenant_id, lock=True)
            await tenants.delete_tenant(session, lab.tenant_id)

    monkeypatch.setattr("quazzar.panel.alerts.judging.begin", slowly)
    lab.now += timedelta(seconds=15)
    await asyncio.gather(lab.watch.look(lab.tenant_id, lab.now), delete())
    assert await lab.alerts() == []
    await lab.watch.look(lab.tenant_id, lab.now + timedelta(seconds=15))


async def test_what_has_been_over_for_three_months_is_forgotten(lab: Lab) -> None:
    await lab.rule()
    one = await lab.instance(disk_percent=95)
    await lab.instance("going", disk_percent=95)
    await lab.look()
    lab.set(one, disk_percent=1)
    await lab.look()
    run = JobRun(job_id="job_x", kind=prune.kind, attempt=1, database=lab.database, resources=Resources())
    await prune(run)
    assert len(await lab.alerts()) == 2
    await lab.rows(
        "UPDATE alerts SET fired_at = now() - interval '91 days',"
        " resolved_at = CASE WHEN status = 'resolved' THEN now() - interval '91 days' END RETURNING id"
    )
    await prune(run)
    assert [row["status"] for row in await lab.alerts()] == ["firing"]
