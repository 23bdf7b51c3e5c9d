"""Whatever instances do and whenever somebody looks, a rollout keeps its promises. No database, no clock."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quazzar.panel.commands.rollout import (
    OVER,
    UNDER_WAY,
    WAITING,
    Begin,
    Condition,
    Counts,
    End,
    Finish,
    Move,
    Place,
    Plan,
    Recall,
    Start,
    Stop,
    Turn,
    decide,
    look_at,
)
from quazzar.panel.commands.schemas import Strategy
from quazzar.panel.commands.service import batch_numbers

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIFE = timedelta(hours=1)
ENDED = ("completed", "failed", "cancelled", "expired")


class Unit:
    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.condition: Condition = "present"
        self.online = True
        self.begun = 0


class World:
    """Instances, the clock, and a panel that makes every move that is decided."""

    def __init__(self, plan: Plan, batches: list[int]) -> None:
        self.plan = plan
        self.now = NOW
        self.units = [Unit(batch) for batch in batches]
        self.place = Place(status="pending", outcome=None, batch=1, next_at=NOW)
        self.finishes = 0
        self.most_under_way = 0

    def counts(self) -> Counts:
        return dict(Counter((unit.batch, unit.condition) for unit in self.units))

    def of(self, *conditions: Condition, upto: int = 10**6) -> list[Unit]:
        return [unit for unit in self.units if unit.condition in conditions and unit.batch <= upto]

    def settle(self) -> None:
        """Look until there is nothing to do."""
        for _ in range(10 * len(self.units) + 50):
            move = decide(self.plan, self.place, self.counts(), self.now)
            if move is None:
                return
            self.make(move)
            self.check()
        raise AssertionError("it does not come to rest")

    def make(self, move: Move) -> None:
        match move:
            case End():
                chosen = self.of(*move.conditions, upto=move.batch or 10**6)[: move.most]
                assert chosen, "an empty move"
                for unit in chosen:
                    unit.condition = move.status
            case Recall():
                chosen = self.of(*move.conditions)
                assert chosen, "an empty move"
                for unit in chosen:
                    unit.condition = "present" if unit.online else "absent"
            case Begin():
                failed = len(self.of("failed"))
                limit = self.plan.max_failures
                assert limit is None or failed < max(1, limit), "begun beyond the limit"
                chosen = self.of("present", upto=move.batch)[: move.most]
                assert chosen, "an empty move"
                for unit in chosen:
                    unit.condition = "called"
                    unit.begun += 1
            case Turn():
                self.place = Place(
                    status=self.place.status, outcome=self.place.outcome, batch=move.batch, next_at=move.next_at
                )
            case Start():
                self.to("running")
            case Stop():
                self.place = Place(
                    status="stopping", outcome="failed", batch=self.place.batch, next_at=self.place.next_at
                )
            case Finish():
                self.finishes += 1
                self.to(move.status)

    def to(self, status: str, outcome: str | None = None) -> None:
        self.place = Place(
            status=status, outcome=outcome or self.place.outcome, batch=self.place.batch, next_at=self.place.next_at
        )

    def check(self) -> None:
        under_way = len(self.of(*UNDER_WAY, "lapsed"))
        self.most_under_way = max(self.most_under_way, under_way)
        assert under_way <= self.plan.batch_size, "more at once than a batch holds"
        if self.plan.canary and any(unit.begun for unit in self.units if unit.batch > 1):
            assert self.of("completed", upto=1), "begun without a canary"
        if self.place.status in ENDED:
            assert not [unit for unit in self.units if unit.condition not in OVER], "ended with something open"


conditions = st.sampled_from(
    ["send", "send", "complete", "fail", "silence", "offline", "online", "worse", "settled", "revoke", "clock", "pause"]
)
plans = st.fixed_dictionaries(
    {
        "total": st.integers(1, 12),
        "canary": st.integers(0, 3),
        "size": st.integers(1, 12),
        "max_failures": st.none() | st.integers(0, 4),
        "pause": st.sampled_from([0, 0, 60]),
        "offline": st.sampled_from(["queue", "skip", "fail"]),
        "scheduled": st.sampled_from([None, None, 300]),
        "health": st.booleans(),
    }
)


def world_of(given: dict[str, Any]) -> World:
    strategy = Strategy(batch_size=given["size"], canary=given["canary"])
    scheduled = NOW + timedelta(seconds=given["scheduled"]) if given["scheduled"] is not None else None
    plan = Plan(
        canary=min(given["canary"], given["total"]),
        batch_size=min(given["size"], given["total"]),
        max_failures=given["max_failures"],
        pause=timedelta(seconds=given["pause"]),
        offline=given["offline"],
        expires_at=(scheduled or NOW) + LIFE,
        scheduled_at=scheduled,
    )
    return World(plan, batch_numbers(strategy, given["total"]))


def happen(world: World, what: str, unit: Unit, *, health: bool) -> None:
    """Something that the panel does not decide."""
    match what:
        case "send" if unit.condition == "called" and world.place.status == "running":
            unit.condition = "flying"
        case "complete" if unit.condition == "flying":
            unit.condition = "settling" if health else "completed"
        case "fail" if unit.condition == "flying":
            unit.condition = "failed"
        case "silence" if unit.condition == "flying":
            unit.condition = "lost"
        case "worse" if unit.condition == "settling":
            unit.condition = "worse"
        case "settled" if unit.condition == "settling":
            unit.condition = "settled"
        case "offline" if unit.online:
            unit.online = False
            gone: dict[str, Condition] = {"present": "absent", "called": "lapsed", "settling": "worse"}
            unit.condition = gone.get(unit.condition, unit.condition)
        case "online" if not unit.online:
            unit.online = True
            back: dict[str, Condition] = {"absent": "present", "lapsed": "called"}
            unit.condition = back.get(unit.condition, unit.condition)
        case "revoke" if unit.condition not in OVER:
            unit.condition = "revoked"
        case "clock":
            world.now += timedelta(minutes=10)
        case "pause" if world.place.status in ("pending", "running"):
            world.to("paused")
        case "pause" if world.place.status == "paused":
            scheduled = world.plan.scheduled_at
            world.to("pending" if scheduled is not None and scheduled > world.now else "running")


@settings(max_examples=400, deadline=None)
@given(plans, st.lists(st.tuples(conditions, st.integers(0, 11)), max_size=60), st.booleans())
def test_a_rollout_keeps_its_promises(given_plan: dict[str, Any], events: list[tuple[str, int]], cancels: bool) -> None:
    world = world_of(given_plan)
    world.settle()
    begun_at_stop: list[int] | None = None
    for what, number in events:
        happen(world, what, world.units[number % len(world.units)], health=given_plan["health"])
        world.settle()
        if world.place.status in ("stopping", *ENDED):
            begun = [unit.begun for unit in world.units]
            assert begun_at_stop in (None, begun), "something began after the end was decided"
            begun_at_stop = begun
    failed_before = len(world.of("failed"))
    limit = given_plan["max_failures"]
    if limit is not None:
        assert failed_before <= max(1, limit) + given_plan["size"] + given_plan["canary"], "failed beyond what flew"
    if cancels and world.place.status not in ENDED:
        world.to("stopping", "cancelled")
        world.settle()
    # Whatever became of instances: by its time the rollout is over, without anybody doing anything but look.
    for _ in range(20):
        later = look_at(world.plan, world.place, world.counts(), world.now)
        if later is None:
            break
        assert later >= world.now
        world.now = max(later, world.now + LIFE)
        for unit in world.of("flying"):
            unit.condition = "lost"
        for unit in world.of("settling"):
            unit.condition = "settled"
        world.settle()
    assert world.place.status in ENDED
    assert world.finishes == 1
    assert all(unit.condition in OVER for unit in world.units)
    expected = (
        world.place.outcome
        or (world.of("failed") and "failed")
        or (world.of("expired") and "expired")
        or ("cancelled" if len(world.of("cancelled")) == len(world.units) else "completed")
    )
    assert world.place.status == expected
    assert decide(world.plan, world.place, world.counts(), world.now) is None


@given(st.integers(1, 300), st.integers(0, 20), st.none() | st.integers(1, 50), st.none() | st.floats(0.1, 100))
def test_every_unit_is_in_a_batch_of_the_right_size(
    total: int, canary: int, size: int | None, percent: float | None
) -> None:
    strategy = Strategy(batch_size=None if percent is not None else size, percent=percent, canary=canary)
    batches = batch_numbers(strategy, total)
    assert len(batches) == total
    assert batches == sorted(batches)
    sizes = Counter(batches)
    assert set(sizes) == set(range(1, max(batches) + 1))
    if canary:
        assert sizes.pop(1) == min(canary, total)
    if percent is None:
        assert all(count <= (size or total) for count in sizes.values())
    assert len(set(list(sizes.values())[:-1])) <= 1


def plan(**values: Any) -> Plan:
    usual: dict[str, Any] = {
        "canary": 0,
        "batch_size": 2,
        "max_failures": None,
        "pause": timedelta(),
        "offline": "queue",
        "expires_at": NOW + LIFE,
        "scheduled_at": None,
    }
    return Plan(**usual | values)


def running(batch: int = 1) -> Place:
    return Place(status="running", outcome=None, batch=batch, next_at=NOW)


def test_the_limit_is_looked_at_before_each_unit_not_each_batch() -> None:
    counts: Counts = {(1, "failed"): 1, (1, "present"): 9}
    assert isinstance(decide(plan(batch_size=10, max_failures=1), running(), counts, NOW), Stop)
    assert decide(plan(batch_size=10, max_failures=2), running(), counts, NOW) == Begin(1, 10)
    # Instances that are offline fail one by one, too: not more of them than the limit.
    absent: Counts = {(1, "absent"): 9, (1, "present"): 3}
    move = decide(plan(batch_size=12, max_failures=2, offline="fail"), running(), absent, NOW)
    assert isinstance(move, End)
    assert (move.status, move.most) == ("failed", 2)


def test_who_missed_a_turn_is_let_in_within_the_size_of_a_batch() -> None:
    counts: Counts = {(1, "completed"): 1, (1, "present"): 3, (2, "flying"): 1, (2, "completed"): 1, (3, "present"): 2}
    assert decide(plan(), running(batch=2), counts, NOW) == Begin(2, 1)
    full: Counts = {(1, "present"): 3, (2, "flying"): 2, (3, "present"): 2}
    assert decide(plan(), running(batch=2), full, NOW) is None


def test_waiting_units_hold_up_no_batch_but_the_canary() -> None:
    counts: Counts = {(1, "absent"): 1, (1, "completed"): 1, (2, "present"): 2}
    assert decide(plan(), running(), counts, NOW) == Turn(2, NOW)
    assert decide(plan(canary=2), running(), counts, NOW) is None
    assert WAITING == ("present", "absent")


@pytest.mark.parametrize("offline", ["queue", "skip", "fail"])
def test_batches_that_nobody_is_there_for_are_passed_in_few_moves(offline: Any) -> None:
    """Each move is statements in one transaction: thousands of offline instances must not make it thousands of them."""
    counts: dict[tuple[int, Condition], int] = {(1, "completed"): 1}
    counts |= {(number, "absent"): 1 for number in range(2, 3002)} | {(3002, "present"): 1}
    place, moves = running(), []
    while (move := decide(plan(offline=offline), place, counts, NOW)) is not None:
        moves.append(move)
        match move:
            case Turn():
                place = msgspec.structs.replace(place, batch=move.batch, next_at=move.next_at)
            case End():
                upto = move.batch or 10**6
                counts = {key: count for key, count in counts.items() if key[1] != "absent" or key[0] > upto}
            case Begin():
                counts = {(batch, "called" if what == "present" else what): 1 for batch, what in counts}
            case _:
                break
        assert len(moves) < 10
    assert any(isinstance(move, Begin) for move in moves)
    # But each pause is a pause.
    paused = plan(offline="queue", pause=timedelta(minutes=1))
    waiting: Counts = {(1, "completed"): 1, (2, "absent"): 1, (3, "absent"): 1}
    assert decide(paused, running(), waiting, NOW) == Turn(2, NOW + timedelta(minutes=1))
