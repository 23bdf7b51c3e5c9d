"""The first setup: who may do it, and that it happens once."""

import contextlib
import hmac
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.policy import check_password
from quazzar.accounts.process import Accounts
from quazzar.accounts.store import add_user
from quazzar.core.crypto import KeyProblem, read_private, write_private
from quazzar.core.db import after_commit, unique_or
from quazzar.core.errors import Conflict
from quazzar.core.ids import new_id
from quazzar.core.records import audit
from quazzar.core.schema import UNSET
from quazzar.core.tokens import new_opaque
from quazzar.instance.auth import store
from quazzar.instance.auth.errors import SetupDone, SetupTokenRequired
from quazzar.instance.auth.schemas import Setup, SetupOut, UserOut

TOKEN_FILE: Final = "setup-token"  # noqa: S105 - a file name
_PREFIX: Final = "qzs"


class SetupService:
    """Makes the first user. `session` is not touched before the password is hashed: it may be the request's own."""

    def __init__(self, session: AsyncSession, accounts: Accounts) -> None:
        self._session = session
        self._accounts = accounts

    async def run(self, data: Setup, *, at_console: bool, header_token: str | None) -> SetupOut:
        """Make the admin. `at_console`: the caller sits at this machine and needs no token.

        Raises `SetupDone`, also for all but one of several at once, `SetupTokenRequired`, `PasswordRefused`.
        """
        await self._refuse_when_done()
        given = data.setup_token if data.setup_token is not UNSET else header_token
        data_dir = self._accounts.settings.server.data_dir
        if not at_console and not _token_is_right(data_dir, given):
            raise SetupTokenRequired
        check_password(data.password, field="password", own=(data.username,))
        password_hash = await self._accounts.passwords.hash(data.password)
        user_id = new_id("usr")
        async with unique_or(SetupDone()):
            await store.claim_setup(self._session, user_id)
        created_at = await add_user(
            self._session,
            "instance",
            id=user_id,
            username=data.username,
            role="admin",
            password_hash=password_hash,
        )
        if created_at is None:
            raise Conflict("This name is taken", code="username_taken")
        audit(self._session, "instance.set_up", subject=user_id, after={"username": data.username})
        after_commit(self._session, lambda: remove_setup_token(data_dir))
        return SetupOut(
            message="The server is set up; log in now",
            user=UserOut(id=user_id, username=data.username, created_at=created_at),
        )

    async def _refuse_when_done(self) -> None:
        async with self._accounts.database.begin() as session:
            if await store.is_set_up(session):
                raise SetupDone


def _token_is_right(data_dir: Path, given: str | None) -> bool:
    try:
        token = read_private(data_dir / TOKEN_FILE).strip()
    except (OSError, KeyProblem):
        return False
    return given is not None and bool(token) and hmac.compare_digest(token.encode(), given.encode())


async def ensure_setup_token(data_dir: Path, session: AsyncSession) -> str | None:
    """The token that lets a stranger's machine do the setup, written to `data_dir/setup-token` (mode 0600) if it is
    not there yet; None, and the file removed, once the instance is set up.
    """
    if await store.is_set_up(session):
        remove_setup_token(data_dir)
        return None
    path = data_dir / TOKEN_FILE
    with contextlib.suppress(FileExistsError):
        write_private(path, new_opaque(_PREFIX) + "\n", exclusive=True)
    return read_private(path).strip()


async def renew_setup_token(data_dir: Path, session: AsyncSession) -> str | None:
    """A new token in place of the one there is; None once the instance is set up."""
    if not await store.is_set_up(session):
        write_private(data_dir / TOKEN_FILE, new_opaque(_PREFIX) + "\n")
    return await ensure_setup_token(data_dir, session)


def remove_setup_token(data_dir: Path) -> None:
    with contextlib.suppress(OSError):
        (data_dir / TOKEN_FILE).unlink()
