"""API keys of both realms: made once, shown once, and never more than their maker."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.accounts.authenticator import parse_networks
from quazzar.accounts.errors import ApiKeyNotFound, LifetimeExceeded, ScopeExceeded, TooManyApiKeys
from quazzar.accounts.events import ApiKeyCreated as ApiKeyMade
from quazzar.accounts.process import Accounts
from quazzar.accounts.roles import is_covered
from quazzar.accounts.store import KeyPlace
from quazzar.core.auth import Principal
from quazzar.core.errors import Invalid, Unauthorized
from quazzar.core.ids import new_id
from quazzar.core.paging import Page
from quazzar.core.records import audit, publish
from quazzar.core.schema import in_utc
from quazzar.core.tokens import API_KEY_PREFIX, api_key_digest, new_api_key

KEY_ID: Final = r"key_[a-z2-7]{26}"
MAX_KEYS: Final = 50
DEFAULT_LIFE: Final = timedelta(days=365)
LONGEST_LIFE: Final = timedelta(days=3660)


class KeyWish(Protocol):
    """What a caller asks for; on the panel `scopes` are permissions."""

    @property
    def name(self) -> str: ...
    @property
    def scopes(self) -> Sequence[str]: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def allowed_ips(self) -> Sequence[str] | None: ...
    @property
    def resources(self) -> Sequence[str] | None: ...


class ApiKeyService:
    """The keys of the caller, on the panel those in the tenant that they work in; one per request."""

    def __init__(self, session: AsyncSession, accounts: Accounts, principal: Principal) -> None:
        self._session = session
        self._accounts = accounts
        self._principal = principal
        self._place = KeyPlace(principal.user_id, principal.tenant_id)

    async def create(self, data: KeyWish) -> dict[str, Any]:
        """A new key of the caller's: all that is shown of it, and its text as `key`.

        Raises `ScopeExceeded` and `LifetimeExceeded` for a key that could do more, reach further or live longer than
        the credential that asks for it, `TooManyApiKeys`, and `Invalid` by field.
        """
        maker = self._principal
        expires_at = self._expiry(data.expires_at)
        allowed_ips = await self._networks(data.allowed_ips)
        resources = self._resources(data.resources)
        if not all(is_covered(scope, maker.scopes) for scope in data.scopes):
            raise ScopeExceeded
        await self._accounts.lock_user(self._session, maker)
        await store.delete_expired_api_keys(self._session, self._place)
        if await store.count_api_keys(self._session, self._place) >= MAX_KEYS:
            raise TooManyApiKeys
        prefix = API_KEY_PREFIX[maker.realm]
        key = new_api_key(prefix)
        values: dict[str, Any] = {
            "id": new_id("key"),
            "name": data.name,
            "prefix": key[:12],
            "suffix": key[-4:],
            "scopes": sorted(set(data.scopes)),
            "resources": resources,
            "allowed_ips": allowed_ips,
            "expires_at": expires_at,
        }
        digest = api_key_digest(key.encode(), prefix)
        created_at = await store.add_api_key(self._session, self._place, key_hash=digest, **values)
        shown = {name: value for name, value in values.items() if name not in ("id", "expires_at")}
        audit(self._session, "api_key.create", subject=values["id"], after=shown | {"expires_at": str(expires_at)})
        made = ApiKeyMade(
            key_id=values["id"],
            user_id=maker.user_id,
            name=data.name,
            scopes=values["scopes"],
            expires_at=expires_at,
        )
        publish(self._session, made, subject=maker.user_id)
        return values | {"created_at": created_at, "last_used_at": None, "last_used_ip": None, "key": key}

    def _expiry(self, wanted: datetime | None) -> datetime:
        now = datetime.now(UTC)
        limit = self._principal.key_expires_at
        if wanted is None:
            default = now + DEFAULT_LIFE
            return default if limit is None else min(default, datetime.fromtimestamp(limit, UTC))
        expires_at = in_utc(wanted, "expires_at")
        if not now < expires_at <= now + LONGEST_LIFE:
            raise Invalid(details={"expires_at": "Expires at must be in the future, and at most ten years away"})
        if limit is not None and expires_at.timestamp() > limit:
            raise LifetimeExceeded
        return expires_at

    async def _networks(self, wanted: Sequence[str] | None) -> list[str] | None:
        """The networks that bind the new key; a key that is bound hands its bounds on."""
        allowed_ips = None if wanted is None else _networks(wanted)
        if self._principal.key_id is None:
            return allowed_ips
        maker = await store.get_api_key(self._session, self._place, self._principal.key_id)
        if maker is None:
            raise Unauthorized
        if maker.allowed_ips is None:
            return allowed_ips
        allowed_ips = maker.allowed_ips if allowed_ips is None else allowed_ips
        if not _lie_within(allowed_ips, maker.allowed_ips):
            raise ScopeExceeded
        return allowed_ips

    def _resources(self, wanted: Sequence[str] | None) -> list[str] | None:
        """What the new key may touch; who is bound hands their bounds on."""
        resources = None if wanted is None else sorted(set(wanted))
        own = self._principal.resources
        if own is None:
            return resources
        resources = sorted(own) if resources is None else resources
        if not own.issuperset(resources):
            raise ScopeExceeded
        return resources

    async def find(self, page: Page) -> Sequence[Any]:
        """The caller's keys, newest first, those that expired in the last month among them."""
        return await store.find_api_keys(self._session, self._place, page)

    async def get(self, key_id: str) -> Any:
        """A key of the caller's. Raises `ApiKeyNotFound`."""
        return await get_key(self._session, self._place, key_id)

    async def delete(self, key_id: str) -> None:
        """Revoke a key of the caller's; it stops with the commit. Raises `ApiKeyNotFound`."""
        await delete_key(self._session, self._accounts, self._place, key_id)


async def get_key(session: AsyncSession, place: KeyPlace, key_id: str) -> Any:
    """What is shown of a key. Raises `ApiKeyNotFound`."""
    row = await store.get_shown_api_key(session, place, key_id)
    if row is None:
        raise ApiKeyNotFound
    return row


async def delete_key(session: AsyncSession, accounts: Accounts, place: KeyPlace, key_id: str) -> None:
    """Revoke a key; it stops with the commit. Raises `ApiKeyNotFound`."""
    if not await store.delete_api_key(session, place, key_id):
        raise ApiKeyNotFound
    await accounts.authenticator.drop_with(session, key_id)
    audit(session, "api_key.delete", subject=key_id)


def _networks(texts: Sequence[str]) -> list[str]:
    found: list[str] = []
    problems: dict[str, str] = {}
    for index, text in enumerate(texts):
        try:
            found += (str(network) for network in parse_networks([text]))
        except ValueError:
            problems[f"allowed_ips.{index}"] = "Must be an address or a network such as 192.0.2.0/24"
    if problems:
        raise Invalid(details=problems)
    return sorted(set(found))


def _lie_within(inner: Sequence[str], outer: Sequence[str]) -> bool:
    bounds = parse_networks(outer)
    return all(
        any(network.version == bound.version and network.subnet_of(bound) for bound in bounds)  # type: ignore[arg-type]
        for network in parse_networks(inner)
    )
