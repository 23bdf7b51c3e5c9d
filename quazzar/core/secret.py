"""A text that must not be seen: every way of printing it gives a mask."""

from typing import Final, NoReturn

MASK: Final = "********"


class Secret:
    """Wraps a secret text. `reveal()` is the only way to it, so that every use can be found by name.

    Equal only to another Secret with the same text (compared in constant time). It can't be pickled.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        from hmac import compare_digest  # noqa: PLC0415 - hmac loads OpenSSL, which reading settings does not need

        return isinstance(other, Secret) and compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Secret is not written anywhere")
