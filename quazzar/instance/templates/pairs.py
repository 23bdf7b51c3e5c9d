"""Environment and labels: a mapping, or a list of `NAME=value`."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from quazzar.instance.templates.interpolation import split_parts
from quazzar.instance.templates.reader import Reader, known
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar


class _Pair(NamedTuple):
    node: Node
    line: int
    path: str
    name: str | None
    """None while it isn't known yet."""
    value: str | None
    """None for a name alone."""


def read_pairs(
    reader: Reader, node: Node, path: str, check: Callable[[str], str], *, bare: Callable[[Node, str, str], str | None]
) -> dict[str, str]:
    """Name → value. As in Compose, the names of a list are filled in and the keys of a mapping are not.

    `check` raises ValueError for a name that can't be had, `bare` gives the value of a name alone, None to
    leave it out.
    """
    found: dict[str, str] = {}
    pairs = _of_mapping(reader, node, path) if isinstance(node, MappingNode) else _of_list(reader, node, path)
    for pair in pairs:
        if pair.name is None:
            continue
        try:
            check(pair.name)
        except ValueError as error:
            named = reader.shown(pair.name) or "The name"
            reader.problem(pair.path, pair.line, f"{named} {error}", at=pair.node)
            continue
        if pair.name in found:
            reader.note(pair.path, pair.line, "names what stands before already: the last one holds")
        value = bare(pair.node, pair.path, pair.name) if pair.value is None else str(pair.value)
        if value is None:
            found.pop(pair.name, None)
        else:
            found[pair.name] = value
    return found


def _of_mapping(reader: Reader, node: Node, path: str) -> Iterator[_Pair]:
    for key, line, value, where in reader.named(node, path):
        nothing = isinstance(value, Scalar) and value.value is None
        yield _Pair(value, line, where, key, None if nothing else reader.text(value, where) or "")


def _of_list(reader: Reader, node: Node, path: str) -> Iterator[_Pair]:
    for item, where in reader.sequence(node, path, "a mapping or a list of NAME=value"):
        if not isinstance(item, Scalar) or not isinstance(item.value, str):
            reader.expected(item, where, "a string such as NAME=value")
            continue
        parts = reader.parts(item, where, item.value)
        if parts is None:
            continue
        name, *rest = [reader.filled(item, where, piece) for piece in split_parts(parts, "=", maximum=1)]
        if name is not None and None not in rest:
            yield _Pair(item, item.line, where, known(name), rest[0] if rest else None)
