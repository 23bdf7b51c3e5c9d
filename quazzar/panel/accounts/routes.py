"""Auth endpoints of the panel: register, login, who am I, and profile, beside what both realms have."""

from litestar import Response
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.login import LoginService
from quazzar.accounts.routes import AnyRequest, LoginController, accounts_of
from quazzar.accounts.schemas import TokenPair, TotpRequired
from quazzar.core.auth import account, authenticated, principal_of
from quazzar.core.http import is_at_console
from quazzar.core.routing import get, post, put
from quazzar.core.schema import UNSET
from quazzar.panel.accounts.recovery import RecoveryService
from quazzar.panel.accounts.schemas import (
    SEND_A_LINK,
    EmailVerification,
    ForgottenPassword,
    PanelLogin,
    PanelMeOut,
    PasswordReset,
    ProfileUpdate,
    Register,
    RegisterOut,
    TenantSwitch,
)
from quazzar.panel.accounts.service import ProfileService, RegistrationService


def provide_registrations(request: AnyRequest, session: NamedDependency[AsyncSession]) -> RegistrationService:
    return RegistrationService(session, accounts_of(request))


def provide_recovery(request: AnyRequest, session: NamedDependency[AsyncSession]) -> RecoveryService:
    return RecoveryService(session, accounts_of(request))


def provide_profile(request: AnyRequest, session: NamedDependency[AsyncSession]) -> ProfileService:
    return ProfileService(session, accounts_of(request), principal_of(request))


class PanelAuthController(LoginController):
    dependencies = {
        **LoginController.dependencies,
        "registrations": Provide(provide_registrations, sync_to_thread=False),
        "recovery": Provide(provide_recovery, sync_to_thread=False),
        "profile": Provide(provide_profile, sync_to_thread=False),
    }

    @post("/register", operation_id="Register", summary="Make an account and an organization")
    async def register(
        self, request: AnyRequest, registrations: NamedDependency[RegistrationService], data: JSONBody[Register]
    ) -> Response[RegisterOut]:
        """Makes a tenant with its owner. An address that is in use gets the same answer, and nothing is made."""
        done = await registrations.register(data, at_console=is_at_console(request))
        return Response(done, headers={"Location": request.scope["path"].removesuffix("/register") + "/me"})

    @post("/login", status_code=200, operation_id="Login", summary="Log in")
    async def login(
        self, logins: NamedDependency[LoginService], data: JSONBody[PanelLogin]
    ) -> TokenPair | TotpRequired:
        """A token pair; with the second factor on, a temporary token for `totp/verify`. An unknown address and a wrong
        password are the same 401.
        """
        return await logins.login(data.email.lower(), data.password)

    @post(
        "/forgot-password",
        status_code=204,
        operation_id="ForgotPassword",
        summary="Ask for a link to set a new password",
    )
    async def forgot_password(
        self, recovery: NamedDependency[RecoveryService], data: JSONBody[ForgottenPassword]
    ) -> None:
        """The link works once, within an hour. The answer is the same for an address that nobody has. Where no mail
        server is configured, whoever runs the panel makes the link (`quazzar admin reset-link`).
        """
        await recovery.forget(data)

    @post("/reset-password", status_code=204, operation_id="ResetPassword", summary="Set a new password by a link")
    async def reset_password(self, recovery: NamedDependency[RecoveryService], data: JSONBody[PasswordReset]) -> None:
        """Uses the link up and ends all sessions of the user; the second factor stays, and so do API keys, unless the
        address was not confirmed before: then it may have been somebody else who made them. 401 `link_not_valid` for
        every token that is not good.
        """
        await recovery.reset(data)

    @post("/verify-email", status_code=204, operation_id="VerifyEmail", summary="Confirm the own address")
    async def verify_email(
        self,
        request: AnyRequest,
        recovery: NamedDependency[RecoveryService],
        data: JSONBody[EmailVerification] = SEND_A_LINK,
    ) -> None:
        """With the `token` of the link that was sent at registration. Without one, logged in: sends another link. 401
        `link_not_valid`; 409 `mail_not_configured`.
        """
        await _verify_email(request, recovery, data)

    @post(
        "/switch-tenant",
        status_code=200,
        guards=[account()],
        operation_id="SwitchTenant",
        summary="Work in another tenant",
    )
    async def switch_tenant(
        self, request: AnyRequest, logins: NamedDependency[LoginService], data: JSONBody[TenantSwitch]
    ) -> TokenPair:
        """A new token pair for this session; those before it stop. Into one that the caller belongs to, or a client of
        the current one that lets its members in; 404 `tenant_not_found` for every other.
        """
        return await logins.switch_tenant(principal_of(request), data.tenant_id)

    @get("/me", guards=[authenticated()], operation_id="GetMe", summary="Show who is calling", sync_to_thread=False)
    def get_me(self, request: AnyRequest) -> PanelMeOut:
        """The user, the tenant that this session works in, and the role and permissions there."""
        me: PanelMeOut = principal_of(request).profile
        return me

    @put("/profile", guards=[account()], operation_id="UpdateProfile", summary="Change the own profile")
    async def update_profile(
        self, profile: NamedDependency[ProfileService], data: JSONBody[ProfileUpdate]
    ) -> PanelMeOut:
        """What is left out stays as it is."""
        return await profile.update(data)


async def _verify_email(request: AnyRequest, recovery: RecoveryService, data: EmailVerification) -> None:
    if data.token is not UNSET:
        await recovery.confirm(data.token)
    else:
        await recovery.ask_to_confirm(principal_of(request))


handlers: list[ControllerRouterHandler] = [PanelAuthController]
