"""How little the process keeps of memory that it has given back: the C library's allocator, told once."""

import contextlib
import ctypes
from typing import Final

# <malloc.h> of glibc; other C libraries have neither the functions nor the habits that these are against.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE_BYTES: Final = 128 * 1024


def keep_little() -> None:
    """Call before threads are started. One arena for all of them, since a thread of Python seldom allocates while
    another does; and what is large goes back to the system as soon as it is freed, however large it was before.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_THRESHOLD, _LARGE_BYTES),
            (_M_TRIM_THRESHOLD, _LARGE_BYTES),
        ):
            library.mallopt(parameter, value)


def give_back() -> None:
    """Return what lies free between things still in use; once, when all that stays has been loaded."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
