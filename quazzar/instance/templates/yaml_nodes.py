"""YAML text to plain nodes that know their line, read the way Compose reads it and bounded in every direction.

Compose's own reader is go-yaml: the core schema of YAML 1.2 with a few leftovers of 1.1 (`0644` is octal, `1_000` a
number). `yes`, `on` and `22:22` are strings. Nothing is ever constructed from a tag.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from quazzar.instance.templates.problems import Problems, join, shown

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
"""Counted with every alias written out, so that a small file can't stand for a huge one."""
MAX_EXPANDED_BYTES = 4 << 20
MAX_DEPTH = 32
MAX_DIRECTIVES = 4
"""The parser's work grows with the square of their number."""

Value = str | int | float | bool | None


@dataclass(slots=True, eq=False, frozen=True)
class Scalar:
    value: Value
    line: int


@dataclass(slots=True, eq=False, frozen=True)
class Sequence:
    items: "tuple[Node, ...]"
    line: int


@dataclass(slots=True, eq=False, frozen=True)
class Mapping:
    entries: "dict[str, Entry]"
    line: int


Node = Scalar | Sequence | Mapping


class Entry(NamedTuple):
    """One key of a mapping: `line` is the key's."""

    line: int
    node: Node


class _Weight(NamedTuple):
    nodes: int
    size: int
    depth: int


class _Stop(Exception):
    """A problem after which reading on makes no sense."""

    def __init__(self, message: str, line: int | None, code: str = "syntax") -> None:
        super().__init__(message)
        self.message, self.line, self.code = message, line, code


@dataclass(slots=True, eq=False)
class _Frame:
    """A collection that is still open."""

    line: int
    anchor: str | None
    path: str
    is_mapping: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    merges: list[Node] = field(default_factory=list)
    key: "_Key | None" = None
    nodes: int = 1
    size: int = 0
    depth: int = 1


class _Key(NamedTuple):
    name: str | None
    """None for a key that was refused; its value is read and dropped."""
    line: int
    is_merge: bool


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff\ud800-\udfff]")
_DIRECTIVE = re.compile(r"(?:^|[\r\n])%")
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_INT = re.compile(r"[-+]?(?:0[bB][01]+|0[oO]?[0-7]+|0[xX][0-9a-fA-F]+|[1-9][0-9]*|0)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_TAG = "tag:yaml.org,2002:"


def read_yaml(text: str | bytes, problems: Problems) -> Node | None:
    """The one document of `text`; None when there is none that could be looked at further.

    Everything wrong goes into `problems`; it never raises. Lines are those of an editor, from 1.
    """
    try:
        return _Reader(problems).read(_decoded(text))
    except _Stop as stop:
        problems.add("compose", stop.line, stop.message, stop.code)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.problem, error.context) if part) or "it can't be read"
        problems.add("compose", mark.line + 1 if mark else None, f"Not valid YAML: {said}", "syntax")
    except yaml.YAMLError:
        problems.add("compose", None, "Not valid YAML", "syntax")
    return None


def _decoded(text: str | bytes) -> str:
    if len(text) > MAX_BYTES:
        raise _Stop("The file is larger than 1 MiB", None, "too_large")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Stop("The file is not UTF-8 text", error.object.count(b"\n", 0, error.start) + 1) from error
    text = text.removeprefix("\ufeff")
    bad = _CONTROL.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise _Stop(f"The character U+{ord(bad.group()):04X} is not allowed", line)
    if len(text.encode()) > MAX_BYTES:
        raise _Stop("The file is larger than 1 MiB", None, "too_large")
    if sum(1 for _ in _DIRECTIVE.finditer(text)) > MAX_DIRECTIVES:
        raise _Stop("The file has too many lines that begin with %", None)
    return text


