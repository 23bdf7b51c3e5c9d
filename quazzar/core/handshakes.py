"""Connections that begin with TLS: no more at once than can be brought to an end while their callers still wait.

A handshake costs more than most requests, and thousands of callers whose server was away come back within seconds. Were
all of them let in, each would wait for all others, give up, and come again, and what was done for it would be for
nothing. Who is turned away knows at once, and comes back later.
"""

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger(__name__)

HANDSHAKE_SECONDS: Final = 10.0
_AT_ONCE: Final = 200
_TELL_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.5
# The process or the machine has no room for one more open file right now.
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TlsListener:
    """Takes connections from a socket that listens, and gives each a protocol once its handshake is done.

    Has the part of `asyncio.Server` that a server needs to end it.
    """

    def __init__(
        self, bound: socket.socket, tls: ssl.SSLContext, factory: Callable[[], asyncio.Protocol], *, most: int
    ) -> None:
        self._bound = bound
        self._tls = tls
        self._factory = factory
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._pending: set[asyncio.Task[None]] = set()
        self._resuming: asyncio.TimerHandle | None = None
        self._turned_away = 0
        self._told_at = 0.0
        self._loop.add_reader(bound.fileno(), self._accept)

    def close(self) -> None:
        """Take no more; handshakes that are under way end."""
        self._loop.remove_reader(self._bound.fileno())
        if self._resuming is not None:
            self._resuming.cancel()
        for task in self._pending:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._pending, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._bound.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _FULL:
                    self._pause(error)
                    return
                continue  # it has gone again before it was taken
            if len(self._pending) >= self._most:
                connection.close()
                self._turn_away()
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._shake_hands(connection))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    async def _shake_hands(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            await self._loop.connect_accepted_socket(
                self._factory, connection, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )

    def _pause(self, error: OSError) -> None:
        """What waits can't be taken: asking again at once would only take the time of those that are in."""
        log.error("Connections can't be taken", reason=error.strerror)
        self._loop.remove_reader(self._bound.fileno())
        self._resuming = self._loop.call_later(
            _PAUSE_SECONDS, lambda: self._loop.add_reader(self._bound.fileno(), self._accept)
        )

    def _turn_away(self) -> None:
        self._turned_away += 1
        now = time.monotonic()
        if now - self._told_at > _TELL_SECONDS:
            log.warning("Connections are turned away: too many begin at once", count=self._turned_away)
            self._turned_away, self._told_at = 0, now
