"""Auth endpoints of an instance: setup, login, who am I, and API keys, beside what both realms have."""

from collections.abc import Sequence
from typing import cast

from litestar import Controller, Response
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.api_keys import KEY_ID, ApiKeyService
from quazzar.accounts.login import LoginService
from quazzar.accounts.routes import AnyRequest, LoginController, accounts_of
from quazzar.accounts.schemas import ApiKeyCreate, ApiKeyCreated, ApiKeyOut, MeOut, TokenPair, TotpRequired
from quazzar.core.auth import authenticated, current_principal, principal_of, requires
from quazzar.core.http import is_at_console
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, post
from quazzar.instance.auth.schemas import Login, Setup, SetupOut
from quazzar.instance.auth.service import SetupService


def provide_setup(request: AnyRequest, session: NamedDependency[AsyncSession]) -> SetupService:
    return SetupService(session, accounts_of(request))


def provide_api_keys(request: AnyRequest, session: NamedDependency[AsyncSession]) -> ApiKeyService:
    return ApiKeyService(session, accounts_of(request), principal_of(request))


class AuthController(LoginController):
    dependencies = {**LoginController.dependencies, "setups": Provide(provide_setup, sync_to_thread=False)}

    @post("/setup", operation_id="SetUp", summary="Make the first user, an admin")
    async def set_up(
        self, request: AnyRequest, setups: NamedDependency[SetupService], data: JSONBody[Setup]
    ) -> Response[SetupOut]:
        """Once, at first boot; 409 `setup_done` for ever after. From the machine itself it needs nothing more; from any
        other one the token that the first start printed, as `setup_token` or in `X-Setup-Token`
        (403 `setup_token_required`).
        """
        header = request.headers.get("x-setup-token")
        done = await setups.run(data, at_console=is_at_console(request), header_token=header)
        return Response(done, headers={"Location": "/api/auth/me"})

    @post("/login", status_code=200, operation_id="Login", summary="Log in")
    async def login(self, logins: NamedDependency[LoginService], data: JSONBody[Login]) -> TokenPair | TotpRequired:
        """A token pair; with the second factor on, a temporary token for `totp/verify`. A wrong name and a wrong
        password are the same 401.
        """
        return await logins.login(data.username, data.password)

    @get("/me", guards=[authenticated()], operation_id="GetMe", summary="Show who is calling", sync_to_thread=False)
    def get_me(self) -> MeOut:
        """`scopes` are those of the credential that the call came with."""
        principal = current_principal.get()
        assert principal is not None
        return cast("MeOut", principal.profile)


class ApiKeyController(Controller):
    path = "/auth/api-keys"
    tags: Sequence[str] | None = ("Auth",)
    dependencies = {
        "api_keys": Provide(provide_api_keys, sync_to_thread=False),
    }

    @post(guards=[requires("auth:write")], operation_id="CreateApiKey", summary="Make an API key")
    async def create_api_key(
        self, api_keys: NamedDependency[ApiKeyService], data: JSONBody[ApiKeyCreate]
    ) -> Response[ApiKeyCreated]:
        """The key is in this answer and never again. It can have no more scopes than the caller (403
        `scope_exceeded`), and one that a key makes lives no longer than that key (403 `key_lifetime_exceeded`).
        """
        made = ApiKeyCreated(**await api_keys.create(data))
        return Response(made, headers={"Location": f"/api/auth/api-keys/{made.id}"})

    @get(guards=[requires("auth:read")], operation_id="ListApiKeys", summary="List the own API keys")
    async def list_api_keys(
        self,
        request: AnyRequest,
        api_keys: NamedDependency[ApiKeyService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[ApiKeyOut]]:
        """Newest first, without the keys themselves; at most 50 are valid at once."""
        page = page_of(limit, cursor, key=KEY_ID)
        return paged(request, page, await api_keys.find(page), ApiKeyOut.of, lambda row: row.id)

    @get("/{key_id:str}", guards=[requires("auth:read")], operation_id="GetApiKey", summary="One of the own API keys")
    async def get_api_key(self, api_keys: NamedDependency[ApiKeyService], key_id: FromPath[str]) -> ApiKeyOut:
        """Without the key itself."""
        return ApiKeyOut.of(await api_keys.get(key_id))

    @delete("/{key_id:str}", guards=[requires("auth:write")], operation_id="DeleteApiKey", summary="Revoke an API key")
    async def delete_api_key(self, api_keys: NamedDependency[ApiKeyService], key_id: FromPath[str]) -> None:
        """It stops at once."""
        await api_keys.delete(key_id)


handlers: list[ControllerRouterHandler] = [AuthController, ApiKeyController]
