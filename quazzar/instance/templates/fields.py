"""The fields of a template: what a form asks for, and the rules that a value of `config` must keep."""

import math
import re
import secrets
import string
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from quazzar.instance.templates.names import host_name
from quazzar.instance.templates.patterns import MAX_TEXT, Pattern, PatternError
from quazzar.instance.templates.quantities import number_text

FieldType = Literal["string", "integer", "number", "boolean", "select", "password", "port", "email", "url", "domain"]
Setting = str | int | float | bool
"""A value of `config` that has been checked."""

AUTO = "auto"
MAX_VALUE = 32_768
"""Characters of a text without a pattern; with one it is `patterns.MAX_TEXT`."""
MAX_INTEGER = 2**53 - 1
"""Beyond it, a JavaScript form would change the number silently."""
MIN_PASSWORD = 8
MASK = "********"
TEXT_TYPES = frozenset({"string", "password", "email", "url", "domain", "select"})
NUMBER_TYPES = frozenset({"integer", "number", "port"})

_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@([A-Za-z0-9.-]{1,253})")
_SPACE = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_ALPHABET = string.ascii_letters + string.digits


class Field(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of `x-quazzar.fields`: a key of `config`, and `${name}` in the file.

    `default` of a port may be `auto`: a free port is found at install and kept. `generated` is the number of random
    letters and digits that are made up when the value is absent. `min` and `max` bound numbers and chosen ports,
    `min_length` and `max_length` texts. `secret` values are masked wherever a config is shown.
    """

    name: str
    label: str
    type: FieldType
    description: str = ""
    required: bool = False
    default: Setting | None = None
    pattern: str | None = None
    min: int | float | None = None
    max: int | float | None = None
    min_length: int | None = None
    max_length: int | None = None
    options: tuple[str, ...] = ()
    secret: bool = False
    generated: int | None = None


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Pattern:
    """Raises `PatternError`."""
    return Pattern(pattern)


def checked(field: Field, value: object) -> Setting:
    """`value` as a value of `field`; raises ValueError with a sentence part (`must be …`) that never repeats it.

    Types are strict, as in every body: no `"8080"` for a port and no `1` for a boolean.
    """
    match field.type:
        case "boolean":
            if not isinstance(value, bool):
                raise ValueError("must be true or false")
            return value
        case "integer" | "number":
            return _number(field, value)
        case "port":
            return _port(field, value)
        case _:
            return _text(field, value)


def _number(field: Field, value: object) -> Setting:
    whole = field.type == "integer"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError("must be a whole number" if whole else "must be a number")
    assert isinstance(value, int | float)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    low = field.min if field.min is not None else -MAX_INTEGER
    high = field.max if field.max is not None else MAX_INTEGER
    if not low <= value <= high:
        raise ValueError(_between(field.min, field.max, low, high))
    return value


def _between(least: float | None, most: float | None, low: float, high: float) -> str:
    if least is not None and most is None:
        return f"must be at least {number_text(low)}"
    if most is not None and least is None:
        return f"must be at most {number_text(high)}"
    return f"must be between {number_text(low)} and {number_text(high)}"


def _port(field: Field, value: object) -> Setting:
    if value == AUTO:
        return AUTO
    low, high = int(field.min or 1), int(field.max or 65535)
    if isinstance(value, str) and value.isdecimal():
        raise ValueError(f"must be a number between {low} and {high}, without quotes")
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"must be between {low} and {high}")
    return value


def _text(field: Field, value: object) -> Setting:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if field.type == "select":
        if value not in field.options:
            raise ValueError(f"must be one of: {', '.join(field.options)}")
        return value
    if value == "" and not field.required:
        return value
    low, high = text_bounds(field)
    if not low <= len(value) <= high:
        raise ValueError(
            f"must be {low} to {high} characters long" if low else f"must be at most {high} characters long"
        )
    if "\x00" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("must be text without the character U+0000")
    _FORMS.get(field.type, _any)(value)
    if field.pattern is not None and not compiled(field.pattern).matches(value):
        raise ValueError("has a form that is not allowed")
    return value


def text_bounds(field: Field) -> tuple[int, int]:
    """The least and most characters of a text that is not empty."""
    password = MIN_PASSWORD if field.type == "password" else 0
    low = field.min_length if field.min_length is not None else password
    most = MAX_TEXT if field.pattern is not None else MAX_VALUE
    return max(low, 1 if field.required else 0), most if field.max_length is None else field.max_length


def _any(value: str) -> None:
    del value


def _email(value: str) -> None:
    found = _EMAIL.fullmatch(value) if len(value) <= 320 else None
    if found is None or ".." in value or value.startswith(".") or ".@" in value:
        raise ValueError("must be an e-mail address")
    try:
        host_name(found[1])
    except ValueError:
        raise ValueError("must be an e-mail address") from None


def _url(value: str) -> None:
    wrong = "must be a URL that begins with http:// or https://"
    if len(value) > 2048 or _SPACE.search(value):
        raise ValueError(wrong)
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise ValueError(wrong)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must be a URL without a user name and password")
    if ":" not in host:  # the brackets of an IPv6 address have been checked by the split
        try:
            host_name(host.rstrip("."))
        except ValueError:
            raise ValueError(wrong) from None


def _domain(value: str) -> None:
    if value != value.lower() or not value.isascii():
        raise ValueError("must be a domain in lower case; write other scripts in their xn-- form")
    try:
        host_name(value)
    except ValueError:
        raise ValueError("must be a domain such as cloud.example.com") from None
    if value.replace(".", "").isdigit():
        raise ValueError("must be a domain, not an address")


_FORMS: Mapping[str, Callable[[str], None]] = {"email": _email, "url": _url, "domain": _domain}


def rule_problems(field: Field) -> dict[str, str]:
    """What is wrong with the rules themselves: key of the field → sentence part. Its default is checked last."""
    found = _misplaced(field)
    numeric = field.type in NUMBER_TYPES
    if numeric and field.min is not None and field.max is not None and field.min > field.max:
        found["min"] = "must not be above max"
    if field.type == "port":
        for key in ("min", "max"):
            bound = getattr(field, key)
            if bound is not None and not (isinstance(bound, int) and 1 <= bound <= 65535):
                found[key] = "must be a port between 1 and 65535"
    if field.pattern is not None and "pattern" not in found:
        try:
            compiled(field.pattern)
        except PatternError as error:
            found["pattern"] = f"is not a pattern that can be used: {error}"
    low, high = text_bounds(field)
    if low > high:
        found["min_length"] = "must not be above max_length"
    if field.max_length is not None and field.max_length > (MAX_TEXT if field.pattern is not None else MAX_VALUE):
        most = MAX_TEXT if field.pattern is not None else MAX_VALUE
        found["max_length"] = f"must be at most {most}"
    if field.generated is not None and "generated" not in found and not low <= field.generated <= high:
        found["generated"] = "must lie between min_length and max_length"
    if field.default is not None and not found:
        try:
            checked(field, field.default)
        except ValueError as error:
            found["default"] = str(error)
    return found


def _misplaced(field: Field) -> dict[str, str]:
    """Rules that mean nothing for a field of this type."""
    found: dict[str, str] = {}
    text = field.type in TEXT_TYPES and field.type != "select"
    for key, fits in (
        ("min", field.type in NUMBER_TYPES),
        ("max", field.type in NUMBER_TYPES),
        ("min_length", text),
        ("max_length", text),
        ("pattern", text),
        ("generated", field.type in {"string", "password"}),
        ("options", field.type == "select"),
    ):
        if not fits and getattr(field, key) not in {None, ()}:
            found[key] = f"means nothing for a field of type {field.type}"
    if field.type == "select" and not field.options:
        found["options"] = "must list what can be chosen"
    if field.secret and field.type not in {"string", "password", "url"}:
        found["secret"] = f"means nothing for a field of type {field.type}"
    if field.secret and field.default is not None:
        found["default"] = "is refused: a secret that everybody can read is none; use generated or required"
    if field.generated is not None and field.pattern is not None:
        found["generated"] = "can't go together with pattern"
    if field.generated is not None and field.default is not None:
        found.setdefault("generated", "can't go together with default")
    return found


def generate(field: Field) -> str:
    """Random letters and digits, `generated` of them: nothing that a file format or a URL would trip over."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(field.generated or 0))


def setting_text(value: Setting) -> str:
    """A value as it stands in the file after `${name}` is filled in."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = f"{value:.15f}".rstrip("0").rstrip(".") if 1e-15 <= abs(value) < 1e15 else repr(value)
        return text if float(text) == value else repr(value)
    return str(value)


def config_texts(fields: tuple[Field, ...], config: Mapping[str, Any]) -> dict[str, str]:
    """Name → text of every field that has a value."""
    return {one.name: setting_text(config[one.name]) for one in fields if config.get(one.name) is not None}
