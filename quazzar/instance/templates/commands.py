"""Commands: words that are split before anything is filled in, and text that a shell will read."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from quazzar.instance.templates.interpolation import Parts, Reference
from quazzar.instance.templates.reader import Reader, last
from quazzar.instance.templates.yaml_nodes import Node, Scalar

MAX_LINE = 4096

_PIECE = re.compile(
    r"""(?P<space>[ \t\r\n]+)|'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|\\(?P<escaped>.)"""
    r"""|(?P<operator>[;&|<>])|(?P<plain>[^ \t\r\n'"\\;&|<>]+)""",
    re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_SHELL_FLAG = re.compile(r"-[a-z]{0,8}c")


class Word(NamedTuple):
    """A word of a command, not filled in, and where it stands."""

    node: Node
    path: str
    parts: Parts


def read_words(reader: Reader, node: Node, path: str) -> Iterator[Word]:
    """Each word before anything is filled in, so that a value is never split into words."""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        parts = reader.parts(node, path, node.value)
        try:
            words = [] if parts is None else split_words(parts)
        except ValueError as error:
            reader.problem(path, node.line, f"{last(path)} {error}")
            return
        for word in words:
            yield Word(node, path, word)
        return
    for item, where in reader.sequence(node, path, "a string or a list of strings"):
        if not isinstance(item, Scalar) or not isinstance(item.value, str):
            reader.expected(item, where, "a string; put it in quotes")
            continue
        parts = reader.parts(item, where, item.value)
        if parts is not None:
            yield Word(item, where, parts)


def check_shell_words(reader: Reader, words: list[Word], *, after: Iterable[Word] = ()) -> None:
    """`sh -c <text>`: what is filled into the text must stay a word, whatever its value is.

    `after` are the words that the engine puts before: the entrypoint of a command.
    """
    following = any(_is_shell_flag(word) for word in list(after)[-1:])
    for word in words:
        if following:
            reader.inert(word.node, word.path, word.parts)
        following = _is_shell_flag(word)


def _is_shell_flag(word: Word) -> bool:
    parts = word.parts
    return len(parts) == 1 and isinstance(parts[0], str) and _SHELL_FLAG.fullmatch(parts[0]) is not None


def split_words(parts: Parts) -> list[Parts]:
    """As Compose splits a line, where each `${…}` is one piece of a word however it is written.

    It is not quite as a shell does: a backslash between double quotes goes away before any letter. What is of use to
    a shell only is refused: Compose forgets the rest of the line there. Raises ValueError with a sentence part.
    """
    # YAML text never has the character that stands for a reference here.
    line = "".join(part if isinstance(part, str) else "\x00" for part in parts)
    if len(line) > MAX_LINE:
        raise ValueError(f"must be a line of at most {MAX_LINE} characters; a list may be longer")
    words = list(_split(line))
    waiting = (part for part in parts if not isinstance(part, str))
    found: list[Parts] = []
    for word in words:
        pieces: list[str | Reference] = []
        for at, piece in enumerate(word.split("\x00")):
            if at:
                pieces.append(next(waiting))
            if piece:
                pieces.append(piece)
        found.append(tuple(pieces))
    return found


def _split(line: str) -> Iterator[str]:
    word: str | None = None
    at = 0
    while at < len(line):
        piece = _PIECE.match(line, at)
        if piece is None:
            raise ValueError("must be a line whose quotes are closed")
        at = piece.end()
        match piece.lastgroup:
            case "space":
                if word is not None:
                    yield word
                word = None
            case "operator":
                raise ValueError(
                    f'has {piece.group()}, which only a shell knows: write ["sh", "-c", "…"], or put it in quotes'
                )
            case "double":
                word = (word or "") + _ESCAPED.sub(r"\1", piece["double"])
            case kind:
                word = (word or "") + piece[str(kind)]
    if word is not None:
        yield word
