"""Who sent an `Authorization` header: verified once, remembered until it ends or anything about it changes."""

import asyncio
import contextlib
import hashlib
import ipaddress
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store
from quazzar.accounts.guests import Guests
from quazzar.accounts.roles import effective, scopes_of
from quazzar.accounts.schemas import MeOut
from quazzar.accounts.store import KeyHolder, Person
from quazzar.accounts.tenancy import Tenancy
from quazzar.core.addresses import parse_address, rate_key
from quazzar.core.auth import Principal, Realm
from quazzar.core.cookies import MARK
from quazzar.core.db import Database, Listener, after_commit, notify, set_scope
from quazzar.core.errors import Unauthorized
from quazzar.core.tokens import API_KEY_PREFIX, INSTANCE_ACCESS, PANEL_ACCESS, Tokens, api_key_digest

log = structlog.get_logger(__name__)

CHANNEL: Final = "auth"
"""NOTIFY with the id of a user, session, key or tenant: what is remembered of it is no longer to be trusted."""

_MAX_HEADER_BYTES: Final = 4200
_TOUCH_SECONDS: Final = 60
_FLUSH_SECONDS: Final = 15.0
_MAX_UNWRITTEN: Final = 200_000

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


class _Entry(msgspec.Struct, gc=False):
    """A verified credential. `expires` and `touch_at` are Unix seconds."""

    principal: Principal
    expires: float
    touch_at: float
    networks: Networks | None


