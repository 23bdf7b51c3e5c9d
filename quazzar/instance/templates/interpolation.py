"""Compose's `${name}` in strings: parsed once, filled in later, never able to become structure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

MAX_NESTING = 8
MAX_WORD = 4096
_SHORT = 8192
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")


class InterpolationError(ValueError):
    """The text can't be read or filled in; the message is a sentence that holds no value."""


@dataclass(slots=True, frozen=True)
class Reference:
    """`${name}`, or with an operator (`:-` `-` `:?` `?` `:+` `+`) and the text after it."""

    name: str
    operator: str = ""
    word: "Parts" = ()


Parts = tuple[str | Reference, ...]


class Opaque(str):
    """Stands for a value that is known only when an app is made: what it would be can't be checked yet."""

    __slots__ = ()


OPAQUE = Opaque("value")


def parse_text(text: str) -> Parts:
    """The literals and references of `text`. `$$` is one dollar sign, and so is a `$` before anything else.

    Raises `InterpolationError` for a `${` that isn't finished or doesn't begin with a name.
    """
    if "$" not in text:
        return (text,) if text else ()
    return _parse_short(text) if len(text) <= _SHORT else _parse(text, 0, nesting=0)[0]


@lru_cache(maxsize=512)
def _parse_short(text: str) -> Parts:
    """The same texts come again and again: at each pass over a file, and at each place of an alias."""
    return _parse(text, 0, nesting=0)[0]


def _parse(text: str, start: int, *, nesting: int) -> tuple[Parts, int]:
    """Parts from `start`; below the top level up to the brace that closes, where braces in literals count as pairs."""
    if nesting > MAX_NESTING:
        raise InterpolationError("${…} is nested too deeply")
    parts: list[str | Reference] = []
    literal: list[str] = []
    at, braces = start, 0
    stops = re.compile(r"\$" if nesting == 0 else r"[$\{\}]")
    while True:
        stop = stops.search(text, at)
        if stop is None:
            literal.append(text[at:])
            at = len(text)
            break
        literal.append(text[at : stop.start()])
        at = stop.start()
        if nesting and at - start > MAX_WORD:
            raise InterpolationError(f"the text inside of ${{…}} is longer than {MAX_WORD} characters")
        if text[at] == "}" and braces == 0:
            break
        if text[at] != "$":
            braces += 1 if text[at] == "{" else -1
            literal.append(text[at])
            at += 1
            continue
        found, at = _dollar(text, at, nesting)
        if isinstance(found, str):
            literal.append(found)
        else:
            parts.extend(_joined(literal))
            literal = []
            parts.append(found)
    parts.extend(_joined(literal))
    return tuple(parts), at


def _joined(pieces: list[str]) -> list[str]:
    text = "".join(pieces)
    return [text] if text else []


def _dollar(text: str, at: int, nesting: int) -> tuple[str | Reference, int]:
    """What the `$` at `at` begins, and where the text goes on."""
    following = text[at + 1 : at + 2]
    if following == "$":
        return "$", at + 2
    if following != "{":
        name = _NAME.match(text, at + 1)
        return ("$", at + 1) if name is None else (Reference(name.group()), name.end())
    name = _NAME.match(text, at + 2)
    if name is None:
        raise InterpolationError("${ must be followed by a name; write $$ for a dollar sign")
    at = name.end()
    if text[at : at + 1] == "}":
        return Reference(name.group()), at + 1
    operator = _OPERATOR.match(text, at)
    if operator is None:
        raise InterpolationError(f"${{{name.group()[:60]} must be followed by }} or by one of :- - :? ? :+ +")
    word, at = _parse(text, operator.end(), nesting=nesting + 1)
    if text[at : at + 1] != "}":
        raise InterpolationError(f"${{{name.group()[:60]} is not closed by a }}")
    return Reference(name.group(), operator.group(), word), at + 1


def references(parts: Parts) -> Iterator[Reference]:
    """Every reference, those inside of others' words included."""
    for part in parts:
        if isinstance(part, Reference):
            yield part
            yield from references(part.word)


def fill(parts: Parts, values: Mapping[str, str]) -> str:
    """The text with `values` put in; `Opaque` when any value that it takes is. An unset name is empty.

    Raises `InterpolationError` for a `:?` or `?` whose name has no value.
    """
    pieces: list[str] = []
    opaque = False
    for part in parts:
        piece = part if isinstance(part, str) else _filled(part, values)
        opaque = opaque or isinstance(piece, Opaque)
        pieces.append(piece)
    return OPAQUE if opaque else "".join(pieces)


def _filled(reference: Reference, values: Mapping[str, str]) -> str:
    value = values.get(reference.name)
    if isinstance(value, Opaque):
        return value
    present = value is not None and (value != "" or not reference.operator.startswith(":"))
    match reference.operator[-1:]:
        case "-":
            return value if present and value is not None else fill(reference.word, values)
        case "+":
            return fill(reference.word, values) if present else ""
        case "?" if not present:
            said = fill(reference.word, values)
            raise InterpolationError(f"{reference.name} has no value" + (f": {said[:200]}" if said else ""))
        case _:
            return value or ""


def split_parts(parts: Parts, separator: str, *, maximum: int = -1) -> list[Parts]:
    """Like `str.split`, but only literals are split: a value never adds a piece."""
    pieces: list[list[str | Reference]] = [[]]
    for part in parts:
        if isinstance(part, Reference):
            pieces[-1].append(part)
            continue
        first, *rest = part.split(separator, maximum - len(pieces) + 1 if maximum >= 0 else -1)
        if first:
            pieces[-1].append(first)
        pieces.extend([piece] if piece else [] for piece in rest)
    return [tuple(piece) for piece in pieces]


def written(parts: Parts) -> str:
    """The text that `parse_text` reads as `parts`."""
    return "".join(
        part.replace("$", "$$") if isinstance(part, str) else f"${{{part.name}{part.operator}{written(part.word)}}}"
        for part in parts
    )
