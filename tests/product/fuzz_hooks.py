"""Loaded by schemathesis: keeps it out of streams, which end when their reader leaves and would eat its time."""

import re
import uuid
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(_context: Any, case: Any, **_: Any) -> None:
    if case.query and str(case.query.get("follow", "")).lower() in {"true", "1", "on", "yes", "t"}:
        case.query["follow"] = "false"
    in_chain = case.meta is not None and case.meta.phase.name.value == "stateful"
    if in_chain and re.fullmatch(r"[!-~]{1,200}", (case.headers or {}).get("Idempotency-Key", "")):
        # One that was used before gives the answer of then, about what may have been deleted since.
        case.headers["Idempotency-Key"] = uuid.uuid4().hex


@schemathesis.hook
def filter_query(_context: Any, query: Any) -> bool:
    """A number in the place of a list of tags looks the same in a URL as a list with one tag."""
    tags = (query or {}).get("tag", [])
    return isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
