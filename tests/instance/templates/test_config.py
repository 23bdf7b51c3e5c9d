"""The config of an app against the fields of its template."""

import string
from collections.abc import Collection

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core.errors import Invalid
from quazzar.instance.templates.compose import (
    Template,
    TemplateInvalid,
    check_config,
    mask_config,
    parse_template,
    ports_wanted,
    secret_fields,
    with_ports,
)
from quazzar.instance.templates.fields import AUTO, MASK, Field, config_texts, setting_text
from quazzar.instance.templates.problems import MAX_COMPARED
from tests.instance.templates.writing import problems_of, service_text, spec_of


def template(*fields: str) -> Template:
    return parse_template(service_text("restart: always", fields=", ".join(fields)))


def refused(found: Template, config: dict[str, object], **more: dict[str, object]) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        check_config(found, config, **more)  # type: ignore[arg-type]
    assert caught.value.code == "validation_failed"
    return caught.value.details


ALL = template(
    "{name: port, type: port, default: auto}",
    "{name: title, type: string, required: true, min_length: 2, max_length: 5}",
    "{name: count, type: integer, default: 3, min: 1, max: 10}",
    "{name: ratio, type: number, min: 0.5}",
    "{name: on_air, type: boolean, default: false}",
    "{name: size, type: select, options: [small, large], default: small}",
    "{name: key, type: password, generated: 24}",
    "{name: code, type: password, min_length: 12}",
    "{name: mail, type: email}",
    "{name: link, type: url}",
    "{name: host, type: domain}",
    '{name: tag, type: string, pattern: "[a-z]+"}',
)


def test_defaults_and_generated_values_are_filled_in() -> None:
    found = check_config(ALL, {"title": "abc"})
    key = found.pop("key")
    assert found == {"port": AUTO, "title": "abc", "count": 3, "on_air": False, "size": "small"}
    assert isinstance(key, str)
    assert len(key) == 24
    assert set(key) <= set(string.ascii_letters + string.digits)
    assert check_config(ALL, {"title": "abc"})["key"] != key


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("port", [1, 80, 65535, "auto"]),
        ("title", ["ab", "äöüßé", "a\"\n'$"]),
        ("count", [1, 10]),
        ("ratio", [0.5, 7, 1e9]),
        ("on_air", [True, False]),
        ("size", ["large"]),
        ("code", ["x" * 12, 'it\'s "a"\n${b}']),
        ("mail", ["a@example.com", "first.last+tag@sub.example.org", ""]),
        ("link", ["https://example.com", "http://localhost:8080/a?b=c#d", "https://[::1]:8443/", ""]),
        ("host", ["example.com", "a-b.example.org", "localhost", "xn--bcher-kva.example", ""]),
        ("tag", ["abc", ""]),
    ],
)
def test_what_a_field_takes(name: str, values: list[object]) -> None:
    for value in values:
        assert check_config(ALL, {"title": "abc", name: value})[name] == value


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("port", [0, 65536, -1, "", True, 80.0, [80]], "Port must be between 1 and 65535"),
        ("port", ["8080"], "Port must be a number between 1 and 65535, without quotes"),
        ("title", ["a", "abcdef"], "Title must be 2 to 5 characters long"),
        ("title", [5, True, ["ab"], {"a": 1}], "Title must be a string"),
        ("title", ["", None], "Title is required"),
        ("title", ["a\x00b", "a\ud800b"], "Title must be text without the character U+0000"),
        ("count", [0, 11, 2**70], "Count must be between 1 and 10"),
        ("count", ["3", 3.0, True, 1.5], "Count must be a whole number"),
        ("ratio", [0.4, -1], "Ratio must be at least 0.5"),
        ("ratio", ["1", True], "Ratio must be a number"),
        ("ratio", [float("nan"), float("inf")], "Ratio must be a finite number"),
        ("on_air", [1, 0, "true", "yes"], "On air must be true or false"),
        ("size", ["Small", "", "medium"], "Size must be one of: small, large"),
        ("code", ["short", "x" * 11], "Code must be 12 to 32768 characters long"),
        (
            "mail",
            ["a", "@b", "a@", "a b@c.d", "a@b@c", "a..b@c.d", "a@-b.c", "a@b.c\n", "Name <a@b.c>"],
            "Mail must be an e-mail address",
        ),
        (
            "link",
            [
                "example.com",
                "ftp://a.b",
                "javascript:alert(1)",
                "https://",
                "https://a b",
                "https://a\n.b",
                "https://a:99999/",
                "https://ex_ample.com",
                "//a.b",
                "https://a\\b",
                "https://[::1",
            ],
            "Link must be a URL that begins with http:// or https://",
        ),
        ("link", ["https://user:pw@example.com"], "Link must be a URL without a user name and password"),
        (
            "host",
            ["a b", "-a.b", "a..b", "https://a.b", "a.b:80", "a/b", "*.a.b", "a_b.c"],
            "Host must be a domain such as cloud.example.com",
        ),
        (
            "host",
            ["Example.com", "bücher.example"],
            "Host must be a domain in lower case; write other scripts in their xn-- form",
        ),
        ("host", ["127.0.0.1"], "Host must be a domain, not an address"),
        ("tag", ["A", "a1", "a\n", "a" * 4097], None),
    ],
)
def test_what_a_field_does_not_take(name: str, values: list[object], sentence: str | None) -> None:
    for value in values:
        details = refused(ALL, {"title": "abc", name: value})
        assert set(details) == {f"config.{name}"}
        assert sentence is None or details[f"config.{name}"] == sentence


