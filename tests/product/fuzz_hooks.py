"""Loaded by schemathesis: keeps it out of streams, which end when their reader leaves and would eat its time."""

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(_context: Any, case: Any, **_: Any) -> None:
    if case.query and str(case.query.get("follow", "")).lower() in {"true", "1", "on", "yes", "t"}:
        case.query["follow"] = "false"
