"""Ids sort by time as plain text and never meet."""

import re

import time_machine

from quazzar.core.ids import new_id


def test_form_and_order() -> None:
    with time_machine.travel(1_700_000_000, tick=False) as clock:
        ids = []
        for _ in range(2000):
            ids.append(new_id("app"))
            clock.shift(0.001)
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"app_[a-z2-7]{26}", one) for one in ids)
