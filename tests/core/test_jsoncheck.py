"""What a JSON body may be: refusals, limits, and that no body is slow or dangerous to refuse."""

import json
import threading
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core.errors import InvalidJson
from quazzar.core.jsoncheck import MAX_DEPTH, MAX_TOKENS, check_json

MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize(
    "body",
    [
        b'{"name":"x","list":[1,2.5,-3e2,true,false,null],"nested":{"a":{"b":[]}}}',
        b' \t\r\n {"a" : 1 } \n',
        b'"text"',
        b"0",
        b"{}",
        b"[]",
        '{"ключ":"значение 🎉"}'.encode(),
        b'{"a":"\\ud83c\\udf89"}',
        b'{"a":"\\\\u0000 is six characters"}',
        b'{"a":"\\\\\\\\ud800"}',
        b'{"a":{"b":1},"b":{"a":1}}',
        b'[{"a":1},{"a":2}]',
        b"9223372036854775808",
        b'"' + b"[" * 100_000 + b'"',
        b'{"a":"' + b'\\"[' * 20_000 + b'"}',
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" + b"1," * (MAX_TOKENS - 3) + b"1]",
        b'"\xf4\x8f\xbf\xbf"',
    ],
)
def test_good_bodies_pass(body: bytes) -> None:
    check_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{'a':1}",
        b'{"a":1,}',
        b"[1,]",
        b'{"a":1}x',
        b'{"a":1}{"b":2}',
        b"1 2",
        b"nul",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"[1e999]",
        b"-1e999",
        b"01",
        b"+1",
        b".5",
        b"0x10",
        b'"\t"',
        b'"\\x41"',
        b'"unterminated',
        b"/* comment */ 1",
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'{"a":"b\x00"}',
        b"{}\x00",
        b'{"a":"\\u0000"}',
        b'{"\\u0000":1}',
        b'{"a":"\\\\\\u0000"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00"}',
        b'{"a":"\\ud800\\u0041"}',
        b'{"a":"\\ud800\\ud800"}',
        b'{"\\uDBFF":1}',
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'[{"x":{"a":1,"b":2,"a":3}}]',
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b"[" + b"1," * MAX_TOKENS + b"1]",
        b"[" + b"[]," * MAX_TOKENS + b"[]]",
        b"{" + b",".join(b'"%d":1' % n for n in range(MAX_TOKENS // 2)) + b"}",
        b"9" * 5000,
    ],
)
def test_bad_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        check_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'"' * MEBIBYTE,
        b'"' + b"\\" * MEBIBYTE,
        b'\\"' * (MEBIBYTE // 2),
        b'"' + b'\\"' * (MEBIBYTE // 2),
        b'"' + b"\\u004" * (MEBIBYTE // 6),
        b"1" * MEBIBYTE,
        b"1e" + b"9" * MEBIBYTE,
        b"-" * MEBIBYTE,
        b" " * MEBIBYTE,
        b"[1 " + b" " * MEBIBYTE + b"1]",
        b"}" * MEBIBYTE,
        b"[" * 40 + b"]" * MEBIBYTE,
        b'{"' + b"a" * MEBIBYTE,
    ],
)
def test_hostile_bodies_are_refused_quickly_on_a_small_stack(body: bytes) -> None:
    outcome: list[object] = []

    def attempt() -> None:
        try:
            check_json(body)
        except InvalidJson as error:
            outcome.append(error)

    before = threading.stack_size(64 * 1024)
    try:
        thread = threading.Thread(target=attempt)
        started = time.process_time()
        thread.start()
        thread.join()
        spent = time.process_time() - started
    finally:
        threading.stack_size(before)
    assert isinstance(outcome[0], InvalidJson)
    assert spent < 1


def test_a_long_valid_body_takes_time_in_proportion() -> None:
    started = time.process_time()
    check_json(b'{"text":"' + b"\\u00e4" * (MEBIBYTE // 6 - 10) + b'"}')
    check_json(b"0." + b"1" * MEBIBYTE)
    check_json(b'"' + "ä".encode() * (MEBIBYTE // 2) + b'"')
    assert time.process_time() - started < 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_whatever_an_encoder_writes_passes(value: object, ascii_only: bool) -> None:
    check_json(json.dumps(value, ensure_ascii=ascii_only).encode())


@given(st.binary(max_size=60) | st.text('{}[]",:\\u0dD8cC1eE+-. ntfNaI', max_size=60).map(str.encode))
def test_whatever_passes_is_read_by_the_decoder(body: bytes) -> None:
    try:
        check_json(body)
    except InvalidJson:
        return
    decoded = msgspec.json.decode(body)
    assert "\0" not in json.dumps(decoded, ensure_ascii=False)
    json.dumps(decoded, ensure_ascii=False).encode()
