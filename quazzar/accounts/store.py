"""Every query about users, sessions, keys and guesses. The realm or the user comes right after the session."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Interval,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.models import (
    ApiKey,
    LastUse,
    LoginAttempt,
    MailedToken,
    RecoveryCode,
    RefreshToken,
    Session,
    User,
)
from quazzar.core.auth import Realm
from quazzar.core.db import Query, present, see_all_tenants
from quazzar.core.paging import Page

IDLE: Final = timedelta(days=7)
"""A session that was not used for so long is over, whatever its absolute end."""

_PERSON: tuple[Any, ...] = (
    User.id,
    User.username,
    User.email,
    User.name,
    User.timezone,
    User.role,
    User.created_at,
    User.last_login_at,
    User.totp_enabled_at.is_not(None),
    User.email_verified_at.is_not(None),
)


class Person(msgspec.Struct, frozen=True):
    """What may be shown of a user."""

    id: str
    username: str | None
    email: str | None
    name: str | None
    timezone: str
    role: str | None
    created_at: datetime
    last_login_at: datetime | None
    totp_enabled: bool
    email_verified: bool


class KeyHolder(Person, frozen=True):
    """A user, and the API key that was presented in their name."""

    key_id: str
    scopes: list[str]
    resources: list[str] | None
    allowed_ips: list[str] | None
    expires_at: datetime


# --- users ---


async def find_user(session: AsyncSession, realm: Realm, login: str) -> Any:
    """Id, password hash and second factor of whoever logs in as `login`: the username, on the panel the address."""
    column = User.username if realm == "instance" else User.email
    statement = select(
        User.id,
        User.password_hash,
        User.totp_enabled_at,
        User.totp_secret,
        User.totp_last_step,
    ).where(User.realm == realm, column == login)
    return (await session.execute(statement)).one_or_none()


async def get_secrets(session: AsyncSession, realm: Realm, user_id: str, *, lock: bool = False) -> Any:
    """What a user proves themselves with; locked against other changes when asked."""
    statement = select(
        User.id,
        User.username,
        User.email,
        User.password_hash,
        User.totp_enabled_at,
        User.totp_secret,
        User.totp_last_step,
    ).where(User.id == user_id, User.realm == realm)
    if lock:
        statement = statement.with_for_update(key_share=True)
    return (await session.execute(statement)).one_or_none()


async def get_person(session: AsyncSession, realm: Realm, user_id: str) -> Person | None:
    row = (await session.execute(select(*_PERSON).where(User.id == user_id, User.realm == realm))).one_or_none()
    return None if row is None else Person(*row)


async def find_admin_names(session: AsyncSession, realm: Realm) -> Sequence[str]:
    """What the admins of an instance log in as; empty on the panel, whose roles are the tenants'."""
    statement = select(User.username).where(User.realm == realm, User.role == "admin").order_by(User.username)
    return [name for name in (await session.execute(statement)).scalars() if name is not None]


async def add_user(session: AsyncSession, realm: Realm, **values: Any) -> datetime | None:
    """Insert a user and return when; None, and nothing done, when the name or address is taken."""
    statement = upsert(User).values(realm=realm, **values).on_conflict_do_nothing().returning(User.created_at)
    return (await session.execute(statement)).scalar_one_or_none()


async def update_user(session: AsyncSession, realm: Realm, user_id: str, **values: Any) -> None:
    await session.execute(update(User).where(User.id == user_id, User.realm == realm).values(**values))


async def replace_password(
    session: AsyncSession, realm: Realm, user_id: str, password_hash: str, *, former: str | None = None
) -> bool:
    """Set the hash; False when `former` is given and is not the hash any more."""
    statement = update(User).where(User.id == user_id, User.realm == realm).values(password_hash=password_hash)
    if former is not None:
        statement = statement.where(User.password_hash == former)
    return _touched(await session.execute(statement)) == 1


