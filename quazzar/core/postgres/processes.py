"""Server processes: ours and adopted ones, watched and stopped alike."""

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import psutil

_STOP_SECONDS = 8
_QUIT_SECONDS = 4


class Server:
    """A server process that we watch and stop: our child, or one that was adopted. Needs a running event loop."""

    def __init__(self, pid: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self.pid = pid
        self._child = child
        self._fd: int | None = None
        with contextlib.suppress(OSError, AttributeError):  # absent on macOS and old kernels: then we look now and then
            self._fd = os.pidfd_open(pid)
        self._born = born(pid) if self._fd is None else None
        self.exit: asyncio.Task[int | None] = asyncio.create_task(self._watch())
        """Done when the process has ended; its exit status, None if it was not our child."""

    async def stop(self) -> None:
        """Fast shutdown, then immediate shutdown, then the kernel's. Returns when the process has ended."""
        for number, seconds in (
            (signal.SIGINT, _STOP_SECONDS),
            (signal.SIGQUIT, _QUIT_SECONDS),
            (signal.SIGKILL, None),
        ):
            if self.exit.done():
                return
            self._signal(number)
            if number != signal.SIGKILL:
                self._signal(signal.SIGCONT)  # a stopped one hears only this and SIGKILL
            await asyncio.wait({self.exit}, timeout=seconds)

    def forget(self) -> None:
        """Watch no longer, and leave the process alone."""
        self.exit.cancel()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._fd is not None:
                signal.pidfd_send_signal(self._fd, number)
            elif self._alive():
                os.kill(self.pid, number)

    def _alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._born is not None and born(self.pid) == self._born

    async def _watch(self) -> int | None:
        try:
            if self._fd is None:
                while self._alive():  # noqa: ASYNC110 - another process's end sets no event
                    await asyncio.sleep(0.2)
            else:
                await _readable(self._fd)
            return None if self._child is None else self._child.wait()
        finally:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, ended.cancel)  # not set_result, which fails when it is called a second time
    try:
        await asyncio.wait({ended})
    finally:
        loop.remove_reader(fd)


def born(pid: int) -> float | None:
    """When the process began; None if there is none, or only its zombie (PID 1 may leave one for long)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def works_in(process: psutil.Process, folder: Path) -> bool:
    """Whether the process's working folder is `folder` or below. False if we may not know (a container's root)."""
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except psutil.Error:
        return False
