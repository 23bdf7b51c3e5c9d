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
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - apps publish on all addresses
            except OSError:
                return False
    return True


def is_listened_on(port: int, protocol: str) -> bool:
    """Whether some program of this machine has the port; what can't be tried, such as port 80 without rights, is not.

    Unlike for `is_free`, connections that are still closing don't count: an engine publishes over them.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM) as probe:
        if protocol != "udp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - apps publish on all addresses
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
