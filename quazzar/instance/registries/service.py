"""The rules of private registries: one login for each, sealed, and handed to nothing but pulls of its images."""

import re
from collections.abc import Iterable, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.db import unique_or
from quazzar.core.errors import Invalid
from quazzar.core.ids import new_id
from quazzar.core.paging import Page
from quazzar.core.records import audit
from quazzar.core.schema import given
from quazzar.core.secret import Secret
from quazzar.instance.apps.images import registry_of
from quazzar.instance.apps.runtimes.base import RegistryLogin, RuntimeFailure
from quazzar.instance.registries import store
from quazzar.instance.registries.errors import RegistryExists, RegistryKeyBound, RegistryNotFound, TooManyRegistries
from quazzar.instance.registries.hosts import registry_host, registry_host_of_url
from quazzar.instance.registries.schemas import RegistryCreate, RegistryUpdate
from quazzar.instance.registries.store import Found

REGISTRY_ID = re.compile(r"reg_[2-7a-z]{26}")
MOST_REGISTRIES = 500


class RegistryService:
    """Built per request. A key that is bound to apps sees none: a registry is everybody's."""

    def __init__(self, session: AsyncSession, actor: Principal, keyring: Keyring) -> None:
        self.session = session
        self.actor = actor
        self._keyring = keyring

    async def find(self, page: Page) -> Sequence[Found]:
        return [] if self._bound else await store.find_registries(self.session, page)

    async def get(self, registry_id: str, *, lock: bool = False) -> Found:
        known = REGISTRY_ID.fullmatch(registry_id) is not None and not self._bound
        row = await store.get_registry(self.session, registry_id, lock=lock) if known else None
        if row is None:
            raise RegistryNotFound
        return row

    async def create(self, data: RegistryCreate) -> Found:
        """Raises `Invalid` for what is no registry's name, `RegistryExists`."""
        if self._bound:
            raise RegistryKeyBound
        host = _host_of(data)
        if await store.count_registries(self.session) >= MOST_REGISTRIES:
            raise TooManyRegistries
        registry_id = new_id("reg")
        sealed = self._keyring.seal(data.password.encode(), context=_place(registry_id, host))
        async with unique_or(RegistryExists(details={"host": f"There is a login for {host} already"})):
            await store.add_registry(self.session, id=registry_id, host=host, username=data.username, sealed=sealed)
        after = {"host": host, "username": data.username}
        audit(self.session, "registry.create", subject=registry_id, after=after)
        return await self.get(registry_id)

    async def update(self, registry_id: str, data: RegistryUpdate) -> Found:
        """Only what is given changes; the next pull uses it."""
        values = given(data)
        before = await self.get(registry_id, lock=True)
        after: dict[str, object] = {"host": before.host}
        if "password" in values:
            password = str(values.pop("password")).encode()
            values["sealed"] = self._keyring.seal(password, context=_place(registry_id, before.host))
            after["password_changed"] = True
        if values.get("username") == before.username:
            del values["username"]
        if not values:
            return before
        was = {"host": before.host, "username": before.username}
        after["username"] = values.get("username", before.username)
        await store.update_registry(self.session, registry_id, **values)
        audit(self.session, "registry.update", subject=registry_id, before=was, after=after)
        return await self.get(registry_id)

    async def delete(self, registry_id: str) -> None:
        """Images that are there stay; the next pull from there has no login."""
        row = await self.get(registry_id, lock=True)
        await store.delete_registry(self.session, registry_id)
        before = {"host": row.host, "username": row.username}
        audit(self.session, "registry.delete", subject=registry_id, before=before)

    @property
    def _bound(self) -> bool:
        return self.actor.resources is not None


def _host_of(data: RegistryCreate) -> str:
    """Raises `Invalid` naming the field that the caller gave."""
    try:
        return registry_host(data.host) if isinstance(data.host, str) else registry_host_of_url(str(data.url))
    except ValueError as error:
        name = "host" if isinstance(data.host, str) else "url"
        raise Invalid(details={name: f"{name.capitalize()} {error}"}) from None


async def logins_for(session: AsyncSession, keyring: Keyring, images: Iterable[str]) -> dict[str, RegistryLogin]:
    """The logins that pulls of `images` need, by registry; none where there is none.

    Raises `RuntimeFailure` naming the registry whose password was sealed with a key that is gone.
    """
    rows = await store.find_logins(session, {registry_of(image) for image in images})
    return {row.host: _login(row, keyring) for row in rows}


def _login(row: Found, keyring: Keyring) -> RegistryLogin:
    try:
        password = keyring.open(row.sealed, context=_place(row.id, row.host)).decode()
    except SealBroken:
        reason = f"The password of the registry {row.host} was sealed with a key that is not there any more"
        raise RuntimeFailure(f"{reason}; enter it again", code="registry_password_lost") from None
    return RegistryLogin(username=row.username, password=Secret(password))


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal every password anew under the ring's current key; gives how many. Raises `SealBroken`."""
    rows = await store.find_sealed(session)
    for row in rows:
        context = _place(row.id, row.host)
        password = keyring.open(row.sealed, context=context)
        await store.replace_sealed(session, row.id, keyring.seal(password, context=context))
    return len(rows)


def _place(registry_id: str, host: str) -> str:
    """The host is part of it, so that no change of a row sends a password to another registry."""
    return f"registries.sealed:{registry_id}:{host}"
