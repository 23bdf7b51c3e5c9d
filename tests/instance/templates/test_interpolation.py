"""`${name}` as Compose reads it."""

import contextlib
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.instance.templates.interpolation import (
    OPAQUE,
    InterpolationError,
    Opaque,
    Reference,
    fill,
    parse_text,
    references,
    split_parts,
    written,
)

VALUES = {"name": "value", "empty": "", "port": "8080", "evil": "${name}:$$\n\"'"}


# The results are those of compose-go's template package.
@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("", ""),
        ("${name}", "value"),
        ("$name", "value"),
        ("a${name}b$name c", "avaluebvalue c"),
        ("$$name", "$name"),
        ("$${name}", "${name}"),
        ("$$$name", "$value"),
        ("$", "$"),
        ("5$ and $1 and $%", "5$ and $1 and $%"),
        ("^x$", "^x$"),
        ("${name:-other}", "value"),
        ("${empty:-other}", "other"),
        ("${empty-other}", ""),
        ("${gone:-other}", "other"),
        ("${gone-other}", "other"),
        ("${gone:-}", ""),
        ("${gone}", ""),
        ("${name:+alt}", "alt"),
        ("${empty:+alt}", ""),
        ("${empty+alt}", "alt"),
        ("${gone+alt}", ""),
        ("${name:?said}", "value"),
        ("${empty?said}", ""),
        ("${gone:-${name}}", "value"),
        ("${gone:-a${empty:-b${port}}c}", "ab8080c"),
        ("${gone:-http://${name}:${port}/}", "http://value:8080/"),
        ('${gone:-{"a": {"b": 1}}}', '{"a": {"b": 1}}'),
        ("${gone:-$$x}", "$x"),
        ("${gone:-a:-b}", "a:-b"),
        ("${gone:-a b  c}", "a b  c"),
        ("$name}", "value}"),
        ("${evil}", VALUES["evil"]),
        ("${name}${port}", "value8080"),
        ("$name-$port", "value-8080"),
        ("{{.Name}} ${name}", "{{.Name}} value"),
    ],
)
def test_fill(text: str, result: str) -> None:
    assert fill(parse_text(text), VALUES) == result


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${", "followed by a name"),
        ("${}", "followed by a name"),
        ("${1a}", "followed by a name"),
        ("${ name}", "followed by a name"),
        ("${name", "must be followed by }"),
        ("${name ", "must be followed by }"),
        ("${name!x}", "must be followed by }"),
        ("${name:x}", "must be followed by }"),
        ("${name:-x", "not closed"),
        ("${name:-{x}", "not closed"),
        ("${name:-${x}", "not closed"),
        ("${a:-" * 20 + "}" * 20, "nested too deeply"),
        ("${a:-" + "x" * 5000 + "{}}", "longer than 4096"),
    ],
)
def test_text_that_cannot_be_read(text: str, reason: str) -> None:
    with pytest.raises(InterpolationError, match=reason):
        parse_text(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${gone:?set it}", "gone has no value: set it"),
        ("${empty:?set $name}", "empty has no value: set value"),
        ("${gone?}", "gone has no value"),
    ],
)
def test_a_value_that_must_be_there(text: str, message: str) -> None:
    with pytest.raises(InterpolationError) as caught:
        fill(parse_text(text), VALUES)
    assert str(caught.value) == message


def test_an_unknown_value_makes_the_text_unknown() -> None:
    assert isinstance(fill(parse_text("a${x}b"), {"x": OPAQUE}), Opaque)
    assert isinstance(fill(parse_text("${gone:-${x}}"), {"x": OPAQUE}), Opaque)
    assert not isinstance(fill(parse_text("${name:-${x}}"), {"x": OPAQUE, "name": "v"}), Opaque)


def test_all_references_are_found() -> None:
    found = list(references(parse_text("$a ${b:-${c:+$d}} $$e ${f}")))
    assert [(one.name, one.operator) for one in found] == [("a", ""), ("b", ":-"), ("c", ":+"), ("d", ""), ("f", "")]


def test_a_value_never_adds_a_piece() -> None:
    pieces = split_parts(parse_text("${a:-x:y}:80:${b}"), ":")
    assert [fill(piece, {"b": "1:2:3"}) for piece in pieces] == ["x:y", "80", "1:2:3"]


def test_split_stops_at_the_maximum() -> None:
    assert split_parts(parse_text("a/b/c"), "/", maximum=1) == [("a",), ("b/c",)]
    assert split_parts((), ":") == [()]


@pytest.mark.parametrize(
    "text", ["$a" * 300_000, "${a:-b}" * 100_000, "$$" * 400_000, "${a:-" * 100_000, "{" * 900_000]
)
def test_time_is_linear(text: str) -> None:
    began = time.process_time()
    with contextlib.suppress(InterpolationError):
        fill(parse_text(text), {"a": "b"})
    assert time.process_time() - began < 5


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parts = parse_text(text)
    except InterpolationError:
        return
    try:
        assert len(fill(parts, {})) <= len(text)
    except InterpolationError as error:
        assert "has no value" in str(error)


@given(st.text(alphabet="${}:-?+ab_1 ", max_size=40))
def test_dense_text_is_read_or_refused_and_written_back(text: str) -> None:
    try:
        parts = parse_text(text)
        filled = fill(parts, {"a": "A", "b": ""})
    except InterpolationError:
        return
    assert fill(parse_text(written(parts)), {"a": "A", "b": ""}) == filled


@given(st.text(st.characters(exclude_characters="$")))
def test_text_without_a_dollar_is_itself(text: str) -> None:
    assert fill(parse_text(text), {}) == text


@given(st.text())
def test_a_value_arrives_character_by_character(value: str) -> None:
    assert fill(parse_text("<${v}>"), {"v": value}) == f"<{value}>"
    assert fill(parse_text("<${w:-${v}}>"), {"v": value}) == f"<{value}>"


@given(st.text())
def test_doubling_dollars_escapes_any_text(text: str) -> None:
    assert fill(parse_text(text.replace("$", "$$")), {}) == text


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=5)
LITERALS = st.text(st.characters(exclude_characters="{}", codec="utf-8"), min_size=1, max_size=8)
PARTS = st.recursive(
    st.lists(LITERALS | st.builds(Reference, NAMES), max_size=3).map(tuple),
    lambda inner: st.lists(
        LITERALS | st.builds(Reference, NAMES, st.sampled_from([":-", "-", ":?", "?", ":+", "+"]), inner), max_size=3
    ).map(tuple),
    max_leaves=5,
)


@given(PARTS, st.dictionaries(NAMES, st.text()))
def test_written_parts_mean_the_same(parts: tuple[str | Reference, ...], values: dict[str, str]) -> None:
    try:
        expected = fill(parts, values)
    except InterpolationError:
        return
    assert fill(parse_text(written(parts)), values) == expected
