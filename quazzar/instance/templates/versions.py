"""Versions of templates next to each other: their publishers order them, their numbers only warn."""

import re
from typing import Final

_NUMBERS: Final = re.compile(r"[vV]?(\d{1,12}(?:\.\d{1,12}){0,7})")


def reads_older(version: str, than: str) -> bool:
    """Whether the leading numbers of a version say that it is older than another one; what has none says nothing.

    The newest version of a template is the one that was published last. This is for who must never go back by it.
    """
    left, right = _release(version), _release(than)
    if not left or not right:
        return False
    width = max(len(left), len(right))
    return left + [0] * (width - len(left)) < right + [0] * (width - len(right))


def _release(version: str) -> list[int]:
    found = _NUMBERS.match(version)
    return [int(one) for one in found[1].split(".")] if found is not None else []
