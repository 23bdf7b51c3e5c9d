"""What is shown of a tenant."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.core.schema import Out


class TenantOut(Out):
    id: Annotated[str, Meta(examples=["ten_23oc77vtak2bdwdlqw5ffwpz33"])]
    name: Annotated[str, Meta(examples=["Example"])]
    created_at: datetime


class OwnTenantOut(TenantOut):
    """A tenant that the caller belongs to, and as what."""

    role: Annotated[str, Meta(examples=["owner"])]
    current: bool
