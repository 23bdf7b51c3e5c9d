"""What tests of apps share."""

from collections.abc import AsyncIterator, Iterator

import pytest

from quazzar.instance.apps import auto_updating, disks, history
from quazzar.instance.apps.runtimes.memory import MemoryEngine
from tests.conftest import RunningApp
from tests.factories.apps import engine_of


@pytest.fixture(scope="module", autouse=True)
def nothing_by_the_clock() -> Iterator[None]:
    """What an app's process does now and then by itself, tests do when they want it: otherwise an update begins, a disk
    is measured or a sample is written between two lines of theirs.
    """
    day = 86_400.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto_updating, "LOOK_SECONDS", day)
        patch.setattr(disks, "LOOK_SECONDS", day)
        patch.setattr(history, "ROUND_SECONDS", day)
        yield


@pytest.fixture
async def engine(app: RunningApp) -> AsyncIterator[MemoryEngine]:
    """The engine in memory behind the app, mended after the test."""
    found = engine_of(app)
    yield found
    found.come_back()
    found.unknown_images.clear()
    found.moved_tags.clear()
    found.behaviours.clear()
    found.foreign_ports.clear()
