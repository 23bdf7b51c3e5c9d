"""Bodies of the link to a panel."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.core.schema import In, Out


class PanelJoin(In):
    token: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=1000,
            description="A registration token of the panel.",
            examples=["qze_l69wYW5lbC5leGFtcGxlLmNvbc0g-8QgQ0FGRQ…"],
        ),
    ]


class PanelLinkOut(Out):
    """`connected` tells of the line at this moment; `error` says why there is none."""

    instance_id: Annotated[str, Meta(examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"])]
    panel_url: Annotated[str, Meta(examples=["https://panel.example.com"])]
    connected: bool
    linked_at: datetime
    error: str | None


class PanelStatus(Out, omit_defaults=True):
    """What anyone may know: whether there is a line, and to which panel."""

    connected: bool
    panel_url: Annotated[str, Meta(examples=["https://panel.example.com"])] | None = None
    instance_id: Annotated[str, Meta(examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"])] | None = None
