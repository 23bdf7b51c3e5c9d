"""Templates over HTTP."""

from dataclasses import dataclass
from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.di import NamedDependency, Provide
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath, QueryParameter
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import principal_of, require_everything, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import READS_BODY, delete, get, post, put
from quazzar.core.schema import decode_body
from quazzar.instance.templates.schemas import EXAMPLE, TemplateIn, TemplateOut, TemplateSummary
from quazzar.instance.templates.service import TemplateService, list_templates

YAML = "application/yaml"

_FILE = "A file of the Compose Specification with an `x-quazzar` block"

_TRUSTED = "Whether it may have folders and devices of the host; only an administrator (scope `*`) can say so"


_BODY = RequestBody(
    required=True,
    content={
        "application/json": OpenAPIMediaType(
            schema=Schema(
                type=OpenAPIType.OBJECT,
                required=["compose"],
                properties={
                    "compose": Schema(type=OpenAPIType.STRING, min_length=1, description=_FILE),
                    "trusted": Schema(type=OpenAPIType.BOOLEAN, default=False, description=_TRUSTED),
                },
                additional_properties=False,
                examples=[{"compose": EXAMPLE}],
            )
        ),
        YAML: OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, description=_FILE, examples=[EXAMPLE])),
    },
)


@dataclass
class _FileOperation(Operation):
    """Documents a body that is either JSON with the file in `compose`, or the file itself."""

    def __post_init__(self) -> None:
        self.request_body = _BODY


async def provide_templates(session: NamedDependency[AsyncSession]) -> TemplateService:
    return TemplateService(session)


async def _sent(request: Request[Any, Any, Any]) -> tuple[str | bytes, bool]:
    """The file in the body, whichever way it was sent, and whether it is to be trusted. Raises `Forbidden`."""
    body = await request.body()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == YAML:
        return body, False
    sent = decode_body(body, TemplateIn)
    if sent.trusted:
        require_everything(principal_of(request))
    return sent.compose, sent.trusted


Words = Annotated[
    str | None, QueryParameter(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*\Z", description="Only those.")
]
Ref = Annotated[str, Meta(description="Slug or id.", examples=["gitea"])]


class TemplateController(Controller):
    path = "/templates"
    tags = ("Templates",)
    dependencies = {"templates": Provide(provide_templates)}

    @get(guards=[requires("templates:read")], operation_id="ListTemplates", summary="The catalogue")
    async def list_templates(
        self,
        request: Request[Any, Any, Any],
        q: Words = None,
        category: Words = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[TemplateSummary]]:
        """Packaged and own templates in the order of their slugs, each in its default version with its `fields`."""
        page = page_of(limit, cursor, key=r"[a-z0-9-]{1,63}")
        found = await list_templates(request.app.state.database, page, q=q, category=category)
        return paged(request, page, found, lambda template: template, lambda template: template.slug)

    @get("/{template_ref:str}", guards=[requires("templates:read")], operation_id="GetTemplate", summary="One template")
    async def get_template(
        self,
        templates: NamedDependency[TemplateService],
        template_ref: FromPath[Ref],
        version: Annotated[str | None, QueryParameter(min_length=1, max_length=128)] = None,
    ) -> TemplateOut:
        """In its default version, or the one that is asked for; with the file itself in `compose`."""
        return await templates.get(template_ref, version)

    @post(
        guards=[requires("templates:write")],
        operation_id="CreateTemplate",
        operation_class=_FileOperation,
        opt={READS_BODY: True},
        summary="Add a template of one's own",
    )
    async def create_template(
        self, request: Request[Any, Any, Any], templates: NamedDependency[TemplateService]
    ) -> Response[TemplateOut]:
        """The file is checked whole; every problem is reported with its line.

        With `trusted` in a JSON body, which only an administrator can say, it may have folders and devices of the host.
        """
        template = await templates.create(*await _sent(request))
        return Response(template, headers={"Location": f"/api/templates/{template.id}"})

    @put(
        "/{template_ref:str}",
        guards=[requires("templates:write")],
        operation_id="ReplaceTemplate",
        operation_class=_FileOperation,
        opt={READS_BODY: True},
        summary="Add or replace a version of an own template",
    )
    async def replace_template(
        self,
        request: Request[Any, Any, Any],
        templates: NamedDependency[TemplateService],
        template_ref: FromPath[Ref],
    ) -> TemplateOut:
        """The version that the file names is added as the newest, or replaced in its place; the others stay. It is
        `trusted` only if this call says so, whatever it was before.
        """
        return await templates.replace(template_ref, *await _sent(request))

    @delete(
        "/{template_ref:str}",
        guards=[requires("templates:write")],
        operation_id="DeleteTemplate",
        summary="Forget an own template",
    )
    async def delete_template(self, templates: NamedDependency[TemplateService], template_ref: FromPath[Ref]) -> None:
        """With all its versions; apps that were made from it live on."""
        await templates.delete(template_ref)
