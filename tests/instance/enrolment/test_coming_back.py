"""How an instance dials again: with full jitter, so that thousands that lost one panel do not come back together."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.instance.apps.usage import Usage
from quazzar.instance.enrolment.line import Line


class Attempts:
    """What becomes of a line each time that it dials, and how long it would have waited."""

    def __init__(self, outcomes: list[bool | Exception]) -> None:
        self.pauses: list[float] = []
        self.rests: list[float] = []
        self._outcomes = outcomes
        self.over = asyncio.Event()

    async def link(self) -> Any:
        class Link:
            instance_id = "inst_a"

        return Link()

    async def anywhere(self, _: Any) -> bool:
        if not self._outcomes:
            self.over.set()
            await asyncio.Event().wait()
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def uniform(self, least: float, most: float) -> float:
        assert least == 0, "full jitter begins at nothing"
        self.pauses.append(most)
        return most / 2

    async def rest(self, seconds: float) -> None:
        self.rests.append(seconds)


async def test_who_measures_for_a_panel_sleeps_until_something_is_due(
    tmp_path: Path, database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a panel nothing is measured or looked at; without a line as often as there would be heartbeats, also when
    those come more often by then.
    """
    line = Line(database, tmp_path, keyring, Usage())
    links: list[Any] = []
    slept: list[float] = []
    kept: list[float] = []
    asked, over = asyncio.Event(), asyncio.Event()

    async def link() -> Any:
        asked.set()
        return links[0] if links else None

    async def unreachable(_: Any) -> bool:
        await over.wait()
        raise OSError

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if sum(slept) == 63:
            line.recorder.seconds = 5

    async def keep(instance_id: str) -> None:
        assert instance_id == "inst_a"
        await line.recorder.measure()
        kept.append(sum(slept))
        if len(kept) == 4:
            over.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(line, "_link", link)
    monkeypatch.setattr(line, "_anywhere", unreachable)
    monkeypatch.setattr(line.recorder, "keep", keep)
    monkeypatch.setattr("quazzar.instance.enrolment.recording.monotonic", lambda: sum(slept))
    monkeypatch.setattr("quazzar.instance.enrolment.recording.sleep", sleep)
    await line.recorder.measure()
    await line.start()
    try:
        await asyncio.wait_for(asked.wait(), 30)
        assert slept == []
        links.append(SimpleNamespace(instance_id="inst_a"))
        line.changed()
        await asyncio.wait_for(over.wait(), 30)
        assert kept == [30, 60, 65, 70]
    finally:
        await line.stop()


async def test_pauses_double_to_half_a_minute_and_begin_anew_once_it_was_greeted(
    tmp_path: Path, database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(database, tmp_path, keyring, Usage())
    refusals: list[bool | Exception] = [ConnectionRefusedError(), TimeoutError(), *[OSError() for _ in range(5)]]
    attempts = Attempts([*refusals, False, True, True, ConnectionResetError(), OSError()])
    monkeypatch.setattr(line, "_link", attempts.link)
    monkeypatch.setattr(line, "_anywhere", attempts.anywhere)
    monkeypatch.setattr(line, "_rest", attempts.rest)
    monkeypatch.setattr("quazzar.instance.enrolment.line.random.uniform", attempts.uniform)
    keeping = asyncio.create_task(line._keep())
    await asyncio.wait_for(attempts.over.wait(), 30)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert attempts.pauses == [1, 2, 4, 8, 16, 30, 30, 30, 1, 1, 2, 4]
    assert attempts.rests == [most / 2 for most in attempts.pauses]
