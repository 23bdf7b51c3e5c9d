"""Tenants with their owners' clients."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest

from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, make_member


@dataclass
class Tenant:
    """A tenant and a client of the panel that is logged in as its owner."""

    id: str
    http: httpx.AsyncClient
    user_id: str


@pytest.fixture(scope="module")
async def new_tenant(app: RunningApp) -> AsyncIterator[Callable[[], object]]:
    async with AsyncExitStack() as stack:

        async def make() -> Tenant:
            member = await make_member(app.database)
            http = await stack.enter_async_context(app.client())
            http.headers.update(await headers_of(http, member))
            http.base_url = httpx.URL("http://localhost/panel")
            assert member.tenant_id is not None
            return Tenant(member.tenant_id, http, member.id)

        yield make


@pytest.fixture(scope="module")
async def ada(new_tenant: Callable[[], object]) -> Tenant:
    made = await new_tenant()  # type: ignore[misc]
    assert isinstance(made, Tenant)
    return made


@pytest.fixture(scope="module")
async def eve(new_tenant: Callable[[], object]) -> Tenant:
    made = await new_tenant()  # type: ignore[misc]
    assert isinstance(made, Tenant)
    return made