class _Reader:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Node, _Weight] | None] = {}
        self.total = _Weight(0, 0, 0)
        self.root: Node | None = None

    def read(self, text: str) -> Node:
        documents = 0
        for event in _events(text):
            line = event.start_mark.line + 1
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise _Stop("A second document begins here; one file is one template", line)
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self.open(event, line)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self.close()
                case yaml.ScalarEvent():
                    self.scalar(event, line)
                case yaml.AliasEvent():
                    self.alias(event.anchor, line)
                case _:
                    pass
        if self.root is None:
            raise _Stop("The file is empty", None, "missing")
        return self.root

    # What the events stand for

    def open(self, event: Any, line: int) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self.count(1, 0, line)
        if len(self.stack) >= MAX_DEPTH:
            raise _Stop(f"More than {MAX_DEPTH} levels of nesting", line, "too_large")
        self.collection_tag(event.tag, "map" if is_mapping else "seq", line)
        if event.anchor is not None:
            # Until it is closed: an alias to it from inside would be a thing that contains itself.
            self.anchors[event.anchor] = None
        self.stack.append(_Frame(line=line, anchor=event.anchor, path=self.path(), is_mapping=is_mapping))

    def close(self) -> None:
        frame = self.stack.pop()
        node: Node
        if frame.is_mapping:
            self.merge(frame)
            node = Mapping(frame.entries, frame.line)
        else:
            node = Sequence(tuple(frame.items), frame.line)
        self.put(node, _Weight(frame.nodes, frame.size, frame.depth), frame.anchor, frame.line)

    def scalar(self, event: Any, line: int) -> None:
        text: str = event.value
        self.count(1, len(text), line)
        plain = bool(event.implicit[0]) and event.tag is None
        frame = self.stack[-1] if self.stack else None
        is_merge = text == "<<" and (plain or event.tag == _TAG + "merge")
        if is_merge and frame is not None and frame.is_mapping and frame.key is None:
            frame.key = _Key(None, line, is_merge=True)
            return
        value: Value = text
        try:
            if "\x00" in text:
                raise ValueError("the character U+0000 is not allowed")
            value = _resolved(text, event.tag, plain=plain)
        except ValueError as error:
            self.problems.add(self.path() or "compose", line, _sentence(str(error)))
        self.put(Scalar(value, line), _Weight(1, len(text), 1), event.anchor, line)

    def alias(self, name: str | None, line: int) -> None:
        if name is None or name not in self.anchors:
            raise _Stop(f"Nothing is anchored as &{shown(str(name))} before this alias", line)
        target = self.anchors[name]
        if target is None:
            raise _Stop(f"The alias *{shown(name)} stands inside of what it stands for", line)
        node, weight = target
        self.count(weight.nodes, weight.size, line)
        if len(self.stack) + weight.depth > MAX_DEPTH:
            raise _Stop(f"More than {MAX_DEPTH} levels of nesting", line, "too_large")
        self.put(node, weight, None, line)

    # Where they go

    def put(self, node: Node, weight: _Weight, anchor: str | None, line: int) -> None:
        if anchor is not None:
            self.anchors[anchor] = (node, weight)
        if not self.stack:
            self.root = node
            return
        frame = self.stack[-1]
        frame.nodes += weight.nodes
        frame.size += weight.size
        frame.depth = max(frame.depth, weight.depth + 1)
        if not frame.is_mapping:
            frame.items.append(node)
        elif frame.key is None:
            frame.key = self.key(node, frame, line)
        else:
            key, frame.key = frame.key, None
            if key.is_merge:
                frame.merges.append(node)
            elif key.name is not None:
                frame.entries[key.name] = Entry(key.line, node)

    def key(self, node: Node, frame: _Frame, line: int) -> _Key:
        where = frame.path or "compose"
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            self.problems.add(where, line, "A key must be a string; put it in quotes")
            return _Key(None, line, is_merge=False)
        if node.value in frame.entries:
            before = frame.entries[node.value].line
            said = f"{shown(node.value)} stands here for the second time; the first is on line {before}"
            self.problems.add(join(frame.path, node.value), line, said)
            return _Key(None, line, is_merge=False)
        return _Key(node.value, line, is_merge=False)

    def merge(self, frame: _Frame) -> None:
        if len(frame.merges) > 1:
            said = "<< stands here more than once; write one list: <<: [*a, *b]"
            self.problems.add(frame.path or "compose", frame.line, said)
        for value in frame.merges:
            sources = value.items if isinstance(value, Sequence) else (value,)
            for source in sources:
                if not isinstance(source, Mapping):
                    self.problems.add(frame.path or "compose", value.line, "<< takes a mapping or a list of mappings")
                    continue
                for name, entry in source.entries.items():
                    frame.entries.setdefault(name, entry)

    # Bounds

    def count(self, nodes: int, size: int, line: int) -> None:
        self.total = _Weight(self.total.nodes + nodes, self.total.size + size, 0)
        if self.total.nodes > MAX_NODES:
            raise _Stop(f"More than {MAX_NODES} values, aliases counted as what they stand for", line, "too_large")
        if self.total.size > MAX_EXPANDED_BYTES:
            raise _Stop("More than 4 MiB of text, aliases counted as what they stand for", line, "too_large")

    def collection_tag(self, tag: str | None, kind: str, line: int) -> None:
        if tag not in {None, "!", _TAG + kind}:
            self.problems.add(self.path() or "compose", line, _sentence(_tag_refused(str(tag))), "refused")

    def path(self) -> str:
        """The path of the node that comes next."""
        if not self.stack:
            return ""
        frame = self.stack[-1]
        if not frame.is_mapping:
            return join(frame.path, len(frame.items))
        return join(frame.path, frame.key.name) if frame.key is not None and frame.key.name is not None else frame.path


