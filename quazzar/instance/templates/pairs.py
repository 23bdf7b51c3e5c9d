"""Environment and labels: a mapping, or a list of `NAME=value`."""

from collections.abc import Callable, Iterator

from quazzar.instance.templates.problems import shown
from quazzar.instance.templates.reader import Reader
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar


def read_pairs(
    reader: Reader, node: Node, path: str, check: Callable[[str], str], *, bare: Callable[[Node, str, str], str]
) -> dict[str, str]:
    """A mapping, or a list of `name=value`; names are never filled in."""
    found: dict[str, str] = {}
    for item, line, name, where, value in _written_pairs(reader, node, path):
        try:
            check(name)
        except ValueError as error:
            reader.problem(where, line, f"{shown(name) or 'The name'} {error}", "invalid")
            continue
        if name in found:
            reader.problem(where, line, f"{shown(name)} stands here for the second time")
        found[name] = bare(item, where, name) if value is None else str(value)
    return found


def _written_pairs(reader: Reader, node: Node, path: str) -> Iterator[tuple[Node, int, str, str, str | None]]:
    if isinstance(node, MappingNode):
        for key, line, value, where in reader.mapping(node, path):
            if isinstance(value, Scalar) and value.value is None:
                yield value, line, key, where, None
            else:
                yield value, line, key, where, reader.text(value, where) or ""
        return
    for item, where in reader.sequence(node, path, "a mapping or a list of NAME=value"):
        if not isinstance(item, Scalar) or not isinstance(item.value, str):
            reader.expected(item, where, "a string such as NAME=value")
            continue
        name, equals, rest = item.value.partition("=")
        if not equals:
            yield item, item.line, name, where, None
            continue
        parts = reader.parts(item, where, rest)
        filled = None if parts is None else reader.filled(item, where, parts)
        yield item, item.line, name, where, filled or ""