async def mark_login(
    session: AsyncSession, realm: Realm, user_id: str, *, former: str, password_hash: str, totp: bool
) -> bool:
    """Note the login and store the (perhaps renewed) hash; False when password or second factor changed meanwhile.

    Locks the user's row: logins of one user are finished one after the other.
    """
    statement = (
        update(User)
        .where(
            User.id == user_id,
            User.realm == realm,
            User.password_hash == former,
            User.totp_enabled_at.is_not(None) if totp else User.totp_enabled_at.is_(None),
        )
        .values(last_login_at=func.now(), password_hash=password_hash)
    )
    return _touched(await session.execute(statement)) == 1


# --- second factors ---


async def take_step(session: AsyncSession, user_id: str, step: int) -> bool:
    """Use up a time step; False when it, or a later one, was used already."""
    statement = (
        update(User)
        .where(User.id == user_id, func.coalesce(User.totp_last_step, -1) < step)
        .values(totp_last_step=step)
    )
    return _touched(await session.execute(statement)) == 1


async def take_recovery_code(session: AsyncSession, user_id: str, code_hash: bytes) -> bool:
    """Use up a recovery code; False when there is no such code (any more)."""
    statement = delete(RecoveryCode).where(RecoveryCode.user_id == user_id, RecoveryCode.code_hash == code_hash)
    return _touched(await session.execute(statement)) == 1


async def replace_recovery_codes(session: AsyncSession, user_id: str, hashes: Sequence[bytes]) -> None:
    """Forget the user's recovery codes and store these."""
    await session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user_id))
    if hashes:
        await session.execute(insert(RecoveryCode), [{"user_id": user_id, "code_hash": each} for each in hashes])


async def find_sealed(session: AsyncSession) -> Sequence[Any]:
    """Id and sealed second factor of all users of both realms who have one, locked: for a change of the master key."""
    statement = select(User.id, User.totp_secret).where(User.totp_secret.is_not(None)).order_by(User.id)
    return (await session.execute(statement.with_for_update(key_share=True))).all()


async def replace_sealed(session: AsyncSession, user_id: str, totp_secret: bytes) -> None:
    await session.execute(update(User).where(User.id == user_id).values(totp_secret=totp_secret))


# --- sessions ---

_used_at = func.coalesce(LastUse.used_at, Session.created_at)
_alive = (Session.expires_at > func.now(), _used_at > func.now() - literal(IDLE, Interval()))

_holder = (
    select(*_PERSON)
    .join(Session, Session.user_id == User.id)
    .outerjoin(LastUse, LastUse.id == Session.id)
    .where(
        Session.id == bindparam("session_id"),
        Session.user_id == bindparam("user_id"),
        Session.realm == bindparam("realm"),
        User.realm == bindparam("realm"),
        *_alive,
    )
)
session_holder: Query[Person] = Query(_holder, Person)
"""By `session_id`, `user_id`, `realm`: who holds a session of the instance, if it is still alive."""


_tenant_holder = _holder.where(Session.tenant_id == bindparam("tenant_id"))


async def get_session_holder(session: AsyncSession, tenant_id: str, user_id: str, session_id: str) -> Person | None:
    """Who holds a session of the panel that works in this tenant now, if it is still alive."""
    values = {"session_id": session_id, "user_id": user_id, "realm": "panel", "tenant_id": tenant_id}
    row = (await session.execute(_tenant_holder, values)).one_or_none()
    return None if row is None else Person(*row)


async def add_session(session: AsyncSession, realm: Realm, **values: Any) -> None:
    await session.execute(insert(Session).values(realm=realm, **values))


