"""Any course of events: what the database comes to, and what is told of it, is what a few lines of Python say."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.panel.alerts.evaluation import FLAP
from quazzar.panel.alerts.schemas import AlertMute
from quazzar.settings import Settings
from tests.panel.alerts.conftest import START, make_lab, set_clocks

FOR = timedelta(seconds=60)
GROUP = timedelta(seconds=30)
LOOK = st.tuples(st.just("look"), st.sampled_from([15, 30, 60, 105]), st.sampled_from([95, 95, 50, None]))
ACT = st.tuples(st.sampled_from(["acknowledge", "resolve", "mute", "restart"]), st.just(0), st.just(None))


@dataclass
class Modelled:
    status: str = "firing"
    count: int = 1
    fired_at: datetime = START
    resolved_at: datetime | None = None
    by_hand: bool = False
    acknowledged: bool = False
    muted_until: datetime | None = None
    notified: bool = False
    notices: dict[str, datetime] = field(default_factory=dict)


class Model:
    """One rule and one instance."""

    def __init__(self) -> None:
        self.now = START
        self.since: datetime | None = None
        self.alerts: list[Modelled] = []
        self.events: list[str] = []
        self.told: list[tuple[list[int], list[int]]] = []

    @property
    def open(self) -> Modelled | None:
        return self.alerts[-1] if self.alerts and self.alerts[-1].status != "resolved" else None

    def look(self, seconds: int, value: float | None) -> None:
        self.now += timedelta(seconds=seconds)
        if value is not None and value >= 90:
            self.since = self.since or self.now
            if self.open is None and self.since <= self.now - FOR:
                self._fire()
        elif value is not None:
            self.since = None
            if self.open is not None:
                self._end(self.open, self.now + FLAP)
        self._tell()

    def _fire(self) -> None:
        self.events.append("alert.fired")
        last = self.alerts[-1] if self.alerts else None
        if (
            last is not None
            and not last.by_hand
            and last.resolved_at is not None
            and last.resolved_at > self.now - FLAP
        ):
            last.status = "acknowledged" if last.acknowledged else "firing"
            last.count += 1
            last.resolved_at = None
            last.notices.pop("resolved", None)
            return
        made = Modelled(fired_at=self.now, muted_until=last.muted_until if last is not None else None)
        made.notices["fired"] = self.now + GROUP
        self.alerts.append(made)

    def _end(self, alert: Modelled, told_at: datetime) -> None:
        self.events.append("alert.resolved")
        alert.status, alert.resolved_at = "resolved", self.now
        alert.notices["resolved"] = told_at

    def act(self, action: str) -> None:
        alert = self.open
        if alert is None:
            return
        if action == "acknowledge":
            alert.status, alert.acknowledged = "acknowledged", True
        elif action == "mute":
            alert.muted_until = self.now + timedelta(seconds=300)
        else:
            self._end(alert, self.now)
            alert.by_hand = True
            if self.since is not None:
                self.since = self.now

    def _tell(self) -> None:
        if not any(due <= self.now for one in self.alerts for due in one.notices.values()):
            return
        fired, over = [], []
        for number, alert in enumerate(self.alerts):
            taken = {kind for kind, due in alert.notices.items() if kind != "resolved" or due <= self.now}
            for kind in taken:
                del alert.notices[kind]
            if not taken or (alert.muted_until is not None and alert.muted_until > self.now):
                continue
            if "resolved" not in taken:
                fired.append(number)
            elif alert.notified or "fired" in taken:
                over.append(number)
        for number in fired:
            self.alerts[number].notified = True
        if fired or over:
            self.told.append((fired, over))


@settings(max_examples=12, deadline=None)
@given(course=st.lists(st.one_of(LOOK, LOOK, LOOK, ACT), max_size=25))
async def test_any_course(
    database: Database, settings: Settings, keyring: Keyring, course: list[tuple[str, int, float | None]]
) -> None:
    lab, model = await make_lab(database, settings, keyring), Model()
    await lab.channel()
    await lab.rule(for_seconds=60)
    one = await lab.instance()
    with pytest.MonkeyPatch.context() as patched:
        set_clocks(lab, patched)
        for action, seconds, value in course:
            if action == "look":
                lab.set(one, disk_percent=value)
                await lab.look(seconds)
                model.look(seconds, value)
            elif action == "restart":
                lab.watch = lab.watcher()
            else:
                rows = [row for row in await lab.alerts() if row["status"] != "resolved"]
                for row in rows:
                    args = (AlertMute(300),) if action == "mute" else ()
                    await lab.act(action, row["id"], *args)
                model.act(action)
    found = [(row["status"], row["count"], row["fired_at"], row["resolved_at"]) for row in await lab.alerts()]
    assert found == [(one.status, one.count, one.fired_at, one.resolved_at) for one in model.alerts]
    assert await lab.happened() == model.events
    numbers = {row["id"]: number for number, row in enumerate(await lab.alerts())}
    told = [
        tuple([numbers[row["alert_id"]] for row in each[part]] for part in ("firing", "resolved"))
        for each in await lab.told()
    ]
    assert told == model.told
