"""The strict body decoder: everything that fails is reported at once, by field."""

import difflib
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given as given_examples
from hypothesis import strategies as st
from msgspec import Meta

from quazzar.core.errors import Invalid, InvalidJson
from quazzar.core.schema import UNSET, In, Name, UnsetType, decode_body, given


class Port(In):
    container: Annotated[int, Meta(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] = "tcp"


class Sftp(In, tag_field="kind", tag="sftp"):
    host: Annotated[str, Meta(min_length=1, max_length=255)]


class Local(In, tag_field="kind", tag="local"):
    path: str


class Body(In):
    name: Name
    ports: Annotated[list[Port], Meta(max_length=3)] = []
    config: dict[str, str | int | bool] = {}
    target: Sftp | Local | None = None
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    ratio: Annotated[float, Meta(gt=0)] = 1.0
    enabled: bool = True


class Patch(In):
    name: Name | UnsetType = UNSET
    note: str | None | UnsetType = UNSET


def problems(body: Any, kind: type[Any] = Body) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        decode_body(msgspec.json.encode(body), kind)
    return caught.value.details


def test_every_failing_field_is_named_at_once() -> None:
    found = problems(
        {
            "ports": [{"container": 0}, {"container": 80, "protocol": "icmp"}, {}],
            "enabled": "yes",
            "ratio": -1,
            "nam": 1,
        }
    )
    assert found == {
        "name": "Name is required",
        "ports.0.container": "Container must be between 1 and 65535",
        "ports.1.protocol": "Protocol must be one of: tcp, udp",
        "ports.2.container": "Container is required",
        "enabled": "Enabled must be true or false",
        "ratio": "Ratio must be at least 0",
        "nam": "Unknown field; did you mean name?",
    }


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a b", "a\nb", "a;id", "$(id)", "a`id`", "ä", "a" * 64, "a\n"])
def test_a_name_is_a_host_label_and_says_so(name: str) -> None:
    assert problems({"name": name}) == {"name": "Name must be 1 to 63 of a-z, 0-9 and '-', without '-' at either end"}


@pytest.mark.parametrize(
    ("body", "field", "sentence"),
    [
        ({"name": "a", "ports": {}}, "ports", "Ports must be an array"),
        ({"name": "a", "ports": [{"container": 1}] * 4}, "ports", "Ports can have at most 3 items"),
        ({"name": "a", "ports": [{"container": "1"}]}, "ports.0.container", "Container must be a whole number"),
        ({"name": "a", "ports": [{"container": 1.5}]}, "ports.0.container", "Container must be a whole number"),
        ({"name": "a", "ports": [{"container": True}]}, "ports.0.container", "Container must be a whole number"),
        ({"name": "a", "ports": [7]}, "ports.0", "Ports must be an object"),
        ({"name": None}, "name", "Name must be 1 to 63 of a-z, 0-9 and '-', without '-' at either end"),
        ({"name": "a", "target": {"kind": "ftp"}}, "target.kind", "Kind must be one of: sftp, local"),
        ({"name": "a", "target": {"kind": "sftp", "host": ""}}, "target.host", "Host must not be empty"),
        (
            {"name": "a", "expires_at": "tomorrow"},
            "expires_at",
            "Expires at must be a time in RFC 3339 form with a zone",
        ),
        ({"name": "a", "config": []}, "config", "Config must be an object"),
    ],
)
def test_sentences(body: Any, field: str, sentence: str) -> None:
    assert problems(body) == {field: sentence}


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null"])
def test_a_wrong_top_type_can_not_be_read(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        decode_body(body, Body)


class Cat(In, tag_field="kind", tag="cat"):
    lives: int


class Dog(In, tag_field="kind", tag="dog"):
    name: Name


def test_a_body_of_one_of_several_kinds_is_an_object_that_says_which() -> None:
    pets: Any = Cat | Dog
    assert decode_body(b'{"kind": "dog", "name": "rex"}', pets) == Dog("rex")
    assert problems({"kind": "dog", "name": "", "lives": 9}, pets).keys() == {"name", "lives"}
    assert problems({"name": "rex"}, pets) == {"kind": "Kind must be one of: cat, dog"}
    assert problems({"kind": "cow", "nmae": "rex"}, pets).keys() == {"kind", "nmae"}
    for body in (b"[]", b'"cat"', b"null", b"9"):
        with pytest.raises(InvalidJson):
            decode_body(body, pets)


def test_no_body_is_no_json() -> None:
    with pytest.raises(InvalidJson, match="empty"):
        decode_body(b"", Body)


def test_patch_tells_absent_from_null() -> None:
    assert given(decode_body(b"{}", Patch)) == {}
    assert given(decode_body(b'{"note": null}', Patch)) == {"note": None}
    assert problems({"name": None}, Patch) != {}


@given_examples(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda children: (
            st.lists(children, max_size=4)
            | st.dictionaries(
                st.sampled_from([*Body.__struct_fields__, "x"]) | st.text(max_size=4), children, max_size=6
            )
        ),
        max_leaves=20,
    )
)
def test_anything_is_read_or_refused_and_a_refusal_names_a_field(value: Any) -> None:
    try:
        decode_body(msgspec.json.encode(value), Body)
    except Invalid as error:
        assert error.details
        assert all(sentence for sentence in error.details.values())
    except InvalidJson:
        assert not isinstance(value, dict)


def test_thousands_of_unknown_fields_are_all_told_and_few_are_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """To guess what was meant takes a hundred times as long as to say that there is no such field."""
    guessed: list[str] = []
    guess = difflib.get_close_matches

    def counted(name: str, known: Any, *, n: int) -> list[str]:
        guessed.append(name)
        return guess(name, known, n=n)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    body = {f"nam{number}": 0 for number in range(4000)}
    with pytest.raises(Invalid) as caught:
        decode_body(msgspec.json.encode(body | {"name": "x"}), Body)
    assert caught.value.details.keys() == body.keys()
    assert caught.value.details["nam0"] == "Unknown field; did you mean name?"
    assert caught.value.details["nam3999"] == "Unknown field"
    assert len(guessed) <= 20
