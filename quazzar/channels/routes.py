"""Channels over HTTP."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.channels.schemas import ChannelCreate, ChannelOut, ChannelSecretOut, ChannelTestOut, ChannelUpdate
from quazzar.channels.service import CHANNEL_ID, ChannelService, scope_of, shown_to
from quazzar.core.auth import principal_of, requires
from quazzar.core.db import Database
from quazzar.core.http import caller_of
from quazzar.core.idempotency import begin_idempotent
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, patch, post
from quazzar.webhooks.engine import Webhooks

ChannelRequest = Request[Any, Any, State]
ChannelId = FromPath[Annotated[str, Meta(description="Id of a channel.", examples=["chn_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]]


def _service(request: ChannelRequest, session: AsyncSession) -> ChannelService:
    state, engine = request.app.state, _engine(request)
    return ChannelService(session, scope_of(principal_of(request)), state.keyring, engine.http.policy, state.settings)


def _engine(request: ChannelRequest) -> Webhooks:
    engine: Webhooks = request.app.state.webhooks
    return engine


async def provide_channels(request: ChannelRequest, session: NamedDependency[AsyncSession]) -> ChannelService:
    return _service(request, session)


async def provide_tested(request: ChannelRequest, channel_id: ChannelId) -> AsyncGenerator[ChannelTestOut, None]:
    """A test as two short transactions: no transaction is open while the webhook takes its time."""
    database: Database = request.app.state.database
    principal = principal_of(request)
    async with database.begin(tenant=principal.tenant_id, user=principal.user_id) as session:
        session.info["caller"] = caller_of(request)
        await begin_idempotent(request, session, request.app.state.keyring)
        test = await _service(request, session).begin_test(channel_id)
    outcome = None
    if test is not None:
        outcome = await _engine(request).send(test.url, test.secrets, test.message)
    async with database.begin(tenant=principal.tenant_id, user=principal.user_id) as session:
        session.info["caller"] = caller_of(request)
        request.scope["state"]["idempotent"] = await begin_idempotent(request, session, request.app.state.keyring)
        yield await _service(request, session).end_test(channel_id, outcome)


class ChannelController(Controller):
    path = "/notification-channels"
    tags = ("Alerts",)
    dependencies = {"channels": Provide(provide_channels)}

    @get(guards=[requires("alerts:read")], operation_id="ListNotificationChannels", summary="All channels")
    async def list_channels(
        self,
        request: ChannelRequest,
        channels: NamedDependency[ChannelService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[ChannelOut]]:
        """Newest first, without secrets."""
        page = page_of(limit, cursor, key=CHANNEL_ID.pattern)
        shown = shown_to(principal_of(request))
        return paged(request, page, await channels.find(page), shown, lambda row: str(row.id))

    @post(guards=[requires("alerts:write")], operation_id="CreateNotificationChannel", summary="Add a channel")
    async def create_channel(
        self, request: ChannelRequest, channels: NamedDependency[ChannelService], data: JSONBody[ChannelCreate]
    ) -> Response[ChannelSecretOut]:
        """A webhook is signed with `secret`, which is shown this once; how to check signatures: docs/webhooks.md.
        A channel for mail can be made before there is a mail server.
        """
        made = await channels.create(data)
        return Response(made, headers={"Location": f"{request.scope['path'].rstrip('/')}/{made.id}"})

    @get(
        "/{channel_id:str}",
        guards=[requires("alerts:read")],
        operation_id="GetNotificationChannel",
        summary="One channel",
    )
    async def get_channel(
        self, request: ChannelRequest, channels: NamedDependency[ChannelService], channel_id: ChannelId
    ) -> ChannelOut:
        return shown_to(principal_of(request))(await channels.get(channel_id))

    @patch(
        "/{channel_id:str}",
        guards=[requires("alerts:write")],
        operation_id="UpdateNotificationChannel",
        summary="Change a channel",
    )
    async def update_channel(
        self, channels: NamedDependency[ChannelService], channel_id: ChannelId, data: JSONBody[ChannelUpdate]
    ) -> ChannelOut:
        """While it is not enabled, nothing is sent to it, nor kept for later."""
        return ChannelOut.of(await channels.update(channel_id, data))

    @delete(
        "/{channel_id:str}",
        guards=[requires("alerts:write")],
        operation_id="DeleteNotificationChannel",
        summary="Remove a channel",
    )
    async def delete_channel(self, channels: NamedDependency[ChannelService], channel_id: ChannelId) -> None:
        """One that alert rules name is 409 `channel_in_use`."""
        await channels.delete(channel_id)

    @post(
        "/{channel_id:str}/rotate-secret",
        guards=[requires("alerts:write")],
        operation_id="RotateNotificationChannelSecret",
        summary="A new signing secret",
        status_code=200,
    )
    async def rotate_secret(self, channels: NamedDependency[ChannelService], channel_id: ChannelId) -> ChannelSecretOut:
        """For 24 hours the secret before signs along. Mail has none: 409 `channel_has_no_secret`."""
        return await channels.rotate_secret(channel_id)

    @post(
        "/{channel_id:str}/test",
        guards=[requires("alerts:write")],
        operation_id="TestNotificationChannel",
        summary="Send a test now",
        status_code=200,
        dependencies={"tested": Provide(provide_tested)},
    )
    async def test_channel(self, channel_id: ChannelId, tested: NamedDependency[ChannelTestOut]) -> ChannelTestOut:
        """Enabled or not. A webhook is asked once and the answer says what came back; a mail is put on its way, without
        a mail server it is 409 `mail_not_configured`.
        """
        del channel_id
        return tested


handlers: list[type[Controller]] = [ChannelController]
