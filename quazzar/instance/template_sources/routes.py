"""Template sources over HTTP."""

from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, post
from quazzar.instance.template_sources.schemas import (
    AS_IT_IS,
    TemplateSourceCreate,
    TemplateSourceOut,
    TemplateSourceSync,
)
from quazzar.instance.template_sources.service import SOURCE_ID, TemplateSourceService

SourceRequest = Request[Any, Any, State]
SourceId = FromPath[Annotated[str, Meta(description="Id of a source.", examples=["tsrc_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]]


async def provide_sources(request: SourceRequest, session: NamedDependency[AsyncSession]) -> TemplateSourceService:
    return TemplateSourceService(session, request.app.state.webhooks.http.policy)


class TemplateSourceController(Controller):
    path = "/template-sources"
    tags = ("Templates",)
    dependencies = {"sources": Provide(provide_sources)}

    @get(guards=[requires("templates:read")], operation_id="ListTemplateSources", summary="All template sources")
    async def list_template_sources(
        self,
        request: SourceRequest,
        sources: NamedDependency[TemplateSourceService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[TemplateSourceOut]]:
        """Newest first."""
        page = page_of(limit, cursor, key=SOURCE_ID.pattern)
        return paged(request, page, await sources.find(page), TemplateSourceOut.of, lambda row: str(row.id))

    @post(guards=[requires("templates:write")], operation_id="CreateTemplateSource", summary="Add a template source")
    async def create_template_source(
        self, sources: NamedDependency[TemplateSourceService], data: JSONBody[TemplateSourceCreate]
    ) -> Response[TemplateSourceOut]:
        """The job of `job_id` fetches it at once, and again each day."""
        made = TemplateSourceOut.of(await sources.create(data))
        return Response(made, headers={"Location": f"/api/template-sources/{made.id}"})

    @get(
        "/{source_id:str}",
        guards=[requires("templates:read")],
        operation_id="GetTemplateSource",
        summary="One template source",
    )
    async def get_template_source(
        self, sources: NamedDependency[TemplateSourceService], source_id: SourceId
    ) -> TemplateSourceOut:
        return TemplateSourceOut.of(await sources.get(source_id))

    @post(
        "/{source_id:str}/sync",
        guards=[requires("templates:write")],
        operation_id="SyncTemplateSource",
        summary="Fetch a template source now",
        status_code=200,
    )
    async def sync_template_source(
        self,
        sources: NamedDependency[TemplateSourceService],
        source_id: SourceId,
        data: JSONBody[TemplateSourceSync] = AS_IT_IS,
    ) -> TemplateSourceOut:
        """The job of `job_id` does it. An index that changed is only taken with its `digest`, or signed."""
        return TemplateSourceOut.of(await sources.sync(source_id, data))

    @delete(
        "/{source_id:str}",
        guards=[requires("templates:write")],
        operation_id="DeleteTemplateSource",
        summary="Forget a template source",
    )
    async def delete_template_source(
        self, sources: NamedDependency[TemplateSourceService], source_id: SourceId
    ) -> None:
        """Its templates go with it; apps that were made from them live on."""
        await sources.delete(source_id)
