"""Endpoints of members and invitations."""

from collections.abc import Sequence

from litestar import Controller, Response
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts.routes import AnyRequest, accounts_of
from quazzar.core.auth import authenticated, principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, patch, post
from quazzar.panel.members.joining import JoiningService
from quazzar.panel.members.schemas import (
    InvitationAccept,
    InvitationAcceptedOut,
    MemberInvite,
    MemberInvitedOut,
    MemberOut,
    MemberUpdate,
)
from quazzar.panel.members.service import MemberService
from quazzar.panel.members.store import key_of


def provide_members(request: AnyRequest, session: NamedDependency[AsyncSession]) -> MemberService:
    return MemberService(session, accounts_of(request), principal_of(request))


def provide_joining(request: AnyRequest, session: NamedDependency[AsyncSession]) -> JoiningService:
    state = request.scope["state"]
    if state.get("auth_error") is not None:
        raise state["auth_error"]
    return JoiningService(session, accounts_of(request), state.get("principal"))


class MemberController(Controller):
    path = "/members"
    tags: Sequence[str] | None = ("Members",)
    dependencies = {"members": Provide(provide_members, sync_to_thread=False)}

    @get(guards=[requires("members:read")], operation_id="ListMembers", summary="List members and who is invited")
    async def list_members(
        self,
        request: AnyRequest,
        members: NamedDependency[MemberService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[MemberOut]]:
        """Newest first, members of the parent tenant who came in among them. No invitation shows its link."""
        page = page_of(limit, cursor, key=r"[a-z2-7]{26}")
        return paged(request, page, await members.find(page), MemberOut.of, key_of)

    @post(guards=[requires("members:write")], operation_id="InviteMember", summary="Invite somebody")
    async def invite_member(
        self, request: AnyRequest, members: NamedDependency[MemberService], data: JSONBody[MemberInvite]
    ) -> Response[MemberInvitedOut]:
        """The link works for 72 hours, once, and for this address alone; inviting an address again makes its former
        link dead. Where a mail server is configured the link is mailed, else it is in the answer. With no role that
        allows more than the caller has: 403 `scope_exceeded`. 409 `member_exists`.
        """
        made = await members.invite(data)
        return Response(made, headers={"Location": f"{request.scope['path']}/{made.id}"})

    @get("/{member_id:str}", guards=[requires("members:read")], operation_id="GetMember", summary="One member")
    async def get_member(self, members: NamedDependency[MemberService], member_id: FromPath[str]) -> MemberOut:
        """Or who is invited, without the link."""
        return await members.get(member_id)

    @patch(
        "/{member_id:str}",
        guards=[requires("members:write")],
        operation_id="UpdateMember",
        summary="Change a member's role or scope",
    )
    async def update_member(
        self, members: NamedDependency[MemberService], member_id: FromPath[str], data: JSONBody[MemberUpdate]
    ) -> MemberOut:
        """What is left out stays as it is. It holds for their next call; when they may less by it, their invitations
        that nobody has accepted and their registration tokens are taken back. 409 `last_owner`; 403 `scope_exceeded`
        for a member, or to a role, that may more than the caller.
        """
        return await members.update(member_id, data)

    @delete(
        "/{member_id:str}",
        guards=[authenticated()],
        operation_id="RemoveMember",
        summary="Remove a member, take an invitation back, or leave",
    )
    async def remove_member(self, members: NamedDependency[MemberService], member_id: FromPath[str]) -> None:
        """Needs the permission `members:write`, but for leaving oneself. They are out at once, and so are the open
        invitations, the API keys and the registration tokens that they made. 409 `last_owner`.
        """
        await members.delete(member_id)


class InvitationController(Controller):
    path = "/invitations"
    tags: Sequence[str] | None = ("Members",)
    dependencies = {"joining": Provide(provide_joining, sync_to_thread=False)}

    @post(
        "/accept",
        status_code=200,
        operation_id="AcceptInvitation",
        summary="Accept an invitation",
        responses={403: ResponseSpec(None, description="It is for another address", generate_examples=False)},
    )
    async def accept_invitation(
        self, joining: NamedDependency[JoiningService], data: JSONBody[InvitationAccept]
    ) -> InvitationAcceptedOut:
        """Logged in as the invited address, or without a login and with `name` and `password` to make its account. 401
        `login_required` when it has one; 403 `invitation_for_another`; 404 `invitation_not_found`; 409
        `invitation_accepted`, `invitation_expired`.
        """
        return await joining.accept(data)


handlers: list[ControllerRouterHandler] = [MemberController, InvitationController]
