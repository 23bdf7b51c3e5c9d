"""Scenes that more than one module is played on; each module has its own."""

from collections.abc import AsyncIterator, Iterator

import pytest

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from tests.factories.halves import Halves, both_halves
from tests.product.scene import Scene, scene

DISK_BYTES = 3 * 1024**3


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A product on a real engine whose disk can be filled."""
    # An engine tries a broken layer again after a while, five times unless it is told otherwise.
    with scene(tmp_path_factory.mktemp("stage"), "--max-download-attempts=1", disk_bytes=DISK_BYTES) as found:
        yield found


@pytest.fixture(scope="module")
async def halves(
    tmp_path_factory: pytest.TempPathFactory, keyring: Keyring, database: Database
) -> AsyncIterator[Halves]:
    """Both halves, with the server of the instance's half online at the panel's."""
    async with both_halves(tmp_path_factory.mktemp("halves"), keyring, database) as made:
        made.begin()
        await made.set_up()
        await made.online()
        yield made
