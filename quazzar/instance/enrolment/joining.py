"""Joining by the setting `panel.token`: a server that is set up by a script needs nobody to log in to it first."""

import asyncio
import contextlib
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from quazzar.accounts.authenticator import AccountAuthenticator
from quazzar.core.errors import AppError, Invalid
from quazzar.instance.enrolment.line import Line
from quazzar.instance.enrolment.service import PanelLinkService, dial, is_linked_or_left

log = structlog.get_logger(__name__)

_FIRST_PAUSE: Final = 2.0
_LONGEST_PAUSE: Final = 300.0


class Joining:
    """Tries until the server has joined, unless it has joined or left a panel before."""

    def __init__(self, line: Line, authenticator: AccountAuthenticator, token: str) -> None:
        self._line = line
        self._authenticator = authenticator
        self._token = token
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._try_until_joined(), name="joining")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _try_until_joined(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                if not await is_linked_or_left(self._line):
                    await self._join()
                return
            except Invalid as error:
                # A text that is no token will not become one.
                log.error("The server can't join by panel.token", reason=_reason(error))
                return
            except (AppError, OSError, SQLAlchemyError) as error:
                log.warning("The server could not join by panel.token yet", reason=_reason(error))
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _join(self) -> None:
        joined = await dial(self._line, self._token)
        async with self._line.database.begin() as session:
            await PanelLinkService(session, self._line, self._authenticator).create(joined)
        log.info("The server has joined a panel by panel.token", panel=joined.enrolled.panel_url)


def _reason(error: Exception) -> str:
    if isinstance(error, Invalid):
        return next(iter(error.details.values()), error.message)
    return str(error)[:200]
