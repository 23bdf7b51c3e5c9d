"""A check of JSON bodies before anything decodes them: what this lets through is safe for every decoder after it."""

import json
import re
from typing import Any, NoReturn

from quazzar.core.errors import InvalidJson

MAX_DEPTH = 32
MAX_TOKENS = 10_000

_BOM = b"\xef\xbb\xbf"
# Possessive, and satisfied with a missing closing quote, so that the scan never goes back over the body.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
# Text whose escapes all stand for characters: no NUL, and surrogates only as pairs. An escape takes the byte after the
# backslash along, so `\\u0000` (a backslash and five characters) is not mistaken for a NUL.
_ESCAPES = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?:(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4}|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*+",
    re.DOTALL,
)
_INFINITE = (float("inf"), float("-inf"))


def _object(pairs: list[tuple[str, Any]]) -> None:
    # The values are thrown away: only the answer whether they parse is of interest.
    if len({key for key, _ in pairs}) != len(pairs):
        raise InvalidJson("The body has an object with the same key twice")


def _float(text: str) -> float:
    value = float(text)
    if value in _INFINITE:
        raise InvalidJson("The body has a number that is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise InvalidJson(f"The body is not valid JSON: {name} is not a JSON value")


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant).decode


def check_json(body: bytes) -> None:
    """Raise `InvalidJson` unless `body` is one JSON text (RFC 8259) that every part of the system reads alike.

    Refused beyond bad syntax: anything but UTF-8 without a byte order mark, NUL and lone surrogates (also as escapes),
    an object with a key twice, nesting deeper than 32, more than 10,000 keys and values, NaN and infinities, numbers
    beyond the range of a double and integers of more than 4,300 digits. Linear in the length; the decoder that recurses
    is only reached by bodies that are not deep, so the size of the thread's stack does not matter. Bodies of more than
    64 KiB are best checked in a thread.
    """
    if b"\0" in body:
        raise InvalidJson("The body has a NUL character")
    if body.startswith(_BOM):
        raise InvalidJson("The body starts with a byte order mark")
    openers = body.count(b"[") + body.count(b"{")
    # Few brackets in few bytes can neither be deep nor many: the usual body is spared the scan.
    if openers > MAX_DEPTH or len(body) > MAX_TOKENS:
        _check_shape(body)
    if b"\\u" in body:
        match = _ESCAPES.match(body)
        if match is None or match.end() != len(body):
            raise InvalidJson("The body has an escape that is not a character")
    try:
        _decode(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidJson("The body is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise InvalidJson(f"The body is not valid JSON (line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        # Python's own limit on the digits of an integer; nothing else is left that could raise this.
        raise InvalidJson("The body has a number that is too long") from error


def _check_shape(body: bytes) -> None:
    """The limits of depth and count, from the punctuation that is left when the strings are taken out."""
    bare, strings = _STRING.subn(b"", body, count=MAX_TOKENS + 1)
    openers = bare.count(b"[") + bare.count(b"{")
    # Each comma and each colon stands before one key or value, and so does each bracket that is not empty.
    if strings > MAX_TOKENS or bare.count(b",") + bare.count(b":") + openers + 1 > MAX_TOKENS:
        raise InvalidJson(f"The body has more than {MAX_TOKENS:,} keys and values")
    if openers <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        if bracket[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidJson(f"The body is nested deeper than {MAX_DEPTH} levels")
        else:
            depth -= 1
            if depth < 0:
                raise InvalidJson
