"""What is shown of a tenant."""

from datetime import datetime

from quazzar.core.schema import Out


class TenantOut(Out):
    id: str
    name: str
    created_at: datetime


class OwnTenantOut(TenantOut):
    """A tenant that the caller belongs to, and as what."""

    role: str
    current: bool
