"""Regular expressions of a template's fields, in a subset that is matched in time linear in the text.

Python's `re` backtracks: a pattern such as `(a|a)*b` from a template would stop the process for minutes. Here a pattern
becomes a small automaton whose states are followed all at once (Thompson 1968), so no pattern has a bad input.
What is taken means the same in Python and in a browser: literals, classes, `.`, `\\d \\w \\s` and their opposites,
groups `(…)` and `(?:…)`, `|`, `* + ? {m} {m,} {m,n}`. The whole text must match, so a `^` at the beginning and a `$` at
the end are allowed and say nothing.
"""

import re
from dataclasses import dataclass, field

MAX_PATTERN = 200
MAX_TEXT = 4096
MAX_STATES = 1000
"""Of one pattern."""
MAX_REPEAT = 512
MAX_GROUPS = 8


class PatternError(ValueError):
    """The pattern is not of the subset; the message is a sentence part."""


@dataclass(slots=True)
class _Program:
    """`step[s]` is the set of characters that leads from s to s + 1, or None where `jumps[s]` are followed freely."""

    step: list["re.Pattern[str] | None"] = field(default_factory=list)
    jumps: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, step: "re.Pattern[str] | None" = None, jumps: tuple[int, ...] = ()) -> int:
        if len(self.step) >= MAX_STATES:
            raise PatternError("it is too complex; use smaller repeat counts")
        self.step.append(step)
        self.jumps.append(jumps)
        return len(self.step) - 1