def _events(text: str) -> Iterator[Any]:
    return yaml.parse(text, Loader=yaml.CSafeLoader)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tag_refused(tag: str) -> str:
    name = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
    return f"the tag {shown(name)} is refused: values are read as they stand"


def _resolved(text: str, tag: str | None, *, plain: bool) -> Value:
    """The value of a scalar; raises ValueError with the reason."""
    if tag is None or tag == "!":
        return plain_value(text) if plain else text
    if tag == _TAG + "str":
        return text
    value = plain_value(text)
    match tag.removeprefix(_TAG):
        case "null" if value is None:
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "float" if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        case "null" | "bool" | "int" | "float" if tag.startswith(_TAG):
            raise ValueError(f"the value is not of the type !!{tag.removeprefix(_TAG)}")
        case _:
            raise ValueError(_tag_refused(tag))


def plain_value(text: str) -> Value:
    """What an unquoted scalar stands for; raises ValueError for numbers that can't be kept exactly."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if text[0] not in "+-.0123456789":
        return text
    digits = text.replace("_", "")
    if _INT.fullmatch(digits):
        number = _integer(digits) if len(digits) <= 80 else 1 << 64
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError("the number is too large; put it in quotes if it is text")
        return number
    if _FLOAT.fullmatch(digits):
        fraction = float(digits)
        if not math.isfinite(fraction):
            raise ValueError("the number is too large; put it in quotes if it is text")
        return fraction
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("the number is not finite; put it in quotes if it is text")
    return text


def _integer(digits: str) -> int:
    sign = -1 if digits[0] == "-" else 1
    body = digits.lstrip("+-").lower()
    if body[:2] in {"0b", "0o", "0x"}:
        return sign * int(body[2:], {"b": 2, "o": 8, "x": 16}[body[1]])
    return sign * int(body, 8 if body[0] == "0" else 10)


def plain(node: Node) -> Any:
    """The values without their lines; the depth bound of reading makes recursion safe."""
    match node:
        case Scalar():
            return node.value
        case Sequence():
            return [plain(item) for item in node.items]
        case Mapping():
            return {key: plain(entry.node) for key, entry in node.entries.items()}


def from_plain(value: Any) -> Node:
    """The inverse of `plain`, for values that were checked when they were read; lines are 0."""
    if isinstance(value, dict):
        return Mapping({key: Entry(0, from_plain(item)) for key, item in value.items()}, 0)
    if isinstance(value, list | tuple):
        return Sequence(tuple(from_plain(item) for item in value), 0)
    return Scalar(value, 0)
