"""Bodies in and out: the base structs, shared field types, and a decoder that reports every failing field at once."""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType, inspect

from quazzar.core.errors import Invalid, InvalidJson

__all__ = [
    "UNSET",
    "Email",
    "In",
    "Line",
    "Meta",
    "Name",
    "OptionalIn",
    "Out",
    "Text",
    "UnsetType",
    "decode_body",
    "given",
    "read_value",
    "require_one",
    "unknown_of",
]

T = TypeVar("T")


class In(msgspec.Struct, forbid_unknown_fields=True):
    """A request body: unknown fields are errors. A field that PATCH may leave out is `T | UnsetType = UNSET`.

    A body with several names for one thing lists them in `ONE_OF` and checks itself with `require_one`.
    """


class OptionalIn(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """As `In`, of a request that may come without a body: the handler's default, which is why it may not change."""


class Out(msgspec.Struct):
    """An answer: an allow-list of what may be shown, built field by field."""


def message(text: str) -> dict[str, Any]:
    """For `Meta(extra=…)`: the sentence that a caller reads when this field fails, in place of the derived one."""
    return {"message": text}


Line = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f\x80-\x9f\u2028\u2029]*\Z",
        extra=message("{label} must be 1 to 200 characters without control characters"),
    ),
]
"""One line of text for people."""

Text = Annotated[str, Meta(max_length=4000)]
"""Text of several lines."""

Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\Z",
        extra=message("{label} must be 1 to 63 of a-z, 0-9 and '-', without '-' at either end"),
    ),
]
"""A name that ends up in container names and host names (RFC 1123 label)."""


# The common part of RFC 5321's mailboxes: no quoted local parts, no address literals, international domains as xn--.
Email = Annotated[
    str,
    Meta(
        min_length=3,
        max_length=254,
        pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
        r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+\Z",
        examples=["ada@example.com"],
        extra=message("{label} must be a mail address such as ada@example.com"),
    ),
]


