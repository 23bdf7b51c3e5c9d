"""The `x-quazzar` block: what a catalogue shows, what a form asks, what a domain and a backup take."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quazzar.instance.templates import quantities
from quazzar.instance.templates.commands import check_shell_words, read_words
from quazzar.instance.templates.fields import (
    MAX_VALUE,
    Field,
    FieldType,
    compiled,
    rule_problems,
)
from quazzar.instance.templates.names import SLUG, VARIABLE
from quazzar.instance.templates.patterns import PatternError
from quazzar.instance.templates.problems import join
from quazzar.instance.templates.reader import Reader, last
from quazzar.instance.templates.template import Backup, Hook, Needs, Web
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar, Sequence

KEY = "x-quazzar"
MAX_FIELDS = 100
MAX_OPTIONS = 100
MAX_PATTERN_STATES = 4000
"""Of all fields together: it bounds the time that one config can take to check."""
FIELD_TYPES: tuple[FieldType, ...] = (
    "string", "integer", "number", "boolean", "select", "password", "port", "email", "url", "domain",
)  # fmt: skip
KEYS = (
    "slug", "version", "title", "description", "category", "icon", "website", "first_steps", "needs", "fields", "web",
    "backup",
)  # fmt: skip
FIELD_KEYS = (
    "name", "label", "type", "description", "required", "default", "pattern", "min", "max", "min_length", "max_length",
    "options", "secret", "generated",
)  # fmt: skip

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_CATEGORY = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_ICON = re.compile(r"[a-z0-9][a-z0-9_.-]{0,60}|https://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?/[!-~]{0,500}")
_WEBSITE = re.compile(r"https?://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?(?:/[!-~]{0,500})?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(slots=True)
class Extension:
    """What the block said; `web`, `backup` are read when the services are known."""

    texts: dict[str, str] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)
    fields: list[Field] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)


def read_extension(reader: Reader, node: Node, *, required: tuple[str, ...]) -> Extension:
    """The block's texts and fields; `required` are the keys that must be there. Nothing in it is filled in."""
    found = Extension()
    block = reader.entries(node, KEY, KEYS)
    for key in required:
        if key not in block and isinstance(node, MappingNode):
            reader.problem(f"{KEY}.{key}", node.line, f"{key} is required", "missing")
    for key, check in _TEXTS.items():
        if key in block:
            text = _text(reader, block[key], f"{KEY}.{key}", check)
            if text is not None:
                found.texts[key] = text
    if "needs" in block:
        found.needs = _needs(reader, block["needs"], f"{KEY}.needs")
    if "fields" in block:
        found.fields = _fields(reader, block["fields"], f"{KEY}.fields")
    found.nodes = {key: block[key] for key in ("web", "backup") if key in block}
    return found


def _text(reader: Reader, node: Node, path: str, check: Callable[[str], str | None]) -> str | None:
    """A string as it stands; `check` gives what it must be when it isn't."""
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        quotes = "; put it in quotes" if isinstance(node, Scalar) and node.value is not None else ""
        reader.expected(node, path, "a string" + quotes)
        return None
    wrong = check(node.value)
    if wrong is None and _CONTROL.search(node.value):
        wrong = "text without control characters"
    if wrong is not None:
        reader.expected(node, path, wrong)
        return None
    return node.value


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str | None]:
    return lambda text: None if pattern.fullmatch(text) else what


def _line(most: int) -> Callable[[str], str | None]:
    return lambda text: None if 1 <= len(text) <= most and "\n" not in text else f"one line of 1 to {most} characters"


def _paragraphs(most: int) -> Callable[[str], str | None]:
    return lambda text: None if len(text) <= most else f"at most {most} characters long"


_TEXTS: Mapping[str, Callable[[str], str | None]] = {
    "slug": _matching(SLUG, "1 to 63 of a-z, 0-9 and '-', without '-' at either end"),
    "version": _matching(_VERSION, "1 to 64 of letters, digits and . _ + -"),
    "title": _line(100),
    "description": _paragraphs(4000),
    "category": _matching(_CATEGORY, "1 to 40 of a-z, 0-9 and '-'"),
    "icon": _matching(_ICON, "a name such as gitea.svg or an https:// address"),
    "website": _matching(_WEBSITE, "an address that begins with https:// or http://"),
    "first_steps": _paragraphs(4000),
}


