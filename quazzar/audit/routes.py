"""The audit log over HTTP, the same in both APIs."""

from dataclasses import dataclass
from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import QueryParameter
from litestar.response import Stream
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.audit.export import exported
from quazzar.audit.schemas import AuditFilter, AuditRecordOut, ChainCheckOut, ExportFormat, moments
from quazzar.audit.service import AuditService, verify
from quazzar.audit.store import Scope
from quazzar.core.auth import principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.records import Outcome
from quazzar.core.routing import get

_TIME = {"format": "date-time"}
_TYPES: dict[ExportFormat, str] = {"csv": "text/csv", "jsonl": "application/x-ndjson"}

Action = Annotated[
    str | None,
    QueryParameter(pattern=r"^[a-z0-9_.]{1,100}\Z", description="Only this action, as `app.install`."),
]
Subject = Annotated[
    str | None, QueryParameter(pattern=r"^[A-Za-z0-9_.-]{1,100}\Z", description="Only about the thing of this id.")
]
Actor = Annotated[
    str | None,
    QueryParameter(
        pattern=r"^[A-Za-z0-9_.-]{1,100}\Z",
        description="Only by the user or key of this id, or by `user`, `key`, `job`, `panel`, `system`, `anonymous`.",
    ),
]
How = Annotated[Outcome | None, QueryParameter(description="Only what ended so.")]
Since = Annotated[str | None, QueryParameter(max_length=50, description="Only from this time on.", schema_extra=_TIME)]
Until = Annotated[str | None, QueryParameter(max_length=50, description="Only before this time.", schema_extra=_TIME)]
Form = Annotated[ExportFormat, QueryParameter(description="A table, or one JSON object a line.")]


@dataclass
class _ExportOperation(Operation):
    """Documents the second form of the file."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse):
            lines = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, examples=["{}"]))
            answer.content = {**(answer.content or {}), _TYPES["jsonl"]: lines}


async def provide_filter(
    action: Action = None,
    subject: Subject = None,
    actor: Actor = None,
    outcome: How = None,
    since: Since = None,
    until: Until = None,
) -> AuditFilter:
    times = moments(since=since, until=until)
    return AuditFilter(action=action, subject=subject, actor=actor, outcome=outcome, **times)


async def provide_audit(session: NamedDependency[AsyncSession], request: Request[Any, Any, Any]) -> AuditService:
    return AuditService(session, Scope.of(principal_of(request)))


class AuditController(Controller):
    path = "/audit"
    tags = ("Audit",)
    dependencies = {"narrowed": Provide(provide_filter)}

    @get(
        guards=[requires("audit:read")],
        operation_id="ListAuditRecords",
        summary="Who did what from where",
        dependencies={"records": Provide(provide_audit)},
    )
    async def list_records(
        self,
        request: Request[Any, Any, Any],
        records: NamedDependency[AuditService],
        narrowed: NamedDependency[AuditFilter],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[AuditRecordOut]]:
        """Newest first: every change, every refused call and everything about logins, each linked to the one before
        it by a hash.
        """
        page = page_of(limit, cursor, key=r"\d{1,18}")
        return paged(
            request, page, await records.find(narrowed, page), AuditRecordOut.of, lambda record: str(record.number)
        )

    @get(
        "/export",
        guards=[requires("audit:read")],
        operation_id="ExportAuditRecords",
        operation_class=_ExportOperation,
        summary="The log as a file",
        responses={
            200: ResponseSpec(
                str, description="The records, oldest first", media_type="text/csv", generate_examples=False
            )
        },
    )
    async def export_records(
        self,
        request: Request[Any, Any, Any],
        narrowed: NamedDependency[AuditFilter],
        format: Form = "csv",  # noqa: A002 - its name in the query
    ) -> Stream:
        """Oldest first, with the same filters as the list; `format=jsonl` gives one JSON object a line. In the table
        a cell that a spreadsheet would take for a formula begins with an apostrophe.
        """
        chunks = exported(request.app.state.database, Scope.of(principal_of(request)), narrowed, format)
        disposition = f'attachment; filename="audit.{format}"'
        return Stream(chunks, media_type=_TYPES[format], headers={"Content-Disposition": disposition})

    @get("/verify", guards=[requires("audit:read")], operation_id="VerifyAuditLog", summary="Check the chain of hashes")
    async def verify_log(self, request: Request[Any, Any, Any]) -> ChainCheckOut:
        """Reads the whole log, and names the first record that was changed, moved, added or is missing."""
        return await verify(request.app.state.database, Scope.of(principal_of(request)))


handlers: list[type[Controller]] = [AuditController]
