"""What is shown of an invitation to those who made it."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.core.schema import Out


class InvitationLink(Out):
    """How the invited person gets in; shown this once."""

    url: Annotated[str, Meta(examples=["https://panel.example.com/accept-invitation#token=qzi_mJ3vKq0x…"])]
    token: Annotated[str, Meta(examples=["qzi_mJ3vKq0x…"])]
    expires_at: datetime