def _needs(reader: Reader, node: Node, path: str) -> Needs:
    found = reader.entries(node, path, ("memory", "disk"))
    sizes = {
        f"{key}_bytes": reader.parsed(found[key], f"{path}.{key}", parse, 0, loose=True)
        for key, parse in (("memory", quantities.memory_bytes), ("disk", quantities.size_bytes))
        if key in found
    }
    return Needs(**sizes)


# Fields


def _fields(reader: Reader, node: Node, path: str) -> list[Field]:
    found: dict[str, Field] = {}
    states = 0
    for index, (item, where) in enumerate(reader.sequence(node, path, "a list of fields")):
        if index == MAX_FIELDS:
            reader.problem(path, node.line, f"fields has more than {MAX_FIELDS} entries", "too_large")
            break
        one = _field(reader, item, where, MAX_PATTERN_STATES - states)
        if one is None:
            continue
        if one.name in found:
            reader.problem(f"{where}.name", item.line, f"{one.name} is the name of an earlier field")
        found.setdefault(one.name, one)
        states += _states(one)
    return list(found.values())


def _states(field: Field) -> int:
    """How much the pattern costs per character; nothing for one that is refused anyway."""
    try:
        return 0 if field.pattern is None else compiled(field.pattern).states
    except PatternError:
        return 0


def _field(reader: Reader, node: Node, path: str, states: int) -> Field | None:
    entries = reader.entries(node, path, FIELD_KEYS)
    if not isinstance(node, MappingNode):
        return None
    for key in ("name", "type"):
        if key not in entries:
            reader.problem(f"{path}.{key}", node.line, f"{key} is required", "missing")
    if "name" not in entries or "type" not in entries:
        return None
    before = len(reader.problems.all())
    values: dict[str, Any] = {}
    for key, value in entries.items():
        read = _FIELD_VALUES[key](reader, value, f"{path}.{key}")
        if read is not None:
            values[key] = read
    if len(reader.problems.all()) > before or "name" not in values or "type" not in values:
        # The name is worth keeping: without it every ${name} would be a second problem.
        return Field(name=values["name"], label="", type="string") if "name" in values else None
    values.setdefault("label", values["name"].replace("_", " ").strip().capitalize() or values["name"])
    if values["type"] == "password":
        values["secret"] = True
    made = Field(**values)
    if _states(made) > states:
        said = "pattern makes all patterns together too complex; use smaller repeat counts"
        reader.problem(f"{path}.pattern", entries["pattern"].line, said, "too_large")
        return made
    for key, said in rule_problems(made).items():
        line = entries[key].line if key in entries else node.line
        reader.problem(f"{path}.{key}", line, f"{key} {said}")
    return made


def _name(reader: Reader, node: Node, path: str) -> str | None:
    return _text(reader, node, path, _matching(VARIABLE, "a name of letters, digits and '_', as in ${name}"))


def _type(reader: Reader, node: Node, path: str) -> str | None:
    text = _text(reader, node, path, _line(20))
    if text is not None and text not in FIELD_TYPES:
        reader.expected(node, path, f"one of: {', '.join(FIELD_TYPES)}")
        return None
    return text


def _boolean(reader: Reader, node: Node, path: str) -> bool | None:
    if isinstance(node, Scalar) and isinstance(node.value, bool):
        return node.value
    reader.expected(node, path, "true or false")
    return None


def _number(reader: Reader, node: Node, path: str) -> int | float | None:
    if isinstance(node, Scalar) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    reader.expected(node, path, "a number")
    return None


def _count(low: int, high: int) -> Callable[[Reader, Node, str], int | None]:
    def read(reader: Reader, node: Node, path: str) -> int | None:
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        reader.expected(node, path, f"a whole number between {low} and {high}")
        return None

    return read


def _default(reader: Reader, node: Node, path: str) -> Any:
    if isinstance(node, Scalar) and node.value is not None:
        return node.value
    reader.expected(node, path, "a string, a number, true or false")
    return None


