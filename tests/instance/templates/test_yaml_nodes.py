"""YAML as Compose reads it, with lines, and with an end to everything that could grow."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quazzar.instance.templates.problems import Problems
from quazzar.instance.templates.yaml_nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    Mapping,
    Node,
    Scalar,
    Sequence,
    from_plain,
    plain,
    plain_value,
    read_yaml,
)


def read(text: str | bytes) -> Node:
    problems = Problems()
    node = read_yaml(text, problems)
    assert not problems, problems.all()
    assert node is not None
    return node


def said(text: str | bytes) -> list[str]:
    problems = Problems()
    read_yaml(text, problems)
    assert problems
    return [one.sentence() for one in problems.all()]


# What go-yaml v3, which Compose is built on, makes of unquoted text.
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("22:22", "22:22"),
        ("yes", "yes"),
        ("on", "on"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        ("NULL", None),
        ("none", "none"),
        ("1", 1),
        ("-12", -12),
        ("+12", 12),
        ("0644", 420),
        ("0o644", 420),
        ("0x1F", 31),
        ("-0x1f", -31),
        ("0b101", 5),
        ("1_000", 1000),
        ("08", 8.0),
        ("1.10", 1.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("1.5E-3", 0.0015),
        ("2024-01-31", "2024-01-31"),
        ("1.2.3", "1.2.3"),
        ("0x", "0x"),
        ("-", "-"),
        (".", "."),
        ("..", ".."),
        ("1e", "1e"),
        ("0", 0),
        ("-0", 0),
        ("9223372036854775807", 2**63 - 1),
        ("=", "="),
    ],
)
def test_plain_values(text: str, value: object) -> None:
    found = plain_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["9223372036854775808", "1" * 5000, "1e999", ".inf", "-.Inf", ".nan"])
def test_numbers_that_cannot_be_kept_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        plain_value(text)


def test_quotes_and_tags() -> None:
    node = read(
        'a: \'1\'\nb: "true"\nc: !!str 1\nd: !!int "3"\ne: !!float 1\nf: ! 1\ng: |\n  1\n'
        "h: !!bool 'true'\ni: !!null ''\n"
    )
    expected = {"a": "1", "b": "true", "c": "1", "d": 3, "e": 1.0, "f": "1", "g": "1\n", "h": True, "i": None}
    assert plain(node) == expected


def test_every_node_knows_its_line() -> None:
    node = read("# comment\na:\n  - 1\n  - b: 2\n    c: |\n      x\n      y\n    d: 3\n")
    assert isinstance(node, Mapping)
    assert node.entries["a"].line == 2
    items = node.entries["a"].node
    assert isinstance(items, Sequence)
    assert [item.line for item in items.items] == [3, 4]
    last = items.items[1]
    assert isinstance(last, Mapping)
    assert {key: entry.line for key, entry in last.entries.items()} == {"b": 4, "c": 5, "d": 8}


@pytest.mark.parametrize("breaks", ["\n", "\r\n", "\r"])
def test_lines_of_other_systems(breaks: str) -> None:
    node = read(breaks.join(["a: 1", "", "b: 2"]))
    assert isinstance(node, Mapping)
    assert node.entries["b"].line == 3


def test_anchors_aliases_and_merges() -> None:
    node = read(
        "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\none: {<<: *x, b: 9}\nmany: {!!merge <<: [*x, *y], d: 5}\n"
        "same: [*x, *x]\n"
        "inline: {<<: {z: 1}}\n'<<': text\n"
    )
    found = plain(node)
    assert found["one"] == {"a": 1, "b": 9}
    assert found["many"] == {"a": 1, "b": 2, "c": 4, "d": 5}
    assert found["same"] == [{"a": 1, "b": 2}] * 2
    assert found["inline"] == {"z": 1}
    assert found["<<"] == "text"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", "a stands here for the second time; the first is on line 1 (line 3)"),
        ("a:\n  b: 1\n  'b': 2\n", "b stands here for the second time; the first is on line 2 (line 3)"),
        ("a: 1\n8080: 2\n", "A key must be a string; put it in quotes (line 2)"),
        ("a: 1\ntrue: 2\n", "A key must be a string; put it in quotes (line 2)"),
        ("a: 1\n? [x]\n: 2\n", "A key must be a string; put it in quotes (line 2)"),
        ("a: 1\nb: !include /etc/passwd\n", "The tag !include is refused: values are read as they stand (line 2)"),
        (
            "a: !!python/object:os.system x\n",
            "The tag !!python/object:os.system is refused: values are read as they stand (line 1)",
        ),
        ("a: 1\nb: !reset null\n", "The tag !reset is refused: values are read as they stand (line 2)"),
        ("a: !override [1]\n", "The tag !override is refused: values are read as they stand (line 1)"),
        ("a: !!set {x}\n", "The tag !!set is refused: values are read as they stand (line 1)"),
        ("a: !!binary aGk=\n", "The tag !!binary is refused: values are read as they stand (line 1)"),
        ("a: !!int abc\n", "The value is not of the type !!int (line 1)"),
        ("a: 1\n--- \nb: 2\n", "A second document begins here; one file is one template (line 2)"),
        ("a: &a [*a]\n", "The alias *a stands inside of what it stands for (line 1)"),
        ("a: &a {<<: *a}\n", "The alias *a stands inside of what it stands for (line 1)"),
        ("a: *b\n", "Nothing is anchored as &b before this alias (line 1)"),
        ("a: {<<: 5}\n", "<< takes a mapping or a list of mappings (line 1)"),
        (
            "x: &x {a: 1}\nb:\n  <<: *x\n  <<: *x\n",
            "<< stands here more than once; write one list: <<: [*a, *b] (line 3)",
        ),
        ("", "The file is empty"),
        ("# nothing\n", "The file is empty"),
        ("a: 1\nb: \x00\n", "The character U+0000 is not allowed (line 2)"),
        ("a: \x1b[31m\n", "The character U+001B is not allowed (line 1)"),
        ("a: 1\n\nb: \ud800\n", "The character U+D800 is not allowed (line 3)"),
        ('a: 1\nb: "\\0"\n', "The character U+0000 is not allowed (line 2)"),
        (b"a: 1\nb: \xff\n", "The file is not UTF-8 text (line 2)"),
        (b"\xff\xfea\x00", "The file is not UTF-8 text (line 1)"),
        ("a" * (MAX_BYTES + 1), "The file is larger than 1 MiB"),
        ("ä" * (MAX_BYTES // 2 + 1), "The file is larger than 1 MiB"),
    ],
)
def test_what_is_refused_says_where(text: str | bytes, sentence: str) -> None:
    assert sentence in said(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1, 2\nb: 3\n", 2),
        ("a: 1\n\tb: 2\n", 2),
        ("a: 'x\n", 2),
        ("a: 1\nb: @x\n", 2),
        ("%YAML 2.0\n---\na: 1\n", 1),
    ],
)
def test_a_syntax_error_has_its_line(text: str, line: int) -> None:
    (sentence,) = said(text)
    assert sentence.startswith("Not valid YAML: ")
    assert sentence.endswith(f"(line {line})")


def test_a_byte_order_mark_is_taken() -> None:
    assert plain(read("\ufeffa: 1")) == {"a": 1}
    assert plain(read(b"\xef\xbb\xbfa: 1")) == {"a": 1}


def bomb() -> str:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]" for n in range(20)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (bomb(), "aliases counted"),
        ('a: &a "' + "x" * 900_000 + '"\nb: [' + "*a," * 1000 + "]", "More than 4 MiB of text"),
        ("[" * 500_000, "levels of nesting"),
        ("{a: " * 200_000, "levels of nesting"),
        ("- " * 500_000, "levels of nesting"),
        ("".join(" " * depth + "a:\n" for depth in range(1000)), "levels of nesting"),
        (f"a: &a {'[' * 15}{']' * 15}\nb: &b {'[' * 15}*a{']' * 15}\nc: {'[' * 15}*b{']' * 15}", "levels of nesting"),
        ("[" + "a," * 500_000 + "]", "More than 20000 values"),
        ("".join(f"%TAG !a{n}! b\n" for n in range(40_000)) + "---\na", "too many lines that begin with %"),
        ("a\n...\n" + "".join(f"%TAG !a{n}! b\n" for n in range(40_000)) + "---\na", "too many lines that begin"),
        (
            "x: &a {"
            + ",".join(f"k{n}: 1" for n in range(9000))
            + "}\n"
            + "".join(f"b{n}: {{<<: *a}}\n" for n in range(999)),
            "More than 20000",
        ),
    ],
    ids=lambda text: text[:12] if isinstance(text, str) else None,
)
def test_s13_bombs_end_at_a_bound(text: str, sentence: str) -> None:
    began = time.process_time()
    assert any(sentence in one for one in said(text))
    assert time.process_time() - began < 2


def test_depth_up_to_the_bound() -> None:
    read("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert "levels of nesting" in said("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))[0]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(VALUES)
def test_what_a_yaml_library_writes_is_read_back(value: object) -> None:
    assert plain(read(yaml.safe_dump({"k": value}, allow_unicode=False))) == {"k": value}


@given(VALUES)
def test_plain_and_back(value: object) -> None:
    assert plain(from_plain(value)) == value


@given(st.text(max_size=300) | st.binary(max_size=300))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    problems = Problems()
    assert read_yaml(text, problems) is not None or problems


@given(st.text(alphabet=" \n\t:-[]{}&*!|>'\"%@`,?#~<ab1.", max_size=60))
def test_any_yaml_like_text_is_read_or_refused(text: str) -> None:
    problems = Problems()
    node = read_yaml(text, problems)
    assert node is not None or problems
    if node is not None and not problems and not isinstance(node, Scalar):
        assert isinstance(plain(node), list | dict)