def test_all_errors_at_once_and_unknown_fields() -> None:
    details = refused(ALL, {"port": 0, "count": "x", "tilte": "abc", "nothing": 1})
    assert details == {
        "config.port": "Port must be between 1 and 65535",
        "config.count": "Count must be a whole number",
        "config.tilte": "Unknown field; did you mean title?",
        "config.nothing": "Unknown field",
        "config.title": "Title is required",
    }


def test_an_unknown_field_is_told_behind_however_many_known_ones() -> None:
    """An imported file may take more than a hundred values from its environment."""
    names = [f"NAME_{number}" for number in range(120)]
    whole = msgspec.structs.replace(ALL, fields=tuple(Field(name=one, label=one, type="string") for one in names))
    given: dict[str, object] = dict.fromkeys([*names, "NAME_120"], "x")
    assert refused(whole, given).keys() == {"config.NAME_120"}
    assert len(refused(whole, {f"other_{number}": "x" for number in range(500)})) == 100


def test_hundreds_of_unknown_names_are_not_compared_with_hundreds_of_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two names of the same letters take most of a millisecond: 100 by 500 would stop the process for half a minute."""
    compared = 0

    def counted(_: str, known: Collection[str], **__: int) -> list[str]:
        nonlocal compared
        compared += len(known)
        return []

    monkeypatch.setattr("difflib.get_close_matches", counted)
    fields = tuple(Field(name=f"n{number}", label="n", type="string") for number in range(250))
    whole = msgspec.structs.replace(ALL, fields=fields)
    assert len(refused(whole, {f"m{number}": "x" for number in range(100)})) == 100
    assert 0 < compared <= MAX_COMPARED
    compared = 0
    pairs = "".join(f"\n      K{number}: ${{m{number}}}" for number in range(90))
    names = ", ".join(f"{{name: n{number}, type: string}}" for number in range(250))
    with pytest.raises(TemplateInvalid):
        parse_template(service_text(f"environment:{pairs}", fields=names))
    assert compared <= MAX_COMPARED


def test_no_sentence_repeats_a_value() -> None:
    for field in ALL.fields:
        details = refused(ALL, {"title": "abc", field.name: ["canary-value"]})
        assert "canary" not in str(details)


def test_a_change_keeps_what_it_does_not_name() -> None:
    before = check_config(ALL, {"title": "abc", "code": "x" * 12, "count": 5})
    before["port"] = 32000
    after = check_config(ALL, {"count": 7}, previous=before)
    assert after == before | {"count": 7}


def test_a_mask_keeps_the_former_secret() -> None:
    before = check_config(ALL, {"title": "abc", "code": "x" * 12})
    shown = mask_config(ALL, before)
    assert shown["key"] == shown["code"] == MASK
    assert shown["title"] == "abc"
    assert check_config(ALL, dict(shown), previous=before) == before
    # Without a former secret it is a text like any other, and too short here.
    assert "config.code" in refused(ALL, {"title": "abc", "code": MASK})


def test_null_puts_a_default_back() -> None:
    before = check_config(ALL, {"title": "abc", "count": 9, "mail": "a@b.c"})
    after = check_config(ALL, {"count": None, "mail": None, "key": None}, previous=before)
    assert after["count"] == 3
    assert "mail" not in after
    assert after["key"] != before["key"]


def test_a_former_value_that_the_template_no_longer_knows_is_dropped() -> None:
    assert "old" not in check_config(ALL, {"title": "abc"}, previous={"old": 1})
    # One that no longer fits is the caller's to mend.
    assert set(refused(ALL, {}, previous={"title": "abc", "count": 99})) == {"config.count"}


def test_secrets_are_masked_by_rule_not_by_value() -> None:
    assert secret_fields(ALL) == {"key", "code"}
    assert mask_config(ALL, {"gone": "old secret", "count": 3}) == {"gone": MASK, "count": 3}


def test_auto_ports_are_found_elsewhere() -> None:
    found = template(
        "{name: a, type: port, default: auto}",
        "{name: b, type: port}",
        "{name: c, type: port, default: auto}",
        "{name: d, type: string, default: auto}",
    )
    config = check_config(found, {"b": 80, "c": "auto"})
    assert ports_wanted(found, config) == 2
    assert with_ports(found, config, [41000, 41001]) == {"a": 41000, "b": 80, "c": 41001, "d": "auto"}
    for wrong in ([], [41000], [41000, 41000], [1, 2, 3]):
        with pytest.raises(ValueError, match="2 different ports"):
            with_ports(found, config, wrong)


@pytest.mark.parametrize(
    ("field", "path", "sentence"),
    [
        ("{name: a b, type: string}", "name", "name must be a name of letters, digits and '_', as in ${name}"),
        ("{name: 1a, type: string}", "name", "name must be a name of letters, digits and '_', as in ${name}"),
        (
            "{name: a, type: text}",
            "type",
            "type must be one of: string, integer, number, boolean, select, password, port, email, url, domain",
        ),
        ("{type: string}", "name", "name is required"),
        ("{name: a}", "type", "type is required"),
        ("{name: a, type: string, lable: x}", "lable", "lable is not known here; did you mean label?"),
        ("{name: a, type: string, required: yes}", "required", "required must be true or false"),
        ("{name: a, type: string, default: 5}", "default", "default must be a string"),
        ("{name: a, type: integer, default: '5'}", "default", "default must be a whole number"),
        ("{name: a, type: integer, default: 5, max: 4}", "default", "default must be at most 4"),
        ("{name: a, type: integer, min: 5, max: 4}", "min", "min must not be above max"),
        ("{name: a, type: port, min: 0}", "min", "min must be a port between 1 and 65535"),
        ("{name: a, type: port, default: 70000}", "default", "default must be between 1 and 65535"),
        ("{name: a, type: string, min: 5}", "min", "min means nothing for a field of type string"),
        (
            "{name: a, type: integer, min_length: 5}",
            "min_length",
            "min_length means nothing for a field of type integer",
        ),
        (
            "{name: a, type: string, min_length: 5, max_length: 4}",
            "min_length",
            "min_length must not be above max_length",
        ),
        ("{name: a, type: string, options: [x]}", "options", "options means nothing for a field of type string"),
        ("{name: a, type: select}", "options", "options must list what can be chosen"),
        ("{name: a, type: select, options: [x], default: y}", "default", "default must be one of: x"),
        ("{name: a, type: select, options: [x, x]}", "options.1", "options.1 stands here for the second time"),
        (
            "{name: a, type: password, default: hunter2hunter2}",
            "default",
            "default is refused: a secret that everybody can read is none; use generated or required",
        ),
        (
            "{name: a, type: string, secret: true, default: x}",
            "default",
            "default is refused: a secret that everybody can read is none; use generated or required",
        ),
        ("{name: a, type: integer, secret: true}", "secret", "secret means nothing for a field of type integer"),
        ("{name: a, type: integer, generated: 24}", "generated", "generated means nothing for a field of type integer"),
        ("{name: a, type: password, generated: 4}", "generated", "generated must be a whole number between 8 and 256"),
        (
            "{name: a, type: password, generated: 10, min_length: 12}",
            "generated",
            "generated must lie between min_length and max_length",
        ),
        (
            '{name: a, type: string, pattern: "(a"}',
            "pattern",
            "pattern is not a pattern that can be used: a ( has no )",
        ),
        ('{name: a, type: string, pattern: "a", default: b}', "default", "default has a form that is not allowed"),
        ('{name: a, type: integer, pattern: "a"}', "pattern", "pattern means nothing for a field of type integer"),
        ("{name: a, type: email, default: nobody}", "default", "default must be an e-mail address"),
        ('{name: a, type: string, label: "a\\nb"}', "label", "label must be one line of 1 to 100 characters"),
        ('{name: a, type: string, label: "a\\eb"}', "label", "label must be text without control characters"),
    ],
)
def test_rules_that_make_no_sense(field: str, path: str, sentence: str) -> None:
    details = problems_of(service_text("restart: always", fields=field))
    assert details == {f"x-quazzar.fields.0.{path}": f"{sentence} (line 1)"}


def test_two_fields_of_one_name() -> None:
    details = problems_of(service_text("restart: always", fields="{name: a, type: string}, {name: a, type: port}"))
    assert details == {"x-quazzar.fields.1.name": "a is the name of an earlier field (line 1)"}


def test_fields_and_their_patterns_are_bounded() -> None:
    many = ", ".join(f"{{name: a{n}, type: string}}" for n in range(101))
    assert "more than 100" in problems_of(service_text("restart: always", fields=many))["x-quazzar.fields"]
    costly = ", ".join(f'{{name: a{n}, type: string, pattern: "[a-z]{{1,400}}"}}' for n in range(20))
    assert "too complex" in str(problems_of(service_text("restart: always", fields=costly)))


def test_a_field_survives_storing() -> None:
    stored = msgspec.json.encode(ALL)
    assert msgspec.json.decode(stored, type=Template) == ALL
    assert msgspec.convert(msgspec.to_builtins(ALL), Template) == ALL


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (False, "false"), (5, "5"), (0.5, "0.5"), (2.0, "2"), (1e-7, "0.0000001"), ("x", "x"), ("", "")],
)
def test_values_as_text(value: str | float | bool, text: str) -> None:
    assert setting_text(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_as_text_keep_their_value(number: float) -> None:
    assert float(setting_text(number)) == number


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([one.name for one in ALL.fields]) | st.text(max_size=5), JSON, max_size=6))
def test_any_config_is_taken_or_refused(config: dict[str, object]) -> None:
    try:
        found = check_config(ALL, config)
    except Invalid as error:
        assert error.details
        assert all(key.startswith("config.") for key in error.details)
        return
    assert check_config(ALL, {}, previous=found) == found
    assert all(isinstance(text, str) for text in config_texts(ALL.fields, found).values())


@given(st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=200))
def test_s38_any_value_reaches_the_environment_byte_for_byte(value: str) -> None:
    found = parse_template(
        service_text('environment: {A: "${v}", B: "<$v>"}\nlabels: ["l=${v}"]', fields="{name: v, type: string}")
    )
    service = spec_of(found, v=value).services[0]
    assert service.environment == {"A": value, "B": f"<{value}>"}
    assert service.labels == {"l": value}