def _options(reader: Reader, node: Node, path: str) -> tuple[str, ...] | None:
    found: list[str] = []
    for item, where in reader.sequence(node, path, "a list of strings"):
        text = _text(reader, item, where, _line(200))
        if text in found:
            reader.problem(where, item.line, f"{last(where)} stands here for the second time")
        if text is not None:
            found.append(text)
        if len(found) > MAX_OPTIONS:
            reader.problem(path, node.line, f"options has more than {MAX_OPTIONS} entries", "too_large")
            break
    return tuple(found)


def _described(most: int) -> Callable[[Reader, Node, str], str | None]:
    return lambda reader, node, path: _text(reader, node, path, _paragraphs(most))


_FIELD_VALUES: Mapping[str, Callable[[Reader, Node, str], Any]] = {
    "name": _name,
    "label": lambda reader, node, path: _text(reader, node, path, _line(100)),
    "type": _type,
    "description": _described(1000),
    "required": _boolean,
    "default": _default,
    "pattern": lambda reader, node, path: _text(reader, node, path, _line(200)),
    "min": _number,
    "max": _number,
    "min_length": _count(0, MAX_VALUE),
    "max_length": _count(1, MAX_VALUE),
    "options": _options,
    "secret": _boolean,
    "generated": _count(8, 256),
}


# What a domain and a backup take


def read_web(reader: Reader, node: Node | None, services: frozenset[str]) -> Web | None:
    path = f"{KEY}.web"
    if node is None:
        return None
    found = reader.entries(node, path, ("service", "port"))
    service = _service(reader, found.get("service"), f"{path}.service", services, node)
    port: int | None = None
    if "port" in found:
        port = _count(1, 65535)(reader, found["port"], f"{path}.port")
    elif isinstance(node, MappingNode):
        reader.problem(f"{path}.port", node.line, "port is required", "missing")
    return None if service is None or port is None else Web(service=service, port=port)


def read_backup(reader: Reader, node: Node | None, services: frozenset[str], volumes: tuple[str, ...]) -> Backup:
    """Without the block, or without `volumes` in it, a backup takes all of them."""
    path = f"{KEY}.backup"
    if node is None:
        return Backup(volumes=volumes)
    found = reader.entries(node, path, ("volumes", "hooks"))
    chosen = volumes
    if "volumes" in found:
        chosen = ()
        for item, where in reader.sequence(found["volumes"], f"{path}.volumes"):
            name = _text(reader, item, where, _line(63))
            if name is not None and name not in volumes:
                reader.problem(where, item.line, f"{last(where)} is not declared under volumes", "unknown")
            elif name is not None and name not in chosen:
                chosen = (*chosen, name)
    hooks = reader.entries(found["hooks"], f"{path}.hooks", ("before", "after")) if "hooks" in found else {}
    made = {key: _hook(reader, value, join(f"{path}.hooks", key), services) for key, value in hooks.items()}
    return Backup(volumes=chosen, before=made.get("before"), after=made.get("after"))


def _hook(reader: Reader, node: Node, path: str, services: frozenset[str]) -> Hook | None:
    found = reader.entries(node, path, ("service", "command"))
    service = _service(reader, found.get("service"), f"{path}.service", services, node)
    command = found.get("command")
    if command is None:
        if isinstance(node, MappingNode):
            reader.problem(f"{path}.command", node.line, "command is required", "missing")
        return None
    if not isinstance(command, Sequence) or not command.items:
        said = 'command must be a list, such as ["pg_dump", "-f", "/backup/db.sql"]: hooks are not run by a shell'
        reader.problem(f"{path}.command", command.line, said, "refused")
        return None
    words = list(read_words(reader, command, f"{path}.command"))
    check_shell_words(reader, words)
    texts = tuple(str(word.node.value) for word in words if isinstance(word.node, Scalar))
    return None if service is None else Hook(service=service, command=texts)


def _service(reader: Reader, node: Node | None, path: str, services: frozenset[str], parent: Node) -> str | None:
    if node is None:
        if isinstance(parent, MappingNode):
            reader.problem(path, parent.line, "service is required", "missing")
        return None
    name = _text(reader, node, path, _line(63))
    if name is not None and name not in services:
        reader.problem(path, node.line, f"There is no service {name}", "unknown")
        return None
    return name
