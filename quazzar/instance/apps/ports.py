"""Host ports of apps: which are wanted, which are free, and who holds them."""

import errno
import random
import socket
from collections.abc import Collection, Iterator

FIRST_AUTO_PORT = 20_000
LAST_AUTO_PORT = 29_999
"""Below the range from which systems take the ports of outgoing connections."""


def pick_ports(count: int, *, avoid: Collection[int]) -> list[int]:
    """`count` ports that are outside `avoid` and that nothing on this machine listens on now.

    Another program may take one before the app starts; the install then picks again. Raises `LookupError` when there
    are not so many.
    """
    found: list[int] = []
    for port in _candidates():
        if len(found) == count:
            break
        if port not in avoid and is_free(port):
            found.append(port)
    if len(found) < count:
        raise LookupError
    return found


def _candidates() -> Iterator[int]:
    span = LAST_AUTO_PORT - FIRST_AUTO_PORT + 1
    start = random.randrange(span)  # noqa: S311 - spread, not secrecy
    return (FIRST_AUTO_PORT + (start + step) % span for step in range(span))


def is_free(port: int) -> bool:
    """Whether nothing on this machine listens on the port, TCP or UDP."""
    return not any(_refusal(port, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))


def is_listened_on(port: int, protocol: str) -> bool:
    """Whether some program of this machine has the port; what can't be tried, such as port 80 without rights, is not.

    Unlike for `is_free`, connections that are still closing don't count: an engine publishes over them.
    """
    if protocol == "udp":
        return _refusal(port, socket.SOCK_DGRAM) == errno.EADDRINUSE
    return _refusal(port, socket.SOCK_STREAM, over_closing=True) == errno.EADDRINUSE


def _refusal(port: int, kind: socket.SocketKind, *, over_closing: bool = False) -> int:
    """The number of the error that keeps a program from the port on all addresses, those of IPv6 too; 0 for none."""
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - as apps publish
        try:
            with socket.socket(family, kind) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if over_closing:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((everywhere, port))
        except OSError as error:
            # Where there is no IPv6, nobody listens on it.
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                return error.errno or errno.EIO
    return 0
