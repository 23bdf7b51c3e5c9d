"""Where a panel's user comes in."""

from typing import Annotated, Any

from litestar import Controller, MediaType, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from litestar.types import ControllerRouterHandler

from quazzar.core.http import caller_of
from quazzar.core.routing import get
from quazzar.instance.impersonation.errors import NO_REFERRER
from quazzar.instance.impersonation.service import ImpersonationService
from quazzar.link.impersonation import MOST_TOKEN

LANDING = "/api/docs"
"""What is there to be looked at: with the cookie, the requests that the page makes are those of the session."""

GuestRequest = Request[Any, Any, State]
Token = Annotated[
    str, QueryParameter(min_length=1, max_length=MOST_TOKEN, description="What the panel has given for this server.")
]


def provide_impersonations(request: GuestRequest) -> ImpersonationService:
    agent = "".join(letter for letter in request.headers.get("user-agent", "") if letter.isprintable())
    state, principal = request.app.state, request.scope["state"].get("principal")
    return ImpersonationService(state.panel_line, state.settings, caller_of(request), principal, user_agent=agent[:255])


class ImpersonationController(Controller):
    path = "/cp/session"
    tags = ("Panel",)
    dependencies = {"impersonations": Provide(provide_impersonations, sync_to_thread=False)}

    @get(
        status_code=303,
        operation_id="OpenPanelSession",
        summary="Open a session by a token of the panel",
        responses={
            303: ResponseSpec(None, description="The session is open", generate_examples=False),
            403: ResponseSpec(None, description="The link to the panel does not allow it", generate_examples=False),
        },
    )
    async def open_session(
        self, impersonations: NamedDependency[ImpersonationService], token: Token
    ) -> Response[bytes]:
        """The only place where a token in an address counts: signed by this server's panel for this server, at most 60
        seconds old, used once. Sets a cookie for 15 minutes, which can't be prolonged and counts from the same
        address only, and leads on to the reference. Requests that change something need the cookie and a sign that a
        page of this server made them: `Sec-Fetch-Site: same-origin`, or this server's `Origin`. 401 `unauthorized`,
        `token_expired`, `token_used`; 403 `impersonation_refused` where the link does not allow it.

        Within the session everything that an admin may is allowed but what has to do with credentials, the second
        factor, API keys, secrets and the link to the panel: 403 `impersonation_denied`.
        """
        cookie = await impersonations.open(token)
        headers = {"Location": LANDING, "Set-Cookie": cookie, **NO_REFERRER}
        return Response(b"", media_type=MediaType.TEXT, headers=headers)


handlers: list[ControllerRouterHandler] = [ImpersonationController]
