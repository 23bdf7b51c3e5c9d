"""Users of both realms, as rows, and clients that are logged in as them."""

import secrets
import uuid
from typing import Any

import httpx
import msgspec
from argon2 import PasswordHasher
from sqlalchemy import insert

from quazzar.accounts.models import User
from quazzar.core.db import Database, set_scope
from quazzar.core.ids import new_id
from quazzar.panel.tenants.models import Membership
from quazzar.panel.tenants.service import TenantService
from tests.conftest import PASSWORD

# Cheap on purpose; logging in replaces it by one with real parameters.
_HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)


class MadeUser(msgspec.Struct):
    id: str
    name: str
    tenant_id: str | None = None


async def make_user(database: Database, *, role: str = "admin", name: str | None = None) -> MadeUser:
    """A user of the instance with `PASSWORD`."""
    user = MadeUser(new_id("usr"), name or f"u-{secrets.token_hex(6)}")
    async with database.begin() as session:
        await session.execute(
            insert(User).values(id=user.id, realm="instance", username=user.name, role=role, password_hash=_HASH)
        )
    return user


async def make_member(database: Database, *, organization: str = "Example") -> MadeUser:
    """A user of the panel with `PASSWORD`, who owns a tenant."""
    user = MadeUser(new_id("usr"), f"{uuid.uuid4().hex}@example.com", new_id("ten"))
    assert user.tenant_id is not None
    async with database.begin() as session:
        await session.execute(
            insert(User).values(id=user.id, realm="panel", email=user.name, name="Ada", password_hash=_HASH)
        )
        await set_scope(session, tenant=user.tenant_id, user=user.id)
        await TenantService(session).create(user.tenant_id, organization, owner_id=user.id)
    return user


async def join(database: Database, user: MadeUser, tenant_id: str, role: str = "viewer") -> str:
    """Make the user a member of the tenant, with a built-in role; gives the member's id."""
    member_id = new_id("mem")
    async with database.begin(tenant=tenant_id) as session:
        await session.execute(insert(Membership).values(tenant_id=tenant_id, user_id=user.id, id=member_id, role=role))
    return member_id


async def make_colleague(database: Database, tenant_id: str, role: str = "viewer") -> MadeUser:
    """A user of the panel with `PASSWORD` who belongs to this tenant alone."""
    user = MadeUser(new_id("usr"), f"{uuid.uuid4().hex}@example.com", tenant_id)
    async with database.begin() as session:
        await session.execute(
            insert(User).values(id=user.id, realm="panel", email=user.name, name="Grace", password_hash=_HASH)
        )
    await join(database, user, tenant_id, role)
    return user


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def log_in(client: httpx.AsyncClient, user: MadeUser, password: str = PASSWORD) -> dict[str, Any]:
    """The token pair (or what login answers instead)."""
    panel = user.tenant_id is not None
    path = "/panel/api/auth/login" if panel else "/api/auth/login"
    name = "email" if panel else "username"
    answer = await client.post(path, json={name: user.name, "password": password})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def headers_of(client: httpx.AsyncClient, user: MadeUser) -> dict[str, str]:
    """The header of a fresh session of the user."""
    return bearer((await log_in(client, user))["access_token"])


async def make_key(client: httpx.AsyncClient, headers: dict[str, str], **body: Any) -> dict[str, Any]:
    """An API key as its creation answers it."""
    answer = await client.post("/api/auth/api-keys", json={"name": "test", "scopes": ["*"]} | body, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made
