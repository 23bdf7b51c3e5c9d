"""Reads values out of nodes: types, `${name}`s filled in, and a problem with its place for everything that is wrong."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from quazzar.instance.templates import quantities
from quazzar.instance.templates.interpolation import (
    OPAQUE,
    InterpolationError,
    Opaque,
    Parts,
    Reference,
    fill,
    parse_text,
    references,
    written,
)
from quazzar.instance.templates.problems import Problems, join, shown
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar, Sequence

T = TypeVar("T")

MAX_FILLED = 4 << 20
"""Characters that all strings of an app may have after filling in: a short file could repeat a long value for ever."""
_INERT = re.compile(r"[A-Za-z0-9_./:@%+,=-]*")


class Reader:
    """One pass over a file.

    `values` holds the text of every name that can be filled in: known ones, or `Opaque` where it is known only when an
    app is made. `open_names` may be used too and stand for nothing. When `final`, the pass makes an app from a
    template that was checked before, so what fails is a value: problems are put at `config.<name>`, and sentences
    never repeat it. `from_environment` tells that names stand for those of an environment, as in a plain Compose file.
    """

    def __init__(
        self, problems: Problems, values: Mapping[str, str], *, open_names: Iterable[str] = (), final: bool = False
    ) -> None:
        self.problems = problems
        self.values = values
        self.names = frozenset(values) | frozenset(open_names)
        self.final = final
        self.from_environment = False
        self.notes: list[str] = []
        self._filled = 0

    # Problems

    def problem(
        self, path: str, node_line: int, message: str, code: str = "invalid", *, at: Node | None = None
    ) -> None:
        """`at` is the value that is wrong, where there is one: with it, a final pass finds the field to blame."""
        if not self.final:
            self.problems.add(path, node_line or None, message, code)
            return
        used = [one.name for one in _references(at)]
        where = f"config.{used[0]}" if used else path
        self.problems.add(where, None, f"Does not fit {path}: {message}" if used else message, code)

    def expected(self, node: Node, path: str, what: str) -> None:
        self.problem(path, node.line, f"{last(path)} must be {what}", at=node)

    def shown(self, name: str) -> str:
        """`name` as a sentence may have it: in a final pass it may have come from a secret."""
        return "the name" if self.final else shown(name)

    def note(self, path: str, line: int, message: str) -> None:
        if len(self.notes) < 100:
            self.notes.append(f"{path} {message}" + (f" (line {line})" if line else ""))

    # Scalars

    def parts(self, node: Node, path: str, text: str) -> Parts | None:
        """`text` parsed, every name in it known; None after a problem."""
        try:
            parts = parse_text(text)
        except InterpolationError as error:
            self.problem(path, node.line, f"{last(path)}: {error}")
            return None
        unknown = [one.name for one in references(parts) if one.name not in self.names and not one.operator]
        for name in unknown[:3]:
            close = self.problems.guesses.closest(name, self.names)
            way = "give it in env" if self.from_environment else "declare it under x-quazzar.fields"
            hint = f"did you mean {close}?" if close else f"{way}, or write ${{NAME:-default}}"
            self.problem(path, node.line, f"${{{shown(name)}}} is not known; {hint}", "unknown")
        return None if unknown else parts

    def filled(self, node: Node, path: str, parts: Parts) -> str | None:
        try:
            text = fill(parts, self.values)
        except InterpolationError as error:
            self.problem(path, node.line, str(error), "missing", at=node)
            return None
        self._filled += len(text)
        if self._filled > MAX_FILLED:
            self.problem(path, node.line, "All texts together are longer than 4 MiB", "too_large", at=node)
            return None
        return text

    def string(self, node: Node, path: str) -> str | None:
        """The filled-in text of a string; `Opaque` when it isn't known yet, None after a problem."""
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            quotes = "; put it in quotes" if isinstance(node, Scalar) and node.value is not None else ""
            self.expected(node, path, "a string" + quotes)
            return None
        parts = self.parts(node, path, node.value)
        return None if parts is None else self.filled(node, path, parts)

    def text(self, node: Node, path: str) -> str | None:
        """As `string`, and numbers and booleans as Compose writes them."""
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return "true" if node.value else "false"
        if isinstance(node, Scalar) and isinstance(node.value, int | float):
            return quantities.number_text(node.value)
        return self.string(node, path)

    def parsed(self, node: Node, path: str, parse: Callable[[str], T], fallback: T, *, loose: bool = False) -> T:
        """`parse` of the text of a scalar; `fallback` when it isn't known yet or after a problem.

        `loose` takes numbers too. `parse` raises ValueError with a sentence part (`must be …`).
        """
        text = self.text(node, path) if loose else self.string(node, path)
        if text is None or isinstance(text, Opaque):
            return fallback
        try:
            return parse(text)
        except ValueError as error:
            self.problem(path, node.line, f"{last(path)} {error}", at=node)
            return fallback

    def boolean(self, node: Node, path: str, fallback: bool = False) -> bool:
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        if isinstance(node, Scalar) and isinstance(node.value, str):
            if "$" in node.value:
                return self.parsed(node, path, quantities.truth, fallback)
            if node.value.lower() in {"true", "false"}:
                return node.value.lower() == "true"
        self.expected(node, path, "true or false")
        return fallback

    def choice(self, node: Node, path: str, choices: tuple[str, ...]) -> str | None:
        text = self.string(node, path)
        if text is None or isinstance(text, Opaque):
            return None
        if text not in choices:
            self.expected(node, path, f"one of: {', '.join(choices)}")
            return None
        return text

    def inert(self, node: Node, path: str, parts: Parts) -> None:
        """Refuse values that a shell could read as more than a word, where `parts` is text that a shell reads."""
        for reference in references(parts):
            value = self.values.get(reference.name, "")
            if not isinstance(value, Opaque) and not _INERT.fullmatch(value):
                said = (
                    f"${{{reference.name}}} stands in text that a shell reads; its value may only have letters, "
                    "digits and _./:@%+,=- there (hand it over in the environment instead)"
                )
                # Of the line's fields it is this one's value.
                self.problem(path, node.line, said, "refused", at=Scalar(f"${{{reference.name}}}", node.line))

    # Collections

    def mapping(self, node: Node, path: str) -> Iterator[tuple[str, int, Node, str]]:
        """Key, its line, value and path of each entry, without `x-…` ones; a problem if it isn't a mapping."""
        for key, line, value, where in self.named(node, path):
            if not key.startswith("x-"):
                yield key, line, value, where

    def named(self, node: Node, path: str) -> Iterator[tuple[str, int, Node, str]]:
        """As `mapping`, where keys are names that the file's author chose, so that `x-…` is one too."""
        if not isinstance(node, MappingNode):
            self.expected(node, path, "a mapping")
            return
        for key, entry in node.entries.items():
            yield key, entry.line, entry.node, join(path, key)

    def entries(self, node: Node, path: str, known: Iterable[str]) -> dict[str, Node]:
        """The entries of a mapping whose keys are all of `known`; a problem for every other one."""
        allowed = frozenset(known)
        found: dict[str, Node] = {}
        for key, line, value, where in self.mapping(node, path):
            if key in allowed:
                found[key] = value
            else:
                self.unknown(key, line, where, allowed)
        return found

    def unknown(self, key: str, line: int, path: str, known: Iterable[str]) -> None:
        close = [] if self.problems.full else difflib.get_close_matches(key[:64], list(known), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self.problem(path, line, f"{shown(key)} is not known here{hint}", "unknown")

    def sequence(self, node: Node, path: str, what: str = "a list") -> Iterator[tuple[Node, str]]:
        if not isinstance(node, Sequence):
            self.expected(node, path, what)
            return
        for index, item in enumerate(node.items):
            yield item, join(path, index)

    def strings(self, node: Node, path: str) -> list[str]:
        """A list of strings; those that fail or aren't known yet are left out."""
        found = [self.string(item, where) for item, where in self.sequence(node, path, "a list of strings")]
        return [one for one in found if one is not None and not isinstance(one, Opaque)]


def last(path: str) -> str:
    """The key that a sentence is about: `ports.0` of `services.web.ports.0`."""
    parts = path.split(".")
    named = next((at for at in range(len(parts) - 1, -1, -1) if not parts[at].isdigit()), 0)
    return ".".join(parts[named:])


def _references(node: Node | None) -> Iterator[Reference]:
    if isinstance(node, Scalar) and isinstance(node.value, str):
        try:
            yield from references(parse_text(node.value))
        except InterpolationError:
            return


def known(text: str | None) -> str | None:
    """`text`, or None where it isn't known yet."""
    return None if isinstance(text, Opaque) else text


def rewritten(parts: Parts, line: int) -> Scalar:
    """A scalar of the text that `parts` were read from."""
    return Scalar(written(parts), line)


__all__ = ["OPAQUE", "Opaque", "Reader", "known", "last", "rewritten"]
