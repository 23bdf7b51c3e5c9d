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
    is_bare: bool = False
    """Whether it stands in a line without quotes, where a shell and Compose would split what is filled in."""


def read_words(reader: Reader, node: Node, path: str) -> Iterator[Word]:
    """Each word before anything is filled in, so that a value is never split into words."""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        parts = reader.parts(node, path, node.value)
        try:
            words = [] if parts is None else split_words(parts)
        except ValueError as error:
            reader.problem(path, node.line, f"{last(path)} {error}")
            return
        for word, is_bare in words:
            yield Word(node, path, word, is_bare)
        return
    for item, where in reader.sequence(node, path, "a string or a list of strings"):
        if not isinstance(item, Scalar) or not isinstance(item.value, str):
            reader.expected(item, where, "a string; put it in quotes")
            continue
        parts = reader.parts(item, where, item.value)
        if parts is not None:
            yield Word(item, where, parts)


def filled_words(reader: Reader, words: Iterable[Word]) -> Iterator[str]:
    """The texts of `words`. As in Compose, a word of a line that nothing is filled into is no word."""
    for word in words:
        text = reader.filled(word.node, word.path, word.parts) or ""
        if text or not _may_be_none(word):
            yield text
        if word.is_bare and reader.from_environment and len(text.split()) > 1:
            said = "has a value with spaces, which stays one word where Compose would make several: write a list"
            reader.note(word.path, word.node.line, said)


def check_shell_words(reader: Reader, words: list[Word], *, after: Iterable[Word] = ()) -> None:
    """`sh -c <text>`: what is filled into the text must stay a word, whatever its value is.

    `after` are the words that the engine puts before: the entrypoint of a command.
    """
    following = False
    for word in after:
        following = _is_shell_flag(word) or (following and _may_be_none(word))
    for word in words:
        if following:
            reader.inert(word.node, word.path, word.parts)
        following = _is_shell_flag(word) or (following and _may_be_none(word))


def _may_be_none(word: Word) -> bool:
    return word.is_bare and all(isinstance(part, Reference) for part in word.parts)


def _is_shell_flag(word: Word) -> bool:
    parts = word.parts
    return len(parts) == 1 and isinstance(parts[0], str) and _SHELL_FLAG.fullmatch(parts[0]) is not None


def split_words(parts: Parts) -> list[tuple[Parts, bool]]:
    """As Compose splits a line, where each `${…}` is one piece of a word however it is written.

    With each word goes whether no part of it stands in quotes.

    It is not quite as a shell does: a backslash between double quotes goes away before any letter. What is of use to
    a shell only is refused: Compose forgets the rest of the line there. Raises ValueError with a sentence part.
    """
    # YAML text never has the character that stands for a reference here.
    line = "".join(part if isinstance(part, str) else "\x00" for part in parts)
    if len(line) > MAX_LINE:
        raise ValueError(f"must be a line of at most {MAX_LINE} characters; a list may be longer")
    words = list(_split(line))
    waiting = (part for part in parts if not isinstance(part, str))
    found: list[tuple[Parts, bool]] = []
    for word, is_bare in words:
        pieces: list[str | Reference] = []
        for at, piece in enumerate(word.split("\x00")):
            if at:
                pieces.append(next(waiting))
            if piece:
                pieces.append(piece)
        found.append((tuple(pieces), is_bare))
    return found


def _split(line: str) -> Iterator[tuple[str, bool]]:
    word: str | None = None
    is_bare = True
    at = 0
    while at < len(line):
        piece = _PIECE.match(line, at)
        if piece is None:
            raise ValueError("must be a line whose quotes are closed")
        at = piece.end()
        match piece.lastgroup:
            case "space":
                if word is not None:
                    yield word, is_bare
                word, is_bare = None, True
            case "operator":
                raise ValueError(
                    f'has {piece.group()}, which only a shell knows: write ["sh", "-c", "…"], or put it in quotes'
                )
            case "double":
                word, is_bare = (word or "") + _ESCAPED.sub(r"\1", piece["double"]), False
            case kind:
                word, is_bare = (word or "") + piece[str(kind)], is_bare and kind == "plain"
    if word is not None:
        yield word, is_bare
