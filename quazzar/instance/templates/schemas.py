"""Bodies of templates, in and out."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.core.schema import In, Out
from quazzar.instance.templates.fields import FieldType

COMPOSE_BYTES = 1024 * 1024

EXAMPLE = """\
x-quazzar:
  slug: our-page
  version: "1.0"
  title: Our page
  fields:
    - {name: http_port, label: Port, type: port, default: auto}
  web: {service: web, port: 80}
services:
  web:
    image: nginx:1.27
    ports: ["${http_port}:80"]
"""


class TemplateIn(In):
    """A file of the Compose Specification with an `x-quazzar` block.

    A `trusted` one may have folders and devices of the host; only an administrator can say so.
    """

    compose: Annotated[str, Meta(min_length=1, max_length=COMPOSE_BYTES, examples=[EXAMPLE])]
    trusted: bool = False


class FieldOut(Out, kw_only=True):
    """What a form asks for. `default` of a port may be `auto`; `generated` is the length of a made-up value."""

    name: str
    label: str
    type: FieldType
    description: str
    required: bool
    default: str | int | float | bool | None
    pattern: str | None
    min: int | float | None
    max: int | float | None
    min_length: int | None
    max_length: int | None
    options: list[str]
    secret: bool
    generated: int | None


class WebOut(Out, kw_only=True):
    """What a domain points to."""

    service: str
    port: int


class NeedsOut(Out, kw_only=True):
    """The least that the machine must have left for the app to run; null where the template doesn't say."""

    memory_bytes: int | None
    disk_bytes: int | None


class TemplateSummary(Out, kw_only=True):
    """A template as it stands in the list: its default version."""

    id: str
    slug: str
    version: str
    title: str
    description: str
    category: str
    icon: str | None
    website: str | None
    source: Annotated[str, Meta(description="`packaged`, `own`, or the id of a template source.")]
    fields: list[FieldOut]
    services: list[str]
    volumes: list[str]
    web: WebOut | None
    needs: NeedsOut
    trusted: bool
    created_at: datetime | None
    updated_at: datetime | None


class TemplateOut(TemplateSummary, kw_only=True):
    """A template in full.

    `versions` begins with the default one; `first_steps` tells people what to do once the app runs; `notes` say what
    is done otherwise than the file asks.
    """

    first_steps: str
    versions: list[str]
    notes: list[str]
    compose: str
