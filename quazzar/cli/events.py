"""`quazzar events`: the page that describes every event, made from the classes."""

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec

from quazzar.cli.arguments import Arguments
from quazzar.cli.pages import put
from quazzar.core.records import Event, event_types

_HEAD = """\
# Events

Made by `make events` from the classes of the events; change those.

An event is announced in the transaction of the change that it tells of: nothing is announced that did not happen, and
nothing that happened is missed. `GET /api/events` shows the feed and follows it, webhooks send it. Every event is

```json
{"id": "evt_…", "type": "app.installed", "created_at": "2026-01-31T12:00:00Z", "subject": "app_…", "data": {}}
```

and its `data` depends on its `type`. New fields may come; none goes or changes its meaning.
"""


def run(arguments: Arguments) -> int:
    return put(arguments, page(), target="events")


def page() -> str:
    from quazzar.app import panel_router  # noqa: PLC0415 - loads every domain, and with it every event

    # The panel's domains are loaded where it is served.
    panel_router()
    own = {name: kind for name, kind in event_types().items() if kind.__module__.startswith("quazzar.")}
    table = "\n".join(f"| [`{name}`](#{name.replace('.', '')}) | {_summary(own[name])} |" for name in sorted(own))
    parts = [_HEAD, f"| type | |\n|---|---|\n{table}\n"]
    parts += ["\n".join(_section(name, own[name])) for name in sorted(own)]
    return "\n".join(parts)


def _summary(kind: type[Event]) -> str:
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    return text.replace("|", "\\|")


def _section(name: str, kind: type[Event]) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{_summary(kind)}\n"
    yield "```json"
    yield msgspec.json.format(msgspec.json.encode(schema_of(kind)), indent=2).decode()
    yield "```\n"


def schema_of(kind: type[Event]) -> dict[str, Any]:
    """The JSON schema (2020-12) of the event's `data`."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    found: dict[str, Any] = components.pop(schema["$ref"].rpartition("/")[2])
    found.pop("title", None)
    found.pop("description", None)
    return found | ({"$defs": components} if components else {})
