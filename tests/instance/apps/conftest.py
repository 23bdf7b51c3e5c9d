"""What tests of apps share."""

from collections.abc import AsyncIterator

import pytest

from quazzar.instance.apps.runtimes.memory import MemoryEngine
from tests.conftest import RunningApp
from tests.factories.apps import engine_of


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
