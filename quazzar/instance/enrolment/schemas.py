"""Bodies of the link to a panel."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from quazzar.core.schema import UNSET, In, Out, UnsetType

LetIn = Annotated[
    bool,
    Meta(description="Whether users of the panel who may do so can open sessions here.", examples=[True]),
]


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
    impersonation: LetIn = True


class PanelLinkUpdate(In):
    """What is left out stays as it is."""

    impersonation: LetIn | UnsetType = UNSET


class PanelLinkOut(Out):
    """`connected` tells of the line at this moment; `error` says why there is none."""

    instance_id: Annotated[str, Meta(examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"])]
    panel_url: Annotated[str, Meta(examples=["https://panel.example.com"])]
    connected: bool
    linked_at: datetime
    error: str | None
    impersonation: LetIn


class PanelStatus(Out, omit_defaults=True):
    """What anyone may know: whether there is a line, and to which panel."""

    connected: bool
    panel_url: Annotated[str, Meta(examples=["https://panel.example.com"])] | None = None
    instance_id: Annotated[str, Meta(examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"])] | None = None