class Pattern:
    """A compiled pattern. Raises `PatternError` when `text` is not of the subset."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN:
            raise PatternError(f"it is longer than {MAX_PATTERN} characters")
        tree = _Parser(text).whole()
        self._program = _Program()
        _compile(tree, self._program)
        self._end = self._program.add()
        self._closures: dict[int, frozenset[int]] = {}

    @property
    def states(self) -> int:
        """How much work each character of a text is, at most."""
        return self._end

    def matches(self, text: str) -> bool:
        """Whether all of `text` matches; a text of more than `MAX_TEXT` characters never does."""
        if len(text) > MAX_TEXT:
            return False
        states = self._closure(0)
        moves: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        for letter in text:
            after = moves.get((states, letter))
            if after is None:
                after = moves[states, letter] = self._move(states, letter)
            if not after:
                return False
            states = after
        return self._end in states

    def _move(self, states: frozenset[int], letter: str) -> frozenset[int]:
        accepted: dict[int, bool] = {}
        reached: set[int] = set()
        for state in states:
            step = self._program.step[state]
            if step is None:
                continue
            if id(step) not in accepted:
                accepted[id(step)] = step.fullmatch(letter) is not None
            if accepted[id(step)]:
                reached |= self._closure(state + 1)
        return frozenset(reached)

    def _closure(self, start: int) -> frozenset[int]:
        """The states that `start` reaches without a character."""
        if start not in self._closures:
            found, waiting = {start}, [start]
            while waiting:
                for state in self._program.jumps[waiting.pop()]:
                    if state not in found:
                        found.add(state)
                        waiting.append(state)
            self._closures[start] = frozenset(found)
        return self._closures[start]


@dataclass(slots=True, frozen=True)
class _Letter:
    letters: "re.Pattern[str]"


@dataclass(slots=True, frozen=True)
class _Row:
    items: "tuple[_Tree, ...]"


@dataclass(slots=True, frozen=True)
class _Choice:
    options: "tuple[_Tree, ...]"


@dataclass(slots=True, frozen=True)
class _Repeat:
    item: "_Tree"
    low: int
    high: int | None


_Tree = _Letter | _Row | _Choice | _Repeat

_REPEAT = re.compile(r"\{(\d{1,4})(,?)(\d{0,4})\}")
_CLASS_ITEM = re.compile(r"\\[dwsDWS]|\\[\\\]\[^\-.\/$*+?(){}|nrt]|(?!--|&&|\|\||~~)[^\\\]\[]")
_ESCAPE = re.compile(r"\\(?:[dwsDWS]|[nrt]|[^A-Za-z0-9])")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text.removeprefix("^")
        body = self.text.removesuffix("$")
        if (len(body) - len(body.rstrip("\\"))) % 2 == 0:  # else the $ is an escaped one
            self.text = body
        self.at = 0
        self.depth = 0

    def whole(self) -> _Tree:
        tree = self.choice()
        if self.at < len(self.text):
            raise PatternError("a ) has no (")
        return tree

    def choice(self) -> _Tree:
        options = [self.row()]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            options.append(self.row())
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def row(self) -> _Tree:
        items: list[_Tree] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            items.append(self.repeated(self.item()))
        return items[0] if len(items) == 1 else _Row(tuple(items))

    def item(self) -> _Tree:
        letter = self.text[self.at]
        match letter:
            case "(":
                return self.group()
            case "[":
                return _Letter(self.letter_class())
            case "\\":
                escape = _ESCAPE.match(self.text, self.at)
                if escape is None:
                    raise PatternError("only \\d \\w \\s \\D \\W \\S \\n \\r \\t and escaped signs are taken after \\")
                self.at = escape.end()
                return _Letter(_letters(escape.group()))
            case "*" | "+" | "?" | "{":
                raise PatternError(f"{letter} has nothing to repeat")
            case "^" | "$":
                raise PatternError(f"{letter} is only taken at the {'beginning' if letter == '^' else 'end'}")
            case _:
                self.at += 1
                return _Letter(_letters("." if letter == "." else re.escape(letter)))

    def group(self) -> _Tree:
        self.depth += 1
        if self.depth > MAX_GROUPS:
            raise PatternError("its groups are nested too deeply")
        self.at += 1
        if self.text.startswith("?", self.at):
            if not self.text.startswith("?:", self.at):
                raise PatternError("of the groups that begin with ? only (?:…) is taken")
            self.at += 2
        tree = self.choice()
        if self.text[self.at : self.at + 1] != ")":
            raise PatternError("a ( has no )")
        self.at += 1
        self.depth -= 1
        return tree

    def letter_class(self) -> "re.Pattern[str]":
        start = self.at
        self.at += 1
        if self.text.startswith("^", self.at):
            self.at += 1
        first = self.at
        while self.at < len(self.text) and self.text[self.at] != "]":
            found = _CLASS_ITEM.match(self.text, self.at)
            if found is None:
                raise PatternError("a class [...] holds something that is not taken; escape \\ and [")
            self.at = found.end()
        if self.at >= len(self.text) or self.at == first:
            raise PatternError("a class [...] is empty or not closed")
        self.at += 1
        return _letters(self.text[start : self.at])

    def repeated(self, tree: _Tree) -> _Tree:
        match self.text[self.at : self.at + 1]:
            case "*":
                repeat = _Repeat(tree, 0, None)
            case "+":
                repeat = _Repeat(tree, 1, None)
            case "?":
                repeat = _Repeat(tree, 0, 1)
            case "{":
                return self.counted(tree)
            case _:
                return tree
        self.at += 1
        return self.once(repeat)

    def counted(self, tree: _Tree) -> _Tree:
        found = _REPEAT.match(self.text, self.at)
        if found is None:
            raise PatternError("{ must be a count such as {2} or {1,8}; escape it as \\{")
        low = int(found[1])
        high = low if not found[2] else int(found[3]) if found[3] else None
        backwards = high is not None and (high < low or high == 0)
        if (not found[2] and found[3]) or backwards or max(low, high or 0) > MAX_REPEAT:
            raise PatternError(f"a repeat count must be of the form {{m,n}} with m <= n, n from 1 to {MAX_REPEAT}")
        self.at = found.end()
        return self.once(_Repeat(tree, low, high))

    def once(self, tree: _Repeat) -> _Repeat:
        if self.text[self.at : self.at + 1] in {"*", "+", "?", "{"}:
            raise PatternError("a repeat can't be repeated; put it in a group")
        return tree


def _letters(text: str) -> "re.Pattern[str]":
    try:
        # As in a browser: \d and \w are ASCII, and a dot is anything but a line break.
        return re.compile(text, re.ASCII)
    except (re.error, OverflowError) as error:
        raise PatternError("a class [...] has a range that runs backwards") from error


def _compile(tree: _Tree, program: _Program) -> None:
    """Append states that are entered at the first and left behind the last of them."""
    match tree:
        case _Letter():
            program.add(tree.letters)
        case _Row():
            for item in tree.items:
                _compile(item, program)
            if not tree.items:
                # Counts as a state, so that repeating nothing is bounded too.
                empty = program.add()
                program.jumps[empty] = (empty + 1,)
        case _Choice():
            _choice(tree, program)
        case _Repeat():
            for _ in range(tree.low):
                _compile(tree.item, program)
            if tree.high is None:
                fork = program.add()
                _compile(tree.item, program)
                end = program.add(jumps=(fork,))
                program.jumps[fork] = (fork + 1, end + 1)
                return
            forks = []
            for _ in range(tree.high - tree.low):
                forks.append(program.add())
                _compile(tree.item, program)
            for fork in forks:
                program.jumps[fork] = (fork + 1, len(program.step))


def _choice(tree: _Choice, program: _Program) -> None:
    fork = program.add()
    starts: list[int] = []
    ends: list[int] = []
    for option in tree.options:
        starts.append(len(program.step))
        _compile(option, program)
        ends.append(program.add())
    program.jumps[fork] = tuple(starts)
    for end in ends:
        program.jumps[end] = (len(program.step),)
