"""How an instance dials again: with full jitter, so that thousands that lost one panel do not come back together."""

import asyncio
from pathlib import Path
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
