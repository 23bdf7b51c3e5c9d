"""Which new passwords are taken: long enough, and not among those that everybody tries first."""

import re
from importlib.resources import files
from typing import Final

from quazzar.accounts.errors import PasswordRefused

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 128

_COMMON = "This password is on the list of common ones"
_LEET: Final = str.maketrans("013457@$!|", "oieastasii")
_PRODUCT: Final = frozenset({"quazzar", "quazar", "cloudos", "controlpanel", "selfhosted", "selfhosting", "homelab"})
# Rows of keyboards, the alphabet and the digits, forwards; backwards is tried too.
_RUNS: Final = (
    "abcdefghijklmnopqrstuvwxyz" * 2,
    "1234567890" * 3,
    "0123456789" * 3,
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertyuiop[]",
    "qwertzuiopasdfghjklyxcvbnm",
    "azertyuiopqsdfghjklmwxcvbn",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
    "1q2w3e4r5t6y7u8i9o0p",
    "qazwsxedcrfvtgbyhnujmikolp",
)


def check_password(password: str, *, field: str, own: tuple[str, ...] = ()) -> None:
    """Raise `PasswordRefused` when a new password is not to be taken; `own` are names that it must not consist of."""
    if len(password) < MIN_LENGTH:
        raise PasswordRefused(field, f"Password must be at least {MIN_LENGTH} characters long")
    if len(password) > MAX_LENGTH:
        raise PasswordRefused(field, f"Password must be at most {MAX_LENGTH} characters long")
    if is_common(password):
        raise PasswordRefused(field, _COMMON)
    if _core(password) in {_core(name) for name in own if name}:
        raise PasswordRefused(field, "The password must not be your own name")


def is_common(password: str) -> bool:
    """Whether a guesser finds it early: on the list, a listed word with a little around it, a run or a repetition.

    The list is read each time: passwords are set seldom, and it would be the biggest thing in memory.
    """
    low = password.lower()
    listed = "\n" + (files("quazzar.accounts") / "common_passwords.txt").read_text(encoding="ascii")
    if f"\n{low}\n" in listed or _is_pattern(low):
        return True
    word = _core(low)
    around = low.replace(word, "", 1)
    if len(around) <= 6 or _is_pattern(around):
        for form in {word, word.translate(_LEET), _core(low.translate(_LEET))} - {""}:
            unit = _repeated(form)
            if unit in _PRODUCT or f"\n{unit}\n" in listed or _is_pattern(unit):
                return True
    plain = re.sub(r"[\W_]+", "", low)
    unit = _repeated(plain)
    return unit != plain and (len(unit) <= 6 or is_common(unit))


def _is_pattern(text: str) -> bool:
    """A run along the keyboard or the alphabet either way, or hardly more than one letter."""
    return len(set(text)) <= 3 or any(text in run or text[::-1] in run for run in _RUNS)


def _core(password: str) -> str:
    """What is left without the digits and signs at both ends, in lower case."""
    return re.sub(r"^[\W\d_]+|[\W\d_]+$", "", password.lower())


def _repeated(text: str) -> str:
    """The shortest part that `text` is a repetition of: `abcabc` gives `abc`."""
    at = (text + text).find(text, 1)
    return text[:at] if at > 0 else text
