"""What is wrong with a template: all of it at once, each with its place and its line."""

import difflib
from collections.abc import Collection

import msgspec

from quazzar.core.errors import Invalid

MAX_PROBLEMS = 100
MAX_COMPARED = 300
"""Each comparison of two names may take most of a millisecond."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """`path` uses dots (`services.web.ports.0`); `line` counts from 1 and is None where no line of a file is to blame.

    `code` is one of `syntax`, `too_large`, `refused`, `unsupported`, `unknown`, `missing`, `invalid`.
    """

    path: str
    line: int | None
    message: str
    code: str

    def sentence(self) -> str:
        return self.message if self.line is None else f"{self.message} (line {self.line})"


class TemplateInvalid(Invalid):
    """The file can't become a template; `details` holds a sentence per place, `problems` the same as a list."""

    code = "template_invalid"
    message = "The template is not valid"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        details: dict[str, str] = {}
        for one in problems:
            before = details.get(one.path)
            details[one.path] = one.sentence() if before is None else f"{before}; {one.sentence()}"
        super().__init__(details=details)


class Problems:
    """Collects problems in the order of finding, at most `MAX_PROBLEMS`: a hostile file must not make a huge answer."""

    def __init__(self) -> None:
        self.guesses = Guesses()
        self._found: list[Problem] = []
        self._more = False

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def full(self) -> bool:
        return len(self._found) >= MAX_PROBLEMS

    def add(self, path: str, line: int | None, message: str, code: str = "invalid") -> None:
        if self.full:
            self._more = True
            return
        found = Problem(path=path, line=line, message=message, code=code)
        if found not in self._found:
            self._found.append(found)

    def all(self) -> tuple[Problem, ...]:
        found = tuple(sorted(self._found, key=lambda one: one.line or 0))
        if not self._more:
            return found
        more = Problem(path="compose", line=None, message="There are more problems than are listed", code="too_large")
        return (*found, more)

    def check(self) -> None:
        """Raises `TemplateInvalid` when there is any problem."""
        if self._found:
            raise TemplateInvalid(self.all())


class Guesses:
    """What was meant by unknown names, of the first few only: whoever makes up hundreds stops nobody by that."""

    def __init__(self) -> None:
        self._left = MAX_COMPARED

    def closest(self, name: str, known: Collection[str]) -> str | None:
        """The one of `known` that `name` is most like; None when none is, or too much was compared already."""
        self._left -= len(known)
        close = difflib.get_close_matches(name[:64], known, n=1) if self._left >= 0 else []
        return close[0] if close else None


def shown(key: str) -> str:
    """`key` as it may stand in a sentence or a path: short, and without what a terminal or a log would act on."""
    text = key if len(key) <= 60 else key[:57] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def join(path: str, key: str | int) -> str:
    return f"{path}.{key if isinstance(key, int) else shown(key)}" if path else str(key)