async def find_sessions(session: AsyncSession, realm: Realm, user_id: str, page: Page) -> Sequence[Any]:
    """The live sessions of a user, newest first."""
    statement = (
        select(
            Session.id,
            Session.created_at,
            _used_at.label("last_used_at"),
            func.least(Session.expires_at, _used_at + literal(IDLE, Interval())).label("expires_at"),
            func.coalesce(LastUse.ip, Session.ip).label("ip"),
            Session.user_agent,
        )
        .outerjoin(LastUse, LastUse.id == Session.id)
        .where(Session.realm == realm, Session.user_id == user_id, *_alive, *_below(Session.id, page))
        .order_by(Session.id.desc())
        .limit(page.fetch)
    )
    return (await session.execute(statement)).all()


def _below(column: Any, page: Page) -> list[ColumnElement[bool]]:
    """What comes after `page.after` in a list that begins with the greatest id."""
    return [] if page.after is None else [column < page.after]


async def has_session_from(session: AsyncSession, realm: Realm, user_id: str, ip: str) -> bool:
    """Whether the user is logged in from this address, so that guesses made elsewhere are no reason to doubt it."""
    statement = select(exists().where(Session.realm == realm, Session.user_id == user_id, Session.ip == ip))
    return bool((await session.execute(statement)).scalar_one())


async def lock_session(session: AsyncSession, realm: Realm, user_id: str, session_id: str) -> Any:
    """Tenant and liveness of a session, locked against its end."""
    statement = (
        select(Session.tenant_id, Session.expires_at, case((_alive[0] & _alive[1], true()), else_=False).label("alive"))
        .outerjoin(LastUse, LastUse.id == Session.id)
        .where(Session.id == session_id, Session.user_id == user_id, Session.realm == realm)
        .with_for_update(of=Session)
    )
    return (await session.execute(statement)).one_or_none()


async def mark_code(session: AsyncSession, user_id: str, session_id: str) -> None:
    """A code of the second factor was shown in this session just now."""
    await session.execute(
        update(Session).where(Session.id == session_id, Session.user_id == user_id).values(totp_at=func.now())
    )


async def has_shown_code(session: AsyncSession, user_id: str, session_id: str, within: timedelta) -> bool:
    """Whether a code of the second factor was shown in this session a short while ago."""
    statement = select(
        exists().where(
            Session.id == session_id,
            Session.user_id == user_id,
            Session.totp_at > func.now() - literal(within, Interval()),
        )
    )
    return bool((await session.execute(statement)).scalar_one())


async def move_session(session: AsyncSession, user_id: str, session_id: str, tenant_id: str) -> None:
    """Let a session of the panel work in another tenant; its refresh tokens are good no more."""
    await session.execute(
        update(Session).where(Session.id == session_id, Session.user_id == user_id).values(tenant_id=tenant_id)
    )
    await session.execute(delete(RefreshToken).where(RefreshToken.session_id == session_id))


async def end_session(session: AsyncSession, realm: Realm, user_id: str, session_id: str) -> bool:
    """Delete one session of the user with its refresh tokens; False when there is none."""
    ended = await _end(session, Session.realm == realm, Session.user_id == user_id, Session.id == session_id)
    return bool(ended)


async def end_sessions(session: AsyncSession, realm: Realm, user_id: str, *, but: str | None = None) -> Sequence[str]:
    """Delete all sessions of the user except `but`; the caller has locked the user's row."""
    others = [] if but is None else [Session.id != but]
    return await _end(session, Session.realm == realm, Session.user_id == user_id, *others)


async def end_surplus_sessions(session: AsyncSession, realm: Realm, user_id: str, keep: int) -> Sequence[str]:
    """Delete what is over, and the oldest beyond `keep`; the caller has locked the user's row."""
    newest = (
        select(Session.id)
        .outerjoin(LastUse, LastUse.id == Session.id)
        .where(Session.realm == realm, Session.user_id == user_id, *_alive)
        .order_by(Session.id.desc())
        .limit(keep)
    )
    return await _end(session, Session.realm == realm, Session.user_id == user_id, Session.id.not_in(newest))


