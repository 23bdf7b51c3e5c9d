"""Tenants with their owners' clients, and panel processes with lines to instances."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.settings import Settings
from tests.panel.commands.instances import PanelProcess, running_process
from tests.panel.fleet.conftest import ada, eve, new_tenant

__all__ = ["ada", "eve", "new_tenant"]


@pytest.fixture(scope="module")
async def process(settings: Settings, keyring: Keyring, database: Database) -> AsyncIterator[PanelProcess]:
    """One panel process without its HTTP side."""
    async with running_process(settings, keyring, database) as running:
        yield running


@pytest.fixture(scope="module")
async def other_process(settings: Settings, keyring: Keyring, database: Database) -> AsyncIterator[PanelProcess]:
    """Another one on the same database."""
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(running_process(settings, keyring, database))