def given(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields that the caller sent: those that are not UNSET."""
    values = ((name, getattr(struct, name)) for name in struct.__struct_fields__)
    return {name: value for name, value in values if value is not UNSET}


def require_one(struct: msgspec.Struct, choice: Collection[str]) -> None:
    """For `__post_init__`: raises ValueError unless exactly one of these fields is given."""
    if sum(getattr(struct, name) is not UNSET for name in choice) != 1:
        raise ValueError(f"One of {', '.join(choice)} has to be given")


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, strict=True)


def read_time(text: str) -> datetime:
    """A time in RFC 3339 form with a zone, in UTC. Raises `msgspec.ValidationError`, also when UTC has no such year."""
    moment: datetime = msgspec.convert(text, Annotated[datetime, Meta(tz=True)], strict=True)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise msgspec.ValidationError("No year of 1 to 9999 in UTC") from error


def in_utc(moment: datetime, field: str) -> datetime:
    """A time of a body in UTC. Raises `Invalid` naming `field` when it is before year 1 or after 9999 there."""
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise Invalid(details={field: f"{_label(field)} must be {_JSON_NAMES[inspect.DateTimeType]}"}) from error


def decode_body(body: bytes, kind: type[T]) -> T:
    """`body` (JSON that has passed the gate's check) as `kind`.

    Raises `InvalidJson` (400) when it can't be read or is of the wrong top type, `Invalid` (422) with one sentence for
    every field that fails.
    """
    if not body:
        raise InvalidJson("The body is empty")
    try:
        decoded: T = _decoder(kind).decode(body)  # type: ignore[arg-type]
    except msgspec.ValidationError as error:
        value = msgspec.json.decode(body)
        info = inspect.type_info(kind)
        if not isinstance(value, dict) and _is_object(info):
            raise InvalidJson("The body must be a JSON object") from error
        raise Invalid(details=_problems(value, info) or {"": str(error)}) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson from error
    return decoded


def read_value(value: object, kind: type[T], *, path: str) -> T:
    """A value that is decoded already as `kind`. Raises `Invalid` with a sentence for every field below `path`."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Invalid(details=_problems(value, inspect.type_info(kind), path) or {path: str(error)}) from error


_MOST_HINTS: Final = 20


def _problems(value: object, info: inspect.Type, path: str = "") -> dict[str, str]:
    problems: dict[str, str] = {}
    _collect(value, info, path, "Value", problems)
    return problems


def _is_object(info: inspect.Type) -> bool:
    """Whether only JSON objects can be of this type: a struct, or one of several that a field tells apart."""
    if isinstance(info, inspect.UnionType):
        return all(_is_object(member) for member in info.types)
    return isinstance(info, inspect.StructType)


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _collect(value: Any, info: inspect.Type, path: str, label: str, problems: dict[str, str]) -> None:
    """Write one sentence into `problems` for each place below `path` where `value` is not of the type `info`."""
    text: str | None = None
    while isinstance(info, inspect.Metadata):
        text = text or (info.extra or {}).get("message")
        info = info.type
    found: str | None = None
    match info:
        case inspect.StructType():
            _collect_struct(value, info, path, label, problems)
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() | inspect.FrozenSetType():
            found = _collect_array(value, info, path, label, problems)
        case inspect.DictType():
            if isinstance(value, dict):
                for key, item in value.items():
                    _collect(item, info.value_type, _join(path, str(key)), _label(str(key)), problems)
            else:
                found = f"{label} must be an object"
        case inspect.UnionType() if text is not None:
            found = text if _problems(value, info) else None
        case inspect.UnionType():
            _collect_union(value, info, path, label, problems)
        case _:
            found = _scalar_problem(value, info, label)
    if found is not None:
        problems[path] = text.format(label=label) if text is not None else found


def _collect_array(value: Any, info: Any, path: str, label: str, problems: dict[str, str]) -> str | None:
    if not isinstance(value, list):
        return f"{label} must be an array"
    if info.min_length is not None and len(value) < info.min_length:
        return f"{label} needs at least {info.min_length} item{'s' if info.min_length != 1 else ''}"
    if info.max_length is not None and len(value) > info.max_length:
        return f"{label} can have at most {info.max_length} items"
    for index, item in enumerate(value):
        _collect(item, info.item_type, _join(path, str(index)), label, problems)
    return None


def _collect_struct(value: Any, info: inspect.StructType, path: str, label: str, problems: dict[str, str]) -> None:
    if not isinstance(value, dict):
        problems[path] = f"{label} must be an object"
        return
    known = {field.encode_name: field for field in info.fields}
    for name, field in known.items():
        if name in value:
            _collect(value[name], field.type, _join(path, name), _label(name), problems)
        elif field.required:
            problems[_join(path, name)] = f"{_label(name)} is required"
    problems |= _choice_problem(value, getattr(info.cls, "ONE_OF", ()), path)
    if info.forbid_unknown_fields:
        names = [str(name) for name in value if name != info.tag_field]
        problems |= {_join(path, name): f"Unknown field{hint}" for name, hint in unknown_of(names, known)}


def _choice_problem(value: dict[str, Any], choice: tuple[str, ...], path: str) -> dict[str, str]:
    """What is wrong where one of the names in `choice`, and no more, has to be given."""
    names = [name for name in choice if name in value]
    if choice and not names:
        return {_join(path, choice[0]): f"{_label(choice[0])} is required"}
    return {_join(path, name): f"{_label(name)} can't go together with {names[0]}" for name in names[1:]}


def unknown_of(names: Iterable[str], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Those that are not `known`, each with what may have been meant, as the end of a sentence."""
    for place, name in enumerate(name for name in names if name not in known):
        # Of the first few only: to look for what was meant takes long, and there may be thousands.
        close = difflib.get_close_matches(name, known, n=1) if place < _MOST_HINTS else ()
        yield name, f"; did you mean {close[0]}?" if close else ""


def _collect_union(value: Any, info: inspect.UnionType, path: str, label: str, problems: dict[str, str]) -> None:
    members = [member for member in info.types if not isinstance(member, inspect.NoneType | inspect.CustomType)]
    if value is None and info.includes_none:
        return
    tagged = [member for member in members if isinstance(member, inspect.StructType) and member.tag_field]
    if tagged and isinstance(value, dict):
        tag_field = tagged[0].tag_field or ""
        for choice in tagged:
            if value.get(tag_field) == choice.tag:
                _collect_struct(value, choice, path, label, problems)
                return
        tags = ", ".join(str(choice.tag) for choice in tagged)
        problems[_join(path, tag_field)] = f"{_label(tag_field)} must be one of: {tags}"
        # And what is wrong whichever of them was meant.
        first, *others = [_attempt(value, choice, path, label) for choice in tagged]
        problems |= {where: text for where, text in first.items() if all(where in other for other in others)}
        return
    attempts: list[dict[str, str]] = []
    for member in members:
        attempt = _attempt(value, member, path, label)
        if not attempt:
            return
        attempts.append(attempt)
    if attempts:
        # The member of the right JSON type says most: its complaint is about the value, not the type.
        problems.update(next((a for a in attempts if not any(" must be a" in s for s in a.values())), attempts[0]))


def _attempt(value: Any, info: inspect.Type, path: str, label: str) -> dict[str, str]:
    """What would be wrong with `value` if it were to be of this member of a union."""
    problems: dict[str, str] = {}
    _collect(value, info, path, label, problems)
    return problems


_JSON_NAMES = {
    inspect.StrType: "a string",
    inspect.BoolType: "true or false",
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.DateTimeType: "a time in RFC 3339 form with a zone",
    inspect.NoneType: "null",
}


def _scalar_problem(value: Any, info: inspect.Type, label: str) -> str | None:
    match info:
        case inspect.AnyType() | inspect.RawType():
            return None
        case inspect.StrType():
            return _string_problem(value, info, label)
        case inspect.BoolType():
            return None if isinstance(value, bool) else f"{label} must be true or false"
        case inspect.IntType() | inspect.FloatType():
            return _number_problem(value, info, label)
        case inspect.LiteralType():
            if any(value == choice and type(value) is type(choice) for choice in info.values):
                return None
            return f"{label} must be one of: {', '.join(str(choice) for choice in info.values)}"
        case inspect.EnumType():
            choices = [member.value for member in info.cls]
            return None if value in choices else f"{label} must be one of: {', '.join(map(str, choices))}"
        case inspect.DateTimeType():
            try:
                msgspec.convert(value, Annotated[datetime, Meta(tz=True)], strict=True)
            except msgspec.ValidationError:
                return f"{label} must be {_JSON_NAMES[inspect.DateTimeType]}"
            return None
        case _:
            return f"{label} must be {_JSON_NAMES.get(type(info), 'of another type')}"


def _string_problem(value: Any, info: inspect.StrType, label: str) -> str | None:
    if not isinstance(value, str):
        return f"{label} must be a string"
    low, high = info.min_length, info.max_length
    if (low is not None and len(value) < low) or (high is not None and len(value) > high):
        if value == "" and low:
            return f"{label} must not be empty"
        if low and high is not None:
            return f"{label} must be {low} to {high} characters long"
        return (
            f"{label} must be at least {low} characters long"
            if low
            else f"{label} must be at most {high} characters long"
        )
    if info.pattern is not None and re.search(info.pattern, value) is None:
        return f"{label} has a form that is not allowed"
    return None


def _number_problem(value: Any, info: inspect.IntType | inspect.FloatType, label: str) -> str | None:
    whole = isinstance(info, inspect.IntType)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{label} must be {'a whole number' if whole else 'a number'}"
    low = info.ge if info.ge is not None else info.gt
    high = info.le if info.le is not None else info.lt
    outside = (
        (info.ge is not None and value < info.ge)
        or (info.gt is not None and value <= info.gt)
        or (info.le is not None and value > info.le)
        or (info.lt is not None and value >= info.lt)
    )
    if not outside:
        return None
    if low is not None and high is not None:
        return f"{label} must be between {low} and {high}"
    return f"{label} must be at least {low}" if low is not None else f"{label} must be at most {high}"