class AccountAuthenticator:
    """The gate's authenticator for both realms.

    What it remembers is keyed by a salted hash of the header, so that no usable credential lies in memory. An entry
    dies with the credential's end, and at once when a transaction of this process that touched its user, session or
    key commits, or when another process says so by NOTIFY. While the line for that is not proved to work, nothing is
    remembered and every request asks the database.
    """

    def __init__(
        self,
        database: Database,
        tokens: Tokens,
        *,
        tenancy: Tenancy | None = None,
        guests: Guests | None = None,
        capacity: int = 32_768,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._tenancy = tenancy
        self._guests = guests
        self._capacity = capacity
        self._salt = secrets.token_bytes(32)
        self._entries: dict[Realm, dict[bytes, _Entry]] = {"instance": {}, "panel": {}}
        self._by_subject: dict[str, set[bytes]] = {}
        # Counts what made entries invalid. A load remembers its result only when nothing was counted meanwhile: it
        # may have read the row just before the change, and the news may have come just before its end.
        self._epoch = 0
        self._listener = Listener(database, [CHANNEL], self._told, self._forget_all)
        self._uses: dict[str, tuple[float, str]] = {}
        self._flusher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._listener.start()
        self._flusher = asyncio.create_task(self._flush_often(), name="last-uses")

    async def stop(self) -> None:
        """End the background work; what was used in the last seconds is still written when the database answers."""
        await self._listener.stop()
        if self._flusher is not None:
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                await self.flush()

    # --- the gate's side ---

    def cached(self, realm: Realm, authorization: bytes, address: str) -> Principal | None:
        """See `Authenticator`."""
        digest = self._digest(authorization)
        entry = self._entries[realm].get(digest)
        if entry is None or not self._listener.connected:
            return None
        now = time.time()
        if now >= entry.expires:
            self._forget(realm, digest)
            return None
        if entry.networks is not None and not _within(address, entry.networks):
            return None
        principal = entry.principal
        if now >= entry.touch_at:
            entry.touch_at = now + _TOUCH_SECONDS
            self._note_use(principal, now, address)
        return principal

    async def resolve(self, realm: Realm, authorization: bytes, address: str) -> Principal:
        """See `Authenticator`. Errors of the database pass through as they are."""
        epoch = self._epoch
        entry = await self._load(realm, authorization, address)
        now = time.time()
        self._note_use(entry.principal, now, address)
        if self._epoch == epoch and self._listener.connected and entry.expires > now:
            entry.touch_at = now + _TOUCH_SECONDS
            self._remember(realm, self._digest(authorization), entry)
        return entry.principal

    async def _load(self, realm: Realm, authorization: bytes, address: str) -> _Entry:
        if authorization.startswith(MARK) and realm == "instance":
            return await self._load_guest(authorization.removeprefix(MARK), address)
        token = _bearer(authorization)
        if token.startswith(b"qz"):
            return await self._load_key(realm, token, address)
        return await self._load_session(realm, token)

    async def still_stands(self, principal: Principal) -> Principal | None:
        """Who holds the session of `principal` now, whatever became of its access token; None once it has ended."""
        if principal.session_id is None:
            return None
        if principal.panel_user is not None:
            guest = await self._guests.by_id(self._database, principal.session_id) if self._guests is not None else None
            return None if guest is None else guest.principal
        if principal.realm == "panel":
            return await self._load_member(principal.user_id, principal.session_id, principal.tenant_id)
        return await self._load_holder(principal.user_id, principal.session_id)

    async def _load_holder(self, user_id: str, session_id: str) -> Principal | None:
        person = await store.session_holder.one_or_none(
            self._database, session_id=session_id, user_id=user_id, realm="instance"
        )
        return None if person is None else _instance_principal(person, session_id)

    def _digest(self, authorization: bytes) -> bytes:
        return hashlib.sha256(self._salt + authorization).digest()

    async def _load_session(self, realm: Realm, token: bytes) -> _Entry:
        claims = self._tokens.verify(INSTANCE_ACCESS if realm == "instance" else PANEL_ACCESS, token)
        if realm == "instance":
            principal = await self._load_holder(claims.sub, claims.sid)
        else:
            principal = await self._load_member(claims.sub, claims.sid, claims.tid)
        if principal is None:
            raise Unauthorized("The session has ended")
        return _Entry(principal, claims.exp, 0, None)

    async def _load_member(self, user_id: str, session_id: str, tenant_id: str | None) -> Principal | None:
        if tenant_id is None or self._tenancy is None:
            return None
        async with self._database.begin(tenant=tenant_id, user=user_id) as session:
            person = await store.get_session_holder(session, tenant_id, user_id, session_id)
            standing = None if person is None else await self._tenancy.standing(session, tenant_id, person)
        if standing is None:
            return None
        return Principal(
            realm="panel",
            user_id=user_id,
            client=tenant_id,
            scopes=standing.permissions,
            session_id=session_id,
            tenant_id=tenant_id,
            role=standing.role,
            resources=standing.resources,
            profile=standing.profile,
        )

    async def _load_key(self, realm: Realm, token: bytes, address: str) -> _Entry:
        digest = api_key_digest(token, API_KEY_PREFIX[realm])
        if digest is None:
            found = None
        elif realm == "instance":
            found = await self._load_own_key(digest)
        else:
            found = await self._load_tenants_key(digest)
        if found is None:
            raise Unauthorized("The API key is not valid")
        principal, networks = found
        if networks is not None and not _within(address, networks):
            # Not told apart from an unknown key: who stole it need not learn that it is a good one.
            raise Unauthorized("The API key is not valid")
        assert principal.key_expires_at is not None
        return _Entry(principal, principal.key_expires_at, 0, networks)

    async def _load_own_key(self, digest: bytes) -> "tuple[Principal, Networks | None] | None":
        holder = await store.key_holder.one_or_none(self._database, key_hash=digest)
        if holder is None:
            return None
        return _key_principal(holder), None if holder.allowed_ips is None else parse_networks(holder.allowed_ips)

    async def _load_tenants_key(self, digest: bytes) -> "tuple[Principal, Networks | None] | None":
        """A key of the panel may what it was given, as far as who made it may that in its tenant now."""
        if self._tenancy is None:
            return None
        async with self._database.begin() as session:
            key = await store.get_presented_key(session, digest)
            if key is None:
                return None
            await set_scope(session, tenant=key.tenant_id, user=key.user_id)
            person = await store.get_person(session, "panel", key.user_id)
            standing = None if person is None else await self._tenancy.standing(session, key.tenant_id, person)
        if standing is None:
            return None
        scopes = effective(frozenset(key.scopes), standing.permissions)
        principal = Principal(
            realm="panel",
            user_id=key.user_id,
            client=key.tenant_id,
            scopes=scopes,
            key_id=key.id,
            tenant_id=key.tenant_id,
            role=standing.role,
            resources=_common(key.resources, standing.resources),
            key_expires_at=key.expires_at.timestamp(),
            profile=msgspec.structs.replace(standing.profile, permissions=sorted(scopes)),
        )
        return principal, None if key.allowed_ips is None else parse_networks(key.allowed_ips)

    async def _load_guest(self, token: bytes, address: str) -> _Entry:
        guest = await self._guests.by_token(self._database, token) if self._guests is not None else None
        if guest is None:
            raise Unauthorized("The session has ended")
        # A host's other ports get its cookies too, so whatever serves there could hand one on: it opens nothing from
        # another place than the one where it was given out.
        known = parse_address(guest.address) is not None
        networks = parse_networks([rate_key(guest.address)]) if known else None
        if networks is not None and not _within(address, networks):
            raise Unauthorized("The session has ended")
        return _Entry(guest.principal, guest.expires_at.timestamp(), 0, networks)

    # --- remembering and forgetting ---

    def _remember(self, realm: Realm, digest: bytes, entry: _Entry) -> None:
        entries = self._entries[realm]
        if len(entries) >= self._capacity:
            self._forget(realm, next(iter(entries)))
        entries[digest] = entry
        for subject in _subjects(entry.principal):
            self._by_subject.setdefault(subject, set()).add(digest)

    def _forget(self, realm: Realm, digest: bytes) -> None:
        entry = self._entries[realm].pop(digest, None)
        if entry is None:
            return
        for subject in _subjects(entry.principal):
            digests = self._by_subject.get(subject)
            if digests is not None:
                digests.discard(digest)
                if not digests:
                    del self._by_subject[subject]

    def drop(self, subject: str) -> None:
        """Forget everything about a user, session, key or tenant."""
        self._epoch += 1
        for digest in tuple(self._by_subject.get(subject, ())):
            self._forget("instance", digest)
            self._forget("panel", digest)

    async def drop_with(self, session: AsyncSession, subject: str) -> None:
        """Forget it, here and in every other process, when (and only if) the transaction commits."""
        await notify(session, CHANNEL, subject)
        after_commit(session, lambda: self.drop(subject))

    def _told(self, _channel: str, subject: str) -> None:
        self.drop(subject)

    def _forget_all(self) -> None:
        self._epoch += 1
        for entries in self._entries.values():
            entries.clear()
        self._by_subject.clear()

    # --- when it was last used ---

    def _note_use(self, principal: Principal, now: float, address: str) -> None:
        if len(self._uses) < _MAX_UNWRITTEN:
            self._uses[principal.session_id or principal.key_id or ""] = (now, address)

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.flush()
            except Exception as error:  # noqa: BLE001 - what is not written now is written next time
                log.warning("Last uses could not be written", cause=type(error).__name__)

    async def flush(self) -> None:
        """Write what was used since the last time, in one statement; kept for the next time when that fails."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            async with self._database.begin() as session:
                await store.note_uses(
                    session, [(id_, datetime.fromtimestamp(at, UTC), address) for id_, (at, address) in uses.items()]
                )
        except BaseException:
            self._uses = uses | self._uses
            raise


def _bearer(authorization: bytes) -> bytes:
    """The token of `Bearer <token>` (RFC 6750, section 2.1; the scheme's case is free). No other scheme counts."""
    if len(authorization) > _MAX_HEADER_BYTES or authorization[:7].lower() != b"bearer ":
        raise Unauthorized("Authentication is by bearer token only")
    return authorization[7:]


def parse_networks(texts: Sequence[str]) -> Networks:
    """Addresses and networks; ValueError for what is none, or has bits set beyond its prefix."""
    return [ipaddress.ip_network(text) for text in texts]


def _within(address: str, networks: Networks) -> bool:
    parsed = parse_address(address)
    return parsed is not None and any(parsed.version == net.version and parsed in net for net in networks)


def _subjects(principal: Principal) -> tuple[str, ...]:
    credential = principal.session_id or principal.key_id or ""
    tenant = () if principal.tenant_id is None else (principal.tenant_id,)
    return (principal.user_id, credential, *tenant)


def _instance_principal(person: Person, session_id: str) -> Principal:
    scopes = scopes_of(person.role)
    return Principal(
        realm="instance",
        user_id=person.id,
        client=person.id,
        scopes=scopes,
        session_id=session_id,
        role=person.role or "",
        profile=_me(person, scopes),
    )


def _common(resources: Sequence[str] | None, granted: frozenset[str] | None) -> frozenset[str] | None:
    """What a key and its owner are both bound to."""
    if resources is None:
        return granted
    return frozenset(resources) if granted is None else granted.intersection(resources)


def _key_principal(holder: KeyHolder) -> Principal:
    scopes = effective(frozenset(holder.scopes), scopes_of(holder.role))
    return Principal(
        realm="instance",
        user_id=holder.id,
        client=holder.key_id,
        scopes=scopes,
        key_id=holder.key_id,
        role=holder.role or "",
        resources=None if holder.resources is None else frozenset(holder.resources),
        key_expires_at=holder.expires_at.timestamp(),
        profile=_me(holder, scopes),
    )


def _me(person: Person, scopes: frozenset[str]) -> MeOut:
    return MeOut(
        id=person.id,
        username=person.username or "",
        role=person.role or "",
        created_at=person.created_at,
        last_login_at=person.last_login_at,
        totp_enabled=person.totp_enabled,
        scopes=sorted(scopes),
    )