async def _end(session: AsyncSession, *conditions: Any) -> Sequence[str]:
    ended = (await session.execute(delete(Session).where(*conditions).returning(Session.id))).scalars().all()
    if ended:
        await session.execute(delete(LastUse).where(LastUse.id.in_(ended)))
    return ended


async def find_users_with_old_tokens(session: AsyncSession, realm: Realm, before: datetime) -> Sequence[str]:
    """Users who may have sessions that are over: those with refresh tokens from before that time."""
    statement = (
        select(RefreshToken.user_id)
        .where(RefreshToken.realm == realm, RefreshToken.created_at < before)
        .distinct()
        .limit(500)
    )
    return (await session.execute(statement)).scalars().all()


# --- refresh tokens ---


async def add_refresh_token(
    session: AsyncSession, realm: Realm, user_id: str, session_id: str, token_hash: bytes
) -> None:
    await session.execute(
        insert(RefreshToken).values(token_hash=token_hash, session_id=session_id, user_id=user_id, realm=realm)
    )


async def find_refresh_token(session: AsyncSession, realm: Realm, token_hash: bytes) -> Any:
    """Whose token it is and of which session, used or not."""
    statement = select(RefreshToken.user_id, RefreshToken.session_id).where(
        RefreshToken.token_hash == token_hash, RefreshToken.realm == realm
    )
    return (await session.execute(statement)).one_or_none()


async def take_refresh_token(session: AsyncSession, realm: Realm, token_hash: bytes) -> bool:
    """Use up a refresh token; False when it was used already."""
    statement = (
        update(RefreshToken)
        .where(RefreshToken.token_hash == token_hash, RefreshToken.realm == realm, RefreshToken.used_at.is_(None))
        .values(used_at=func.now())
    )
    return _touched(await session.execute(statement)) == 1


# --- tokens of mailed links ---


async def add_mailed_token(
    session: AsyncSession, user_id: str, purpose: str, token_hash: bytes, expires_at: datetime
) -> None:
    await session.execute(
        insert(MailedToken).values(user_id=user_id, purpose=purpose, token_hash=token_hash, expires_at=expires_at)
    )


async def count_mailed_tokens(session: AsyncSession, user_id: str, purpose: str) -> int:
    """How many of the user's are still good."""
    statement = select(func.count()).where(
        MailedToken.user_id == user_id, MailedToken.purpose == purpose, MailedToken.expires_at > func.now()
    )
    return (await session.execute(statement)).scalar_one()


