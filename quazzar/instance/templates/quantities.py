"""Compose's written amounts: durations, byte sizes, counts, ports. All raise ValueError with a sentence part."""

import re
from decimal import Decimal

_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(us|ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern}){{1,8}}")
_SECONDS = {"us": Decimal("0.000001"), "ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)
_POWER = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_NUMBER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?")
MAX_SIZE = 1 << 50
MAX_DURATION = 24 * 3600


def duration_seconds(text: str) -> float:
    """`1m30s`, `1.5h`, `500ms`, at most a day."""
    if len(text) > 100 or not _DURATION.fullmatch(text):
        raise ValueError("must be a duration such as 30s or 1m30s")
    total = sum((Decimal(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)), Decimal(0))
    if total > MAX_DURATION:
        raise ValueError("must be a duration of at most 24h")
    return float(total)


def size_bytes(text: str) -> int:
    """`64m`, `1gb`, `1.5GiB` or a number of bytes; a kilobyte is 1024 bytes, as for the engine. At most 1 PiB."""
    found = _SIZE.fullmatch(text) if len(text) <= 40 else None
    if found is None:
        raise ValueError("must be a size such as 64m or 1gb")
    size = int(Decimal(found[1]) * 1024 ** _POWER.get((found[2] or "").lower(), 0))
    if not 0 < size <= MAX_SIZE:
        raise ValueError("must be a size between 1 byte and 1 PiB")
    return size


def memory_bytes(text: str) -> int:
    size = size_bytes(text)
    if size < 6 << 20:
        raise ValueError("must be at least 6m, the least that the engine takes")
    return size


def cpu_count(text: str) -> float:
    number = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not 0.01 <= number <= 1024:
        raise ValueError("must be a number of CPUs between 0.01 and 1024, such as 0.5")
    return number


def whole_number(text: str, low: int, high: int) -> int:
    number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if number is None or not low <= number <= high:
        raise ValueError(f"must be a whole number between {low} and {high}")
    return number


def port_number(text: str) -> int:
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if not 1 <= number <= 65535:
        raise ValueError("must be a port between 1 and 65535")
    return number


def truth(text: str) -> bool:
    """The words that Compose takes for a boolean that came out of a `${name}`."""
    match text.lower():
        case "true" | "1" | "yes" | "on" | "y" | "t":
            return True
        case "false" | "0" | "no" | "off" | "n" | "f":
            return False
        case _:
            raise ValueError("must be true or false")


def number_text(number: float) -> str:
    """A number of the YAML text as Compose writes it into an environment: Go's `%v`, with exponents from 1e+06."""
    if isinstance(number, int):
        return str(number)
    digits, _, exponent = f"{number!r}".partition("e")
    sign = "-" if digits.startswith("-") else ""
    whole, _, fraction = digits.removeprefix("-").partition(".")
    figures = (whole + fraction).lstrip("0")
    leading = len(whole + fraction) - len(figures)
    point = len(whole) - leading + int(exponent or 0)
    figures = figures.rstrip("0") or "0"
    if figures == "0":
        return sign + "0"
    power = point - 1
    if power < -4 or power >= 6:
        rest = f".{figures[1:]}" if len(figures) > 1 else ""
        return f"{sign}{figures[0]}{rest}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{figures}"
    if len(figures) <= point:
        return sign + figures + "0" * (point - len(figures))
    return f"{sign}{figures[:point]}.{figures[point:]}"
