"""A client of the panel, and the owner of a fresh tenant."""

from collections.abc import AsyncIterator

import httpx
import pytest

from quazzar.core.db import Database
from tests.conftest import RunningApp
from tests.factories.accounts import MadeUser, make_member


@pytest.fixture(scope="module")
async def client(app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


@pytest.fixture
async def ada(database: Database) -> MadeUser:
    return await make_member(database)
