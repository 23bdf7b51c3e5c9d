"""Endpoints that both realms have alike; each realm mounts a subclass and adds its own."""

from collections.abc import Sequence
from typing import Any

from litestar import Controller, Request, Response
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.login import LoginService
from quazzar.accounts.process import Accounts
from quazzar.accounts.schemas import (
    PasswordChange,
    Refresh,
    SessionOut,
    TokenPair,
    TotpConfirmed,
    TotpDisable,
    TotpEnable,
    TotpSetup,
    TotpVerify,
)
from quazzar.accounts.service import SessionService
from quazzar.core.auth import account, leaving, principal_of, refuse_guests
from quazzar.core.errors import Forbidden
from quazzar.core.http import caller_of
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, post
from quazzar.core.schema import UNSET

SESSION_ID = r"ses_[a-z2-7]{26}"
AnyRequest = Request[Any, Any, Any]


def accounts_of(request: AnyRequest) -> Accounts:
    found: Accounts = request.app.state.accounts
    return found


def provide_logins(request: AnyRequest) -> LoginService:
    agent = "".join(letter for letter in request.headers.get("user-agent", "") if letter.isprintable())
    return LoginService(accounts_of(request), caller_of(request), user_agent=agent[:255])


def provide_sessions(request: AnyRequest, session: NamedDependency[AsyncSession]) -> SessionService:
    return SessionService(session, accounts_of(request), principal_of(request))


class LoginController(Controller):
    """Login's second step, what follows it, and sessions; the first step differs by realm."""

    path = "/auth"
    tags: Sequence[str] | None = ("Auth",)
    dependencies = {
        "logins": Provide(provide_logins, sync_to_thread=False),
        "sessions": Provide(provide_sessions, sync_to_thread=False),
    }

    @post("/totp/verify", status_code=200, operation_id="VerifyTotp", summary="Finish a login, or confirm enabling")
    async def verify_totp(
        self, request: AnyRequest, logins: NamedDependency[LoginService], data: JSONBody[TotpVerify]
    ) -> TokenPair | TotpConfirmed:
        """With `temp_token` (from login) and a code or recovery code: a token pair. A code works once, a temporary
        token for five checks. Without `temp_token`, logged in: turns the second factor on and shows its recovery
        codes, once; all other sessions end.
        """
        return await _verify(request, logins, data)

    @post(
        "/totp/enable",
        status_code=200,
        guards=[account()],
        operation_id="EnableTotp",
        summary="Begin to turn the second factor on",
    )
    async def enable_totp(
        self, request: AnyRequest, logins: NamedDependency[LoginService], data: JSONBody[TotpEnable]
    ) -> TotpSetup:
        """Gives a new secret, which counts once `totp/verify` has seen a code of it. 403 `password_wrong`."""
        return await logins.enable_totp(principal_of(request), data.password)

    @post(
        "/totp/disable",
        status_code=204,
        guards=[account()],
        operation_id="DisableTotp",
        summary="Turn the second factor off",
    )
    async def disable_totp(
        self, request: AnyRequest, logins: NamedDependency[LoginService], data: JSONBody[TotpDisable]
    ) -> None:
        """Needs the password and a fresh code or recovery code. 403 `password_wrong`, `totp_code_wrong`."""
        await logins.disable_totp(principal_of(request), data.password, data.code)

    @post("/refresh", status_code=200, operation_id="Refresh", summary="Get a new token pair")
    async def refresh(self, logins: NamedDependency[LoginService], data: JSONBody[Refresh]) -> TokenPair:
        """Uses the refresh token up. One that was used up before ends its whole session and is 401."""
        return await logins.refresh(data.refresh_token)

    @post("/logout", status_code=204, guards=[leaving()], operation_id="Logout", summary="End this session")
    async def logout(self, sessions: NamedDependency[SessionService]) -> None:
        """Its access and refresh tokens stop at once."""
        await sessions.end_own()

    @post(
        "/change-password",
        status_code=204,
        guards=[account()],
        operation_id="ChangePassword",
        summary="Change the own password",
    )
    async def change_password(
        self, request: AnyRequest, logins: NamedDependency[LoginService], data: JSONBody[PasswordChange]
    ) -> None:
        """Ends all other sessions; API keys stay. 403 `password_wrong` when the current one is wrong."""
        await logins.change_password(principal_of(request), data.current_password, data.new_password)

    @get("/sessions", guards=[account()], operation_id="ListSessions", summary="List the own sessions")
    async def list_sessions(
        self,
        request: AnyRequest,
        sessions: NamedDependency[SessionService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[SessionOut]]:
        """Newest first; at most 20 exist. An admin of an instance sees those that were opened from a panel, too."""
        page, current = page_of(limit, cursor, key=SESSION_ID), principal_of(request).session_id
        rows = await sessions.find(page)
        return paged(request, page, rows, lambda row: SessionOut.of(row, current), lambda row: row.id)

    @delete(
        "/sessions/{session_id:str}",
        guards=[account()],
        operation_id="DeleteSession",
        summary="End one of the own sessions",
    )
    async def delete_session(self, sessions: NamedDependency[SessionService], session_id: FromPath[str]) -> None:
        """Its access tokens stop at once, not at their expiry. An admin of an instance may end those that were opened
        from a panel, too.
        """
        await sessions.end(session_id)


async def _verify(request: AnyRequest, logins: LoginService, data: TotpVerify) -> TokenPair | TotpConfirmed:
    if data.temp_token is not UNSET:
        return await logins.finish(data.temp_token, data.code)
    principal = principal_of(request)
    refuse_guests(principal)
    if principal.session_id is None:
        raise Forbidden("An API key can't do this; log in", code="session_required")
    return await logins.confirm_totp(principal, data.code)
