"""The one cookie that counts: that of a session which a panel's user has opened on an instance.

A browser sends cookies by itself, whoever made it ask. So this one only counts with a sign that the question came from
a page of this very origin; `SameSite` alone would trust whatever else the same host serves on other ports or names.
"""

from collections.abc import Mapping
from typing import Final

NAME: Final = "quazzar_session"
SECURE_NAME: Final = f"__Host-{NAME}"
"""Over TLS: the prefix has browsers refuse it from other hosts of the domain and from plain HTTP."""

MARK: Final = b"cookie\n"
"""Before the token in place of a scheme. With its line break, which no header can hold, nothing that comes in
`Authorization` is taken for a cookie, nor a cookie for a bearer token.
"""

_NAMES: Final = (NAME.encode(), SECURE_NAME.encode())
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def credential(header: bytes) -> bytes | None:
    """What an authenticator is given for a `Cookie` header; None without our cookie, and where it is there twice: one
    of the two was put there by somebody else.
    """
    pairs = (pair.strip().partition(b"=") for pair in header.split(b";"))
    found = [value for name, _, value in pairs if name in _NAMES]
    return MARK + found[0] if len(found) == 1 else None


def is_of_own_origin(headers: Mapping[bytes, bytes], method: str | None) -> bool:
    """Whether a request was made by a page of this origin, or by typing its address; `method` is None for a WebSocket.

    `Sec-Fetch-Site` decides where a browser sends it, else `Origin`. Without both only what changes nothing is let in.
    """
    safe = method in _SAFE
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site == b"same-origin" or (safe and site == b"none")
    origin = headers.get(b"origin")
    if origin is None:
        return safe
    host = headers.get(b"host", b"").lower()
    return bool(host) and origin.lower() in (b"https://" + host, b"http://" + host)


def session_cookie(token: str, *, seconds: int, secure: bool) -> str:
    """The value of a `Set-Cookie` header: not for scripts, not sent from other sites, gone after `seconds`."""
    name, flag = (SECURE_NAME, "; Secure") if secure else (NAME, "")
    return f"{name}={token}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Strict{flag}"
