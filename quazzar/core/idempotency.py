"""`Idempotency-Key`: the first answer again, kept sealed in the transaction of the change that it answers.

The answer is written by the same transaction as the change, so after a crash either both are there or neither. A
second request with the key while the first runs finds the advisory lock taken.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from litestar import Request, Response
from sqlalchemy import DateTime, LargeBinary, Text, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import Base
from quazzar.core.errors import BadRequest, Conflict, Invalid

KEPT_HOURS = 24
_KEY = re.compile(r"[\x21-\x7e]{1,200}\Z")


class IdempotentAnswer(Base):
    """One kept answer; `scope` is a digest of caller, tenant, path and key."""

    __tablename__ = "idempotent_answers"

    scope: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    request_digest: Mapped[bytes] = mapped_column(LargeBinary)
    answer: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Any] = mapped_column(DateTime(timezone=True), server_default=func.now(), index=True)


class _Kept(msgspec.Struct, array_like=True):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Replay(Exception):
    """Not an error: the handler is left out because its answer is known; the exception handler sends `response`."""

    def __init__(self, response: Response[bytes]) -> None:
        super().__init__("replay")
        self.response = response


class Built(Protocol):
    """An answer that is ready to be sent."""

    @property
    def status_code(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    def encode_headers(self) -> Iterable[tuple[bytes, bytes]]: ...


class Pending:
    """A request whose answer will be kept under its key once the handler has made it."""

    __slots__ = ("_digest", "_keyring", "_scope", "_session")

    def __init__(self, session: AsyncSession, keyring: Keyring, scope: str, digest: bytes) -> None:
        self._session = session
        self._keyring = keyring
        self._scope = scope
        self._digest = digest

    async def keep(self, response: Built) -> None:
        """Write the answer into the open transaction; answers of 400 and more never get here, they roll back."""
        headers = [(name.decode(), value.decode()) for name, value in response.encode_headers()]
        plain = msgspec.msgpack.encode(_Kept(response.status_code, headers, response.body))
        self._session.add(
            IdempotentAnswer(
                scope=self._scope,
                request_digest=self._digest,
                answer=self._keyring.seal(plain, context=f"idempotent_answers.answer:{self._scope}"),
            )
        )
        await self._session.flush()


async def begin_idempotent(request: Request[Any, Any, Any], session: AsyncSession, keyring: Keyring) -> Pending | None:
    """Look at the request's `Idempotency-Key`, if it has one and is a POST.

    Raises `Replay` when the answer is known, `Invalid` (422 `idempotency_key_reused`) when the key was used with
    another body, `Conflict` (409 `idempotency_in_progress`) while the first request still runs.
    """
    key = request.headers.get("idempotency-key")
    if key is None or request.method != "POST":
        return None
    if _KEY.match(key) is None:
        raise BadRequest(
            "Idempotency-Key must be 1 to 200 visible ASCII characters",
            details={"Idempotency-Key": "Must be 1 to 200 visible ASCII characters"},
        )
    state = request.scope["state"]
    principal: Principal | None = state.get("principal")
    # Not the `client` of the rate limit: a tenant's members share that one, and answers may hold one member's secret.
    caller = principal.key_id or principal.user_id if principal is not None else "anonymous"
    parts = [
        str(state.get("realm")),
        caller,
        request.scope["path"],
        request.scope["query_string"].decode("latin-1"),
        key,
    ]
    if principal is not None and principal.tenant_id is not None:
        # Who works in another tenant by now asks for another thing, though in the same words.
        parts.append(principal.tenant_id)
    scope = hashlib.sha256("\x00".join(parts).encode()).hexdigest()
    digest = hashlib.sha256(await request.body()).digest()
    lock = int.from_bytes(hashlib.sha256(scope.encode()).digest()[:8], "big", signed=True)
    if not (await session.execute(_TRY_LOCK, {"key": lock})).scalar_one():
        raise Conflict("A request with this Idempotency-Key is still running", code="idempotency_in_progress")
    row = (
        await session.execute(
            select(IdempotentAnswer.request_digest, IdempotentAnswer.answer).where(
                IdempotentAnswer.scope == scope,
                IdempotentAnswer.created_at > func.now() - text(f"interval '{KEPT_HOURS} hours'"),
            )
        )
    ).one_or_none()
    if row is None:
        await session.execute(delete(IdempotentAnswer).where(IdempotentAnswer.scope == scope))
        return Pending(session, keyring, scope, digest)
    if row.request_digest != digest:
        raise Invalid("This Idempotency-Key was used with another body", code="idempotency_key_reused")
    kept = msgspec.msgpack.decode(keyring.open(row.answer, context=f"idempotent_answers.answer:{scope}"), type=_Kept)
    headers = {name: value for name, value in kept.headers if name not in {"content-length", "content-type"}}
    media_type = next((value for name, value in kept.headers if name == "content-type"), "application/json")
    raise Replay(
        Response(
            kept.body, status_code=kept.status, headers=headers | {"Idempotent-Replayed": "true"}, media_type=media_type
        )
    )


_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")


async def prune_idempotent(session: AsyncSession) -> None:
    """Forget answers that are older than the promise."""
    await session.execute(
        delete(IdempotentAnswer).where(
            IdempotentAnswer.created_at <= func.now() - text(f"interval '{KEPT_HOURS} hours'")
        )
    )
