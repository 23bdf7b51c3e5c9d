"""Patterns of fields: the meaning of Python's, in linear time."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.instance.templates.patterns import MAX_TEXT, Pattern, PatternError


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("^[a-z0-9_-]{3,32}$", ["abc", "a-b_9"], ["ab", "A" * 4, "a b", "x" * 33]),
        ("[a-z]+", ["abc"], ["abc1", "1abc", ""]),
        (r"(\d{1,3}\.){3}\d{1,3}", ["1.2.3.4"], ["1.2.3", "1.2.3.4.5", "\u0661.2.3.4"]),
        ("cat|dog", ["cat", "dog"], ["catdog", "ca"]),
        ("(?:a|bc)*", ["", "abca"], ["b"]),
        (r"\$\{x\}", ["${x}"], ["x"]),
        (r"\\$", ["\\"], ["$", "\\$"]),
        (r"a\$", ["a$"], ["a"]),
        ("a.c", ["abc", "a\tc"], ["a\nc", "ac"]),
        ("[^@\\s]+@[^@\\s]+", ["a@b"], ["a b@c", "a@"]),
        ("[\\]a-]+", ["a]-"], ["b"]),
        ("x{0,2}y?", ["", "xx", "xxy"], ["xxx"]),
        ("x{2,}", ["xx", "xxxxx"], ["x"]),
        ("(|a)b", ["b", "ab"], ["aab"]),
        ("", [""], ["a"]),
        ("ä+", ["ää"], ["a"]),
    ],
)
def test_whole_text_matches(pattern: str, yes: list[str], no: list[str]) -> None:
    compiled = Pattern(pattern)
    assert all(compiled.matches(text) for text in yes)
    assert not any(compiled.matches(text) for text in no)


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a)",
        "[",
        "[]",
        "[^]",
        "[z-a]",
        "a**",
        "a+?",
        "*",
        "{2}",
        "x{2",
        "x{2,1}",
        "x{0}",
        "x{9999}",
        "(?=a)",
        "(?i)a",
        "(?P<a>b)",
        r"\1",
        r"\b",
        "a^b",
        "a$b",
        "[a--b]",
        "[a&&b]",
        "[[a]",
        r"\x41",
        "a" * 201,
        "((((((((((a))))))))))",
        "((((a{99}){99}){99}){99})",
        "(){512}(){512}(){512}",
        "\\",
    ],
)
def test_what_is_not_taken(pattern: str) -> None:
    with pytest.raises(PatternError):
        Pattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a|a)*b", "((a*)*)*b", "(a+)+b", "a*a*a*a*a*a*a*a*b", "(a?){100}a{100}b", "(.*)*x", "(a|aa)+$b"[:-2]]
)
def test_no_pattern_has_a_bad_input(pattern: str) -> None:
    began = time.process_time()
    compiled = Pattern(pattern)
    compiled.matches("a" * MAX_TEXT)
    assert time.process_time() - began < 1


def test_a_long_text_does_not_match() -> None:
    assert Pattern("a*").matches("a" * MAX_TEXT)
    assert not Pattern("a*").matches("a" * (MAX_TEXT + 1))


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\.", "[a-c0]"])
TREES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@given(TREES, st.lists(st.text("abc0. \n", max_size=7), min_size=1, max_size=5))
def test_it_means_what_python_means(pattern: str, texts: list[str]) -> None:
    try:
        compiled = Pattern(pattern)
    except PatternError:
        assert len(pattern) > 40
        return
    for text in texts:
        assert compiled.matches(text) == (re.fullmatch(pattern, text, re.ASCII) is not None)


@given(st.text(alphabet="ab()[]{}*+?|^$.\\-,0123dws", max_size=25), st.text("ab01", max_size=6))
def test_any_text_is_taken_with_its_meaning_or_refused(pattern: str, text: str) -> None:
    try:
        compiled = Pattern(pattern)
    except PatternError:
        return
    assert compiled.matches(text) == (re.fullmatch(pattern, text, re.ASCII) is not None)
