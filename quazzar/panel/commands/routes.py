"""Commands over HTTP."""

from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import get, post
from quazzar.core.sse import last_event_id, server_events
from quazzar.panel.commands.delivery import Delivery
from quazzar.panel.commands.models import CommandStatus
from quazzar.panel.commands.schemas import CommandCreate, CommandOut, CommandPlan, CommandSummary
from quazzar.panel.commands.service import COMMAND_ID, CommandService, follow

CommandRequest = Request[Any, Any, State]
CommandId = FromPath[Annotated[str, Meta(description="Id of a command.", examples=["cmd_23oc77vtak2bdwdlqw5ffwpz33"])]]
Statuses = Annotated[list[CommandStatus] | None, QueryParameter(name="status", description="Only these.", max_items=8)]
KindFilter = Annotated[
    str | None, QueryParameter(name="kind", pattern=r"^[a-z0-9_.]{1,64}\Z", description="Only this kind.")
]
InstanceFilter = Annotated[
    str | None,
    QueryParameter(name="instance", pattern=r"^inst_[a-z2-7]{20,40}\Z", description="Only those about this instance."),
]
Follow = Annotated[bool, QueryParameter(description="Keep sending what changes, as server-sent events.")]


async def provide_commands(request: CommandRequest, session: NamedDependency[AsyncSession]) -> CommandService:
    return CommandService(session, principal_of(request), request.app.state.keyring)


class CommandController(Controller):
    path = "/fleet/commands"
    tags = ("Fleet",)
    dependencies = {"commands": Provide(provide_commands)}

    @post(
        guards=[requires("fleet:operate")],
        operation_id="CreateCommand",
        summary="Have instances do something",
        responses={
            200: ResponseSpec(CommandPlan, description="With `dry_run`: what would happen", generate_examples=False)
        },
    )
    async def create_command(
        self, request: CommandRequest, commands: NamedDependency[CommandService], data: JSONBody[CommandCreate]
    ) -> Response[CommandOut | CommandPlan]:
        """All targets are checked before anything is queued: one that is not there, or not yours, is 404 and nobody is
        told anything. Each instance carries the command out at most once, however often the line to it breaks.
        """
        return await (_plan(commands, data) if data.dry_run else _make(request, commands, data))

    @get(guards=[requires("fleet:read")], operation_id="ListCommands", summary="All commands")
    async def list_commands(
        self,
        request: CommandRequest,
        commands: NamedDependency[CommandService],
        status: Statuses = None,
        kind: KindFilter = None,
        instance: InstanceFilter = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[CommandSummary]]:
        """Newest first, without their instances. Kept for 90 days after their end."""
        page = page_of(limit, cursor, key=COMMAND_ID.pattern)
        found = await commands.find(page, status=status or (), kind=kind, instance=instance)
        return paged(request, page, found, lambda command: command, lambda command: command.id)

    @get(
        "/{command_id:str}",
        guards=[requires("fleet:read")],
        operation_id="GetCommand",
        summary="One command",
        responses={200: ResponseSpec(CommandOut, description="The command", generate_examples=False)},
    )
    async def get_command(
        self,
        request: CommandRequest,
        commands: NamedDependency[CommandService],
        command_id: CommandId,
        instance: InstanceFilter = None,
        follow: Follow = False,
    ) -> Response[Any]:
        """With a report of each batch and what became of it on each instance; with `instance` only that one, and all of
        its output.

        With `follow=true` the answer is a stream of server-sent events: `command` whenever something has changed, with
        those of its instances that have, and `end` once it has ended. `Last-Event-ID` resumes.
        """
        return await (_follow(request, commands, command_id) if follow else _one(commands, command_id, instance))

    @post(
        "/{command_id:str}/cancel",
        guards=[requires("fleet:operate")],
        operation_id="CancelCommand",
        summary="Stop a command",
        status_code=200,
    )
    async def cancel_command(self, commands: NamedDependency[CommandService], command_id: CommandId) -> CommandOut:
        """What has not begun never begins. Instances that are at it are told to stop; until all of them have, the
        command is `stopping`, and then `cancelled`. 409 when it has ended.
        """
        return await commands.cancel(command_id)

    @post(
        "/{command_id:str}/pause",
        guards=[requires("fleet:operate")],
        operation_id="PauseCommand",
        summary="Hold a command",
        status_code=200,
    )
    async def pause_command(self, commands: NamedDependency[CommandService], command_id: CommandId) -> CommandOut:
        """Nothing more begins; what is under way goes on, and the time until `expires_at` too. 409 unless it is
        `pending` or `running`.
        """
        return await commands.pause(command_id)

    @post(
        "/{command_id:str}/resume",
        guards=[requires("fleet:operate")],
        operation_id="ResumeCommand",
        summary="Go on with a command",
        status_code=200,
    )
    async def resume_command(self, commands: NamedDependency[CommandService], command_id: CommandId) -> CommandOut:
        """409 unless it is `paused`."""
        return await commands.resume(command_id)

    @post(
        "/{command_id:str}/retry",
        guards=[requires("fleet:operate")],
        operation_id="RetryCommand",
        summary="Try a command again where it failed",
        status_code=200,
    )
    async def retry_command(self, commands: NamedDependency[CommandService], command_id: CommandId) -> CommandOut:
        """Once it has ended: on the instances where it failed or expired, by the same strategy, with a new
        `expires_at`. 409 when there are none.
        """
        return await commands.retry(command_id)


async def _plan(commands: CommandService, data: CommandCreate) -> Response[Any]:
    return Response(await commands.plan(data), status_code=200)


async def _make(request: CommandRequest, commands: CommandService, data: CommandCreate) -> Response[Any]:
    made = await commands.create(data)
    return Response(made, headers={"Location": f"{request.scope['path'].rstrip('/')}/{made.id}"})


async def _one(commands: CommandService, command_id: str, instance: str | None) -> Response[CommandOut]:
    return Response(await commands.get(command_id, instance))


async def _follow(request: CommandRequest, commands: CommandService, command_id: str) -> Response[Any]:
    await commands.get(command_id)
    seen = last_event_id(request)
    after = int(seen) if seen is not None and seen.isdecimal() and len(seen) < 19 else None
    delivery: Delivery = request.app.state.commands
    tenant_id = principal_of(request).tenant_id
    assert tenant_id is not None
    reach = await commands.reach()
    return server_events(
        request, follow(request.app.state.database, delivery.signals, tenant_id, reach, command_id, after=after)
    )


handlers: list[ControllerRouterHandler] = [CommandController]