async def find_mailed_token(session: AsyncSession, purpose: str, token_hash: bytes) -> str | None:
    """Whose token it is, if it is still good."""
    statement = select(MailedToken.user_id).where(
        MailedToken.token_hash == token_hash, MailedToken.purpose == purpose, MailedToken.expires_at > func.now()
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def take_mailed_token(session: AsyncSession, purpose: str, token_hash: bytes) -> str | None:
    """Use the token up, and with it all of the user's for the same purpose; gives whose it was, None when it is not
    good any more.
    """
    statement = (
        delete(MailedToken)
        .where(
            MailedToken.token_hash == token_hash, MailedToken.purpose == purpose, MailedToken.expires_at > func.now()
        )
        .returning(MailedToken.user_id)
    )
    user_id = (await session.execute(statement)).scalar_one_or_none()
    if user_id is not None:
        await session.execute(delete(MailedToken).where(MailedToken.user_id == user_id, MailedToken.purpose == purpose))
    return user_id


async def prune_mailed_tokens(session: AsyncSession) -> None:
    await session.execute(delete(MailedToken).where(MailedToken.expires_at <= func.now()))


# --- API keys ---

key_holder: Query[KeyHolder] = Query(
    select(*_PERSON, ApiKey.id, ApiKey.scopes, ApiKey.resources, ApiKey.allowed_ips, ApiKey.expires_at)
    .join(ApiKey, ApiKey.user_id == User.id)
    .where(ApiKey.key_hash == bindparam("key_hash"), ApiKey.expires_at > func.now(), User.realm == "instance"),
    KeyHolder,
)
"""By `key_hash`: the user of an instance and their key, if it has not expired."""


class KeyPlace(msgspec.Struct, frozen=True):
    """Where keys lie: with a user of an instance; on the panel in a tenant, those of one member or of all."""

    user_id: str | None
    tenant_id: str | None = None

    @property
    def condition(self) -> ColumnElement[bool]:
        own = true() if self.user_id is None else ApiKey.user_id == self.user_id
        return and_(own, ApiKey.tenant_id.is_not_distinct_from(self.tenant_id))


async def get_presented_key(session: AsyncSession, key_hash: bytes) -> Any:
    """Whose key of the panel it is and what binds it, if it has not expired."""
    await present(session, key_hash)
    statement = select(
        ApiKey.id,
        ApiKey.user_id,
        ApiKey.tenant_id,
        ApiKey.scopes,
        ApiKey.resources,
        ApiKey.allowed_ips,
        ApiKey.expires_at,
    ).where(ApiKey.key_hash == key_hash, ApiKey.tenant_id.is_not(None), ApiKey.expires_at > func.now())
    return (await session.execute(statement)).one_or_none()


async def add_api_key(session: AsyncSession, place: KeyPlace, **values: Any) -> datetime:
    statement = insert(ApiKey).values(user_id=place.user_id, tenant_id=place.tenant_id, **values)
    return (await session.execute(statement.returning(ApiKey.created_at))).scalar_one()


async def count_api_keys(session: AsyncSession, place: KeyPlace) -> int:
    """How many there are that have not expired."""
    statement = select(func.count()).where(place.condition, ApiKey.expires_at > func.now())
    return (await session.execute(statement)).scalar_one()


async def get_api_key(session: AsyncSession, place: KeyPlace, key_id: str) -> Any:
    """Whose it is, what binds it, and until when."""
    statement = select(ApiKey.user_id, ApiKey.scopes, ApiKey.allowed_ips, ApiKey.resources, ApiKey.expires_at).where(
        ApiKey.id == key_id, place.condition
    )
    return (await session.execute(statement)).one_or_none()


def _api_keys(place: KeyPlace) -> Select[*tuple[Any, ...]]:
    """What is shown of keys, with their last use."""
    return (
        select(
            ApiKey.id,
            ApiKey.user_id,
            ApiKey.name,
            ApiKey.prefix,
            ApiKey.suffix,
            ApiKey.scopes,
            ApiKey.resources,
            ApiKey.allowed_ips,
            ApiKey.created_at,
            ApiKey.expires_at,
            LastUse.used_at.label("last_used_at"),
            LastUse.ip.label("last_used_ip"),
        )
        .outerjoin(LastUse, LastUse.id == ApiKey.id)
        .where(place.condition)
    )


async def get_shown_api_key(session: AsyncSession, place: KeyPlace, key_id: str) -> Any:
    """One of those that `find_api_keys` gives, None when it is none of them."""
    return (await session.execute(_api_keys(place).where(ApiKey.id == key_id))).one_or_none()


async def find_api_keys(session: AsyncSession, place: KeyPlace, page: Page) -> Sequence[Any]:
    """All of them, newest first, with their last use."""
    statement = _api_keys(place).where(*_below(ApiKey.id, page)).order_by(ApiKey.id.desc()).limit(page.fetch)
    return (await session.execute(statement)).all()


async def delete_api_key(session: AsyncSession, place: KeyPlace, key_id: str) -> bool:
    """False when there is no such key."""
    found = _touched(await session.execute(delete(ApiKey).where(ApiKey.id == key_id, place.condition))) == 1
    if found:
        await session.execute(delete(LastUse).where(LastUse.id == key_id))
    return found


async def delete_api_keys(session: AsyncSession, place: KeyPlace) -> None:
    await session.execute(delete(ApiKey).where(place.condition))


async def delete_expired_api_keys(session: AsyncSession, place: KeyPlace) -> None:
    """Forget keys that have been of no use for a month."""
    limit = func.now() - literal(timedelta(days=30), Interval())
    await session.execute(delete(ApiKey).where(place.condition, ApiKey.expires_at < limit))


# --- last uses ---


async def note_uses(session: AsyncSession, uses: Sequence[tuple[str, datetime, str]]) -> None:
    """Write when and from where sessions and keys were used; what is newer already stays.

    In the order of their ids, so that two processes that write at once wait for each other and never in a circle.
    """
    ordered = sorted(uses)
    await session.execute(
        _NOTE_USES,
        {
            "ids": [id_ for id_, _, _ in ordered],
            "times": [used_at for _, used_at, _ in ordered],
            "ips": [ip for _, _, ip in ordered],
        },
    )


_NOTE_USES = text(
    "INSERT INTO last_uses AS l (id, used_at, ip)"
    " SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:times AS timestamptz[]), CAST(:ips AS text[]))"
    " ON CONFLICT (id) DO UPDATE SET used_at = excluded.used_at, ip = excluded.ip WHERE l.used_at < excluded.used_at"
)


async def prune_last_uses(session: AsyncSession) -> None:
    """Forget uses of sessions that are over and of keys that are gone, of all tenants."""
    await see_all_tenants(session)
    await session.execute(
        delete(LastUse).where(
            LastUse.id.startswith("ses_", autoescape=True),
            LastUse.used_at < func.now() - literal(2 * IDLE, Interval()),
        )
    )
    await session.execute(
        delete(LastUse).where(LastUse.id.startswith("key_", autoescape=True), ~exists().where(ApiKey.id == LastUse.id))
    )


# --- guesses ---


async def count_attempt(session: AsyncSession, key: str, window: timedelta, amount: int = 1) -> tuple[int, datetime]:
    """Add to the count of `key` and return it with the end of its window; a window that is over begins anew."""
    over = LoginAttempt.started_at <= func.now() - literal(window, Interval())
    statement = (
        upsert(LoginAttempt)
        .values(key=key, count=amount)
        .on_conflict_do_update(
            index_elements=[LoginAttempt.key],
            set_={
                "count": case((over, amount), else_=LoginAttempt.count + amount),
                "started_at": case((over, func.now()), else_=LoginAttempt.started_at),
                "last_at": func.now(),
            },
        )
        .returning(LoginAttempt.count, LoginAttempt.started_at)
    )
    count, started_at = (await session.execute(statement)).one()
    return count, started_at + window


async def read_attempts(session: AsyncSession, key: str, window: timedelta) -> tuple[int, float]:
    """The count of `key` in its window, and how many seconds ago it was last added to."""
    statement = select(LoginAttempt.count, func.extract("epoch", func.clock_timestamp() - LoginAttempt.last_at)).where(
        LoginAttempt.key == key, LoginAttempt.started_at > func.now() - literal(window, Interval())
    )
    row = (await session.execute(statement)).one_or_none()
    return (0, 0.0) if row is None else (row[0], float(row[1]))


async def forgive_attempts(session: AsyncSession, key: str, amount: int | None = None) -> None:
    """Take `amount` from the count of `key`, or forget it."""
    if amount is None:
        await session.execute(delete(LoginAttempt).where(LoginAttempt.key == key))
        return
    await session.execute(
        update(LoginAttempt).where(LoginAttempt.key == key).values(count=func.greatest(LoginAttempt.count - amount, 0))
    )


async def prune_attempts(session: AsyncSession) -> None:
    await session.execute(
        delete(LoginAttempt).where(LoginAttempt.started_at < func.now() - literal(timedelta(days=1), Interval()))
    )


def _touched(result: Any) -> int:
    count: int = result.rowcount
    return count
